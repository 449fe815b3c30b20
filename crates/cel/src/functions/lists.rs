//! Lists, maps, sets and optional values.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Row, no_such};
use crate::value::{Fail, Val, fail};

/// Items that `lists.range` makes at most.
const RANGE_MAX: i64 = 1_000_000;
/// How deep `flatten` goes.
const FLATTEN_MAX: i64 = 64;

fn size<'a>(args: &[Val<'a>]) -> Result<Val<'a>, Fail> {
    match args {
        [Val::List(items)] => Ok(Val::Int(items.len() as i64)),
        [Val::Map(map)] => Ok(Val::Int(map.len() as i64)),
        [Val::Object(value, _)] => Ok(Val::Int(value.entries().len() as i64)),
        _ => no_such(),
    }
}

fn compared(items: &[Val<'_>]) -> Result<(), Fail> {
    match items.windows(2).all(|pair| pair[0].compare(&pair[1]).is_some()) {
        true => Ok(()),
        false => fail("no such overload"),
    }
}

fn best<'a>(items: &[Val<'a>], wanted: Ordering, name: &str) -> Result<Val<'a>, Fail> {
    let Some((first, rest)) = items.split_first() else { return fail(format!("{name} called on empty list")) };
    compared(items)?;
    Ok(rest.iter().fold(first, |best, item| if item.compare(best) == Some(wanted) { item } else { best }).clone())
}

fn sum<'a>(items: &[Val<'a>]) -> Result<Val<'a>, Fail> {
    let Some(first) = items.first() else { return Ok(Val::Int(0)) };
    let mut total = match first {
        Val::Int(_) => Val::Int(0),
        Val::Uint(_) => Val::Uint(0),
        Val::Double(_) => Val::Double(0.0),
        Val::Duration(_) => Val::Duration(0),
        _ => return no_such(),
    };
    for item in items {
        total = match (total, item) {
            (Val::Int(a), Val::Int(b)) => Val::Int(a.checked_add(*b).ok_or_else(overflow)?),
            (Val::Uint(a), Val::Uint(b)) => Val::Uint(a.checked_add(*b).ok_or_else(overflow)?),
            (Val::Double(a), Val::Double(b)) => Val::Double(a + b),
            (Val::Duration(a), Val::Duration(b)) => Val::Duration(a.checked_add(*b).ok_or_else(overflow)?),
            _ => return no_such(),
        };
    }
    Ok(total)
}

fn overflow() -> Fail {
    Fail::Error("integer overflow".to_owned())
}

fn flatten<'a>(items: &[Val<'a>], depth: i64, out: &mut Vec<Val<'a>>) {
    for item in items {
        match item {
            Val::List(inner) if depth > 0 => flatten(inner, depth - 1, out),
            other => out.push(other.clone()),
        }
    }
}

