//! Sets of paths into an object: sorted trees, one entry per step, so that unions and differences are one pass.

use std::cmp::Ordering;
use std::fmt;

use crate::value::{Str, Value};

/// One step of a path.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A member of a struct or map.
    Field(Str),
    /// The item of a list whose key members have these values, sorted by member.
    Key(Box<[(Str, Value)]>),
    /// The item of a set with this value.
    Value(Value),
    /// The item at a place.
    Index(i64),
}

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set(pub(super) Vec<Entry>);

/// A step, and which paths that start with it are in the set.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub step: Step,
    /// Whether the path that ends here is in the set.
    pub member: bool,
    pub below: Set,
}

/// Orders scalar values: numbers, then strings, then booleans, then null.
fn compare_values(a: &Value, b: &Value) -> Ordering {
    fn rank(value: &Value) -> u8 {
        match value {
            Value::Int(_) | Value::Float(_) => 0,
            Value::Str(_) => 1,
            Value::Bool(_) => 2,
            Value::List(_) => 3,
            Value::Map(_) => 4,
            Value::Null => 5,
        }
    }
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Str(a), Value::Str(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Int(a), Value::Float(b)) => (*a as f64).total_cmp(b),
        (Value::Float(a), Value::Int(b)) => a.total_cmp(&(*b as f64)),
        (Value::Float(a), Value::Float(b)) => a.total_cmp(b),
        (Value::List(_), Value::List(_)) | (Value::Map(_), Value::Map(_)) => a.to_json().cmp(&b.to_json()),
        _ => rank(a).cmp(&rank(b)),
    }
}

impl Step {
    fn rank(&self) -> u8 {
        match self {
            Step::Field(_) => 0,
            Step::Key(_) => 1,
            Step::Value(_) => 2,
            Step::Index(_) => 3,
        }
    }

    pub(super) fn compare(&self, other: &Step) -> Ordering {
        match (self, other) {
            (Step::Field(a), Step::Field(b)) => a.cmp(b),
            (Step::Key(a), Step::Key(b)) => {
                for ((a_name, a_value), (b_name, b_value)) in a.iter().zip(b) {
                    let order = a_name.cmp(b_name).then_with(|| compare_values(a_value, b_value));
                    if order != Ordering::Equal {
                        return order;
                    }
                }
                a.len().cmp(&b.len())
            }
            (Step::Value(a), Step::Value(b)) => compare_values(a, b),
            (Step::Index(a), Step::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Value| String::from_utf8_lossy(&value.to_json()).into_owned();
        match self {
            Step::Field(name) => write!(f, ".{name}"),
            Step::Key(keys) => {
                let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
                write!(f, "[{}]", keys.join(","))
            }
            Step::Value(value) => write!(f, "[={}]", text(value)),
            Step::Index(at) => write!(f, "[{at}]"),
        }
    }
}

impl Set {
    pub const fn new() -> Set {
        Set(Vec::new())
    }

    /// The set of these paths, each a list of field names.
    pub fn of_fields(paths: &[&[&str]]) -> Set {
        let mut set = Set::new();
        for path in paths {
            let mut at = &mut set;
            for (place, name) in path.iter().enumerate() {
                let entry = at.entry(Step::Field((*name).into()));
                entry.member |= place + 1 == path.len();
                at = &mut entry.below;
            }
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, step: &Step) -> Result<usize, usize> {
        // Sets are mostly built in order.
        match self.0.last() {
            Some(last) if last.step.compare(step) == Ordering::Less => Err(self.0.len()),
            None => Err(0),
            _ => self.0.binary_search_by(|entry| entry.step.compare(step)),
        }
    }

    pub(super) fn get(&self, step: &Step) -> Option<&Entry> {
        self.find(step).ok().map(|at| &self.0[at])
    }

    /// The entry of `step`, made if it is not there. The caller must put something into it.
    pub(super) fn entry(&mut self, step: Step) -> &mut Entry {
        let at = match self.find(&step) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, Entry { step, member: false, below: Set::new() });
                at
            }
        };
        &mut self.0[at]
    }

    /// Adds what is below a step, and the step itself if `member`; nothing when both are nothing.
    pub(super) fn put(&mut self, step: Step, member: bool, below: Set) {
        if member || !below.is_empty() {
            let entry = self.entry(step);
            entry.member |= member;
            if entry.below.is_empty() {
                entry.below = below;
            } else {
                entry.below.add(below);
            }
        }
    }

    /// The paths in either.
    pub fn union(mut self, other: Set) -> Set {
        self.add(other);
        self
    }

    fn add(&mut self, other: Set) {
        if self.is_empty() {
            *self = other;
            return;
        }
        for entry in other.0 {
            match self.find(&entry.step) {
                Ok(at) => {
                    self.0[at].member |= entry.member;
                    self.0[at].below.add(entry.below);
                }
                Err(at) => self.0.insert(at, entry),
            }
        }
    }

    /// The paths in both.
    pub fn intersection(&self, other: &Set) -> Set {
        let both = |entry: &Entry| {
            let other = other.get(&entry.step)?;
            let (member, below) = (entry.member && other.member, entry.below.intersection(&other.below));
            (member || !below.is_empty()).then(|| Entry { step: entry.step.clone(), member, below })
        };
        Set(self.0.iter().filter_map(both).collect())
    }

    /// The paths of this set that are not in `other`. Paths below those in `other` stay.
    pub fn difference(mut self, other: &Set) -> Set {
        self.take_out(other, false);
        self
    }

    /// The paths of this set that are not in `other` and not below one of it.
    pub fn without(mut self, other: &Set) -> Set {
        self.take_out(other, true);
        self
    }

    fn take_out(&mut self, other: &Set, with_below: bool) {
        for gone in &other.0 {
            let Ok(at) = self.find(&gone.step) else { continue };
            let entry = &mut self.0[at];
            match with_below && gone.member {
                true => entry.below = Set::new(),
                false => entry.below.take_out(&gone.below, with_below),
            }
            entry.member &= !gone.member;
            if !entry.member && entry.below.is_empty() {
                self.0.remove(at);
            }
        }
    }

    /// Every path as text: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        fn walk(set: &Set, prefix: &str, out: &mut Vec<String>) {
            for entry in &set.0 {
                let path = format!("{prefix}{}", entry.step);
                if entry.member {
                    out.push(path.clone());
                }
                walk(&entry.below, &path, out);
            }
        }
        let mut out = Vec::new();
        walk(self, "", &mut out);
        out
    }
}
