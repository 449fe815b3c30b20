//! Types of expressions: finds what every name and call means, and what it costs at most.

use std::collections::HashMap;
use std::sync::Arc;

use meta::Str;

use crate::ast::{Entry, Expr, Fold, Kind, Literal, Loop};
use crate::cost;
use crate::functions::overloads;
use crate::parse::qualified;
use crate::types::{ANY, Bound, Type};
use crate::{CompileError, Env};

/// Names of types, as expressions write them.
const TYPES: &[&str] = &[
    "bool",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "optional_type",
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
];

pub struct Checked {
    pub of: Type,
    pub cost: u64,
    pub uses: Vec<Str>,
}

/// Checks an expression; its calls then know their overloads.
pub fn check(text: &str, expr: &mut Expr, env: &Env) -> Result<Checked, CompileError> {
    let mut checker = Checker { text, env, locals: Vec::new(), uses: Vec::new() };
    let (of, cost) = checker.expr(expr)?;
    Ok(Checked { of, cost, uses: checker.uses })
}

struct Checker<'a> {
    text: &'a str,
    env: &'a Env,
    locals: Vec<(Str, Type)>,
    uses: Vec<Str>,
}

type Found = Result<(Type, u64), CompileError>;

fn sum(costs: impl IntoIterator<Item = u64>) -> u64 {
    costs.into_iter().fold(0, u64::saturating_add)
}