/// The items in order of the keys; equal ones stay as they stand.
pub fn sorted<'a>(items: &[Val<'a>], keys: &[Val<'a>]) -> Result<Val<'a>, Fail> {
    compared(keys)?;
    let mut places: Vec<usize> = (0..items.len()).collect();
    places.sort_by(|a, b| keys[*a].compare(&keys[*b]).unwrap_or(Ordering::Equal));
    Ok(Val::list(places.into_iter().map(|place| items[place].clone()).collect()))
}

fn has(items: &[Val<'_>], item: &Val<'_>) -> bool {
    items.iter().any(|other| other.equals(item))
}

fn is_zero(value: &Val<'_>) -> bool {
    match value {
        Val::Null => true,
        Val::Bool(value) => !value,
        Val::Int(number) => *number == 0,
        Val::Uint(number) => *number == 0,
        Val::Double(number) => *number == 0.0,
        Val::Text(text) => text.is_empty(),
        Val::Bytes(bytes) => bytes.is_empty(),
        Val::List(items) => items.is_empty(),
        Val::Map(map) => map.is_empty(),
        Val::Object(value, _) => value.entries().is_empty(),
        Val::Duration(nanos) => *nanos == 0,
        Val::Optional(value) => value.is_none(),
        _ => false,
    }
}

pub const ROWS: &[Row] = &[
    Row("_+_(list<A>,list<A>) list<A>", |args| match args {
        [Val::List(a), Val::List(b)] => Ok(Val::list(a.iter().chain(b.iter()).cloned().collect())),
        _ => no_such(),
    }),
    Row("size(list<A>) int", size),
    Row("list<A>#size() int", size),
    Row("size(map<A,B>) int", size),
    Row("map<A,B>#size() int", size),
    Row("list<A>#isSorted() bool", |args| match args {
        [Val::List(items)] => {
            compared(items)?;
            Ok(Val::Bool(items.windows(2).all(|pair| pair[0].compare(&pair[1]) != Some(Ordering::Greater))))
        }
        _ => no_such(),
    }),
    Row("list<A>#sum() A", |args| match args {
        [Val::List(items)] => sum(items),
        _ => no_such(),
    }),
    Row("list<A>#min() A", |args| match args {
        [Val::List(items)] => best(items, Ordering::Less, "min"),
        _ => no_such(),
    }),
    Row("list<A>#max() A", |args| match args {
        [Val::List(items)] => best(items, Ordering::Greater, "max"),
        _ => no_such(),
    }),
    Row("list<A>#indexOf(A) int", |args| match args {
        [Val::List(items), item] => {
            Ok(Val::Int(items.iter().position(|other| other.equals(item)).map_or(-1, |at| at as i64)))
        }
        _ => no_such(),
    }),
    Row("list<A>#lastIndexOf(A) int", |args| match args {
        [Val::List(items), item] => {
            Ok(Val::Int(items.iter().rposition(|other| other.equals(item)).map_or(-1, |at| at as i64)))
        }
        _ => no_such(),
    }),
    Row("list<A>#slice(int,int) list<A>", |args| match args {
        [Val::List(items), Val::Int(from), Val::Int(to)] => match (usize::try_from(*from), usize::try_from(*to)) {
            (Ok(first), Ok(last)) if first <= last && last <= items.len() => Ok(Val::list(items[first..last].to_vec())),
            _ => fail(format!("cannot slice({from}, {to}), list is length {}", items.len())),
        },
        _ => no_such(),
    }),
    Row("list<dyn>#flatten() list<dyn>", |args| match args {
        [Val::List(items)] => {
            let mut out = Vec::new();
            flatten(items, 1, &mut out);
            Ok(Val::list(out))
        }
        _ => no_such(),
    }),
    Row("list<dyn>#flatten(int) list<dyn>", |args| match args {
        [Val::List(_), Val::Int(..0)] => fail("level must be non-negative"),
        [Val::List(items), Val::Int(depth)] => {
            let mut out = Vec::new();
            flatten(items, (*depth).min(FLATTEN_MAX), &mut out);
            Ok(Val::list(out))
        }
        _ => no_such(),
    }),
    Row("list<A>#distinct() list<A>", |args| match args {
        [Val::List(items)] => {
            let mut out: Vec<Val<'_>> = Vec::new();
            for item in items.iter() {
                if !has(&out, item) {
                    out.push(item.clone());
                }
            }
            Ok(Val::list(out))
        }
        _ => no_such(),
    }),
    Row("list<A>#reverse() list<A>", |args| match args {
        [Val::List(items)] => Ok(Val::list(items.iter().rev().cloned().collect())),
        _ => no_such(),
    }),
    Row("list<A>#sort() list<A>", |args| match args {
        [Val::List(items)] => sorted(items, items),
        _ => no_such(),
    }),
    Row("lists.range(int) list<int>", |args| match args {
        [Val::Int(count)] if *count > RANGE_MAX => fail(format!("lists.range: more than {RANGE_MAX} items")),
        [Val::Int(count)] => Ok(Val::list((0..*count).map(Val::Int).collect())),
        _ => no_such(),
    }),
    Row("sets.contains(list<A>,list<A>) bool", |args| match args {
        [Val::List(all), Val::List(some)] => Ok(Val::Bool(some.iter().all(|item| has(all, item)))),
        _ => no_such(),
    }),
    Row("sets.equivalent(list<A>,list<A>) bool", |args| match args {
        [Val::List(a), Val::List(b)] => {
            Ok(Val::Bool(a.iter().all(|item| has(b, item)) && b.iter().all(|item| has(a, item))))
        }
        _ => no_such(),
    }),
    Row("sets.intersects(list<A>,list<A>) bool", |args| match args {
        [Val::List(a), Val::List(b)] => Ok(Val::Bool(a.iter().any(|item| has(b, item)))),
        _ => no_such(),
    }),
    Row("optional.of(A) optional<A>", |args| Ok(Val::some(args[0].clone()))),
    Row("optional.none() optional<A>", |_| Ok(Val::Optional(None))),
    Row("optional.ofNonZeroValue(A) optional<A>", |args| {
        Ok(Val::Optional((!is_zero(&args[0])).then(|| Arc::new(args[0].clone()))))
    }),
    Row("optional<A>#hasValue() bool", |args| match args {
        [Val::Optional(value)] => Ok(Val::Bool(value.is_some())),
        _ => no_such(),
    }),
    Row("optional<A>#value() A", |args| match args {
        [Val::Optional(Some(value))] => Ok((**value).clone()),
        [Val::Optional(None)] => fail("optional.none() dereference"),
        _ => no_such(),
    }),
    Row("optional<A>#orValue(A) A", |args| match args {
        [Val::Optional(Some(value)), _] => Ok((**value).clone()),
        [Val::Optional(None), otherwise] => Ok(otherwise.clone()),
        _ => no_such(),
    }),
    Row("optional<A>#or(optional<A>) optional<A>", |args| match args {
        [Val::Optional(Some(_)), _] => Ok(args[0].clone()),
        [Val::Optional(None), otherwise] => Ok(otherwise.clone()),
        _ => no_such(),
    }),
];
