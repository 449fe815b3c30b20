//! Evaluation. Every step costs, so that an evaluation ends when its budget is spent.

use std::collections::BTreeMap;
use std::sync::Arc;

use meta::Str;

use crate::ast::{Expr, Fold, Kind, Literal, Loop};
use crate::functions::{lists, no_such};
use crate::types::Type;
use crate::value::{Fail, Key, Val, fail};

/// Evaluates; takes what it cost from `budget`.
pub fn evaluate<'a>(expr: &Expr, variables: &[(&str, Val<'a>)], budget: &mut u64) -> Result<Val<'a>, Fail> {
    let mut scope = Scope { variables, locals: Vec::new(), budget };
    scope.value(expr)
}

struct Scope<'v, 'a> {
    variables: &'v [(&'v str, Val<'a>)],
    locals: Vec<(Str, Val<'a>)>,
    budget: &'v mut u64,
}

type Found<'a> = Result<Val<'a>, Fail>;

impl<'a> Scope<'_, 'a> {
    fn spend(&mut self, cost: u64) -> Result<(), Fail> {
        match self.budget.checked_sub(cost) {
            Some(left) => {
                *self.budget = left;
                Ok(())
            }
            None => {
                *self.budget = 0;
                Err(Fail::Budget)
            }
        }
    }