impl Checker<'_> {
    fn error<T>(&self, at: usize, what: String) -> Result<T, CompileError> {
        Err(CompileError::at(self.text, at, what))
    }

    fn variable(&mut self, name: &str) -> Option<Type> {
        if let Some((_, of)) = self.locals.iter().rev().find(|(known, _)| known == name) {
            return Some(of.clone());
        }
        let (name, of) = self.env.variables.get_key_value(name)?;
        if !self.uses.contains(name) {
            self.uses.push(name.clone());
        }
        Some(of.clone())
    }

    fn expr(&mut self, expr: &mut Expr) -> Found {
        let at = expr.at;
        if let Some(found) = self.dotted(expr) {
            return Ok(found);
        }
        match &mut expr.kind {
            Kind::Literal(literal) => Ok((literal_type(literal), 0)),
            Kind::Ident(name) => match self.variable(name) {
                Some(of) => Ok((of, 1)),
                None if TYPES.contains(&name.as_str()) => Ok((Type::Type, 1)),
                None => self.error(at, format!("undeclared reference to '{name}' (in container '')")),
            },
            Kind::Select { of, field, optional, test } => {
                let (of, cost) = self.expr(of)?;
                let found = self.select(&of, field, at)?;
                let found = match (*test, *optional, matches!(of, Type::Optional(_))) {
                    (true, ..) => Type::Bool,
                    (false, true, _) | (false, _, true) => optional_of(found),
                    _ => found,
                };
                Ok((found, cost.saturating_add(1)))
            }
            Kind::Index { of, index, optional } => {
                let (of, cost) = self.expr(of)?;
                let (index, more) = self.expr(index)?;
                let found = self.index(&of, &index, at)?;
                let chained = *optional || matches!(of, Type::Optional(_));
                let found = if chained { optional_of(found) } else { found };
                Ok((found, sum([cost, more, 1])))
            }
            Kind::Call { .. } => self.call(expr),
            Kind::And(left, right) | Kind::Or(left, right) => {
                let mut total = 0;
                for side in [left, right] {
                    let place = side.at;
                    let (of, cost) = self.expr(side)?;
                    self.expect(&of, &Type::Bool, place)?;
                    total = sum([total, cost]);
                }
                Ok((Type::Bool, total))
            }
            Kind::Either { condition, then, otherwise } => {
                let (of, cost) = self.expr(condition)?;
                self.expect(&of, &Type::Bool, condition.at)?;
                let (a, first) = self.expr(then)?;
                let (b, second) = self.expr(otherwise)?;
                let of = self.join(a, b, otherwise.at)?;
                Ok((of, cost.saturating_add(first.max(second))))
            }
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Message { name, fields } => self.message(name, fields, at),
            Kind::Loop(of) => self.fold(of, at),
            Kind::Bind { name, value, body } => {
                let (of, cost) = self.expr(value)?;
                self.locals.push((name.clone(), of));
                let result = self.expr(body);
                self.locals.pop();
                let (of, more) = result?;
                Ok((of, sum([cost::LIST, cost, more])))
            }
            Kind::WithValue { of, name, body, flat } => self.with_value(of, name, body, *flat),
        }
    }

    fn list(&mut self, items: &mut [(Expr, bool)]) -> Found {
        let mut of: Option<Type> = None;
        let mut total = cost::LIST;
        let count = items.len() as u64;
        for (item, optional) in items {
            let (found, cost) = self.expr(item)?;
            let found = if *optional { inner(found) } else { found };
            total = sum([total, cost]);
            of = Some(match of {
                None => found,
                Some(known) => self.join(known, found, item.at)?,
            });
        }
        let of = cost::forgotten(of.unwrap_or(Type::Dyn));
        Ok((Type::List(Arc::new(of), Bound(count)), total))
    }

    fn map(&mut self, entries: &mut [Entry]) -> Found {
        let (mut key, mut value): (Option<Type>, Option<Type>) = (None, None);
        let mut total = cost::MAP;
        let count = entries.len() as u64;
        for entry in entries {
            let (found_key, first) = self.expr(&mut entry.key)?;
            let (found, second) = self.expr(&mut entry.value)?;
            let found = if entry.optional { inner(found) } else { found };
            total = sum([total, first, second]);
            key = Some(key.map_or(Ok(found_key.clone()), |known| self.join(known, found_key, entry.key.at))?);
            value = Some(value.map_or(Ok(found.clone()), |known| self.join(known, found, entry.value.at))?);
        }
        let of = |of: Option<Type>| Arc::new(cost::forgotten(of.unwrap_or(Type::Dyn)));
        Ok((Type::Map(of(key), of(value), Bound(count)), total))
    }

    fn message(&mut self, name: &Str, fields: &mut [(Str, Expr, bool)], at: usize) -> Found {
        let is_patch = name == "JSONPatch" || name == "Object" || name.starts_with("Object.");
        if !self.env.patches || !is_patch {
            let what = format!("undeclared reference to '{name}' (in container '')");
            return self.error(at, what);
        }
        let mut total = cost::MESSAGE;
        for (field, value, _) in fields {
            if name == "JSONPatch" && !matches!(field.as_str(), "op" | "path" | "from" | "value") {
                let what = format!("undefined field '{field}'");
                return self.error(value.at, what);
            }
            total = sum([total, self.expr(value)?.1]);
        }
        Ok((
            Type::Object(Arc::new(crate::ObjectType { name: name.to_string(), open: true, ..Default::default() })),
            total,
        ))
    }

    fn with_value(&mut self, of: &mut Expr, name: &Str, body: &mut Expr, flat: bool) -> Found {
        let place = of.at;
        let (found, cost) = self.expr(of)?;
        let held = match found {
            Type::Optional(of) => (*of).clone(),
            Type::Dyn => Type::Dyn,
            other => return self.error(place, format!("expected type 'optional' but found '{other}'")),
        };
        self.locals.push((name.clone(), held));
        let result = self.expr(body);
        self.locals.pop();
        let (of, more) = result?;
        let of = if flat { of } else { optional_of(of) };
        Ok((of, sum([cost, more, 3])))
    }

    /// `a.b` that is one variable with a dot in its name, or the name of a type.
    fn dotted(&mut self, expr: &mut Expr) -> Option<(Type, u64)> {
        let Kind::Select { of, test: false, optional: false, .. } = &expr.kind else { return None };
        let first = qualified(of)?;
        let head = first.split('.').next().unwrap_or_default();
        if self.locals.iter().any(|(known, _)| known == head) {
            return None;
        }
        let name = qualified(expr)?;
        let found =
            if TYPES.contains(&name.as_str()) { Type::Type } else { self.env.variables.get(name.as_str())?.clone() };
        if found != Type::Type {
            self.uses.push(name.as_str().into());
        }
        expr.kind = Kind::Ident(name.into());
        Some((found, 1))
    }

    fn expect(&self, found: &Type, wanted: &Type, at: usize) -> Result<(), CompileError> {
        if found.fits(wanted, &mut HashMap::new()) {
            return Ok(());
        }
        self.error(at, format!("expected type '{wanted}' but found '{found}'"))
    }

    /// One type for two: they must be the same, or one of them unknown.
    fn join(&self, a: Type, b: Type, at: usize) -> Result<Type, CompileError> {
        if a.is_dyn() || b.is_dyn() {
            return Ok(Type::Dyn);
        }
        if b.fits(&a, &mut HashMap::new()) {
            let most = a.bound().max(b.bound());
            return Ok(if matches!(a, Type::Null) { b.bounded(most) } else { a.bounded(most) });
        }
        if a.fits(&b, &mut HashMap::new()) {
            return Ok(b);
        }
        self.error(at, format!("expected type '{a}' but found '{b}'"))
    }

    fn select(&self, of: &Type, field: &str, at: usize) -> Result<Type, CompileError> {
        match of {
            Type::Dyn => Ok(Type::Dyn),
            Type::Optional(inner) => self.select(inner, field, at),
            Type::Map(_, value, _) => Ok((**value).clone()),
            Type::Object(object) => match object.fields.get(field) {
                Some(found) => Ok(found.of.clone()),
                None if object.open => Ok(Type::Dyn),
                None => self.error(at, format!("undefined field '{field}'")),
            },
            other => self.error(at, format!("type '{other}' does not support field selection")),
        }
    }

    fn index(&self, of: &Type, index: &Type, at: usize) -> Result<Type, CompileError> {
        let number = |index: &Type| matches!(index, Type::Int | Type::Uint | Type::Double | Type::Dyn);
        match of {
            Type::Dyn => Ok(Type::Dyn),
            Type::Optional(inner) => self.index(inner, index, at),
            Type::List(item, _) if number(index) => Ok((**item).clone()),
            Type::Map(key, value, _) if index.fits(key, &mut HashMap::new()) => Ok((**value).clone()),
            Type::Object(object) if object.open && index.fits(&Type::STRING, &mut HashMap::new()) => Ok(Type::Dyn),
            _ => self.error(at, format!("found no matching overload for '_[_]' applied to '({of}, {index})'")),
        }
    }

    fn call(&mut self, expr: &mut Expr) -> Found {
        let at = expr.at;
        let Kind::Call { name, target, args, found } = &mut expr.kind else { return Ok((Type::Dyn, 0)) };
        // `math.least(x)`: what looks like a value may be the first part of the function's name.
        if *target
            && let Some(space) = args.first().and_then(qualified)
            && self.variable(space.split('.').next().unwrap_or_default()).is_none()
            && !overloads(&format!("{space}.{name}"), false).is_empty()
        {
            *name = format!("{space}.{name}").into();
            *target = false;
            args.remove(0);
        }
        let mut types = Vec::with_capacity(args.len());
        let mut total = 0;
        for (place, arg) in args.iter_mut().enumerate() {
            // What is put into a text may be of any types.
            let mixed = *target && name == "format" && place == 1;
            let (of, cost) = match &mut arg.kind {
                Kind::List(items) if mixed => self.mixed(items)?,
                _ => self.expr(arg)?,
            };
            types.push(of);
            total = sum([total, cost]);
        }
        let known = overloads(name, *target);
        if known.is_empty() {
            let what = format!("undeclared reference to '{name}' (in container '')");
            return self.error(at, what);
        }
        let mut result: Option<Type> = None;
        for overload in known.iter().filter(|overload| overload.params.len() == types.len()) {
            let mut bound = HashMap::new();
            let fits = types.iter().zip(&overload.params).all(|(of, wanted)| of.fits(wanted, &mut bound));
            match order(name, &types) {
                Some(false) => continue,
                // Numbers of different kinds have an order, but are not equal.
                Some(true) if types.iter().all(is_number) => {}
                _ if !fits => continue,
                _ => {}
            }
            let of = overload.result.resolve(&bound);
            result = Some(match result {
                None => of,
                Some(known) if known == of => known,
                Some(_) => Type::Dyn,
            });
            found.push(overload);
        }
        let Some(result) = result else {
            let types: Vec<String> = types.iter().map(ToString::to_string).collect();
            let what = format!("found no matching overload for '{name}' applied to '({})'", types.join(", "));
            return self.error(at, what);
        };
        let (cost, result) = cost::call(name, &types, result);
        Ok((result, sum([total, cost])))
    }

    /// A list whose items need not be of one type.
    fn mixed(&mut self, items: &mut [(Expr, bool)]) -> Found {
        let mut total = cost::LIST;
        for (item, _) in items.iter_mut() {
            total = sum([total, self.expr(item)?.1]);
        }
        Ok((Type::List(Arc::new(Type::Dyn), Bound(items.len() as u64)), total))
    }

    fn fold(&mut self, of: &mut Loop, at: usize) -> Found {
        let (over, base) = self.expr(&mut of.over)?;
        let most = over.bound();
        let two = of.second.is_some();
        let (first, second) = match &over {
            Type::List(item, _) if two => (Type::Int, (**item).clone()),
            Type::List(item, _) => ((**item).clone(), Type::Dyn),
            Type::Map(key, value, _) => ((**key).clone(), (**value).clone()),
            Type::Object(object) if object.open => (Type::STRING, Type::Dyn),
            Type::Dyn => (Type::Dyn, Type::Dyn),
            other => {
                let what = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                return self.error(of.over.at, what);
            }
        };
        let depth = self.locals.len();
        self.locals.push((of.first.clone(), first.clone()));
        if let Some(name) = &of.second {
            self.locals.push((name.clone(), second));
        }
        let inner = self.fold_body(of);
        self.locals.truncate(depth);
        let (only, (body, each)) = inner?;
        // The costs are those of the steps into which Kubernetes takes these macros apart.
        let condition = |cost: u64| only.map_or(cost, |only| sum([only, cost.max(1)]));
        let (result, begin, step, end) = match of.fold {
            Fold::All => (Type::Bool, 0, sum([3, each]), 1),
            Fold::Exists => (Type::Bool, 0, sum([4, each]), 1),
            Fold::ExistsOne => (Type::Bool, 0, sum([each, 2]), 2),
            Fold::List => {
                let of = Type::List(Arc::new(body), Bound(most));
                (of, cost::LIST, condition(sum([2, cost::LIST, each])), 1)
            }
            Fold::Filter => {
                let item = if matches!(over, Type::Dyn) { Type::Dyn } else { first };
                (Type::List(Arc::new(item), Bound(most)), cost::LIST, sum([each, 3, cost::LIST]), 1)
            }
            Fold::Map => {
                let key = match &over {
                    Type::List(..) => Type::Int,
                    Type::Map(key, ..) => (**key).clone(),
                    _ => Type::Dyn,
                };
                (Type::Map(Arc::new(key), Arc::new(body), Bound(most)), cost::MAP, condition(sum([3, each])), 1)
            }
            Fold::Entries => {
                let of = match body {
                    Type::Map(key, value, _) => Type::Map(key, value, Bound(most)),
                    Type::Dyn => Type::Dyn,
                    other => return self.error(at, format!("expected type 'map' but found '{other}'")),
                };
                (of, cost::MAP, condition(sum([2, each])), 1)
            }
            Fold::Sort => {
                let item = if matches!(over, Type::Dyn) { Type::Dyn } else { first };
                (
                    Type::List(Arc::new(item), Bound(most)),
                    cost::LIST,
                    sum([2, cost::LIST, each]),
                    most.saturating_mul(most),
                )
            }
        };
        Ok((result, sum([base, begin, most.saturating_mul(step), end])))
    }

    /// The cost of the condition, and type and cost of the body.
    #[allow(clippy::type_complexity, reason = "two results of one walk over the loop's inside")]
    fn fold_body(&mut self, of: &mut Loop) -> Result<(Option<u64>, (Type, u64)), CompileError> {
        let only = match &mut of.only {
            Some(only) => {
                let (found, cost) = self.expr(only)?;
                self.expect(&found, &Type::Bool, only.at)?;
                Some(cost)
            }
            None => None,
        };
        let (body, each) = self.expr(&mut of.body)?;
        if matches!(of.fold, Fold::All | Fold::Exists | Fold::ExistsOne | Fold::Filter) {
            self.expect(&body, &Type::Bool, of.body.at)?;
        }
        Ok((only, (body, each)))
    }
}

