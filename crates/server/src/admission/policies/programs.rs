//! The expressions of a policy, compiled once for each version of it, and what they say of a request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::expressions;
use base::Revision;
use cache::View;
use cel::{Env, Fail, Program, Val};
use meta::{At, Errors, Object, Reason, Resource, Str, TypeRef, Value};

use crate::scene::Scene;

/// What one expression may cost for one request, and all of a policy together.
const CALL_BUDGET: u64 = 1_000_000;
const REQUEST_BUDGET: u64 = 10_000_000;
/// Bytes of a message that an expression makes.
const MESSAGE_MAX: usize = 5 * 1024;
const REASONS: &[Reason] = &[Reason::Unauthorized, Reason::Forbidden, Reason::Invalid, Reason::RequestEntityTooLarge];

/// What was made of objects that were asked for: compiled once for each of their versions.
pub struct Known<T>(Mutex<BTreeMap<(Resource, Str), Made<T>>>);

/// With the revision that it was made of.
type Made<T> = (Revision, Arc<T>);

impl<T> Default for Known<T> {
    fn default() -> Known<T> {
        Known(Mutex::default())
    }
}

impl<T> Known<T> {
    /// What `make` makes of the object. What is not in the view any more is forgotten.
    pub fn of(&self, object: &Object, view: &View, make: impl FnOnce(&Value) -> T) -> Arc<T> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, revision) = ((object.resource(), Str::from(object.name())), object.revision());
        if let Some((_, made)) = known.get(&key).filter(|(of, _)| *of == revision) {
            return made.clone();
        }
        known.retain(|(resource, name), _| view.one(*resource, "", name).is_some());
        let made = Arc::new(make(&object.value()));
        known.insert(key, (revision, made.clone()));
        made
    }
}

fn compile(text: &Value, env: &Env) -> Result<Program, String> {
    Program::compile(text.text(), env).map_err(|error| error.to_string())
}

/// `matchConditions`: all must hold for a policy, or a hook, to be about a request.
pub struct Conditions(Vec<(Str, Result<Program, String>)>);

impl Conditions {
    pub fn of(conditions: &Value, env: &Env) -> Conditions {
        let conditions = conditions.items().iter();
        Conditions(conditions.map(|one| (one["name"].text().into(), compile(&one["expression"], env))).collect())
    }

