//! The five fields of a schedule: whether they can be read. When they come due is the controller's to know.

const MACROS: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
/// First and last value of each field.
const FIELDS: [(u32, u32); 5] = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];
const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Why a schedule cannot be read; `None` when it can.
pub fn wrong(text: &str) -> Option<String> {
    if let Some(duration) = text.strip_prefix("@every ") {
        let right = duration.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.')
            && duration.starts_with(|first: char| first.is_ascii_digit())
            && duration.ends_with(|last: char| last.is_ascii_alphabetic());
        return (!right).then(|| format!("failed to parse duration {duration:?}"));
    }
    if text.starts_with('@') {
        return (!MACROS.contains(&text)).then(|| format!("unrecognized descriptor: {text}"));
    }
    let text = match text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
        Some(rest) => rest.split_once(' ').map_or("", |(_, rest)| rest),
        None => text,
    };
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Some(format!("expected exactly 5 fields, found {}: {fields:?}", fields.len()));
    }
    for (at, (field, bounds)) in fields.iter().zip(FIELDS).enumerate() {
        if !field.split(',').all(|part| part_is_right(part, bounds, at)) {
            return Some(format!("cannot read {field:?}"));
        }
    }
    None
}

fn part_is_right(part: &str, (first, last): (u32, u32), at: usize) -> bool {
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    if step.is_some_and(|step| !step.parse::<u32>().is_ok_and(|step| step > 0)) {
        return false;
    }
    if range == "*" || range == "?" {
        return true;
    }
    let number = |text: &str| -> Option<u32> {
        let word = text.to_lowercase();
        let named = match at {
            3 => MONTHS.iter().position(|name| *name == word).map(|place| place + 1),
            4 => DAYS.iter().position(|name| *name == word),
            _ => None,
        };
        named.and_then(|place| u32::try_from(place).ok()).or_else(|| text.parse().ok())
    };
    let (start, end) = match range.split_once('-') {
        Some((start, end)) => (number(start), number(end)),
        None => (number(range), if step.is_some() { Some(last) } else { number(range) }),
    };
    matches!((start, end), (Some(start), Some(end)) if start >= first && end <= last && start <= end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for right in ["*/5 * * * *", "0 0 1 jan sun", "1,2-4/2 * ? * 1-5", "@daily", "@every 1h30m", "5/15 * * * *"] {
            assert_eq!(wrong(right), None, "{right}");
        }
        for bad in ["", "* * * *", "60 * * * *", "* * 0 * *", "*/0 * * * *", "@soon", "a * * * *", "5-1 * * * *"] {
            assert!(wrong(bad).is_some(), "{bad}");
        }
    }
}
