//! Timestamps and durations.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::{Row, no_such};
use crate::value::{Fail, NANOS, Val, fail, timestamp};

const MILLIS: i64 = 1_000_000;
const SECOND: i64 = 1_000_000_000;

/// RFC 3339, in UTC, with as many decimals as are needed.
pub fn show_timestamp(nanos: i128) -> String {
    let seconds = i64::try_from(nanos.div_euclid(NANOS)).unwrap_or(i64::MAX);
    let whole = base::Time::from_seconds(seconds).rfc3339();
    match nanos.rem_euclid(NANOS) {
        0 => whole,
        rest => {
            let decimals = format!("{rest:09}");
            format!("{}.{}Z", whole.trim_end_matches('Z'), decimals.trim_end_matches('0'))
        }
    }
}

/// Seconds with decimals: `90s`, `0.5s`.
pub fn show_duration(nanos: i64) -> String {
    let (sign, nanos) = if nanos < 0 { ("-", nanos.unsigned_abs()) } else { ("", nanos.unsigned_abs()) };
    let (whole, rest) = (nanos / SECOND.unsigned_abs(), nanos % SECOND.unsigned_abs());
    match rest {
        0 => format!("{sign}{whole}s"),
        rest => format!("{sign}{whole}.{}s", format!("{rest:09}").trim_end_matches('0')),
    }
}

/// The date and time of a timestamp at a place: a zone's name, or an offset like `-02:00`.
fn civil(nanos: i128, zone: &str) -> Result<DateTime, Fail> {
    let Ok(instant) = Timestamp::from_nanosecond(nanos) else { return fail("timestamp out of range") };
    let zone = match zone {
        "" | "UTC" => TimeZone::UTC,
        zone => match offset(zone).map(TimeZone::fixed).or_else(|| TimeZone::get(zone).ok()) {
            Some(zone) => zone,
            None => return fail(format!("unknown time zone {zone}")),
        },
    };
    Ok(instant.to_zoned(zone).datetime())
}

fn offset(text: &str) -> Option<jiff::tz::Offset> {
    let (hours, minutes) = text.split_once(':')?;
    let (negative, hours) = match hours.strip_prefix('-') {
        Some(hours) => (true, hours),
        None => (false, hours.strip_prefix('+').unwrap_or(hours)),
    };
    let seconds = hours.parse::<i32>().ok()?.checked_mul(3600)?.checked_add(minutes.parse::<i32>().ok()? * 60)?;
    jiff::tz::Offset::from_seconds(if negative { -seconds } else { seconds }).ok()
}

fn part<'a>(args: &[Val<'a>], of: fn(DateTime) -> i64) -> Result<Val<'a>, Fail> {
    match args {
        [Val::Timestamp(nanos)] => civil(*nanos, "").map(|civil| Val::Int(of(civil))),
        [Val::Timestamp(nanos), Val::Text(zone)] => civil(*nanos, zone).map(|civil| Val::Int(of(civil))),
        _ => no_such(),
    }
}

fn duration<'a>(nanos: Option<i64>) -> Result<Val<'a>, Fail> {
    match nanos {
        Some(nanos) => Ok(Val::Duration(nanos)),
        None => fail("duration overflow"),
    }
}

