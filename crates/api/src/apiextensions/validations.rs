//! `x-kubernetes-validations`: rules in CEL that stand in the schema of a custom resource. Compiled and judged when the
//! definition is written, held by every object then.
//!
//! Invariants: a rule that does not compile is a field error of the definition; where it came in all the same (an older
//! version wrote it), objects are refused rather than let through unchecked.

use std::sync::Arc;

use cel::{Env, Fail, Program, Type, Val};
use meta::field::{Fault, FieldError};
use meta::{At, Errors, Path, Str, Value};

use super::declared;

const KEYWORD: &str = "x-kubernetes-validations";
/// What one rule may cost for one object, as estimated; and all rules of a schema together.
const RULE_COST_MAX: u64 = 10_000_000;
const SCHEMA_COST_MAX: u64 = 100_000_000;
/// Rules that are named when all together cost too much.
const TOLD_MAX: usize = 4;
/// What all rules of one object may cost when they are evaluated, and one of them.
const OBJECT_BUDGET: u64 = 10_000_000;
const RULE_BUDGET: u64 = 1_000_000;
/// Letters of a message that a rule makes.
const MESSAGE_MAX: usize = 5 * 1024;
const REASONS: &[(&str, Fault)] = &[
    ("FieldValueDuplicate", Fault::Duplicate),
    ("FieldValueForbidden", Fault::Forbidden),
    ("FieldValueInvalid", Fault::Invalid),
    ("FieldValueRequired", Fault::Required),
];

/// The environment of the rules of one schema node.
fn env(of: &Type, optional_old: bool) -> Env {
    let old = if optional_old { Type::Optional(Arc::new(of.clone())) } else { of.clone() };
    Env::new().with("self", of.clone()).with("oldSelf", old)
}

/// What all rules of a schema cost at most, and each of them.
#[derive(Default)]
struct Costs {
    total: u64,
    /// Cost and place.
    rules: Vec<(u64, String)>,
}

impl Costs {
    fn add(&mut self, cost: u64, path: &Path<'_>) {
        self.total = self.total.saturating_add(cost);
        self.rules.push((cost, path.to_string()));
    }
}

/// Checks the rules of a definition's schema.
pub fn check_definition(schema: &At<'_>, errors: &mut Errors) {
    let mut costs = Costs::default();
    check_node(schema, true, Place { most: 1, correlates: true }, &mut costs, errors);
    if costs.total <= SCHEMA_COST_MAX {
        return;
    }
    costs.rules.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
    for (_, field) in costs.rules.into_iter().take(TOLD_MAX) {
        let detail =
            "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema".to_owned();
        errors.0.push(FieldError { fault: Fault::Forbidden, field, value: String::new(), detail });
    }
    let by = times(costs.total, SCHEMA_COST_MAX);
    errors.forbidden(
        &schema.path,
        format!("{KEYWORD} estimated rule cost total for entire OpenAPIv3 schema exceeds budget{by}"),
    );
}

/// Where a node stands: how many values of it one object has at most, and whether each finds its older self.
#[derive(Clone, Copy)]
struct Place {
    most: u64,
    correlates: bool,
}

/// Checks a node after those below it; false when the words beside some rule are wrong. Then nothing is said of the
/// expressions above, which may well be right once the schema is.
fn check_node(schema: &At<'_>, root: bool, place: Place, costs: &mut Costs, errors: &mut Errors) -> bool {
    let mut good = true;
    for (name, property) in schema.field("properties").members() {
        if !(root && matches!(name, "metadata" | "apiVersion" | "kind")) {
            good &= check_node(&property, false, place, costs, errors);
        }
    }
    let items = schema.field("items");
    if items.value.as_map().is_some() {
        let most = place.most.saturating_mul(declared::most_items(schema.value));
        let correlates = place.correlates && schema.value["x-kubernetes-list-type"].text() == "map";
        good &= check_node(&items, false, Place { most, correlates }, costs, errors);
    }
    let additional = schema.field("additionalProperties");
    if additional.value.as_map().is_some() {
        let most = place.most.saturating_mul(declared::most_entries(schema.value));
        good &= check_node(&additional, false, Place { most, ..place }, costs, errors);
    }
    let rules = schema.field(KEYWORD);
    let known = errors.0.len();
    for rule in rules.items() {
        check_words(&rule, schema.value, errors);
    }
    good &= errors.0.len() == known;
    if rules.is_empty() || !good {
        return good;
    }
    match declared::of(schema.value, root) {
        Some(of) => rules.items().for_each(|rule| check_rule(&rule, &of, place, costs, errors)),
        None => errors.invalid(&rules, "the type of the schema node is not known"),
    }
    good
}

