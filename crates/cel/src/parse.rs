//! From words to expressions. Macros (`all`, `map`, `has` …) are taken apart here.

use meta::Str;

use crate::CompileError;
use crate::ast::{Entry, Expr, Fold, Kind, Literal, Loop};
use crate::lex::{Token, tokens};

/// Longest text of an expression, in bytes.
const TEXT_MAX_BYTES: usize = 100_000;
/// How deep expressions may stand in each other.
const DEPTH_MAX: usize = 200;

/// Words that are no names.
pub const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

pub fn parse(text: &str) -> Result<Expr, CompileError> {
    if text.len() > TEXT_MAX_BYTES {
        return Err(CompileError::new(format!("expression is longer than {TEXT_MAX_BYTES} bytes")));
    }
    let mut parser = Parser { text, tokens: tokens(text)?, at: 0, depth: 0 };
    let expr = parser.expr()?;
    match parser.peek() {
        Token::End => Ok(expr),
        _ => parser.error("extraneous input"),
    }
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
}

/// Operators by how tightly they bind, and the functions they are.
const BINARY: &[(&str, u8, &str)] = &[
    ("||", 1, ""),
    ("&&", 2, ""),
    ("==", 3, "_==_"),
    ("!=", 3, "_!=_"),
    ("<", 3, "_<_"),
    ("<=", 3, "_<=_"),
    (">", 3, "_>_"),
    (">=", 3, "_>=_"),
    ("in", 3, "_in_"),
    ("+", 4, "_+_"),
    ("-", 4, "_-_"),
    ("*", 5, "_*_"),
    ("/", 5, "_/_"),
    ("%", 5, "_%_"),
];

