//! Walks values by their type: which fields a value has, how two values differ, and how they are merged.

use std::cmp::Ordering;

use super::set::{Set, Step};
use crate::schema::{ListKind, Node, Scalar, TypeRef};
use crate::value::{Map, Str, Value};

/// How a value of a type is owned.
#[derive(Clone, Copy)]
pub(super) enum Atom<'a> {
    /// As one.
    Leaf,
    /// Member by member; `None` is a free-form map.
    Members(Option<TypeRef<'a>>),
    /// Item by item.
    Items(TypeRef<'a>, &'a ListKind),
}

/// A type; `None` where the schema says nothing.
pub(super) type Of<'a> = Option<TypeRef<'a>>;

/// How `value` is owned; what the schema leaves open follows from the value.
pub(super) fn atom<'a>(of: Of<'a>, value: Option<&Value>) -> Atom<'a> {
    let open = |of| match value {
        Some(Value::Map(_)) => Atom::Members(of),
        _ => Atom::Leaf,
    };
    let Some(of) = of else { return open(None) };
    match of.kind() {
        Node::Scalar(Scalar::Any) | Node::Either(..) => open(None),
        Node::Scalar(_) => Atom::Leaf,
        Node::Struct { atomic: true, .. } | Node::Map { atomic: true, .. } => Atom::Leaf,
        Node::Struct { .. } | Node::Map { .. } => Atom::Members(Some(of)),
        Node::List { kind: ListKind::Atomic, .. } => Atom::Leaf,
        Node::List { item, kind, .. } => Atom::Items(of.with(*item), kind),
    }
}

/// The type of a member, and whether the schema names it.
pub(super) fn member<'a>(of: Of<'a>, name: &str) -> (Of<'a>, bool) {
    let Some(of) = of else { return (None, false) };
    match of.kind() {
        Node::Struct { .. } => {
            let found = of.member(name);
            (found, found.is_some())
        }
        Node::Map { value, .. } => (Some(of.with(*value)), false),
        _ => (None, false),
    }
}

/// The step to an item of a list that is owned by item; `None` for an item without key.
pub(super) fn item_step(of: TypeRef<'_>, kind: &ListKind, item: &Value) -> Option<Step> {
    match kind {
        ListKind::Atomic => None,
        ListKind::Set => match item {
            Value::Null | Value::Map(_) | Value::List(_) => None,
            scalar => Some(Step::Value(scalar.clone())),
        },
        ListKind::Map(names) => {
            let map = item.as_map()?;
            let default = |name: &str| of.as_struct()?.field(name)?.default.as_deref();
            let value = |name: &Str| Some((name.clone(), map.get(name).or_else(|| default(name))?.clone()));
            let mut keys: Vec<(Str, Value)> = names.iter().filter_map(value).collect();
            keys.sort_by(|a, b| a.0.cmp(&b.0));
            if keys.is_empty() { None } else { Some(Step::Key(keys.into())) }
        }
    }
}

fn is_void(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Map(map)) => map.is_empty(),
        Some(Value::List(items)) => items.is_empty(),
        Some(_) => false,
    }
}

/// All members of both maps, in order.
fn zip<'a>(a: &'a Map, b: &'a Map, mut see: impl FnMut(&'a str, Option<&'a Value>, Option<&'a Value>)) {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let (key, order) = match (a.peek(), b.peek()) {
            (None, None) => return,
            (Some((key, _)), None) => (*key, Ordering::Less),
            (None, Some((key, _))) => (*key, Ordering::Greater),
            (Some((x, _)), Some((y, _))) if base::same(x.as_bytes(), y.as_bytes()) => (*x, Ordering::Equal),
            (Some((x, _)), Some((y, _))) => (*x.min(y), x.cmp(y)),
        };
        let from_a = if order == Ordering::Greater { None } else { a.next().map(|(_, value)| value) };
        let from_b = if order == Ordering::Less { None } else { b.next().map(|(_, value)| value) };
        see(key, from_a, from_b);
    }
}

/// The fields a value has: what its applier owns.
pub(super) fn fields_of(value: &Value, of: Of<'_>) -> (bool, Set) {
    let mut set = Set::new();
    match atom(of, Some(value)) {
        Atom::Leaf => return (true, set),
        Atom::Members(of) => {
            for (key, inner) in value.entries().iter() {
                let (inner_of, named) = member(of, key);
                let (itself, below) = fields_of(inner, inner_of);
                let empty = inner.is_null() || inner.as_map().is_some_and(Map::is_empty);
                set.put(Step::Field(key.into()), itself || empty || !named, below);
            }
        }
        Atom::Items(item_of, kind) => {
            for item in value.items() {
                if let Some(step) = item_step(item_of, kind, item) {
                    // Of items that stand twice nobody owns the parts.
                    let below = match set.get(&step) {
                        None => fields_of(item, Some(item_of)).1,
                        Some(_) => {
                            set.entry(step.clone()).below = Set::new();
                            Set::new()
                        }
                    };
                    set.put(step, true, below);
                }
            }
        }
    }
    (false, set)
}