fn check_rule(rule: &At<'_>, of: &Type, place: Place, costs: &mut Costs, errors: &mut Errors) {
    let (text, made) = (rule.field("rule"), rule.field("messageExpression"));
    // A missing rule is told where the schema's structure is checked.
    if text.text().trim().is_empty() {
        return;
    }
    let old = rule.field("optionalOldSelf");
    let env = env(of, old.value.is_true());
    let cost = |program: &Program| program.cost().saturating_mul(place.most);
    match Program::compile(text.text(), &env) {
        Err(error) => errors.invalid(&text, format!("compilation failed: {error}")),
        Ok(program) if *program.result() != Type::Bool => {
            errors.invalid(&text, "cel expression must evaluate to a bool");
        }
        Ok(program) => {
            if program.uses("oldSelf") && !place.correlates {
                errors.invalid(&text, "oldSelf cannot be used on the uncorrelatable portion of the schema");
            }
            if old.is_set() && !program.uses("oldSelf") {
                errors.invalid(&old, "may not be set if oldSelf is not used in rule");
            }
            check_cost(&text, "rule", cost(&program), errors);
            costs.add(cost(&program), &text.path);
        }
    }
    if made.is_empty() {
        return;
    }
    match Program::compile(made.text(), &env) {
        Err(error) => errors.invalid(&made, format!("messageExpression compilation failed: {error}")),
        Ok(program) if *program.result() != Type::STRING => {
            errors.invalid(&made, "messageExpression must evaluate to a string");
        }
        Ok(program) => {
            check_cost(&made, "messageExpression", cost(&program), errors);
            costs.add(cost(&program), &made.path);
        }
    }
}

fn times(cost: u64, limit: u64) -> String {
    match cost / limit {
        factor if factor >= 100 => " by factor of more than 100x".to_owned(),
        factor => format!(" by factor of {:.1}x", factor.max(1) as f64),
    }
}

fn check_cost(at: &At<'_>, what: &str, cost: u64, errors: &mut Errors) {
    if cost > RULE_COST_MAX {
        let by = times(cost, RULE_COST_MAX);
        let hint = "try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared";
        errors.forbidden(&at.path, format!("estimated {what} cost exceeds budget{by} ({hint})"));
    }
}

/// What stands beside the expressions of a rule.
fn check_words(rule: &At<'_>, schema: &Value, errors: &mut Errors) {
    let (message, reason, path) = (rule.field("message"), rule.field("reason"), rule.field("fieldPath"));
    if !message.is_empty() {
        if message.text().trim().is_empty() {
            errors.invalid(&message, "message must be non-empty if specified");
        } else if message.text().contains(['\n', '\r']) {
            errors.invalid(&message, "message must not contain line breaks");
        }
    } else if rule.value["rule"].text().contains(['\n', '\r']) && rule.value["messageExpression"].text().is_empty() {
        errors.required(&message.path, "message must be specified if rule contains line breaks");
    }
    let made = rule.field("messageExpression");
    if made.is_set() && made.text().trim().is_empty() && !made.text().is_empty() {
        errors.required(&made.path, "must be non-empty if specified");
    }
    if reason.is_set() && !REASONS.iter().any(|(name, _)| *name == reason.text()) {
        let names: Vec<&str> = REASONS.iter().map(|(name, _)| *name).collect();
        errors.not_supported(&reason, &names);
    }
    if path.is_set() && !path.text().is_empty() {
        if path.text().trim().is_empty() {
            errors.invalid(&path, "must be non-empty if specified");
        } else if path.text().contains(['\n', '\r']) {
            errors.invalid(&path, "must not contain line breaks");
        } else if steps(path.text()).is_none_or(|steps| !leads(&steps, schema)) {
            errors.invalid(&path, "must be a valid path");
        }
    }
}