    fn value(&mut self, expr: &Expr) -> Found<'a> {
        self.spend(1)?;
        match &expr.kind {
            Kind::Literal(literal) => Ok(literal_value(literal)),
            Kind::Ident(name) => self.variable(name),
            Kind::Select { of, field, optional, test } => {
                let of = self.value(of)?;
                self.select(of, field, *optional, *test)
            }
            Kind::Index { of, index, optional } => {
                let of = self.value(of)?;
                let index = self.value(index)?;
                chained(
                    of,
                    *optional,
                    || show(&index),
                    |of| match at(of, &index) {
                        // Beyond the end of a list is nothing, for who asks whether something is there.
                        Err(Fail::Error(_)) if *optional => Ok(None),
                        found => found,
                    },
                )
            }
            Kind::Call { args, found, .. } => {
                let args = args.iter().map(|arg| self.value(arg)).collect::<Result<Vec<_>, _>>()?;
                let cost = args.iter().map(weight).sum::<u64>();
                self.spend(cost)?;
                let fits = found.iter().find(|one| one.params.iter().zip(&args).all(|(wanted, arg)| arg.is(wanted)));
                match fits {
                    Some(overload) => (overload.run)(&args),
                    None => no_such(),
                }
            }
            Kind::And(left, right) => self.logic(left, right, false),
            Kind::Or(left, right) => self.logic(left, right, true),
            Kind::Either { condition, then, otherwise } => match self.value(condition)? {
                Val::Bool(true) => self.value(then),
                Val::Bool(false) => self.value(otherwise),
                _ => no_such(),
            },
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => {
                let mut map = BTreeMap::new();
                for entry in entries {
                    let key = self.value(&entry.key)?;
                    let value = self.value(&entry.value)?;
                    let Some(key) = key.key() else { return fail("unsupported key type") };
                    let Some(value) = given(value, entry.optional)? else { continue };
                    if map.insert(key, value).is_some() {
                        return fail("insert failed: key already exists");
                    }
                }
                Ok(Val::Map(Arc::new(map)))
            }
            Kind::Message { name, fields } => {
                let mut map = BTreeMap::new();
                for (field, value, optional) in fields {
                    let value = self.value(value)?;
                    if let Some(value) = given(value, *optional)? {
                        map.insert(field.clone(), value);
                    }
                }
                Ok(Val::Message(name.as_str().into(), Arc::new(map)))
            }
            Kind::Loop(of) => self.fold(of),
            Kind::Bind { name, value, body } => {
                let value = self.value(value)?;
                self.with(&[(name, value)], |scope| scope.value(body))
            }
            Kind::WithValue { of, name, body, flat } => match self.value(of)? {
                Val::Optional(None) => Ok(Val::Optional(None)),
                Val::Optional(Some(value)) => {
                    let made = self.with(&[(name, (*value).clone())], |scope| scope.value(body))?;
                    Ok(if *flat { made } else { Val::some(made) })
                }
                _ => no_such(),
            },
        }
    }

    fn list(&mut self, items: &[(Expr, bool)]) -> Found<'a> {
        let mut all = Vec::with_capacity(items.len());
        for (item, optional) in items {
            let value = self.value(item)?;
            all.extend(given(value, *optional)?);
        }
        Ok(Val::list(all))
    }

    fn variable(&self, name: &str) -> Found<'a> {
        let local = self.locals.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value);
        let declared = || self.variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
        match local.or_else(declared) {
            Some(value) => Ok(value.clone()),
            None => match name {
                // The names of types are their values.
                "bool"
                | "int"
                | "uint"
                | "double"
                | "string"
                | "bytes"
                | "list"
                | "map"
                | "null_type"
                | "type"
                | "optional_type"
                | "google.protobuf.Timestamp"
                | "google.protobuf.Duration" => Ok(Val::Type(name.into())),
                _ => fail(format!("no such attribute(s): {name}")),
            },
        }
    }

    fn with<T>(
        &mut self,
        bound: &[(&Str, Val<'a>)],
        inner: impl FnOnce(&mut Self) -> Result<T, Fail>,
    ) -> Result<T, Fail> {
        let depth = self.locals.len();
        self.locals.extend(bound.iter().map(|(name, value)| ((*name).clone(), value.clone())));
        let result = inner(self);
        self.locals.truncate(depth);
        result
    }

    fn select(&self, of: Val<'a>, field: &str, optional: bool, test: bool) -> Found<'a> {
        if test {
            let held = match of {
                Val::Optional(None) => return Ok(Val::Bool(false)),
                Val::Optional(Some(held)) => (*held).clone(),
                other => other,
            };
            return member(&held, field).map(|found| Val::Bool(found.is_some()));
        }
        chained(of, optional, || field.to_owned(), |of| member(of, field))
    }

    /// `&&` and `||`: the side that decides counts, even if the other went wrong.
    fn logic(&mut self, left: &Expr, right: &Expr, decides: bool) -> Found<'a> {
        let first = self.value(left);
        match first {
            Ok(Val::Bool(value)) if value == decides => return Ok(Val::Bool(decides)),
            Err(Fail::Budget) => return Err(Fail::Budget),
            _ => {}
        }
        match (first, self.value(right)) {
            (_, Ok(Val::Bool(value))) if value == decides => Ok(Val::Bool(decides)),
            (Ok(Val::Bool(_)), Ok(Val::Bool(value))) => Ok(Val::Bool(value)),
            (Err(error), _) | (_, Err(error)) => Err(error),
            _ => no_such(),
        }
    }

    fn fold(&mut self, of: &Loop) -> Found<'a> {
        let over = self.value(&of.over)?;
        let pairs: Vec<(Val<'a>, Val<'a>)> = match &over {
            Val::List(items) if of.second.is_none() => items.iter().map(|item| (item.clone(), Val::Null)).collect(),
            Val::List(items) => {
                items.iter().enumerate().map(|(at, item)| (Val::Int(at as i64), item.clone())).collect()
            }
            other => match other.entries() {
                Some(entries) => entries.into_iter().map(|(key, value)| (key_value(key), value)).collect(),
                None => return no_such(),
            },
        };
        self.spend(pairs.len() as u64)?;
        match of.fold {
            Fold::All => self.quantified(of, pairs, false),
            Fold::Exists => self.quantified(of, pairs, true),
            _ => self.collected(of, pairs),
        }
    }

    fn body(&mut self, of: &Loop, expr: &Expr, first: &Val<'a>, second: &Val<'a>) -> Found<'a> {
        let mut bound = vec![(&of.first, first.clone())];
        if let Some(name) = &of.second {
            bound.push((name, second.clone()));
        }
        self.with(&bound, |scope| scope.value(expr))
    }

    fn quantified(&mut self, of: &Loop, pairs: Vec<(Val<'a>, Val<'a>)>, decides: bool) -> Found<'a> {
        let mut wrong = None;
        for (first, second) in pairs {
            match self.body(of, &of.body, &first, &second) {
                Ok(Val::Bool(value)) if value == decides => return Ok(Val::Bool(decides)),
                Ok(Val::Bool(_)) => {}
                Ok(_) => wrong = Some(Fail::Error("no such overload".to_owned())),
                Err(Fail::Budget) => return Err(Fail::Budget),
                Err(error) => wrong = Some(error),
            }
        }
        wrong.map_or(Ok(Val::Bool(!decides)), Err)
    }

    fn collected(&mut self, of: &Loop, pairs: Vec<(Val<'a>, Val<'a>)>) -> Found<'a> {
        let (mut made, mut keys, mut map, mut count) = (Vec::new(), Vec::new(), BTreeMap::new(), 0u64);
        for (first, second) in pairs {
            if let Some(only) = &of.only {
                match self.body(of, only, &first, &second)? {
                    Val::Bool(true) => {}
                    Val::Bool(false) => continue,
                    _ => return no_such(),
                }
            }
            let value = self.body(of, &of.body, &first, &second)?;
            match (of.fold, value) {
                (Fold::ExistsOne, Val::Bool(holds)) => count += u64::from(holds),
                (Fold::Filter, Val::Bool(holds)) => made.extend(holds.then_some(first)),
                (Fold::ExistsOne | Fold::Filter, _) => return no_such(),
                (Fold::Sort, key) => {
                    made.push(first);
                    keys.push(key);
                }
                (Fold::Map, value) => {
                    let Some(key) = first.key() else { return no_such() };
                    map.insert(key, value);
                }
                (Fold::Entries, value) => {
                    for (key, value) in value.entries().ok_or_else(|| Fail::Error("no such overload".to_owned()))? {
                        if map.insert(key, value).is_some() {
                            return fail("insert failed: key already exists");
                        }
                    }
                }
                (_, value) => made.push(value),
            }
        }
        match of.fold {
            Fold::ExistsOne => Ok(Val::Bool(count == 1)),
            Fold::Map | Fold::Entries => Ok(Val::Map(Arc::new(map))),
            Fold::Sort => lists::sorted(&made, &keys),
            _ => Ok(Val::list(made)),
        }
    }
}

