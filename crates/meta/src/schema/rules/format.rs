//! The string formats that are checked; all others say nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use base64::Engine;
use regex::Regex;

static MAIL: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[^@\s<>]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$"));
static HOST: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$")
});
static UUID: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"));
static MAC: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)^([0-9a-f]{2}[:-]){5}([0-9a-f]{2})$"));
static URI: LazyLock<Regex> = LazyLock::new(|| pattern(r"^([A-Za-z][A-Za-z0-9+.-]*:|/)\S*$"));
static COLOR: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)^#?([0-9a-f]{3}|[0-9a-f]{6})$"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is a literal of ours")
}

/// Whether `text` has the format.
pub fn fits(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => base::Time::parse(text).is_some(),
        "date" => text.len() == 10 && base::Time::parse(&format!("{text}T00:00:00Z")).is_some(),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "ip" => text.parse::<IpAddr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, length)| {
            let longest = match address.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            length.parse::<u8>().is_ok_and(|length| length <= longest)
        }),
        "email" => MAIL.is_match(text),
        "hostname" => text.len() <= 255 && HOST.is_match(text),
        "uri" => URI.is_match(text),
        "uuid" => UUID.is_match(text),
        "uuid3" | "uuid4" | "uuid5" => {
            let plain: String = text.chars().filter(|char| *char != '-').collect();
            UUID.is_match(text) && plain.as_bytes().get(12) == format.as_bytes().last()
        }
        "mac" => MAC.is_match(text),
        "hexcolor" => COLOR.is_match(text),
        "duration" => crate::normalise::duration_nanos(text).is_some(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart() {
        for (format, good, bad) in [
            ("date-time", "2026-01-01T00:00:00Z", "2026-01-01"),
            ("date", "2026-01-01", "2026-13-01"),
            ("ipv4", "1.2.3.4", "1.2.3"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("email", "a@b.c", "a"),
            ("uuid4", "f47ac10b-58cc-4372-a567-0e02b2c3d479", "f47ac10b-58cc-1372-a567-0e02b2c3d479"),
            ("hostname", "a.b", "a_b"),
            ("duration", "1h", "1"),
            ("byte", "AAEC", "A"),
        ] {
            assert!(fits(format, good) && !fits(format, bad), "{format}");
        }
        assert!(fits("unheard-of", "x"));
    }
}
