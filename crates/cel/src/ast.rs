//! Expressions as the parser makes them; macros are already taken apart.

use std::sync::Arc;

use meta::Str;

use crate::functions::Overload;

/// One expression and where it begins in the text.
#[derive(Debug)]
pub struct Expr {
    pub kind: Kind,
    pub at: usize,
}

#[derive(Debug)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Debug)]
pub enum Kind {
    Literal(Literal),
    Ident(Str),
    /// `of.field`, `of.?field`; `test`: `has(of.field)`.
    Select {
        of: Box<Expr>,
        field: Str,
        optional: bool,
        test: bool,
    },
    /// `of[index]`, `of[?index]`.
    Index {
        of: Box<Expr>,
        index: Box<Expr>,
        optional: bool,
    },
    /// A function; the overloads that may be meant are found by the checker. A target is the first argument.
    Call {
        name: Str,
        target: bool,
        args: Vec<Expr>,
        found: Vec<&'static Overload>,
    },
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Either {
        condition: Box<Expr>,
        then: Box<Expr>,
        otherwise: Box<Expr>,
    },
    /// Items; `true` for those with a `?`.
    List(Vec<(Expr, bool)>),
    Map(Vec<Entry>),
    /// `Type{field: value}`.
    Message {
        name: Str,
        fields: Vec<(Str, Expr, bool)>,
    },
    Loop(Box<Loop>),
    /// `cel.bind(name, value, body)`.
    Bind {
        name: Str,
        value: Box<Expr>,
        body: Box<Expr>,
    },
    /// `of.optMap(name, body)`; `flat`: the body is optional itself.
    WithValue {
        of: Box<Expr>,
        name: Str,
        body: Box<Expr>,
        flat: bool,
    },
}

#[derive(Debug)]
pub struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

/// What a macro over a list or map does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    All,
    Exists,
    ExistsOne,
    /// `map`, `transformList`: a list of the results.
    List,
    Filter,
    /// `transformMap`.
    Map,
    /// `transformMapEntry`: the results are maps of entries.
    Entries,
    /// `sortBy`.
    Sort,
}

#[derive(Debug)]
pub struct Loop {
    pub fold: Fold,
    pub over: Expr,
    pub first: Str,
    /// The second variable: of lists the item (the first is then its place), of maps the value.
    pub second: Option<Str>,
    /// Which items count, for the folds that make something.
    pub only: Option<Expr>,
    /// The predicate, or what is made of an item.
    pub body: Expr,
}
