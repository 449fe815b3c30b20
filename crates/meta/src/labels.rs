//! Selectors: label selectors in text form (`a=b,c in (d)`) and object form, and field selectors.
//!
//! The grammar is Kubernetes' (apimachinery `labels.Parse`): requirements separated by commas, all of which must hold.

use crate::names;
use crate::object::Labels;
use crate::value::{Str, Value};

/// How a requirement compares the label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    In(Vec<Str>),
    NotIn(Vec<Str>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: Str,
    pub op: Op,
}

/// All requirements must hold; none selects everything. [`Selector::NOTHING`] selects nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    pub const NOTHING: Selector = Selector { requirements: Vec::new(), nothing: true };

    pub fn everything() -> Selector {
        Selector::default()
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_by(|key| labels.get(key))
    }

    /// Matches against the labels in a value's map.
    pub fn matches_value(&self, labels: &Value) -> bool {
        self.matches_by(|key| labels[key].as_str())
    }

    pub fn matches_by<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.holds(value_of(&requirement.key)))
    }

    /// Reads the query form. The error is a sentence for a `BadRequest`.
    pub fn parse(text: &str) -> Result<Selector, String> {
        let tokens = tokens(text)?;
        let mut parser = Parser { tokens: &tokens, at: 0 };
        let mut requirements = Vec::new();
        loop {
            match parser.peek() {
                Token::End if requirements.is_empty() => break,
                Token::Word(_) | Token::Not => requirements.push(parser.requirement()?),
                other => return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.text())),
            }
            match parser.next() {
                Token::End => break,
                Token::Comma => match parser.peek() {
                    Token::Word(_) | Token::Not => {}
                    other => return Err(format!("found '{}', expected: identifier after ','", other.text())),
                },
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
            }
        }
        requirements.sort_by(|a: &Requirement, b| a.key.cmp(&b.key));
        Ok(Selector { requirements, nothing: false })
    }

    /// A `metav1.LabelSelector`; null selects nothing, `{}` everything. Malformed parts select nothing.
    pub fn of(selector: &Value) -> Selector {
        let Some(map) = selector.as_map() else { return Selector::NOTHING };
        let mut requirements: Vec<Requirement> = Vec::new();
        for (key, value) in map.get("matchLabels").map(Value::entries).into_iter().flat_map(|map| map.iter()) {
            requirements.push(Requirement { key: key.into(), op: Op::In(vec![value.text().into()]) });
        }
        for expression in map.get("matchExpressions").map(Value::items).unwrap_or_default() {
            let values = || expression["values"].items().iter().map(|value| value.text().into()).collect();
            let op = match expression["operator"].text() {
                "In" => Op::In(values()),
                "NotIn" => Op::NotIn(values()),
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                _ => return Selector::NOTHING,
            };
            requirements.push(Requirement { key: expression["key"].text().into(), op });
        }
        Selector { requirements, nothing: false }
    }

    /// A plain map of labels that must all be equal (Service and ReplicationController selectors); null selects nothing.
    pub fn of_map(map: &Value) -> Selector {
        match map.as_map() {
            None => Selector::NOTHING,
            Some(map) if map.is_empty() => Selector::NOTHING,
            Some(map) => Selector {
                requirements: map
                    .iter()
                    .map(|(key, value)| Requirement { key: key.into(), op: Op::In(vec![value.text().into()]) })
                    .collect(),
                nothing: false,
            },
        }
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, requirement) in self.requirements.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            let key = &requirement.key;
            match &requirement.op {
                Op::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Op::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Op::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Op::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Op::Exists => f.write_str(key)?,
                Op::DoesNotExist => write!(f, "!{key}")?,
                Op::GreaterThan(number) => write!(f, "{key}>{number}")?,
                Op::LessThan(number) => write!(f, "{key}<{number}")?,
            }
        }
        Ok(())
    }
}

