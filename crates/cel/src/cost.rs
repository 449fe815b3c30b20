//! What an expression costs at most: the units and factors of Kubernetes' estimates.

use std::sync::Arc;

use crate::types::{Bound, Type};

/// Going through the letters of a text.
const LETTER: f64 = 0.1;
/// Going through the letters of a pattern.
const PATTERN: f64 = 0.25;
pub const LIST: u64 = 10;
pub const MAP: u64 = 30;
pub const MESSAGE: u64 = 40;
/// A question of authorization.
const ASK: u64 = 350_000;

/// `count * factor`, rounded up; what is unbounded stays so.
pub fn scaled(count: u64, factor: f64) -> u64 {
    let product = count as f64 * factor;
    if product >= u64::MAX as f64 { u64::MAX } else { product.ceil() as u64 }
}

/// The cost of a call beyond that of its arguments, and its result with the bound that follows from them.
pub fn call(name: &str, args: &[Type], result: Type) -> (u64, Type) {
    let size = |at: usize| args.get(at).map_or(0, Type::bound);
    let letters = |at: usize| scaled(size(at), LETTER);
    let is_list = matches!(args.first(), Some(Type::List(..)));
    match name {
        "_+_" => match &result {
            Type::String(_) | Type::Bytes(_) => {
                let sum = size(0).saturating_add(size(1));
                (scaled(sum, LETTER), result.bounded(sum))
            }
            Type::List(..) => (1, result.bounded(size(0).saturating_add(size(1)))),
            _ => (1, result),
        },
        "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => (scaled(size(0).min(size(1)), LETTER), result),
        "_in_" if matches!(args.get(1), Some(Type::List(..) | Type::Dyn)) => (size(1), result),
        "startsWith" | "endsWith" => (letters(1), result),
        "contains" if !is_list => (letters(0).saturating_mul(letters(1)), result),
        "matches" | "find" | "findAll" => {
            let text = scaled(size(0).saturating_add(1), LETTER);
            (text.saturating_mul(scaled(size(1), PATTERN)), result.bounded(size(0)))
        }
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" if is_list => {
            let each = match &args[0] {
                Type::List(item, _) if matches!(**item, Type::String(_) | Type::Bytes(_)) => {
                    scaled(item.bound(), LETTER).saturating_add(1)
                }
                _ => 1,
            };
            (size(0).saturating_mul(each), result)
        }
        "indexOf" | "lastIndexOf" => (letters(0), result),
        "lowerAscii" | "upperAscii" | "substring" | "trim" | "reverse" if !is_list => {
            (letters(0), result.bounded(size(0)))
        }
        "charAt" => (1, result.bounded(4)),
        "replace" => {
            // Every letter may be replaced, and between all letters an empty text is found.
            let most = size(0).saturating_add(size(0).saturating_add(1).saturating_mul(size(2)));
            (letters(0), result.bounded(most))
        }
        "split" => (letters(0), result.bounded(size(0))),
        "join" => {
            let item = match args.first() {
                Some(Type::List(item, _)) => item.bound(),
                _ => u64::MAX,
            };
            let separator = if args.len() > 1 { size(1) } else { 0 };
            let most = size(0).saturating_mul(item.saturating_add(separator));
            (scaled(most, LETTER), result.bounded(most))
        }
        "format" => (letters(0), result),
        "strings.quote" => (letters(0), result.bounded(size(0).saturating_mul(2).saturating_add(2))),
        "string" => match args.first() {
            Some(Type::String(_) | Type::Bytes(_)) => (letters(0), result.bounded(size(0))),
            // No number has more letters.
            Some(Type::Int | Type::Uint | Type::Double | Type::Bool) => (1, result.bounded(32)),
            _ => (1, result),
        },
        "bytes" => (letters(0), result.bounded(size(0).saturating_mul(4))),
        "url" | "isURL" | "ip" | "isIP" | "ip.isCanonical" | "cidr" | "isCIDR" | "quantity" | "isQuantity"
        | "semver" | "isSemver" | "containsIP" | "containsCIDR" => {
            let text = args.iter().filter(|arg| matches!(arg, Type::String(_))).map(Type::bound).max().unwrap_or(1);
            (scaled(text, LETTER).max(1), result)
        }
        "validate" => (letters(1).max(1), result),
        "sets.contains" | "sets.intersects" => (size(0).saturating_mul(size(1)), result),
        "sets.equivalent" => (size(0).saturating_mul(size(1)).saturating_mul(2), result),
        "distinct" | "sort" | "@sortBy" => (size(0).saturating_mul(size(0)), result.bounded(size(0))),
        "slice" | "flatten" | "reverse" => (size(0), result.bounded(size(0))),
        "check" => (ASK, result),
        _ => (1, result),
    }
}

/// The type of an item that an expression wrote into a list: how large it is is forgotten.
pub fn forgotten(of: Type) -> Type {
    match of {
        Type::List(item, _) => Type::List(Arc::new(forgotten((*item).clone())), Bound::NONE),
        other => other.bounded(u64::MAX),
    }
}
