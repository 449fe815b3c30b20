//! Field errors: what is wrong, where, and with which value. [`At`] walks a value and knows its path, so that a check
//! reads `at.field("spec").field("replicas")` and pays for the path's text only when it reports.

use std::fmt;

use crate::value::{Map, Value};

/// What is wrong with a field; the names are Kubernetes' `CauseType`s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    Forbidden,
    TooLong,
    TooMany,
    NotFound,
    TypeInvalid,
    Internal,
}

impl Fault {
    /// The cause's `reason` in a `Status`.
    pub fn reason(self) -> &'static str {
        match self {
            Fault::Required => "FieldValueRequired",
            Fault::Invalid => "FieldValueInvalid",
            Fault::NotSupported => "FieldValueNotSupported",
            Fault::Duplicate => "FieldValueDuplicate",
            Fault::Forbidden => "FieldValueForbidden",
            Fault::TooLong => "FieldValueTooLong",
            Fault::TooMany => "FieldValueTooMany",
            Fault::NotFound => "FieldValueNotFound",
            Fault::TypeInvalid => "FieldValueTypeInvalid",
            Fault::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Fault::Required => "Required value",
            Fault::Invalid | Fault::TypeInvalid => "Invalid value",
            Fault::NotSupported => "Unsupported value",
            Fault::Duplicate => "Duplicate value",
            Fault::Forbidden => "Forbidden",
            Fault::TooLong => "Too long",
            Fault::TooMany => "Too many",
            Fault::NotFound => "Not found",
            Fault::Internal => "Internal error",
        }
    }
}

/// One field error.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub fault: Fault,
    /// `spec.containers[0].image`.
    pub field: String,
    /// The value as text, already quoted; empty where the fault shows none.
    pub value: String,
    pub detail: String,
}

impl FieldError {
    /// The error without its field: `Invalid value: "x": must be …`.
    pub fn message(&self) -> String {
        let mut text = self.fault.words().to_owned();
        for part in [&self.value, &self.detail] {
            if !part.is_empty() {
                text.push_str(": ");
                text.push_str(part);
            }
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message())
    }
}

/// The field errors of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn required(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(Fault::Required, path, None, detail.into());
    }

    pub fn invalid(&mut self, at: &At, detail: impl Into<String>) {
        self.push(Fault::Invalid, &at.path, Some(at.value), detail.into());
    }

    /// Like [`Errors::invalid`] for a value that is not the one at the path.
    pub fn invalid_value(&mut self, path: &Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(Fault::Invalid, path, Some(&value.into()), detail.into());
    }

    /// An unsupported value; `supported` are the values there are.
    pub fn not_supported(&mut self, at: &At, supported: &[&str]) {
        let mut names: Vec<String> = supported.iter().map(|name| format!("{name:?}")).collect();
        names.sort();
        self.push(Fault::NotSupported, &at.path, Some(at.value), format!("supported values: {}", names.join(", ")));
    }

    pub fn duplicate(&mut self, at: &At) {
        self.push(Fault::Duplicate, &at.path, Some(at.value), String::new());
    }

    pub fn duplicate_value(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(Fault::Duplicate, path, Some(&value.into()), String::new());
    }

    pub fn forbidden(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(Fault::Forbidden, path, None, detail.into());
    }

    pub fn too_long(&mut self, path: &Path, max_bytes: usize) {
        self.push(Fault::TooLong, path, None, format!("may not be more than {max_bytes} bytes"));
    }

    pub fn too_many(&mut self, path: &Path, actual: usize, max: usize) {
        self.push(Fault::TooMany, path, Some(&Value::Int(actual as i64)), format!("must have at most {max} items"));
    }

    pub fn not_found(&mut self, at: &At) {
        self.push(Fault::NotFound, &at.path, Some(at.value), String::new());
    }

    pub fn type_invalid(&mut self, at: &At, detail: impl Into<String>) {
        self.push(Fault::TypeInvalid, &at.path, Some(at.value), detail.into());
    }

    pub fn push(&mut self, fault: Fault, path: &Path, value: Option<&Value>, detail: String) {
        let value = value.map(|value| String::from_utf8_lossy(&value.to_json()).into_owned()).unwrap_or_default();
        self.0.push(FieldError { fault, field: path.to_string(), value, detail });
    }
}

/// A path to a field, as a list on the stack.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// The object itself; prints as `<nil>`, as upstream's nil path does.
    pub const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    pub fn field<'b>(&'b self, name: &'b str) -> Path<'b> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    pub fn index(&self, at: usize) -> Path<'_> {
        Path { parent: Some(self), step: Step::Index(at) }
    }

    /// A map's member: `labels[app]`.
    pub fn key<'b>(&'b self, key: &'b str) -> Path<'b> {
        Path { parent: Some(self), step: Step::Key(key) }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.write(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) => {
                if self.parent.is_some_and(|parent| !matches!(parent.step, Step::Root)) {
                    f.write_str(".")?;
                }
                f.write_str(name)
            }
            Step::Index(at) => write!(f, "[{at}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Step::Root => f.write_str("<nil>"),
            _ => self.write(f),
        }
    }
}

/// A value and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    pub value: &'a Value,
    pub path: Path<'a>,
}

impl<'a> At<'a> {
    pub fn root(value: &'a Value) -> At<'a> {
        At { value, path: Path::ROOT }
    }

    /// The member `name`; its value is `Null` when absent.
    pub fn field<'b>(&'b self, name: &'b str) -> At<'b> {
        At { value: &self.value[name], path: self.path.field(name) }
    }

    /// The item `index`; its value is `Null` when absent.
    pub fn index(&self, index: usize) -> At<'_> {
        At { value: &self.value[index], path: self.path.index(index) }
    }

    /// The items of the list here; none when it is no list.
    pub fn items(&self) -> impl Iterator<Item = At<'_>> {
        self.value.items().iter().enumerate().map(|(at, value)| At { value, path: self.path.index(at) })
    }

    /// The members of the free-form map here, as `field[key]`.
    pub fn members(&self) -> impl Iterator<Item = (&str, At<'_>)> {
        self.value.entries().iter().map(|(key, value)| (key, At { value, path: self.path.key(key) }))
    }

    /// Whether something is here: not absent, not null.
    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Whether nothing, `""`, `[]` or `{}` is here.
    pub fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::Str(string) => string.is_empty(),
            Value::List(items) => items.is_empty(),
            Value::Map(map) => map.is_empty(),
            _ => false,
        }
    }

    pub fn text(&self) -> &'a str {
        self.value.text()
    }

    pub fn int(&self) -> Option<i64> {
        self.value.as_int()
    }

    pub fn map(&self) -> &'a Map {
        self.value.entries()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn paths_print_as_upstream_prints_them() {
        let value = json!({"spec": {"containers": [{"name": "a"}], "nodeSelector": {"x/y": ""}}});
        let root = At::root(&value);
        let spec = root.field("spec");
        let mut errors = Errors::default();
        for container in spec.field("containers").items() {
            errors.invalid(&container.field("name"), "no");
        }
        for (_, at) in spec.field("nodeSelector").members() {
            errors.required(&at.path, "");
        }
        errors.not_supported(&spec.field("dnsPolicy"), &["B", "A"]);
        let lines: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                r#"spec.containers[0].name: Invalid value: "a": no"#,
                "spec.nodeSelector[x/y]: Required value",
                r#"spec.dnsPolicy: Unsupported value: null: supported values: "A", "B""#,
            ]
        );
        assert_eq!(Path::ROOT.to_string(), "<nil>");
    }
}
