//! Quantities: `1Gi`, `100m`.

use std::cmp::Ordering;
use std::sync::Arc;

use meta::Quantity;

use super::{Row, no_such};
use crate::value::{Fail, Val, fail};

fn both<'a>(args: &[Val<'a>], what: fn(&Quantity, &Quantity) -> Val<'static>) -> Result<Val<'a>, Fail> {
    match args {
        [Val::Quantity(a), Val::Quantity(b)] => Ok(what(a, b)),
        [Val::Quantity(a), Val::Int(b)] => Ok(what(a, &Quantity::from_int(*b))),
        _ => no_such(),
    }
}

pub const ROWS: &[Row] = &[
    Row("isQuantity(string) bool", |args| match args {
        [Val::Text(text)] => Ok(Val::Bool(Quantity::parse(text).is_ok())),
        _ => no_such(),
    }),
    Row("quantity(string) quantity", |args| match args {
        [Val::Text(text)] => match Quantity::parse(text) {
            Ok(quantity) => Ok(Val::Quantity(Arc::new(quantity))),
            Err(error) => fail(error.to_string()),
        },
        _ => no_such(),
    }),
    Row("sign(quantity) int", |args| match args {
        [Val::Quantity(quantity)] => Ok(Val::Int(quantity.sign().into())),
        _ => no_such(),
    }),
    Row("quantity#isInteger() bool", |args| match args {
        [Val::Quantity(quantity)] => Ok(Val::Bool(quantity.as_int().is_some())),
        _ => no_such(),
    }),
    Row("quantity#asInteger() int", |args| match args {
        [Val::Quantity(quantity)] => match quantity.as_int() {
            Some(number) => Ok(Val::Int(number)),
            None => fail("cannot convert value to integer"),
        },
        _ => no_such(),
    }),
    Row("quantity#asApproximateFloat() double", |args| match args {
        [Val::Quantity(quantity)] => Ok(Val::Double(quantity.to_f64())),
        _ => no_such(),
    }),
    Row("quantity#add(quantity) quantity", |args| both(args, |a, b| Val::Quantity(Arc::new(a.plus(b))))),
    Row("quantity#add(int) quantity", |args| both(args, |a, b| Val::Quantity(Arc::new(a.plus(b))))),
    Row("quantity#sub(quantity) quantity", |args| both(args, |a, b| Val::Quantity(Arc::new(a.minus(b))))),
    Row("quantity#sub(int) quantity", |args| both(args, |a, b| Val::Quantity(Arc::new(a.minus(b))))),
    Row("quantity#isGreaterThan(quantity) bool", |args| both(args, |a, b| Val::Bool(a.compare(b).is_gt()))),
    Row("quantity#isLessThan(quantity) bool", |args| both(args, |a, b| Val::Bool(a.compare(b).is_lt()))),
    Row("quantity#compareTo(quantity) int", |args| {
        both(args, |a, b| {
            Val::Int(match a.compare(b) {
                Ordering::Less => -1,
                Ordering::Equal => 0,
                Ordering::Greater => 1,
            })
        })
    }),
];
