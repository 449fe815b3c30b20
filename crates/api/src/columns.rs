//! Pieces that the columns of many kinds share.

use base::Time;
use meta::{Column, Value};

/// A column; its description is its name in words.
pub fn column(name: &str, of_type: &str, priority: i64) -> Column {
    Column { name: name.into(), of_type: of_type.into(), format: "".into(), description: name.into(), priority }
}

/// Columns by name, type and priority.
pub fn columns(all: &[(&str, &str, i64)]) -> Vec<Column> {
    all.iter().map(|(name, of_type, priority)| column(name, of_type, *priority)).collect()
}

/// A text, or `<none>`.
pub fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// The cell of the age column.
pub fn age(object: &Value, now: Time) -> Value {
    since(object.at(&["metadata", "creationTimestamp"]), now)
}

/// How long ago a timestamp was, as a cell; `<unknown>` without one.
pub fn since(time: &Value, now: Time) -> Value {
    match Time::parse(time.text()) {
        Some(time) => human(now.seconds() - time.seconds()).into(),
        None => "<unknown>".into(),
    }
}

/// A duration for people: at most two units, the fewer the longer ago (`apimachinery/pkg/util/duration`).
pub fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_for_people() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (700, "11m"),
            (11_000, "3h3m"),
            (90_000, "25h"),
            (200_000, "2d7h"),
            (800_000, "9d"),
            (70_000_000, "2y80d"),
            (400_000_000, "12y"),
        ] {
            assert_eq!(human(seconds), text);
        }
    }
}