/// The names in `.a.b['c']`.
fn steps(path: &str) -> Option<Vec<Str>> {
    let mut found = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix("['") {
            let (name, after) = inner.split_once("']")?;
            found.push(name.into());
            rest = after;
            continue;
        }
        let inner = rest.strip_prefix('.')?;
        let end = inner.find(['.', '[']).unwrap_or(inner.len());
        let name = &inner[..end];
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || !name.bytes().all(good) || name.as_bytes()[0].is_ascii_digit() {
            return None;
        }
        found.push(name.into());
        rest = &inner[end..];
    }
    (!found.is_empty()).then_some(found)
}

fn leads(steps: &[Str], schema: &Value) -> bool {
    let Some((first, rest)) = steps.split_first() else { return true };
    match (schema["properties"].get(first), schema["additionalProperties"].as_map()) {
        (Some(property), _) => leads(rest, property),
        (None, Some(_)) => leads(rest, &schema["additionalProperties"]),
        (None, None) => false,
    }
}

/// The rules of a schema, compiled; `None` when it has none.
pub fn compile(schema: &Value) -> Option<Node> {
    Node::of(schema, true)
}

/// One schema node and those below it that have rules.
#[derive(Debug)]
pub struct Node {
    of: Type,
    rules: Vec<Rule>,
    properties: Vec<(Str, Node)>,
    items: Option<Box<Node>>,
    /// Members that tell the items of a list apart.
    keys: Vec<Str>,
    additional: Option<Box<Node>>,
}

#[derive(Debug)]
struct Rule {
    text: Str,
    program: Result<Program, String>,
    /// Whether it compares with what was before.
    is_transition: bool,
    optional_old: bool,
    message: Str,
    made: Option<Program>,
    fault: Fault,
    path: Vec<Str>,
}

impl Node {
    fn of(schema: &Value, root: bool) -> Option<Node> {
        let of = declared::of(schema, root)?;
        let rules: Vec<Rule> = schema[KEYWORD].items().iter().map(|rule| Rule::of(rule, &of)).collect();
        let properties = schema["properties"].entries().iter();
        let properties: Vec<(Str, Node)> = properties
            .filter(|(name, _)| !(root && matches!(*name, "metadata" | "apiVersion" | "kind")))
            .filter_map(|(name, property)| Some((name.into(), Node::of(property, false)?)))
            .collect();
        let inner = |key: &str| schema[key].as_map().and_then(|_| Node::of(&schema[key], false)).map(Box::new);
        let (items, additional) = (inner("items"), inner("additionalProperties"));
        let keys = match schema["x-kubernetes-list-type"].text() {
            "map" => schema["x-kubernetes-list-map-keys"].items().iter().map(|key| key.text().into()).collect(),
            _ => Vec::new(),
        };
        let has_rules = !rules.is_empty() || !properties.is_empty() || items.is_some() || additional.is_some();
        has_rules.then_some(Node { of, rules, properties, items, keys, additional })
    }

    /// Holds an object against the rules; `old` is what it was before.
    pub fn check(&self, at: &At<'_>, old: Option<&Value>, errors: &mut Errors) {
        let mut budget = OBJECT_BUDGET;
        // The rest is not looked at when the budget is spent, which was then told.
        let _ = self.walk(at, old, &mut budget, errors);
    }

    fn walk(&self, at: &At<'_>, old: Option<&Value>, budget: &mut u64, errors: &mut Errors) -> Result<(), ()> {
        if at.value.is_null() {
            return Ok(());
        }
        for rule in &self.rules {
            rule.check(at, old, &self.of, budget, errors)?;
        }
        for (name, node) in &self.properties {
            if at.value.get(name).is_some() {
                node.walk(&at.field(name), old.and_then(|old| old.get(name)), budget, errors)?;
            }
        }
        if let Some(node) = &self.items {
            for item in at.items() {
                let before = old.filter(|_| !self.keys.is_empty()).and_then(|old| {
                    let same =
                        |other: &&Value| self.keys.iter().all(|key| other[key.as_str()] == item.value[key.as_str()]);
                    old.items().iter().find(same)
                });
                node.walk(&item, before, budget, errors)?;
            }
        }
        if let Some(node) = &self.additional {
            for (key, value) in at.members() {
                node.walk(&value, old.and_then(|old| old.get(key)), budget, errors)?;
            }
        }
        Ok(())
    }
}