/// Whether whoever makes one of two values, of one type, owns the same fields as with the other: they differ at most in
/// what stands in the fields. May say no where they do.
pub(super) fn is_alike(one: &Value, other: &Value, of: Of<'_>) -> bool {
    if one.is_shared_with(other) {
        return true;
    }
    match (atom(of, Some(one)), atom(of, Some(other))) {
        // What is empty may be what a field has that nobody set.
        (Atom::Leaf, Atom::Leaf) => one == other || !is_zero(one) && !is_zero(other),
        (Atom::Members(inner), Atom::Members(_)) => match (one, other) {
            (Value::Map(one), Value::Map(other)) => {
                let mut pairs = one.iter().zip(other.iter());
                let alike = |(name, one): (&str, &Value), (key, other): (&str, &Value)| {
                    base::same(name.as_bytes(), key.as_bytes())
                        && (one.is_same_as(other) || is_alike(one, other, member(inner, key).0))
                };
                one.len() == other.len() && pairs.all(|(one, other)| alike(one, other))
            }
            _ => one == other,
        },
        (Atom::Items(of, kind), Atom::Items(..)) => match (one, other) {
            (Value::List(one), Value::List(other)) => {
                let mut pairs = one.iter().zip(other);
                let alike = |one, other| is_same_item(one, other, kind) && is_alike(one, other, Some(of));
                one.len() == other.len() && pairs.all(|(one, other)| alike(one, other))
            }
            _ => one == other,
        },
        _ => false,
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(bool) => !bool,
        Value::Int(number) => *number == 0,
        Value::Float(number) => *number == 0.0,
        Value::Str(text) => text.is_empty(),
        other => is_void(Some(other)),
    }
}

/// Whether the step to two items is one.
fn is_same_item(one: &Value, other: &Value, kind: &ListKind) -> bool {
    match kind {
        ListKind::Map(names) => names.iter().all(|name| one.get(name) == other.get(name)),
        ListKind::Set | ListKind::Atomic => one == other,
    }
}

/// What differs between two values.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

/// What happened to a value as a whole.
#[derive(Clone, Copy, PartialEq)]
enum Whole {
    Same,
    Removed,
    Modified,
    Added,
}

impl Changes {
    fn put(&mut self, step: Step, (whole, below): (Whole, Changes)) {
        let Changes { removed, modified, added } = below;
        if whole == Whole::Same && removed.is_empty() && modified.is_empty() && added.is_empty() {
            return;
        }
        for (set, member, below) in [
            (&mut self.removed, whole == Whole::Removed, removed),
            (&mut self.modified, whole == Whole::Modified, modified),
            (&mut self.added, whole == Whole::Added, added),
        ] {
            if member || !below.is_empty() {
                set.put(step.clone(), member, below);
            }
        }
    }

    /// The same without the paths in `reset` and below them.
    pub fn without(self, reset: &Set) -> Changes {
        Changes {
            removed: self.removed.without(reset),
            modified: self.modified.without(reset),
            added: self.added.without(reset),
        }
    }
}

/// How `new` differs from `old`, both of one type.
pub(super) fn compare(old: &Value, new: &Value, of: TypeRef<'_>) -> Changes {
    differ(Some(old), Some(new), Some(of)).1
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Whole {
    match (old, new) {
        (None, _) => Whole::Added,
        (_, None) => Whole::Removed,
        (Some(old), Some(new)) if old == new => Whole::Same,
        _ => Whole::Modified,
    }
}

fn differ(old: Option<&Value>, new: Option<&Value>, of: Of<'_>) -> (Whole, Changes) {
    let mut changes = Changes::default();
    let (was, is) = (atom(of, old), atom(of, new));
    let shape = if new.is_none_or(Value::is_null) { was } else { is };
    match shape {
        _ if is_void(old) && is_void(new) => return (leaf(old, new), changes),
        // A free-form value that changed from map to something else, or back.
        Atom::Leaf if matches!(was, Atom::Members(_)) && new.is_some() => {
            changes.removed = fields_of(old.unwrap_or(&Value::Null), of).1;
            return (Whole::Modified, changes);
        }
        Atom::Leaf => return (leaf(old, new), changes),
        Atom::Members(inner) => {
            let (none, old_map) = (Map::new(), old.and_then(Value::as_map));
            let see = |key: &str, old: Option<&Value>, new: Option<&Value>| {
                // Most members have not changed.
                if !matches!((old, new), (Some(old), Some(new)) if old.is_same_as(new)) {
                    changes.put(Step::Field(key.into()), differ(old, new, member(inner, key).0));
                }
            };
            zip(old_map.unwrap_or(&none), new.and_then(Value::as_map).unwrap_or(&none), see);
            if old.is_some_and(|old| !old.is_null() && old.as_map().is_none()) && new.is_some() {
                return (Whole::Modified, changes);
            }
        }
        Atom::Items(item_of, kind) => {
            if old == new {
                return (Whole::Same, changes);
            }
            items(old, new, item_of, kind, &mut changes);
        }
    }
    let whole = match (old, new) {
        (None, _) => Whole::Added,
        (_, None) => Whole::Removed,
        _ => Whole::Same,
    };
    (whole, changes)
}

/// The items of a list by their step.
pub(super) struct Index<'a> {
    /// In the list's order.
    pub steps: Vec<Step>,
    /// Places in `steps`, by step; those of equal steps in the list's order.
    order: Vec<usize>,
    /// In the order of `order`.
    items: Vec<&'a Value>,
}