fn is_number(of: &Type) -> bool {
    matches!(of, Type::Int | Type::Uint | Type::Double)
}

/// Whether values of these types have an order, where the function asks for it.
fn order(name: &str, types: &[Type]) -> Option<bool> {
    match name {
        "_<_" | "_<=_" | "_>_" | "_>=_" => Some(types.iter().all(|of| {
            matches!(
                of,
                Type::Dyn
                    | Type::Bool
                    | Type::Int
                    | Type::Uint
                    | Type::Double
                    | Type::String(_)
                    | Type::Bytes(_)
                    | Type::Duration
                    | Type::Timestamp
            )
        })),
        _ => None,
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::Text(text) => Type::String(Bound(text.chars().count() as u64)),
        Literal::Bytes(bytes) => Type::Bytes(Bound(bytes.len() as u64)),
    }
}

fn optional_of(of: Type) -> Type {
    match of {
        Type::Optional(_) => of,
        other => Type::Optional(Arc::new(other)),
    }
}

/// What an optional value holds.
fn inner(of: Type) -> Type {
    match of {
        Type::Optional(of) => (*of).clone(),
        other => other,
    }
}

/// The type of objects of which nothing is known, for those who declare variables.
impl Type {
    pub fn any_object() -> Type {
        Type::Object(ANY.clone())
    }
}