impl Parser<'_> {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn place(&self) -> usize {
        self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn error<T>(&self, what: &str) -> Result<T, CompileError> {
        Err(CompileError::at(self.text, self.place(), format!("Syntax error: {what}")))
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(found) if *found == sign)
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), CompileError> {
        if self.take(sign) { Ok(()) } else { self.error(&format!("missing {sign:?}")) }
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, CompileError>) -> Result<T, CompileError> {
        if self.depth == DEPTH_MAX {
            return self.error(&format!("expression is deeper than {DEPTH_MAX} levels"));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn expr(&mut self) -> Result<Expr, CompileError> {
        self.deeper(|parser| {
            let at = parser.place();
            let condition = parser.binary(1)?;
            if !parser.take("?") {
                return Ok(condition);
            }
            let then = parser.binary(1)?;
            parser.expect(":")?;
            let otherwise = parser.expr()?;
            let kind =
                Kind::Either { condition: Box::new(condition), then: Box::new(then), otherwise: Box::new(otherwise) };
            Ok(Expr { kind, at })
        })
    }

    fn binary(&mut self, lowest: u8) -> Result<Expr, CompileError> {
        let mut left = self.unary()?;
        loop {
            let row = match self.peek() {
                Token::Sign(sign) => BINARY.iter().find(|(known, ..)| known == sign),
                Token::Ident(word) if word == "in" => BINARY.iter().find(|(known, ..)| *known == "in"),
                _ => None,
            };
            let Some((sign, power, name)) = row.filter(|(_, power, _)| *power >= lowest) else { return Ok(left) };
            let at = self.place();
            self.at += 1;
            let right = self.deeper(|parser| parser.binary(power + 1))?;
            let kind = match *sign {
                "||" => Kind::Or(Box::new(left), Box::new(right)),
                "&&" => Kind::And(Box::new(left), Box::new(right)),
                _ => call(name, false, vec![left, right]),
            };
            left = Expr { kind, at };
        }
    }

    fn unary(&mut self) -> Result<Expr, CompileError> {
        let at = self.place();
        if self.take("!") {
            let inner = self.deeper(Parser::unary)?;
            return Ok(Expr { kind: call("!_", false, vec![inner]), at });
        }
        if self.take("-") {
            // The smallest number has no positive twin.
            if let Token::Int(number) = *self.peek()
                && number == i64::MIN.unsigned_abs()
            {
                self.at += 1;
                return self.members(Expr { kind: Kind::Literal(Literal::Int(i64::MIN)), at });
            }
            let inner = self.deeper(Parser::unary)?;
            let kind = match inner.kind {
                Kind::Literal(Literal::Int(number)) => Kind::Literal(Literal::Int(-number)),
                Kind::Literal(Literal::Double(number)) => Kind::Literal(Literal::Double(-number)),
                _ => call("-_", false, vec![inner]),
            };
            return Ok(Expr { kind, at });
        }
        let primary = self.primary()?;
        self.members(primary)
    }

    /// What follows a value: `.x`, `.f()`, `[i]`, `{…}`.
    fn members(&mut self, mut of: Expr) -> Result<Expr, CompileError> {
        loop {
            let at = self.place();
            if self.take(".") {
                let optional = self.take("?");
                let Token::Ident(field) = self.next() else {
                    self.at -= 1;
                    return self.error("a name is missing");
                };
                if !optional && self.take("(") {
                    let args = self.list_of(")", Parser::expr)?;
                    of = self.member_call(of, field, args, at)?;
                } else {
                    of = Expr { kind: Kind::Select { of: Box::new(of), field, optional, test: false }, at };
                }
            } else if self.take("[") {
                let optional = self.take("?");
                let index = self.expr()?;
                self.expect("]")?;
                of = Expr { kind: Kind::Index { of: Box::new(of), index: Box::new(index), optional }, at };
            } else if self.is("{") && qualified(&of).is_some() {
                let name = qualified(&of).unwrap_or_default();
                self.at += 1;
                let fields = self.list_of("}", |parser| {
                    let optional = parser.take("?");
                    let Token::Ident(field) = parser.next() else {
                        parser.at -= 1;
                        return parser.error("a field's name is missing");
                    };
                    parser.expect(":")?;
                    Ok((field, parser.expr()?, optional))
                })?;
                of = Expr { kind: Kind::Message { name: name.into(), fields }, at };
            } else {
                return Ok(of);
            }
        }
    }

    fn list_of<T>(
        &mut self,
        end: &str,
        item: impl Fn(&mut Self) -> Result<T, CompileError>,
    ) -> Result<Vec<T>, CompileError> {
        let mut items = Vec::new();
        while !self.take(end) {
            items.push(item(self)?);
            if !self.take(",") {
                self.expect(end)?;
                break;
            }
        }
        Ok(items)
    }

    fn primary(&mut self) -> Result<Expr, CompileError> {
        let at = self.place();
        let literal = |literal| Ok(Expr { kind: Kind::Literal(literal), at });
        match self.next() {
            Token::Int(number) => match i64::try_from(number) {
                Ok(number) => literal(Literal::Int(number)),
                Err(_) => self.error("invalid int literal"),
            },
            Token::Uint(number) => literal(Literal::Uint(number)),
            Token::Double(number) => literal(Literal::Double(number)),
            Token::Text(text) => literal(Literal::Text(text)),
            Token::Bytes(bytes) => literal(Literal::Bytes(bytes)),
            Token::Ident(word) => match word.as_str() {
                "true" => literal(Literal::Bool(true)),
                "false" => literal(Literal::Bool(false)),
                "null" => literal(Literal::Null),
                reserved if RESERVED.contains(&reserved) || reserved == "in" => {
                    self.at -= 1;
                    self.error(&format!("reserved identifier: {reserved}"))
                }
                _ if self.take("(") => {
                    let args = self.list_of(")", Parser::expr)?;
                    self.plain_call(word, args, at)
                }
                _ => Ok(Expr { kind: Kind::Ident(word), at }),
            },
            Token::Sign("(") => {
                let inner = self.expr()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") => {
                let items = self.list_of("]", |parser| {
                    let optional = parser.take("?");
                    Ok((parser.expr()?, optional))
                })?;
                Ok(Expr { kind: Kind::List(items), at })
            }
            Token::Sign("{") => {
                let entries = self.list_of("}", |parser| {
                    let optional = parser.take("?");
                    let key = parser.expr()?;
                    parser.expect(":")?;
                    Ok(Entry { key, value: parser.expr()?, optional })
                })?;
                Ok(Expr { kind: Kind::Map(entries), at })
            }
            // A leading dot means the outermost scope, which is the only one.
            Token::Sign(".") => self.primary(),
            _ => {
                self.at -= 1;
                self.error("mismatched input")
            }
        }
    }

    fn plain_call(&self, name: Str, mut args: Vec<Expr>, at: usize) -> Result<Expr, CompileError> {
        if name == "has" && args.len() == 1 {
            return match args.pop().map(|arg| arg.kind) {
                Some(Kind::Select { of, field, optional: false, .. }) => {
                    Ok(Expr { kind: Kind::Select { of, field, optional: false, test: true }, at })
                }
                _ => Err(CompileError::at(self.text, at, "invalid argument to has() macro".to_owned())),
            };
        }
        Ok(Expr { kind: call(&name, false, args), at })
    }

    fn member_call(&self, of: Expr, name: Str, args: Vec<Expr>, at: usize) -> Result<Expr, CompileError> {
        let is_cel = matches!(&of.kind, Kind::Ident(word) if word == "cel");
        let count = args.len();
        let fold = match (name.as_str(), count) {
            ("all", 2 | 3) => Some(Fold::All),
            ("exists", 2 | 3) => Some(Fold::Exists),
            ("exists_one" | "existsOne", 2 | 3) => Some(Fold::ExistsOne),
            ("map", 2 | 3) | ("transformList", 3 | 4) => Some(Fold::List),
            ("filter", 2) => Some(Fold::Filter),
            ("transformMap", 3 | 4) => Some(Fold::Map),
            ("transformMapEntry", 3 | 4) => Some(Fold::Entries),
            ("sortBy", 2) => Some(Fold::Sort),
            _ => None,
        };
        let mut args = args.into_iter();
        let mut next = || args.next().ok_or_else(|| CompileError::new("an argument is missing".to_owned()));
        if let Some(fold) = fold {
            let two = match fold {
                Fold::All | Fold::Exists | Fold::ExistsOne => count == 3,
                Fold::List => name != "map",
                Fold::Map | Fold::Entries => true,
                Fold::Filter | Fold::Sort => false,
            };
            let first = self.variable(next()?)?;
            let second = if two { Some(self.variable(next()?)?) } else { None };
            let only = if count == 3 + usize::from(two) { Some(next()?) } else { None };
            let body = next()?;
            return Ok(Expr { kind: Kind::Loop(Box::new(Loop { fold, over: of, first, second, only, body })), at });
        }
        let kind = match (name.as_str(), count) {
            ("bind", 3) if is_cel => {
                let name = self.variable(next()?)?;
                Kind::Bind { name, value: Box::new(next()?), body: Box::new(next()?) }
            }
            ("optMap" | "optFlatMap", 2) => {
                let flat = name == "optFlatMap";
                let name = self.variable(next()?)?;
                Kind::WithValue { of: Box::new(of), name, body: Box::new(next()?), flat }
            }
            _ => call(&name, true, std::iter::once(of).chain(args).collect()),
        };
        Ok(Expr { kind, at })
    }

    fn variable(&self, expr: Expr) -> Result<Str, CompileError> {
        match expr.kind {
            Kind::Ident(name) => Ok(name),
            _ => Err(CompileError::at(self.text, expr.at, "argument must be a simple name".to_owned())),
        }
    }
}

fn call(name: &str, target: bool, args: Vec<Expr>) -> Kind {
    Kind::Call { name: name.into(), target, args, found: Vec::new() }
}

/// `a.b.c` as text, if that is what the expression is.
pub fn qualified(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.to_string()),
        Kind::Select { of, field, optional: false, test: false } => Some(format!("{}.{field}", qualified(of)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn what_is_no_expression_is_refused() {
        for bad in
            ["", "1 +", "a b", "(1", "[1, 2", "{1}", "'a", "a.", "a ? b", "has(a)", "x.all(1, true)", "if", "1 in", "@"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let deep = format!("{}1{}", "(".repeat(100_000 / 2 - 1), ")".repeat(100_000 / 2 - 1));
        assert!(parse(&deep).is_err());
        assert!(parse(&"-".repeat(10_000)).is_err());
        for good in [
            "a.b[0].?c",
            "{'a': 1, ?'b': c}",
            "[?x, 1,]",
            "r'\\d' + \"\"\"a\nb\"\"\"",
            "-9223372036854775808",
            "a ? b : c ? d : e",
            "Object.spec{a: 1}",
            "0x1Fu // note",
        ] {
            parse(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
    }
}
