//! Quantities: `100m`, `1.5Gi`, `12e6`. Exact decimal numbers with the format they are printed in.
//!
//! Invariants: at most nine decimal places (finer ones are rounded away from zero when read); a quantity that was
//! already canonical prints as it was written; the mantissa has at most [`MAX_DIGITS`] digits.

use std::cmp::Ordering;
use std::fmt;

use crate::value::{Str, Value};

/// Longest mantissa that is read, in digits.
pub const MAX_DIGITS: usize = 36;
/// Largest exponent of ten that is read.
const MAX_EXPONENT: i32 = 1 << 20;
/// Finest decimal place kept.
const NANO: i32 = -9;

/// How a quantity is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `1500m`, `2k`
    Decimal,
    /// `1536Mi`
    Binary,
    /// `12e6`
    Exponent,
}

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantityError {
    Format,
    Suffix,
    /// More digits than [`MAX_DIGITS`], or an exponent beyond every use.
    Number,
}

impl fmt::Display for QuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QuantityError::Format => {
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            }
            QuantityError::Suffix => "unable to parse quantity's suffix",
            QuantityError::Number => "unable to parse numeric part of quantity",
        })
    }
}

impl std::error::Error for QuantityError {}

/// `mantissa * 10^exponent`.
#[derive(Clone, Debug)]
pub struct Quantity {
    mantissa: i128,
    exponent: i32,
    format: Format,
    /// The text it was read from, where that is kept.
    text: Option<Str>,
}

impl Default for Quantity {
    fn default() -> Quantity {
        Quantity { mantissa: 0, exponent: 0, format: Format::Decimal, text: None }
    }
}

/// The parts of a text: is it negative, the digits before and after the point, and the suffix.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Parts<'a>, QuantityError> {
        let digits = |text: &'a str| text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
        let (negative, rest) = match text.as_bytes() {
            [b'-', ..] => (true, &text[1..]),
            [b'+', ..] => (false, &text[1..]),
            _ => (false, text),
        };
        let rest = rest.trim_start_matches('0');
        let (whole, rest) = digits(rest);
        let whole = if whole.is_empty() { "0" } else { whole };
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => digits(rest),
            None => ("", rest),
        };
        let letters = suffix.bytes().take_while(|byte| b"eEinumkKMGTP".contains(byte)).count();
        let power = suffix[letters..].strip_prefix(['-', '+']).unwrap_or(&suffix[letters..]);
        match power.bytes().all(|byte| byte.is_ascii_digit()) {
            true => Ok(Parts { negative, whole, fraction, suffix }),
            false => Err(QuantityError::Format),
        }
    }
}

/// What a suffix multiplies with: a power of ten or of two.
fn interpret(suffix: &str) -> Result<(i32, u32, Format), QuantityError> {
    let decimal = |exponent| Ok((exponent, 0, Format::Decimal));
    let binary = |exponent| Ok((0, exponent, Format::Binary));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let power = suffix.strip_prefix(['e', 'E']).filter(|power| !power.is_empty());
            let power: i64 = power.and_then(|power| power.parse().ok()).ok_or(QuantityError::Suffix)?;
            match i32::try_from(power) {
                Ok(power) if power.abs() <= MAX_EXPONENT => Ok((power, 0, Format::Exponent)),
                _ => Err(QuantityError::Number),
            }
        }
    }
}