impl Requirement {
    /// Whether a label with `value` (absent: `None`) meets it.
    pub fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.op {
            Op::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
            Op::NotIn(values) => !value.is_some_and(|value| values.iter().any(|v| v == value)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::GreaterThan(limit) => number().is_some_and(|number| number > *limit),
            Op::LessThan(limit) => number().is_some_and(|number| number < *limit),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(Str),
    Not,
    Equals(&'static str),
    NotEquals,
    Greater,
    Less,
    Open,
    Close,
    Comma,
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(word) => word,
            Token::Not => "!",
            Token::Equals(text) => text,
            Token::NotEquals => "!=",
            Token::Greater => ">",
            Token::Less => "<",
            Token::Open => "(",
            Token::Close => ")",
            Token::Comma => ",",
            Token::End => "",
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    const SPECIAL: &[char] = &['=', '!', '(', ')', ',', '>', '<'];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, len) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '>' => (Token::Greater, 1),
            '<' => (Token::Less, 1),
            '!' if rest[1..].starts_with('=') => (Token::NotEquals, 2),
            '!' => (Token::Not, 1),
            '=' if rest[1..].starts_with('=') => (Token::Equals("=="), 2),
            '=' => (Token::Equals("="), 1),
            _ => {
                let end = rest.find(|c: char| SPECIAL.contains(&c) || c.is_whitespace()).unwrap_or(rest.len());
                (Token::Word(rest[..end].into()), end)
            }
        };
        tokens.push(token);
        rest = rest[len..].trim_start();
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Token {
        self.tokens.get(self.at).cloned().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = self.peek() == Token::Not;
        if absent {
            self.next();
        }
        let Token::Word(key) = self.next() else { return Err("expected: identifier after '!'".to_owned()) };
        if let Some(why) = names::qualified_name(&key).first() {
            return Err(format!("key: Invalid value: {key:?}: {why}"));
        }
        if absent {
            return Ok(Requirement { key, op: Op::DoesNotExist });
        }
        let op = match self.peek() {
            Token::End | Token::Comma => return Ok(Requirement { key, op: Op::Exists }),
            operator => {
                self.next();
                operator
            }
        };
        let op = match op {
            Token::Equals(_) => Op::In(vec![self.value()?]),
            Token::NotEquals => Op::NotIn(vec![self.value()?]),
            Token::Greater => Op::GreaterThan(self.number(&key)?),
            Token::Less => Op::LessThan(self.number(&key)?),
            Token::Word(word) if word == "in" => Op::In(self.values()?),
            Token::Word(word) if word == "notin" => Op::NotIn(self.values()?),
            other => {
                let expected = "in, notin, =, ==, !=, gt, lt";
                return Err(format!("found '{}', expected: {expected}", other.text()));
            }
        };
        if let Op::In(values) | Op::NotIn(values) = &op {
            for value in values {
                if let Some(why) = names::label_value(value).first() {
                    return Err(format!("values[0][{key}]: Invalid value: {value:?}: {why}"));
                }
            }
        }
        Ok(Requirement { key, op })
    }

    /// One value after `=`; absent means the empty string.
    fn value(&mut self) -> Result<Str, String> {
        match self.peek() {
            Token::End | Token::Comma => Ok(Str::default()),
            Token::Word(word) => {
                self.next();
                Ok(word)
            }
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    fn number(&mut self, key: &str) -> Result<i64, String> {
        let value = self.value()?;
        value.parse().map_err(|_| {
            format!(
                "values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            )
        })
    }

    /// `(a, b)`; an empty place is the empty string.
    fn values(&mut self) -> Result<Vec<Str>, String> {
        match self.next() {
            Token::Open => {}
            other => return Err(format!("found '{}' expected: '('", other.text())),
        }
        let mut values = Vec::new();
        let mut expect_value = true;
        loop {
            match self.next() {
                Token::Word(word) if expect_value => {
                    values.push(word);
                    expect_value = false;
                }
                Token::Comma => {
                    if expect_value {
                        values.push(Str::default());
                    }
                    expect_value = true;
                }
                Token::Close => {
                    if expect_value {
                        values.push(Str::default());
                    }
                    values.sort();
                    values.dedup();
                    return Ok(values);
                }
                other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
    }
}

/// A field selector: `metadata.name=a,status.phase!=Running`. Which fields a kind knows is the kind's to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<FieldTerm>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: Str,
    pub value: Str,
    pub equal: bool,
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<FieldSelector, String> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) = part.split_once("==") {
                (field, value, true)
            } else if let Some((field, value)) = part.split_once('=') {
                (field, value, true)
            } else {
                return Err(format!("invalid selector: '{text}'; can't understand '{part}'"));
            };
            terms.push(FieldTerm { field: field.into(), value: unescape(value).into(), equal });
        }
        Ok(FieldSelector(terms))
    }

    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that `field` must equal, if the selector says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut escaped = false;
    for c in text.chars() {
        if c == '\\' && !escaped {
            escaped = true;
            continue;
        }
        escaped = false;
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(selector: &str, labels: &[(&str, &str)], expected: bool) {
        let labels: Labels = labels.iter().copied().collect();
        assert_eq!(Selector::parse(selector).unwrap().matches(&labels), expected, "{selector}");
    }

    #[test]
    fn selects() {
        let labels = [("app", "web"), ("n", "5")];
        check("", &labels, true);
        check("app=web", &labels, true);
        check("app==web,!x", &labels, true);
        check("app in (web, db),n>4", &labels, true);
        check("app notin (web)", &labels, false);
        check("x notin (web)", &labels, true);
        check("x!=1", &labels, true);
        check("app in ()", &labels, false);
        check("app=", &labels, false);
    }

    #[test]
    fn refuses_with_a_sentence() {
        for bad in ["=", "app in rich", "a b", "a,,b", "a=b c", "a>x", "!", "a in (b", "-x=1", ",a"] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Selector::parse("app in rich").unwrap_err(), "found 'rich' expected: '('");
        assert!(FieldSelector::parse("a").is_err());
        assert_eq!(FieldSelector::parse("a=b\\,c,d!=e").unwrap().0.len(), 2);
    }
}
