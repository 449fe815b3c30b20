//! Semantic versions (semver.org 2.0.0).

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Row, no_such};
use crate::value::{Fail, Val, fail};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    /// What stands before the release: `rc.1`.
    before: Vec<String>,
}

fn number(text: &str) -> Option<u64> {
    (text == "0" || !text.starts_with('0')).then(|| text.parse().ok()).flatten().filter(|_| !text.starts_with('+'))
}

impl Semver {
    pub fn parse(text: &str) -> Option<Semver> {
        let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
        let (core, before) = text.split_once('-').map_or((text, None), |(core, before)| (core, Some(before)));
        let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let mut numbers = core.split('.').map(number);
        let mut next = || numbers.next().flatten();
        let numbers = [next()?, next()?, next()?];
        if core.split('.').count() != 3 || build.is_some_and(|build| !build.split('.').all(word)) {
            return None;
        }
        let before: Vec<String> =
            before.map(|before| before.split('.').map(str::to_owned).collect()).unwrap_or_default();
        let good = |part: &String| word(part) && (!part.bytes().all(|b| b.is_ascii_digit()) || number(part).is_some());
        before.iter().all(good).then_some(Semver { numbers, before })
    }

    /// Fills what is missing: a leading `v` goes, `1.0` becomes `1.0.0`, leading zeros go.
    fn tolerant(text: &str) -> Option<Semver> {
        let text = text.trim().trim_start_matches('v');
        let end = text.find(['-', '+']).unwrap_or(text.len());
        let mut parts: Vec<&str> = text[..end].split('.').collect();
        parts.resize(parts.len().max(3), "0");
        let trimmed = parts.iter().map(|part| match part.trim_start_matches('0') {
            "" if !part.is_empty() => "0",
            rest => rest,
        });
        Semver::parse(&format!("{}{}", trimmed.collect::<Vec<_>>().join("."), &text[end..]))
    }

    pub fn compare(&self, other: &Semver) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.before.is_empty(), other.before.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let parts = self.before.iter().zip(&other.before).map(|(a, b)| match (number(a), number(b)) {
                    (Some(a), Some(b)) => a.cmp(&b),
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (None, None) => a.cmp(b),
                });
                let mut differing = parts.filter(|order| order.is_ne());
                differing.next().unwrap_or_else(|| self.before.len().cmp(&other.before.len()))
            }
        })
    }
}

fn read(args: &[Val<'_>]) -> Result<Option<Semver>, Fail> {
    match args {
        [Val::Text(text)] | [Val::Text(text), Val::Bool(false)] => Ok(Semver::parse(text)),
        [Val::Text(text), Val::Bool(true)] => Ok(Semver::tolerant(text)),
        _ => fail("no such overload"),
    }
}

fn made<'a>(args: &[Val<'a>]) -> Result<Val<'a>, Fail> {
    match read(args)? {
        Some(version) => Ok(Val::Semver(Arc::new(version))),
        None => fail("semver parse error"),
    }
}

fn part<'a>(args: &[Val<'a>], at: usize) -> Result<Val<'a>, Fail> {
    match args {
        [Val::Semver(version)] => Ok(Val::Int(i64::try_from(version.numbers[at]).unwrap_or(i64::MAX))),
        _ => no_such(),
    }
}

fn order<'a>(args: &[Val<'a>], what: fn(Ordering) -> Val<'static>) -> Result<Val<'a>, Fail> {
    match args {
        [Val::Semver(a), Val::Semver(b)] => Ok(what(a.compare(b))),
        _ => no_such(),
    }
}

pub const ROWS: &[Row] = &[
    Row("isSemver(string) bool", |args| Ok(Val::Bool(read(args)?.is_some()))),
    Row("isSemver(string,bool) bool", |args| Ok(Val::Bool(read(args)?.is_some()))),
    Row("semver(string) semver", made),
    Row("semver(string,bool) semver", made),
    Row("semver#major() int", |args| part(args, 0)),
    Row("semver#minor() int", |args| part(args, 1)),
    Row("semver#patch() int", |args| part(args, 2)),
    Row("semver#isLessThan(semver) bool", |args| order(args, |order| Val::Bool(order.is_lt()))),
    Row("semver#isGreaterThan(semver) bool", |args| order(args, |order| Val::Bool(order.is_gt()))),
    Row("semver#compareTo(semver) int", |args| order(args, |order| Val::Int(order as i64))),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_an_order() {
        let sorted = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-rc.1", "1.0.0", "1.0.10", "2.0.0"];
        for pair in sorted.windows(2) {
            let [a, b] = [pair[0], pair[1]].map(|text| Semver::parse(text).unwrap());
            assert!(a.compare(&b).is_lt(), "{pair:?}");
        }
        for bad in ["1", "1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0+", "+1.0.0"] {
            assert_eq!(Semver::parse(bad), None, "{bad}");
        }
        assert_eq!(Semver::tolerant("v01.0"), Semver::parse("1.0.0"));
    }
}