fn literal_value<'a>(literal: &Literal) -> Val<'a> {
    match literal {
        Literal::Null => Val::Null,
        Literal::Bool(value) => Val::Bool(*value),
        Literal::Int(number) => Val::Int(*number),
        Literal::Uint(number) => Val::Uint(*number),
        Literal::Double(number) => Val::Double(*number),
        Literal::Text(text) => Val::Text(text.clone()),
        Literal::Bytes(bytes) => Val::Bytes(bytes.clone()),
    }
}

fn key_value<'a>(key: Key) -> Val<'a> {
    match key {
        Key::Bool(value) => Val::Bool(value),
        Key::Int(number) => i64::try_from(number).map_or(Val::Uint(u64::MAX), Val::Int),
        Key::Text(text) => Val::Text(text),
    }
}

/// What a call costs for the size of an argument.
fn weight(arg: &Val<'_>) -> u64 {
    match arg {
        Val::Text(text) => text.len() as u64 / 10,
        Val::Bytes(bytes) => bytes.len() as u64 / 10,
        Val::List(items) => items.len() as u64,
        Val::Map(map) => map.len() as u64,
        _ => 0,
    }
}

/// The value to be put in; of `?`-ones what they hold, if anything.
fn given(value: Val<'_>, optional: bool) -> Result<Option<Val<'_>>, Fail> {
    match (optional, value) {
        (false, value) => Ok(Some(value)),
        (true, Val::Optional(held)) => Ok(held.map(|held| (*held).clone())),
        (true, _) => fail("no such overload"),
    }
}

/// A key in a message.
fn show(key: &Val<'_>) -> String {
    match key {
        Val::Text(text) => text.to_string(),
        Val::Int(number) => number.to_string(),
        Val::Uint(number) => number.to_string(),
        Val::Bool(value) => value.to_string(),
        other => other.type_name().to_owned(),
    }
}

/// A member or item, of optional values optionally; a missing one is an error where it must be there.
fn chained<'a>(
    of: Val<'a>,
    optional: bool,
    name: impl Fn() -> String,
    find: impl Fn(&Val<'a>) -> Result<Option<Val<'a>>, Fail>,
) -> Found<'a> {
    let (of, chained) = match of {
        Val::Optional(None) => return Ok(Val::Optional(None)),
        Val::Optional(Some(held)) => ((*held).clone(), true),
        other => (other, false),
    };
    match (find(&of)?, optional || chained) {
        (Some(value), false) => Ok(value),
        (Some(value), true) => Ok(Val::some(value)),
        (None, true) => Ok(Val::Optional(None)),
        (None, false) => fail(format!("no such key: {}", name())),
    }
}

fn member<'a>(of: &Val<'a>, field: &str) -> Result<Option<Val<'a>>, Fail> {
    match of {
        Val::Object(value, object) => match object.fields.get(field) {
            Some(known) => Ok(value.get(&known.name).map(|value| Val::of(value, &known.of))),
            None => Ok(value.get(field).map(|value| Val::of(value, &Type::Dyn))),
        },
        Val::Map(map) => Ok(map.get(&Key::Text(field.into())).cloned()),
        Val::Message(_, fields) => Ok(fields.get(field).cloned()),
        _ => fail(format!("no such key: {field}")),
    }
}

fn at<'a>(of: &Val<'a>, index: &Val<'a>) -> Result<Option<Val<'a>>, Fail> {
    match (of, index) {
        (Val::List(items), index) => match index.key() {
            Some(Key::Int(number)) => match usize::try_from(number).ok().and_then(|at| items.get(at)) {
                Some(item) => Ok(Some(item.clone())),
                None => fail(format!("index out of bounds: {number}")),
            },
            _ => fail("no such overload"),
        },
        (Val::Object(..) | Val::Message(..), Val::Text(field)) => member(of, field),
        (Val::Map(map), index) => Ok(index.key().and_then(|key| map.get(&key).cloned())),
        _ => fail("no such overload"),
    }
}