impl Rule {
    fn of(rule: &Value, of: &Type) -> Rule {
        let optional_old = rule["optionalOldSelf"].is_true();
        let env = env(of, optional_old);
        let text = rule["rule"].text();
        let program = Program::compile(text, &env).map_err(|error| error.to_string());
        let made = rule["messageExpression"].text();
        let fault = REASONS.iter().find(|(name, _)| *name == rule["reason"].text());
        Rule {
            text: text.trim().into(),
            is_transition: program.as_ref().is_ok_and(|program| program.uses("oldSelf")),
            program,
            optional_old,
            message: rule["message"].text().into(),
            made: if made.is_empty() { None } else { Program::compile(made, &env).ok() },
            fault: fault.map_or(Fault::Invalid, |(_, fault)| *fault),
            path: steps(rule["fieldPath"].text()).unwrap_or_default(),
        }
    }

    fn check(
        &self,
        at: &At<'_>,
        old: Option<&Value>,
        of: &Type,
        budget: &mut u64,
        errors: &mut Errors,
    ) -> Result<(), ()> {
        if self.is_transition && !self.optional_old && old.is_none() {
            return Ok(());
        }
        let program = match &self.program {
            Ok(program) => program,
            Err(error) => {
                errors.invalid(at, format!("rule compile error: {error}"));
                return Ok(());
            }
        };
        let before = old.map(|old| Val::of(old, of));
        let before = match (before, self.optional_old) {
            (before, true) => Val::Optional(before.map(Arc::new)),
            (before, false) => before.unwrap_or(Val::Null),
        };
        let variables = [("self", Val::of(at.value, of)), ("oldSelf", before)];
        let mut own = RULE_BUDGET.min(*budget);
        let given = own;
        let result = program.evaluate(&variables, &mut own);
        *budget -= given - own;
        let found = match result {
            Ok(Val::Bool(true)) => return Ok(()),
            Ok(Val::Bool(false)) => self.told(&variables, budget),
            Ok(_) => "rule did not evaluate to a bool".to_owned(),
            Err(Fail::Budget) => {
                // A rule alone may cost less than all of an object's together.
                let why = match given < RULE_BUDGET {
                    true => {
                        "validation failed due to running out of cost budget, no further validation rules will be run"
                            .to_owned()
                    }
                    false => format!(
                        "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        Fail::Budget,
                        self.text
                    ),
                };
                errors.invalid(at, why);
                return Err(());
            }
            Err(Fail::Error(what)) => format!("{what} evaluating rule: {}", self.name()),
        };
        // What was wrong before and is left alone stays.
        if !self.is_transition && old.is_some_and(|old| old == at.value) {
            return Ok(());
        }
        self.report(&at.path, &self.path, found, errors);
        Ok(())
    }

    fn name(&self) -> &str {
        if self.message.is_empty() { &self.text } else { &self.message }
    }