impl Quantity {
    /// Reads a quantity as JSON has it (outer spaces are allowed).
    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        let parts = Parts::of(text)?;
        let (ten, two, format) = interpret(parts.suffix)?;
        if text.starts_with('.') && parts.fraction.is_empty()
            || text
                .trim_start_matches(['+', '-'])
                .starts_with(['e', 'E', 'i', 'n', 'u', 'm', 'k', 'K', 'M', 'G', 'T', 'P'])
        {
            return Err(QuantityError::Number);
        }
        let length = parts.whole.len() + parts.fraction.len();
        let mut digits = String::with_capacity(length);
        digits.push_str(parts.whole);
        digits.push_str(parts.fraction);
        let exponent = ten - i32::try_from(parts.fraction.len()).map_err(|_| QuantityError::Number)?;
        let quick = is_quick(&parts, two, exponent, format);
        let kept = quick
            && match format {
                Format::Binary => odd8(&digits),
                _ => exponent % 3 == 0 && !digits.ends_with("000") && !digits.starts_with('0'),
            };
        let mut quantity = Quantity { mantissa: read_digits(&digits, format)?, exponent, format, text: None };
        if two > 0 {
            quantity.mantissa =
                quantity.mantissa.checked_shl(two).filter(|m| m >> two == quantity.mantissa).unwrap_or(i128::MAX);
        }
        if !quick {
            quantity.round_up();
            quantity.settle_binary();
        }
        if parts.negative {
            quantity.mantissa = -quantity.mantissa;
        }
        if kept || text == "0" {
            quantity.text = Some(text.into());
        }
        Ok(quantity)
    }

    /// Rounds away from zero to nine decimal places.
    fn round_up(&mut self) {
        while self.exponent < NANO && self.mantissa != 0 {
            let rest = self.mantissa % 10;
            self.mantissa = self.mantissa / 10 + rest.signum();
            self.exponent += 1;
            if self.mantissa.abs() == 1 {
                self.exponent = self.exponent.max(NANO);
            }
        }
        if self.mantissa == 0 {
            self.exponent = 0;
        }
    }

    /// Binary quantities are capped at the largest 64-bit number, and are printed in decimal below one.
    fn settle_binary(&mut self) {
        if self.format != Format::Binary {
            return;
        }
        let limit = Quantity::from_int(i64::MAX);
        if self.compare(&limit) == Ordering::Greater {
            (self.mantissa, self.exponent) = (limit.mantissa, 0);
        } else if self.mantissa > 0 && self.compare(&Quantity::from_int(1)) == Ordering::Less {
            self.format = Format::Decimal;
        }
    }

    /// A whole number.
    pub fn from_int(number: i64) -> Quantity {
        Quantity { mantissa: number.into(), ..Quantity::default() }
    }

    /// A number of thousandths.
    pub fn from_milli(number: i64) -> Quantity {
        Quantity { mantissa: number.into(), exponent: -3, ..Quantity::default() }
    }

    /// The quantity in a JSON value: a string, or a bare number.
    pub fn of(value: &Value) -> Result<Quantity, QuantityError> {
        match value {
            Value::Str(text) => Quantity::parse(text),
            Value::Int(number) => Quantity::parse(&number.to_string()),
            Value::Float(_) => Quantity::parse(&String::from_utf8_lossy(&value.to_json())),
            Value::Null => Ok(Quantity::default()),
            _ => Err(QuantityError::Format),
        }
    }

    /// The quantity in a JSON value where there is one: nothing for null, which [`Quantity::of`] takes for zero.
    pub fn given(value: &Value) -> Option<Quantity> {
        if value.is_null() { None } else { Quantity::of(value).ok() }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// The same number, printed in `format`.
    pub fn with_format(mut self, format: Format) -> Quantity {
        (self.format, self.text) = (format, None);
        self
    }

    /// The text it was read from, if it prints as that.
    pub(crate) fn kept_text(&self) -> Option<&Str> {
        self.text.as_ref()
    }

    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// The number in units of `10^scale`, rounded away from zero; saturates at the ends of `i64`.
    pub fn scaled(&self, scale: i32) -> i64 {
        let shift = i64::from(self.exponent) - i64::from(scale);
        let limit = if self.mantissa < 0 { i64::MIN } else { i64::MAX };
        if self.mantissa == 0 {
            return 0;
        }
        if shift >= 0 {
            let power = u32::try_from(shift).ok().and_then(|shift| 10_i128.checked_pow(shift));
            let number = power.and_then(|power| self.mantissa.checked_mul(power));
            return number.and_then(|number| i64::try_from(number).ok()).unwrap_or(limit);
        }
        match u32::try_from(-shift).ok().and_then(|shift| 10_i128.checked_pow(shift)) {
            Some(power) => {
                let rounded = self.mantissa / power + (self.mantissa % power).signum();
                i64::try_from(rounded).unwrap_or(limit)
            }
            None => self.mantissa.signum() as i64,
        }
    }

    /// The number, rounded up to a whole one.
    pub fn value(&self) -> i64 {
        self.scaled(0)
    }

    /// The number of thousandths, rounded up.
    pub fn milli(&self) -> i64 {
        self.scaled(-3)
    }

    /// Whether the number is whole, as Kubernetes finds out: it counts thousandths in 64 bits, which wrap around where a
    /// number without a decimal power is too large for them (`1Ei` is then no whole number).
    pub fn has_whole_milli(&self) -> bool {
        match i64::try_from(self.mantissa) {
            Ok(number) if self.exponent == 0 => number.wrapping_mul(1000) % 1000 == 0,
            _ => self.milli() == i64::MAX || self.milli() % 1000 == 0,
        }
    }

    /// The number, if it is whole and fits.
    pub fn as_int(&self) -> Option<i64> {
        let number = self.value();
        (Quantity::from_int(number).compare(self) == Ordering::Equal).then_some(number)
    }

    /// The nearest double.
    pub fn to_f64(&self) -> f64 {
        self.mantissa as f64 * 10_f64.powi(self.exponent)
    }

    /// Which number is larger; the format does not matter.
    pub fn compare(&self, other: &Quantity) -> Ordering {
        let by_sign = self.mantissa.signum().cmp(&other.mantissa.signum());
        if by_sign != Ordering::Equal || self.mantissa == 0 {
            return by_sign;
        }
        match align(self, other) {
            Some((a, b, _)) => a.cmp(&b),
            None => {
                let size = |q: &Quantity| i64::from(q.mantissa.unsigned_abs().ilog10()) + i64::from(q.exponent);
                let by_size = size(self).cmp(&size(other));
                if self.mantissa < 0 { by_size.reverse() } else { by_size }
            }
        }
    }

    /// The sum, in this quantity's format (the other's where this is zero). Where it has more digits than fit, the
    /// smaller part is lost.
    pub fn plus(&self, other: &Quantity) -> Quantity {
        self.combine(other, false)
    }

    /// The difference, formatted as [`Quantity::plus`] does.
    pub fn minus(&self, other: &Quantity) -> Quantity {
        self.combine(other, true)
    }

    fn combine(&self, other: &Quantity, subtract: bool) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        let sum = align(self, other).and_then(|(a, b, exponent)| {
            let sum = if subtract { a.checked_sub(b) } else { a.checked_add(b) };
            Some((sum?, exponent))
        });
        let (mantissa, exponent) = sum.unwrap_or(match self.exponent >= other.exponent || other.is_zero() {
            true => (self.mantissa, self.exponent),
            false if subtract => (-other.mantissa, other.exponent),
            false => (other.mantissa, other.exponent),
        });
        Quantity { mantissa, exponent, format, text: None }
    }
}

