//! Webhooks: programs of the cluster's users that are asked about writes, and may change or refuse them.
//!
//! Mutating hooks are asked one after another, in the order of their configurations' names, each about what those before
//! made; one that wishes so (`IfNeeded`) is asked once more when another changed the object after it. Validating hooks are
//! asked at once, about what will be stored. Which hooks are about a request is decided on a view (`matching`); nothing
//! holds that view while an answer is waited for.
//!
//! Not here: what is sent and understood ([`question`]), how a program is reached (`callee`), annotations of the audit log.

mod question;

use std::sync::Arc;

use api::expressions;
use futures_util::future::join_all;
use meta::{Kind, Resource, Status, Str, Value};

use super::policies::{Conditions, EXEMPT};
use super::{Review, matching};
use crate::Server;
use crate::scene::Scene;
use question::{Answer, Question};

const MUTATING: Resource = Resource("mutatingwebhookconfigurations.admissionregistration.k8s.io");
const VALIDATING: Resource = Resource("validatingwebhookconfigurations.admissionregistration.k8s.io");
/// What the conditions of one hook may cost for one request.
const CONDITIONS_BUDGET: u64 = 1_000_000;

/// Whether anybody is asked about any writes.
pub fn are_there(view: &cache::View) -> bool {
    view.count(MUTATING) + view.count(VALIDATING) > 0
}

/// A request that hooks may be asked about, and how its review is made on a view.
pub trait Asked: Sync {
    fn server(&self) -> &Server;
    /// The review of `object`, as it is to be now.
    fn review<'a>(&'a self, view: &'a cache::View, object: Value) -> Review<'a>;
    /// The object in the form in which it goes on: complete, with defaults.
    fn complete(&self, object: Value) -> Result<Value, Status>;
}

/// What mutating hooks make of the object.
pub async fn mutate(asked: &impl Asked, mut object: Value, warnings: &mut Vec<String>) -> Result<Value, Status> {
    let configurations = configurations(asked.server(), MUTATING);
    let hooks: Vec<&Hook> = configurations.iter().flat_map(|hooks| hooks.iter()).collect();
    let mut heard = vec![false; hooks.len()];
    let mut last_change = None;
    for (at, hook) in hooks.iter().enumerate() {
        if let Some(changed) = ask_one(asked, hook, &object, warnings, &mut heard[at]).await? {
            (object, last_change) = (changed, Some(at));
        }
    }
    let again = |at: usize| heard[at] && hooks[at].said["reinvocationPolicy"].text() == "IfNeeded";
    for at in (0..hooks.len()).filter(|at| last_change.is_some_and(|last| *at < last) && again(*at)) {
        if let Some(changed) = ask_one(asked, hooks[at], &object, warnings, &mut false).await? {
            object = changed;
        }
    }
    Ok(object)
}

/// Asks one mutating hook, if it is about the request: the object as it changed it. What is deleted is not changed.
async fn ask_one(
    asked: &impl Asked,
    hook: &Hook,
    object: &Value,
    warnings: &mut Vec<String>,
    heard: &mut bool,
) -> Result<Option<Value>, Status> {
    let question = question(asked, hook, object)?;
    let Some((question, seen_as)) = question else { return Ok(None) };
    *heard = true;
    let Answer { patch, warnings: said } = question.ask(asked.server()).await?;
    warnings.extend(said);
    let Some(patch) = patch.filter(|_| !object.is_null()) else { return Ok(None) };
    let view = asked.server().storage.mirror().view();
    let review = asked.review(&view, object.clone());
    let patched = question.patched(&matching::converted(object, review.kind, &seen_as), &patch)?;
    let patched = asked.complete(matching::converted(&patched, &seen_as, review.kind))?;
    Ok((patched != *object).then_some(patched))
}

/// Lets validating hooks judge what will be stored; all are asked at once, and the first that refuses is told of.
pub async fn validate(asked: &impl Asked, object: &Value, warnings: &mut Vec<String>) -> Result<(), Status> {
    let mut questions = Vec::new();
    for hook in configurations(asked.server(), VALIDATING).iter().flat_map(|hooks| hooks.iter()) {
        questions.extend(question(asked, hook, object)?.map(|(question, _)| question));
    }
    for answer in join_all(questions.iter().map(|question| question.ask(asked.server()))).await {
        warnings.extend(answer?.warnings);
    }
    Ok(())
}

/// A hook as its configuration says it.
pub struct Hook {
    said: Value,
    conditions: Conditions,
}

impl Hook {
    fn all(configuration: &Value) -> Vec<Hook> {
        let env = expressions::admission(false);
        let hook =
            |said: &Value| Hook { conditions: Conditions::of(&said["matchConditions"], &env), said: said.clone() };
        configuration["webhooks"].items().iter().map(hook).collect()
    }
}

/// The hooks of all configurations of a sort, in order.
fn configurations(server: &Server, of: Resource) -> Vec<Arc<Vec<Hook>>> {
    let view = server.storage.mirror().view();
    view.list(of, "").map(|configuration| server.hooks.of(configuration, &view, Hook::all)).collect()
}

/// The question to a hook, and the version in which it sees the object; `None` when it is not about the request.
fn question(asked: &impl Asked, hook: &Hook, object: &Value) -> Result<Option<(Question, Arc<Kind>)>, Status> {
    let Hook { said: hook, conditions } = hook;
    let view = asked.server().storage.mirror().view();
    let review = asked.review(&view, object.clone());
    if hook["rules"].items().is_empty() || [MUTATING, VALIDATING].contains(&review.resource) {
        return Ok(None);
    }
    if EXEMPT.contains(&review.resource) {
        return Ok(None);
    }
    let Some(seen_as) = matching::seen_as(hook, &hook["rules"], &review) else { return Ok(None) };
    let name: Str = hook["name"].text().into();
    let scene = Scene::of(&review, &seen_as);
    let mut budget = CONDITIONS_BUDGET;
    match conditions.hold(&scene.variables(&Value::Null), &mut budget) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(_) if hook["failurePolicy"].text() == "Ignore" => return Ok(None),
        Err(why) => return Err(review.forbidden(format!("{name}: {why}"))),
    }
    if review.dry_run && !matches!(hook["sideEffects"].text(), "None" | "NoneOnDryRun") {
        let why = format!("admission webhook {:?} does not support dry run", name.as_str());
        return Err(Status::bad_request(why));
    }
    Ok(Some((Question::of(hook, &scene, &review), seen_as)))
}