impl<'a> Index<'a> {
    pub fn of(list: Option<&'a Value>, of: TypeRef<'_>, kind: &ListKind) -> Index<'a> {
        let (mut steps, mut items) = (Vec::new(), Vec::new());
        for item in list.map_or(&[][..], Value::items) {
            if let Some(step) = item_step(of, kind, item) {
                steps.push(step);
                items.push(item);
            }
        }
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by(|a, b| steps[*a].compare(&steps[*b]));
        let items = order.iter().map(|at| items[*at]).collect();
        Index { steps, order, items }
    }

    pub fn get(&self, step: &Step) -> &[&'a Value] {
        let start = self.order.partition_point(|at| self.steps[*at].compare(step).is_lt());
        self.group(start).map_or(&[], |(found, items)| if found.compare(step).is_eq() { items } else { &[] })
    }

    /// The step that begins at this place of the order, with its items.
    fn group(&self, start: usize) -> Option<(&Step, &[&'a Value])> {
        let step = &self.steps[*self.order.get(start)?];
        let is_same = |at: &&usize| self.steps[**at].compare(step).is_eq();
        let len = self.order[start..].iter().take_while(is_same).count();
        Some((step, &self.items[start..start + len]))
    }
}

fn items(old: Option<&Value>, new: Option<&Value>, of: TypeRef<'_>, kind: &ListKind, changes: &mut Changes) {
    let (before, after) = (Index::of(old, of, kind), Index::of(new, of, kind));
    let (mut a, mut b) = (0, 0);
    loop {
        let (was, is) = (before.group(a), after.group(b));
        let step = match (was, is) {
            (None, None) => return,
            (Some((step, _)), None) | (None, Some((step, _))) => step,
            (Some((was, _)), Some((is, _))) => {
                if was.compare(is).is_gt() {
                    is
                } else {
                    was
                }
            }
        };
        let here = |group: Option<(&Step, &[&'_ Value])>| group.is_some_and(|(found, _)| found.compare(step).is_eq());
        let was = if here(was) { was.map_or(&[][..], |(_, items)| items) } else { &[] };
        let is = if here(is) { is.map_or(&[][..], |(_, items)| items) } else { &[] };
        (a, b) = (a + was.len(), b + is.len());
        match (was, is) {
            ([] | [_], [] | [_]) => {
                let (old, new) = (was.first().copied(), is.first().copied());
                let same = matches!((old, new), (Some(old), Some(new)) if old.is_shared_with(new));
                if !same {
                    changes.put(step.clone(), differ(old, new, Some(of)));
                }
            }
            ([_, _, ..], [_, _, ..]) => {
                if was != is {
                    changes.modified.put(step.clone(), true, Set::new());
                }
            }
            ([_, _, ..], _) => {
                if let Some(item) = is.first() {
                    changes.put(step.clone(), differ(None, Some(item), Some(of)));
                }
                changes.removed.put(step.clone(), true, Set::new());
            }
            (_, [_, _, ..]) => {
                if let Some(item) = was.first() {
                    changes.put(step.clone(), differ(Some(item), None, Some(of)));
                }
                changes.added.put(step.clone(), true, Set::new());
            }
        }
    }
}

/// `live` with everything of `config` put into it.
pub(super) fn merge(live: Option<&Value>, config: Option<&Value>, of: Of<'_>) -> Option<Value> {
    let keep = || config.or(live).cloned();
    let (is_live, is_config) = (atom(of, live), atom(of, config));
    match if config.is_none_or(Value::is_null) { is_live } else { is_config } {
        _ if is_void(live) && is_void(config) => keep(),
        Atom::Leaf => keep(),
        Atom::Members(inner) => {
            let (none, mut out) = (Map::new(), Map::new());
            let live = live.and_then(Value::as_map).unwrap_or(&none);
            zip(live, config.and_then(Value::as_map).unwrap_or(&none), |key, live, config| {
                let merged = match (live, config) {
                    (Some(live), None) => Some(live.clone()),
                    _ => merge(live, config, member(inner, key).0),
                };
                if let Some(merged) = merged {
                    out.insert(key, merged);
                }
            });
            if out.is_empty() { None } else { Some(Value::Map(out)) }
        }
        Atom::Items(item_of, kind) => {
            let out = merge_items(live, config, item_of, kind);
            if out.is_empty() { None } else { Some(Value::from(out)) }
        }
    }
}

/// Items of both lists: those of the config in its order, those only alive before the one that follows them.
fn merge_items(live: Option<&Value>, config: Option<&Value>, of: TypeRef<'_>, kind: &ListKind) -> Vec<Value> {
    let (lives, configs) = (Index::of(live, of, kind), Index::of(config, of, kind));
    let live_items: Vec<&Value> =
        live.map_or(&[][..], Value::items).iter().filter(|item| item_step(of, kind, item).is_some()).collect();
    let mut out = Vec::with_capacity(lives.steps.len() + configs.steps.len());
    // For each place in the config the next item that is alive too.
    let mut next_shared: Vec<Option<usize>> = vec![None; configs.steps.len() + 1];
    for at in (0..configs.steps.len()).rev() {
        let shared = !lives.get(&configs.steps[at]).is_empty();
        next_shared[at] = if shared { Some(at) } else { next_shared[at + 1] };
    }
    let one = |items: &[&Value]| if items.len() == 1 { Some(items[0].clone()) } else { None };
    let both = |step: &Step| merge(one(lives.get(step)).as_ref(), one(configs.get(step)).as_ref(), Some(of));
    let mut merged = Set::new();
    let (mut l, mut c) = (0, 0);
    while l < lives.steps.len() || c < configs.steps.len() {
        if let Some(step) = lives.steps.get(l) {
            let in_config = !configs.get(step).is_empty();
            if configs.steps.get(c) == Some(step) {
                out.extend(both(step));
                merged.put(step.clone(), true, Set::new());
                (l, c) = (l + 1, c + 1);
                continue;
            }
            if !in_config {
                out.push(live_items[l].clone());
                l += 1;
                continue;
            }
            let waits = next_shared[c].is_some_and(|at| configs.steps[at] != *step);
            if merged.get(step).is_some() || (c < configs.steps.len() && waits) {
                l += 1;
                continue;
            }
        }
        if let Some(step) = configs.steps.get(c) {
            out.extend(both(step));
            merged.put(step.clone(), true, Set::new());
            c += 1;
        } else {
            l += 1;
        }
    }
    out
}

/// The value without the paths in `set`; `None` when nothing is left of a map or list.
pub(super) fn remove(value: &Value, set: &Set, of: Of<'_>) -> Option<Value> {
    match atom(of, Some(value)) {
        Atom::Members(of) => {
            let Value::Map(map) = value else { return None };
            let mut out = Map::new();
            for (key, inner) in map.iter() {
                match set.get(&Step::Field(key.into())) {
                    Some(entry) if entry.member => {}
                    Some(entry) => {
                        let left = remove(inner, &entry.below, member(of, key).0);
                        out.insert(key, left.unwrap_or(Value::Null));
                    }
                    None => drop(out.insert(key, inner.clone())),
                }
            }
            if out.is_empty() { None } else { Some(Value::Map(out)) }
        }
        Atom::Items(item_of, kind) => {
            let mut out = Vec::new();
            for item in value.items() {
                match item_step(item_of, kind, item).and_then(|step| set.get(&step)) {
                    Some(entry) if entry.member => {}
                    Some(entry) => out.push(remove(item, &entry.below, Some(item_of)).unwrap_or(Value::Null)),
                    None => out.push(item.clone()),
                }
            }
            if out.is_empty() { None } else { Some(Value::from(out)) }
        }
        Atom::Leaf => match value {
            Value::Map(_) | Value::List(_) => None,
            scalar => Some(scalar.clone()),
        },
    }
}

/// The set with every named field a member that has something below it.
pub(super) fn with_named(set: &Set, of: Of<'_>) -> Set {
    let mut out = set.clone();
    for entry in &mut out.0 {
        let inner = match &entry.step {
            Step::Field(name) => {
                let (inner, named) = match atom(of, None) {
                    _ if of.is_some_and(|of| matches!(of.kind(), Node::Struct { .. } | Node::Map { .. })) => {
                        member(of, name)
                    }
                    _ => (None, false),
                };
                entry.member |= named && !entry.below.is_empty();
                inner
            }
            Step::Key(_) => of.and_then(TypeRef::item),
            Step::Value(_) | Step::Index(_) => None,
        };
        entry.below = with_named(&entry.below, inner);
    }
    out
}