/// Whether upstream reads it into a 64-bit number at once; only then is the text kept.
fn is_quick(parts: &Parts, two: u32, exponent: i32, format: Format) -> bool {
    const MAX_QUICK_DIGITS: i64 = 18;
    let digits = (parts.whole.len() + parts.fraction.len()) as i64;
    let precision = match format {
        Format::Binary if parts.fraction.is_empty() => {
            15 - parts.whole.len() as i64 - (two as f32 * 3.0 / 10.0) as i64 - 1
        }
        Format::Binary => -1,
        _ => MAX_QUICK_DIGITS - digits,
    };
    precision >= 0 && exponent >= NANO
}

/// Whether the number is no multiple of eight.
fn odd8(digits: &str) -> bool {
    digits.get(digits.len().saturating_sub(3)..).and_then(|end| end.parse::<u32>().ok()).is_some_and(|end| end % 8 != 0)
}

fn read_digits(digits: &str, format: Format) -> Result<i128, QuantityError> {
    let digits = digits.trim_start_matches('0');
    match digits {
        "" => Ok(0),
        digits if digits.len() <= MAX_DIGITS => digits.parse().map_err(|_| QuantityError::Number),
        // Capped afterwards anyway.
        _ if format == Format::Binary => Ok(i128::MAX),
        _ => Err(QuantityError::Number),
    }
}

/// Both mantissas at the smaller exponent; `None` when that does not fit.
fn align(a: &Quantity, b: &Quantity) -> Option<(i128, i128, i32)> {
    let exponent = match (a.mantissa, b.mantissa) {
        (0, _) => b.exponent,
        (_, 0) => a.exponent,
        _ => a.exponent.min(b.exponent),
    };
    let lift = |q: &Quantity| -> Option<i128> {
        if q.mantissa == 0 {
            return Some(0);
        }
        let power = 10_i128.checked_pow(u32::try_from(q.exponent - exponent).ok()?)?;
        q.mantissa.checked_mul(power)
    };
    Some((lift(a)?, lift(b)?, exponent))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        if self.mantissa == 0 {
            return f.write_str("0");
        }
        let (mut number, mut exponent) = (self.mantissa, self.exponent);
        if self.format == Format::Binary
            && let Some(whole) = whole(number, exponent)
            && whole.abs() >= 1024
        {
            let mut power = 0;
            number = whole;
            while number % 1024 == 0 && power < 6 {
                (number, power) = (number / 1024, power + 1);
            }
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        while number % 10 == 0 {
            (number, exponent) = (number / 10, exponent + 1);
        }
        while exponent % 3 != 0 || (self.format != Format::Exponent && exponent > 18) {
            let Some(more) = number.checked_mul(10) else { break };
            (number, exponent) = (more, exponent - 1);
        }
        const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        let known = usize::try_from((exponent + 9) / 3).ok().and_then(|at| SUFFIXES.get(at));
        match known {
            Some(suffix) if self.format != Format::Exponent && exponent % 3 == 0 => write!(f, "{number}{suffix}"),
            _ if exponent == 0 => write!(f, "{number}"),
            _ => write!(f, "{number}e{exponent}"),
        }
    }
}