    /// What is told of a rule that does not hold.
    fn told(&self, variables: &[(&str, Val<'_>)], budget: &mut u64) -> String {
        let made = self.made.as_ref().and_then(|made| match made.evaluate(variables, budget) {
            Ok(Val::Text(text)) => Some(text.trim().to_owned()),
            _ => None,
        });
        let good = |text: &String| !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains(['\n', '\r']);
        match made.filter(good) {
            Some(text) => text,
            None if self.message.is_empty() => format!("failed rule: {}", self.text),
            None => self.message.to_string(),
        }
    }

    fn report(&self, path: &Path<'_>, rest: &[Str], found: String, errors: &mut Errors) {
        match rest.split_first() {
            Some((first, rest)) => self.report(&path.field(first), rest, found, errors),
            None => errors.push(self.fault, path, None, found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    fn schema(rules: Value) -> Value {
        json!({
            "type": "object",
            "properties": {"spec": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer"}, "x-y": {"type": "string", "maxLength": 10},
                    "l": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}},
                        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]},
                },
                "x-kubernetes-validations": rules,
            }},
        })
    }

    fn texts(errors: Errors) -> Vec<String> {
        errors.0.iter().map(|error| format!("{} {}: {}", error.field, error.fault.reason(), error.detail)).collect()
    }

    #[track_caller]
    fn check(rules: Value, object: Value, old: Option<Value>, expected: &[&str]) {
        let mut errors = Errors::default();
        let schema = schema(rules);
        check_definition(&At::root(&schema), &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        compile(&schema).unwrap().check(&At::root(&object), old.as_ref(), &mut errors);
        assert_eq!(texts(errors), expected);
    }

    #[test]
    fn rules_hold_or_are_told() {
        let rule = json!([{"rule": "self.a > 1 || self.x__dash__y == 'ok'", "message": "small", "fieldPath": ".a", "reason": "FieldValueForbidden"}]);
        check(rule.clone(), json!({"spec": {"a": 2}}), None, &[]);
        check(rule.clone(), json!({"spec": {"a": 1, "x-y": "ok"}}), None, &[]);
        check(rule.clone(), json!({"spec": {"a": 1, "x-y": "no"}}), None, &["spec.a FieldValueForbidden: small"]);
        check(
            rule.clone(),
            json!({"spec": {"a": 1}}),
            None,
            &["spec.a FieldValueForbidden: no such key: x-y evaluating rule: small"]
                .map(|text| text.replace("x-y", "x__dash__y"))
                .each_ref()
                .map(String::as_str),
        );
        let wrong = json!({"spec": {"a": 1, "x-y": "no"}});
        check(rule, wrong.clone(), Some(wrong), &[]);
        let made = json!([{"rule": "self.a < 3", "messageExpression": "'is ' + string(self.a)"}]);
        check(made, json!({"spec": {"a": 4}}), None, &["spec FieldValueInvalid: is 4"]);
    }

    #[test]
    fn changes_are_held_against_what_was() {
        let rule = json!([{"rule": "self.a >= oldSelf.a", "message": "shrinks"}]);
        check(rule.clone(), json!({"spec": {"a": 1}}), None, &[]);
        check(rule, json!({"spec": {"a": 1}}), Some(json!({"spec": {"a": 2}})), &["spec FieldValueInvalid: shrinks"]);
        let rule =
            json!([{"rule": "oldSelf.hasValue() || self.a == 1", "message": "begins with 1", "optionalOldSelf": true}]);
        check(rule.clone(), json!({"spec": {"a": 2}}), None, &["spec FieldValueInvalid: begins with 1"]);
        check(rule, json!({"spec": {"a": 2}}), Some(json!({"spec": {"a": 3}})), &[]);
    }

    #[test]
    fn definitions_are_judged() {
        let found = |rule: Value| {
            let mut errors = Errors::default();
            let schema = schema(json!([rule]));
            check_definition(&At::root(&schema), &mut errors);
            let faults = errors.0.iter().map(|error| {
                let field = error.field.rsplit('.').next().unwrap_or_default().to_owned();
                format!("{field} {}", error.fault.reason())
            });
            faults.collect::<Vec<_>>()
        };
        assert_eq!(found(json!({"rule": "self.b"})), ["rule FieldValueInvalid"]);
        assert_eq!(found(json!({"rule": "self.a"})), ["rule FieldValueInvalid"]);
        assert_eq!(found(json!({"rule": "true", "fieldPath": ".b"})), ["fieldPath FieldValueInvalid"]);
        assert_eq!(found(json!({"rule": "true", "reason": "x"})), ["reason FieldValueNotSupported"]);
        assert_eq!(found(json!({"rule": "true", "messageExpression": "1"})), ["messageExpression FieldValueInvalid"]);
        assert_eq!(found(json!({"rule": "true", "optionalOldSelf": true})), ["optionalOldSelf FieldValueInvalid"]);
        assert!(
            found(json!({"rule": "self.l.all(x, self.l.all(y, x == y))"}))
                .contains(&"rule FieldValueForbidden".to_owned())
        );
        assert_eq!(found(json!({"rule": "self.l.all(x, x.v > 0)"})), Vec::<String>::new());
    }
}