    /// Whether all hold. One that does not decides, whatever becomes of the others.
    ///
    /// # Errors
    /// Which one could not be evaluated, and why.
    pub fn hold(&self, seen: &[(&str, Val<'_>)], budget: &mut u64) -> Result<bool, String> {
        let mut failed = None;
        for (name, program) in &self.0 {
            let said = match program {
                Ok(program) => run(program, seen, budget).map_err(|why| why.to_string()),
                Err(why) => Err(why.clone()),
            };
            match said {
                Ok(Val::Bool(true)) => {}
                Ok(_) => return Ok(false),
                Err(why) => {
                    failed.get_or_insert_with(|| {
                        format!("match condition {:?} could not be evaluated: {why}", name.as_str())
                    });
                }
            }
        }
        failed.map_or(Ok(true), Err)
    }
}

/// A policy's expressions.
pub struct Policy {
    conditions: Conditions,
    variables: Vec<(Str, Program)>,
    validations: Vec<Validation>,
    mutations: Vec<Mutation>,
}

/// How what an expression made becomes part of an object.
pub enum Change {
    /// It is merged as an applied configuration is.
    Configuration,
    /// It is a JSON patch.
    Patch,
}

struct Mutation {
    change: Change,
    program: Result<Program, String>,
}

struct Validation {
    text: Str,
    program: Result<Program, String>,
    message: Str,
    made: Option<Program>,
    reason: Reason,
}

/// Why a request is not to pass.
#[derive(Debug, PartialEq)]
pub struct Objection {
    pub message: String,
    pub reason: Reason,
    /// The policy could not say: its `failurePolicy` decides.
    pub failed: bool,
}

impl Objection {
    pub fn failed(message: String) -> Objection {
        Objection { message, reason: Reason::Invalid, failed: true }
    }
}

impl Policy {
    pub fn of(policy: &Value) -> Policy {
        let spec = &policy["spec"];
        let env = expressions::admission(!spec["paramKind"].is_null());
        let conditions = Conditions::of(&spec["matchConditions"], &env);
        // What does not compile is missing, and whoever needs it says so.
        let (env, variables) = expressions::variables_of(&At::root(&spec["variables"]), &env, &mut Errors::default());
        let validation = |one: &Value| Validation {
            text: one["expression"].text().into(),
            program: compile(&one["expression"], &env),
            message: one["message"].text().trim().into(),
            made: Some(&one["messageExpression"])
                .filter(|text| !text.text().is_empty())
                .and_then(|text| compile(text, &env).ok()),
            reason: REASONS
                .iter()
                .copied()
                .find(|reason| reason.name() == one["reason"].text())
                .unwrap_or(Reason::Invalid),
        };
        let validations = spec["validations"].items().iter().map(validation).collect();
        let env = env.with_patches();
        let mutation = |one: &Value| {
            let (change, key) = match one["patchType"].text() {
                "JSONPatch" => (Change::Patch, "jsonPatch"),
                _ => (Change::Configuration, "applyConfiguration"),
            };
            Mutation { change, program: compile(&one[key]["expression"], &env) }
        };
        let mutations = spec["mutations"].items().iter().map(mutation).collect();
        Policy { conditions, variables, validations, mutations }
    }

    /// What the policy has against a request.
    pub fn objections(&self, scene: &Scene, params: &Value) -> Vec<Objection> {
        let mut budget = REQUEST_BUDGET;
        let mut seen = scene.variables(params);
        match self.conditions.hold(&seen, &mut budget) {
            Ok(false) => return Vec::new(),
            Ok(true) => {}
            Err(why) => return vec![Objection::failed(why)],
        }
        let unknown = self.see_variables(&mut seen, &mut budget);
        let reason = |why| unknown.reason(why);
        self.validations.iter().filter_map(|validation| validation.objection(&seen, &mut budget, &reason)).collect()
    }

    /// The object as the policy changes it; `None` when its conditions do not hold.
    ///
    /// # Errors
    /// Which expression could not be evaluated, or what it made not be applied, and why.
    pub fn changed(&self, scene: &Scene, params: &Value, of: TypeRef<'_>) -> Result<Option<Value>, String> {
        let mut budget = REQUEST_BUDGET;
        if !self.conditions.hold(&scene.variables(params), &mut budget)? {
            return Ok(None);
        }
        let mut object = scene.object.clone();
        for mutation in &self.mutations {
            // Each sees what those before it made, and so do its variables.
            let before = scene.with_object(object);
            let mut seen = before.variables(params);
            let unknown = self.see_variables(&mut seen, &mut budget);
            let program = mutation.program.as_ref().map_err(String::clone)?;
            let made = run(program, &seen, &mut budget).map_err(|why| unknown.reason(why))?;
            let made = made.to_json().ok_or("the expression made what no object can hold")?;
            object = super::mutating::applied(&mutation.change, &made, &before.object, of)?;
        }
        Ok(Some(object))
    }

    /// Adds the variables that have a value, and keeps of the others why they have none.
    fn see_variables<'a>(&self, seen: &mut Vec<(&'a str, Val<'a>)>, budget: &mut u64) -> Unknown {
        let (mut known, mut unknown) = (BTreeMap::new(), Vec::new());
        for (name, program) in &self.variables {
            seen.push(("variables", variables(&known)));
            match run(program, seen, budget) {
                Ok(value) => drop(known.insert(name.clone(), value)),
                Err(why) => unknown.push((name.clone(), why)),
            }
            seen.pop();
        }
        seen.push(("variables", variables(&known)));
        Unknown(unknown)
    }
}

/// The variables without a value: whoever needs one has none either, for the same reason.
struct Unknown(Vec<(Str, Fail)>);

impl Unknown {
    fn reason(&self, why: Fail) -> String {
        let why = why.to_string();
        match self.0.iter().find(|(name, _)| why == format!("no such key: {name}")) {
            Some((name, why)) => format!("composited variable {:?} fails to evaluate: {why}", name.as_str()),
            None => why,
        }
    }
}

impl Validation {
    fn objection(
        &self,
        seen: &[(&str, Val<'_>)],
        budget: &mut u64,
        reason: &dyn Fn(Fail) -> String,
    ) -> Option<Objection> {
        let said = match &self.program {
            Ok(program) => run(program, seen, budget).map_err(reason),
            Err(why) => Err(why.clone()),
        };
        match said {
            Ok(Val::Bool(true)) => None,
            Ok(_) => {
                let message = match (self.made(seen, budget), self.message.as_str()) {
                    (Some(made), _) => made,
                    (None, "") => format!("failed expression: {}", self.text.trim()),
                    (None, message) => message.to_owned(),
                };
                Some(Objection { message, reason: self.reason, failed: false })
            }
            Err(why) => Some(Objection::failed(format!("expression '{}' resulted in error: {why}", self.text))),
        }
    }

    /// The message of the expression, where it makes one that can be shown.
    fn made(&self, seen: &[(&str, Val<'_>)], budget: &mut u64) -> Option<String> {
        match run(self.made.as_ref()?, seen, budget) {
            Ok(Val::Text(text)) => {
                let text = text.trim();
                let fits = !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n');
                fits.then(|| text.to_owned())
            }
            _ => None,
        }
    }
}

fn variables<'a>(known: &BTreeMap<Str, Val<'a>>) -> Val<'a> {
    Val::Message("variables".into(), Arc::new(known.clone()))
}

/// Evaluates within the budget of one expression, and takes what it cost from that of all.
fn run<'a>(program: &Program, seen: &[(&str, Val<'a>)], budget: &mut u64) -> Result<Val<'a>, Fail> {
    let most = CALL_BUDGET.min(*budget);
    let mut left = most;
    let said = program.evaluate(seen, &mut left);
    *budget -= most - left;
    said
}