fn whole(mantissa: i128, exponent: i32) -> Option<i128> {
    if exponent >= 0 {
        return mantissa.checked_mul(10_i128.checked_pow(exponent.unsigned_abs())?);
    }
    let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
    (mantissa % power == 0).then(|| mantissa / power)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.compare(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.compare(other)
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        Quantity::parse(text)
    }
}

impl From<Quantity> for Value {
    fn from(quantity: Quantity) -> Value {
        Value::Str(compact_str::format_compact!("{quantity}"))
    }
}

/// A number or a percentage of `total` (`maxSurge`, `minAvailable` …), the percentage rounded up or down. `None` when
/// it is neither.
pub fn int_or_percent(value: &Value, total: i64, round_up: bool) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::Str(text) => {
            let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
            let product = i128::from(percent) * i128::from(total);
            let whole = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            i64::try_from(whole).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_canonical() {
        for (text, canonical) in [
            ("1", "1"),
            ("0.1", "100m"),
            ("1.5Gi", "1536Mi"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1000", "1k"),
            ("12E6", "12E6"),
            ("1.5e3", "1500"),
            ("1e-3", "1e-3"),
            ("0.0000000001", "1n"),
            ("1.23456789012", "1234567891n"),
            ("9223372036854775808", "9223372036854775808"),
            ("8Ei", "9223372036854775807"),
            ("1.1Ti", "1209462790553600m"),
            ("0.3Ki", "307200m"),
            ("0.5Mi", "512Ki"),
            ("+1.5Ki", "1536"),
            ("5.", "5."),
            ("00100", "00100"),
            ("100000m", "100"),
            ("0m", "0"),
            ("-0.5", "-500m"),
            ("1e1000", "10e999"),
            ("1.0", "1"),
            ("3000Mi", "3000Mi"),
            ("2048Mi", "2Gi"),
            ("999999999999999999999Ki", "9223372036854775807"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), canonical, "{text}");
        }
        for text in ["", " ", "1 Gi", "1gi", "abc", "1.2.3", "--1", "1e", "0x10", "1Eii", "m", "e5", "1e99999999999"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn arithmetic_is_exact() {
        let q = |text: &str| Quantity::parse(text).unwrap();
        assert_eq!(q("100m").plus(&q("0.9")).to_string(), "1");
        assert_eq!(q("1Gi").minus(&q("512Mi")).to_string(), "512Mi");
        assert_eq!(q("0").plus(&q("1Gi")).to_string(), "1Gi");
        assert!(q("1Ki") > q("1k"));
        assert!(q("-1") < q("1n"));
        assert!(q("1e300") > q("1"));
        assert_eq!(q("1500m"), q("1.5"));
        assert_eq!((q("1500m").value(), q("1500m").milli(), q("-1500m").value()), (2, 1500, -2));
        assert_eq!((q("2").as_int(), q("2.5").as_int(), q("1e30").value()), (Some(2), None, i64::MAX));
    }

    #[test]
    fn percentages_round_as_asked() {
        assert_eq!(int_or_percent(&"25%".into(), 10, true), Some(3));
        assert_eq!(int_or_percent(&"25%".into(), 10, false), Some(2));
        assert_eq!(int_or_percent(&Value::Int(4), 10, false), Some(4));
        assert_eq!(int_or_percent(&"x".into(), 10, false), None);
    }

    #[test]
    fn any_text_is_read_or_refused() {
        let mut rng = base::Rng::new(7);
        for _ in 0..20_000 {
            let length = rng.below(14);
            let text: String =
                (0..length).map(|_| b"0123456789+-.eEinumkKMGTP %"[rng.below(27) as usize] as char).collect();
            if let Ok(quantity) = Quantity::parse(&text) {
                let printed = quantity.to_string();
                assert_eq!(Quantity::parse(&printed).unwrap(), quantity, "{text} {printed}");
            }
        }
    }
}
