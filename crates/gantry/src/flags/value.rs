//! What flags may be given: each kind of value with its check, whose complaint says what would be right.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A kind of value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Given or not.
    Switch,
    Text,
    /// A text, or `""` where that says something, too.
    TextOrNone,
    /// One of these.
    Word(&'static [&'static str]),
    /// Some of these, separated by commas.
    Words(&'static [&'static str]),
    Dir,
    File,
    /// From, to.
    Number(u64, u64),
    /// `ADDR:PORT`
    Socket,
    Address,
    /// An IPv4 network whose prefix is from, to.
    Cidr(u8, u8),
    /// `https://HOST:PORT`
    Url,
    /// Some of these, separated by commas.
    Urls,
    /// `HOST:PORT`
    HostPort,
    /// `KEY=VALUE`
    Pair,
    /// `90s`, `10m`, `24h`, `365d`
    Duration,
}

impl Kind {
    /// The word that stands for the value in help.
    pub fn placeholder(self) -> &'static str {
        match self {
            Kind::Switch => "",
            Kind::Text | Kind::TextOrNone => "TEXT",
            Kind::Word(_) => "WORD",
            Kind::Words(_) => "WORD,…",
            Kind::Dir => "DIR",
            Kind::File => "FILE",
            Kind::Number(..) => "N",
            Kind::Socket => "ADDR:PORT",
            Kind::Address => "ADDR",
            Kind::Cidr(..) => "CIDR",
            Kind::Url => "URL",
            Kind::Urls => "URL,…",
            Kind::HostPort => "HOST:PORT",
            Kind::Pair => "KEY=VALUE",
            Kind::Duration => "TIME",
        }
    }

    /// Whether `text` is one, and if not, why, and what would be.
    pub fn check(self, text: &str) -> Result<(), String> {
        let wrong = |what: String| Err(format!("{text:?} is {what}"));
        match self {
            Kind::Switch if !matches!(text, "true" | "false") => wrong("neither true nor false".to_owned()),
            Kind::Text | Kind::Dir | Kind::File if text.is_empty() => Err("it is empty".to_owned()),
            Kind::Switch | Kind::Text | Kind::TextOrNone | Kind::Dir | Kind::File => Ok(()),
            Kind::Word(words) if words.contains(&text) => Ok(()),
            Kind::Word(words) => wrong(format!("none of {}", words.join(", "))),
            Kind::Words(words) => match text.split(',').find(|word| !words.contains(word)) {
                Some(word) => Err(format!("{word:?} is none of {}", words.join(", "))),
                None => Ok(()),
            },
            Kind::Number(from, to) => match text.parse::<u64>() {
                Ok(number) if (from..=to).contains(&number) => Ok(()),
                _ if to == u64::MAX => wrong(format!("no number from {from} on")),
                _ => wrong(format!("no number from {from} to {to}")),
            },
            Kind::Socket => match text.parse::<SocketAddr>() {
                Ok(_) => Ok(()),
                Err(_) => wrong("no address with a port; write it like 127.0.0.1:6443".to_owned()),
            },
            Kind::Address => match text.parse::<IpAddr>() {
                Ok(_) => Ok(()),
                Err(_) => wrong("no address; write it like 192.0.2.10".to_owned()),
            },
            Kind::Cidr(from, to) => cidr(text, from, to).map(|_| ()),
            Kind::Url => match text.strip_prefix("https://").map(|rest| rest.trim_end_matches('/')) {
                Some(rest) if !rest.is_empty() && !rest.contains(['/', ' ', '?']) => Ok(()),
                _ => wrong("no address of a server; write it like https://192.0.2.10:6443".to_owned()),
            },
            Kind::Urls => text.split(',').try_for_each(|one| Kind::Url.check(one)),
            Kind::HostPort => match text.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>())) {
                Some((false, Ok(_))) => Ok(()),
                _ => wrong("no host with a port; write it like registry.example:5000".to_owned()),
            },
            Kind::Pair => match text.split_once('=') {
                Some((key, _)) if !key.is_empty() => Ok(()),
                _ => wrong("no pair; write it like tier=web".to_owned()),
            },
            Kind::Duration => duration(text).map(|_| ()),
        }
    }
}

/// An IPv4 network: `10.244.0.0/16`. Its own bits must be zero.
pub fn cidr(text: &str, from: u8, to: u8) -> Result<net::Cidr, String> {
    let example = "write it like 10.244.0.0/16";
    let Some(cidr) = text.parse::<net::Cidr>().ok().filter(|_| text.contains('/')) else {
        return Err(format!("{text:?} is no range of addresses; {example}"));
    };
    if cidr.is_ipv6() {
        return Err(format!("{text:?} is of IPv6, and only ranges of IPv4 are served; {example}"));
    }
    if cidr.network() != cidr {
        return Err(format!("{text:?} has bits behind its prefix; the range is {}", cidr.network()));
    }
    if !(from..=to).contains(&cidr.prefix) {
        return Err(format!("{text:?} must have a prefix from /{from} to /{to}"));
    }
    Ok(cidr)
}

/// `90s`, `10m`, `24h`, `365d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no length of time; write it like 90s, 10m, 24h or 365d");
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3_600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    match number.checked_mul(unit).filter(|seconds| (1..=100 * 365 * 86_400).contains(seconds)) {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_say_what_would_be_right() {
        let cases: &[(Kind, &str, &str)] = &[
            (Kind::Number(1, 100), "0", "\"0\" is no number from 1 to 100"),
            (Kind::Socket, "6443", "\"6443\" is no address with a port; write it like 127.0.0.1:6443"),
            (Kind::Cidr(16, 24), "10.244.0.0", "\"10.244.0.0\" is no range of addresses; write it like 10.244.0.0/16"),
            (
                Kind::Cidr(16, 24),
                "10.244.1.0/16",
                "\"10.244.1.0/16\" has bits behind its prefix; the range is 10.244.0.0/16",
            ),
            (Kind::Cidr(16, 24), "10.0.0.0/8", "\"10.0.0.0/8\" must have a prefix from /16 to /24"),
            (Kind::Words(&["api", "scheduler"]), "api,x", "\"x\" is none of api, scheduler"),
            (
                Kind::Url,
                "http://a:1",
                "\"http://a:1\" is no address of a server; write it like https://192.0.2.10:6443",
            ),
            (Kind::Duration, "5", "\"5\" is no length of time; write it like 90s, 10m, 24h or 365d"),
            (Kind::Duration, "ü", "\"ü\" is no length of time; write it like 90s, 10m, 24h or 365d"),
            (Kind::Pair, "=x", "\"=x\" is no pair; write it like tier=web"),
        ];
        for (kind, text, complaint) in cases {
            assert_eq!(kind.check(text), Err((*complaint).to_owned()));
        }
        for (kind, text) in [
            (Kind::Number(1, 100), "100"),
            (Kind::Cidr(16, 24), "10.244.0.0/16"),
            (Kind::Words(&["api", "scheduler"]), "api,scheduler"),
            (Kind::Url, "https://[::1]:6443/"),
            (Kind::Duration, "365d"),
            (Kind::HostPort, "localhost:5000"),
        ] {
            assert_eq!(kind.check(text), Ok(()));
        }
    }
}
