//! The Common Expression Language as Kubernetes has it: parsed, checked against declared types with an estimate of what
//! an evaluation costs at most, and evaluated on JSON values where they lie.
//!
//! Not here: what expressions are about (custom resources, admission, devices); who uses them declares the variables.
//!
//! Invariants: any text is compiled or refused, never a panic; an evaluation ends when its budget is spent; nothing is
//! read but the variables that were given (no clock, no randomness).

mod ast;
mod check;
mod cost;
mod eval;
pub mod functions;
mod lex;
mod parse;
pub mod types;
pub mod value;

use std::collections::BTreeMap;
use std::fmt;

use meta::Str;

pub use functions::authorizer::{About, Ask, Authorizer};
pub use types::{Bound, FieldType, ObjectType, Type};
pub use value::{Fail, Val};

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError(String);

impl CompileError {
    fn new(what: String) -> CompileError {
        CompileError(what)
    }

    /// With line and column, both from 1 on.
    fn at(text: &str, at: usize, what: String) -> CompileError {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        CompileError(format!("ERROR: <input>:{line}:{column}: {what}"))
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CompileError {}

/// What an expression may speak of.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: BTreeMap<Str, Type>,
    /// Whether `Object{…}` and `JSONPatch{…}` may be made.
    patches: bool,
}

impl Env {
    pub fn new() -> Env {
        Env::default()
    }

    #[must_use]
    pub fn with(mut self, name: &str, of: Type) -> Env {
        self.variables.insert(name.into(), of);
        self
    }

    /// Lets expressions make objects, as mutating policies do.
    #[must_use]
    pub fn with_patches(mut self) -> Env {
        self.patches = true;
        self
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    expr: ast::Expr,
    result: Type,
    cost: u64,
    /// The declared variables that it names.
    uses: Vec<Str>,
}

impl Program {
    /// # Errors
    /// Where and why `text` is no expression of `env`.
    pub fn compile(text: &str, env: &Env) -> Result<Program, CompileError> {
        let mut expr = parse::parse(text)?;
        let checked = check::check(text, &mut expr, env)?;
        Ok(Program { expr, result: checked.of, cost: checked.cost, uses: checked.uses })
    }

    pub fn result(&self) -> &Type {
        &self.result
    }

    /// What an evaluation costs at most, in Kubernetes' units; `u64::MAX` when nothing bounds it.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    pub fn uses(&self, variable: &str) -> bool {
        self.uses.iter().any(|used| used == variable)
    }

    /// Evaluates with these values of the variables, and takes what it cost from `budget`.
    ///
    /// # Errors
    /// [`Fail::Error`] when it went wrong, [`Fail::Budget`] when the budget is spent.
    pub fn evaluate<'a>(&self, variables: &[(&str, Val<'a>)], budget: &mut u64) -> Result<Val<'a>, Fail> {
        eval::evaluate(&self.expr, variables, budget)
    }
}

/// The name by which expressions know a property: what is no name there, and what is reserved, is spelled out.
/// `None` when expressions cannot name it.
pub fn escape(name: &str) -> Option<String> {
    if parse::RESERVED.contains(&name) || matches!(name, "true" | "false" | "null" | "in") {
        return Some(format!("__{name}__"));
    }
    let first = name.bytes().next()?;
    if !(first.is_ascii_alphabetic() || first == b'_')
        || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte))
    {
        return None;
    }
    let spelled = name.replace("__", "__underscores__");
    Some(spelled.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}

#[cfg(test)]
mod tests;
