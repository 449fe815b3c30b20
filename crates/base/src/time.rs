//! Instants in UTC, as numbers. The real clock lives in the shells.

use std::fmt;

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub i64);

/// Where shells read the time; the simulator has its own.
pub trait Clock: Send + Sync {
    fn now(&self) -> Time;
}

/// How an instant is written: digits where it has zeros.
const SHAPE: &[u8; 20] = b"0000-00-00T00:00:00Z";
const SHAPE_MICRO: &[u8; 27] = b"0000-00-00T00:00:00.000000Z";

/// Writes numbers of two digits at their places.
fn put_pairs(text: &mut [u8], pairs: &[(usize, u32)]) {
    for (at, number) in pairs {
        text[*at..at + 2].copy_from_slice(&[b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]);
    }
}

impl Time {
    pub const ZERO: Time = Time(0);

    pub fn from_seconds(seconds: i64) -> Time {
        Time(seconds.saturating_mul(1_000_000))
    }

    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    pub fn plus_ms(self, ms: u64) -> Time {
        Time(self.0.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000)))
    }

    /// Milliseconds from `earlier` to `self`; 0 when `earlier` is later.
    pub fn ms_since(self, earlier: Time) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0) / 1000).unwrap_or(0)
    }

    /// `2026-11-22T19:34:48Z`, as `metav1.Time` is written.
    pub fn rfc3339(self) -> String {
        match self.written(*SHAPE) {
            Some(text) => String::from_utf8_lossy(&text).into_owned(),
            None => {
                let (year, month, day, hour, minute, second) = self.civil();
                format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
            }
        }
    }

    /// The digits up to the seconds in a text of this shape; `None` for years of other than four digits. Several are
    /// written in each write of an object: digit by digit takes a tenth of the time.
    fn written<const BYTES: usize>(self, mut shape: [u8; BYTES]) -> Option<[u8; BYTES]> {
        let (year, month, day, hour, minute, second) = self.civil();
        let year = u32::try_from(year).ok().filter(|year| *year < 10_000)?;
        let pairs = [(0, year / 100), (2, year % 100), (5, month), (8, day), (11, hour), (14, minute), (17, second)];
        put_pairs(&mut shape, &pairs);
        Some(shape)
    }

    /// `2026-11-22T19:34:48.000001Z`, as `metav1.MicroTime` is written.
    pub fn rfc3339_micro(self) -> String {
        let micros = self.0.rem_euclid(1_000_000) as u32;
        match self.written(*SHAPE_MICRO) {
            Some(mut text) => {
                put_pairs(&mut text, &[(20, micros / 10_000), (22, micros / 100 % 100), (24, micros % 100)]);
                String::from_utf8_lossy(&text).into_owned()
            }
            None => {
                let (year, month, day, hour, minute, second) = self.civil();
                format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
            }
        }
    }

    /// Reads any RFC 3339 instant; `None` when it is none.
    pub fn parse(text: &str) -> Option<Time> {
        // What is absent is read as an empty text.
        if text.is_empty() {
            return None;
        }
        Time::parse_plain(text.as_bytes())
            .or_else(|| text.parse::<jiff::Timestamp>().ok().map(|t| Time(t.as_microsecond())))
    }

    /// Reads what [`Time::rfc3339`] writes, which nearly all are; `None` for anything else.
    fn parse_plain(text: &[u8]) -> Option<Time> {
        let text: &[u8; SHAPE.len()] = text.try_into().ok()?;
        let like = |(byte, shape): (&u8, &u8)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == shape };
        if !text.iter().zip(SHAPE).all(like) {
            return None;
        }
        let number = |at: usize| i64::from(text[at] - b'0') * 10 + i64::from(text[at + 1] - b'0');
        let (year, month, day) = (number(0) * 100 + number(2), number(5), number(8));
        let (hour, minute, second) = (number(11), number(14), number(17));
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 => 28 + i64::from(is_leap),
            _ => return None,
        };
        if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        // Howard Hinnant's civil-to-days, in integers.
        let y = year - i64::from(month <= 2);
        let (era, yoe) = (y.div_euclid(400), y.rem_euclid(400));
        let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
        let days = era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468;
        Some(Time::from_seconds(days * 86_400 + hour * 3600 + minute * 60 + second))
    }

    /// Howard Hinnant's days-to-civil, in integers.
    fn civil(self) -> (i64, u32, u32, u32, u32, u32) {
        let seconds = self.seconds();
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400) as u32);
        let z = days + 719_468;
        let era = z.div_euclid(146_097);
        let doe = z.rem_euclid(146_097);
        let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
        let month = if mp < 10 { mp + 3 } else { mp - 9 } as u32;
        let year = yoe + era * 400 + i64::from(month <= 2);
        (year, month, day, rest / 3600, rest / 60 % 60, rest % 60)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339_micro())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_instants_are_read_as_all_are() {
        let mut rng = crate::Rng::new(3);
        for _ in 0..20_000 {
            let time = Time::from_seconds(i64::try_from(rng.below(315_000_000_000)).unwrap() - 62_135_596_800);
            let mut text = time.rfc3339().into_bytes();
            assert_eq!(Time::parse_plain(&text), (time.civil().0 < 10_000).then_some(time));
            for _ in 0..rng.below(3) {
                let at = usize::try_from(rng.below(text.len() as u64)).unwrap();
                text[at] = b"0123456789-:TZz. "[usize::try_from(rng.below(17)).unwrap()];
            }
            let text = String::from_utf8(text).unwrap();
            let known = text.parse::<jiff::Timestamp>().ok().map(|t| Time(t.as_microsecond()));
            assert_eq!(Time::parse(&text), known, "{text}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for text in ["1970-01-01T00:00:00Z", "2026-11-22T19:34:48Z", "2000-02-29T23:59:59Z", "1969-12-31T23:59:59Z"] {
            assert_eq!(Time::parse(text).map(Time::rfc3339).as_deref(), Some(text));
        }
        assert_eq!(
            Time::parse("2026-01-01T01:00:00.5+01:00").map(Time::rfc3339_micro).as_deref(),
            Some("2026-01-01T00:00:00.500000Z")
        );
        assert_eq!(Time::parse("yesterday"), None);
    }
}