pub const ROWS: &[Row] = &[
    Row("timestamp(timestamp) timestamp", |args| Ok(args[0].clone())),
    Row("timestamp(string) timestamp", |args| match args {
        [Val::Text(text)] => match timestamp(text) {
            Some(nanos) => Ok(Val::Timestamp(nanos)),
            None => fail(format!("type conversion error from 'string' to 'timestamp': {text:?}")),
        },
        _ => no_such(),
    }),
    Row("timestamp(int) timestamp", |args| match args {
        [Val::Int(seconds)] => Ok(Val::Timestamp(i128::from(*seconds) * NANOS)),
        _ => no_such(),
    }),
    Row("duration(duration) duration", |args| Ok(args[0].clone())),
    Row("duration(string) duration", |args| match args {
        [Val::Text(text)] => match meta::normalise::duration_nanos(text) {
            Some(nanos) => Ok(Val::Duration(nanos)),
            None => fail(format!("type conversion error from 'string' to 'duration': {text:?}")),
        },
        _ => no_such(),
    }),
    Row("_+_(timestamp,duration) timestamp", |args| match args {
        [Val::Timestamp(at), Val::Duration(by)] => Ok(Val::Timestamp(at + i128::from(*by))),
        _ => no_such(),
    }),
    Row("_+_(duration,timestamp) timestamp", |args| match args {
        [Val::Duration(by), Val::Timestamp(at)] => Ok(Val::Timestamp(at + i128::from(*by))),
        _ => no_such(),
    }),
    Row("_+_(duration,duration) duration", |args| match args {
        [Val::Duration(a), Val::Duration(b)] => duration(a.checked_add(*b)),
        _ => no_such(),
    }),
    Row("_-_(timestamp,timestamp) duration", |args| match args {
        [Val::Timestamp(a), Val::Timestamp(b)] => duration(i64::try_from(a - b).ok()),
        _ => no_such(),
    }),
    Row("_-_(timestamp,duration) timestamp", |args| match args {
        [Val::Timestamp(at), Val::Duration(by)] => Ok(Val::Timestamp(at - i128::from(*by))),
        _ => no_such(),
    }),
    Row("_-_(duration,duration) duration", |args| match args {
        [Val::Duration(a), Val::Duration(b)] => duration(a.checked_sub(*b)),
        _ => no_such(),
    }),
    Row("timestamp#getFullYear() int", |args| part(args, |civil| civil.year().into())),
    Row("timestamp#getFullYear(string) int", |args| part(args, |civil| civil.year().into())),
    Row("timestamp#getMonth() int", |args| part(args, |civil| i64::from(civil.month()) - 1)),
    Row("timestamp#getMonth(string) int", |args| part(args, |civil| i64::from(civil.month()) - 1)),
    Row("timestamp#getDayOfYear() int", |args| part(args, |civil| i64::from(civil.day_of_year()) - 1)),
    Row("timestamp#getDayOfYear(string) int", |args| part(args, |civil| i64::from(civil.day_of_year()) - 1)),
    Row("timestamp#getDayOfMonth() int", |args| part(args, |civil| i64::from(civil.day()) - 1)),
    Row("timestamp#getDayOfMonth(string) int", |args| part(args, |civil| i64::from(civil.day()) - 1)),
    Row("timestamp#getDate() int", |args| part(args, |civil| civil.day().into())),
    Row("timestamp#getDate(string) int", |args| part(args, |civil| civil.day().into())),
    Row("timestamp#getDayOfWeek() int", |args| part(args, |civil| civil.weekday().to_sunday_zero_offset().into())),
    Row("timestamp#getDayOfWeek(string) int", |args| {
        part(args, |civil| civil.weekday().to_sunday_zero_offset().into())
    }),
    Row("timestamp#getHours() int", |args| part(args, |civil| civil.hour().into())),
    Row("timestamp#getHours(string) int", |args| part(args, |civil| civil.hour().into())),
    Row("timestamp#getMinutes() int", |args| part(args, |civil| civil.minute().into())),
    Row("timestamp#getMinutes(string) int", |args| part(args, |civil| civil.minute().into())),
    Row("timestamp#getSeconds() int", |args| part(args, |civil| civil.second().into())),
    Row("timestamp#getSeconds(string) int", |args| part(args, |civil| civil.second().into())),
    Row("timestamp#getMilliseconds() int", |args| part(args, |civil| civil.millisecond().into())),
    Row("timestamp#getMilliseconds(string) int", |args| part(args, |civil| civil.millisecond().into())),
    Row("duration#getHours() int", |args| match args {
        [Val::Duration(nanos)] => Ok(Val::Int(nanos / (3600 * SECOND))),
        _ => no_such(),
    }),
    Row("duration#getMinutes() int", |args| match args {
        [Val::Duration(nanos)] => Ok(Val::Int(nanos / (60 * SECOND))),
        _ => no_such(),
    }),
    Row("duration#getSeconds() int", |args| match args {
        [Val::Duration(nanos)] => Ok(Val::Int(nanos / SECOND)),
        _ => no_such(),
    }),
    Row("duration#getMilliseconds() int", |args| match args {
        [Val::Duration(nanos)] => Ok(Val::Int(nanos / MILLIS)),
        _ => no_such(),
    }),
];
