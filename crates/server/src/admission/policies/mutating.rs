//! Changes what is written as the bound policies say.

use meta::{Status, Value};

use super::programs::{Change, Objection};
use super::{Bound, EXEMPT, MUTATING, bound};
use crate::admission::{Review, matching};
use crate::codec;
use crate::scene::Scene;
use crate::verbs::Call;

/// Lets each policy change what those before it made; one that wishes so (`IfNeeded`) looks once more when another changed the
/// object after it.
pub fn mutate(call: &Call<'_>, review: &mut Review<'_>) -> Result<(), Status> {
    if review.view.count(MUTATING.bindings) == 0 || EXEMPT.contains(&review.resource) || review.object.is_null() {
        return Ok(());
    }
    let all = bound(MUTATING, review);
    let mut last_change = None;
    for (at, bound) in all.iter().enumerate() {
        if change(call, review, bound)? {
            last_change = Some(at);
        }
    }
    let again = |bound: &Bound| bound.policy["spec"]["reinvocationPolicy"].text() == "IfNeeded";
    for bound in all.iter().take(last_change.unwrap_or(0)).filter(|bound| again(bound)) {
        change(call, review, bound)?;
    }
    Ok(())
}

/// Whether the policy changed the object.
fn change(call: &Call<'_>, review: &mut Review<'_>, bound: &Bound) -> Result<bool, Status> {
    // Another policy may have changed what selectors look at.
    if !bound.is_about(review) {
        return Ok(false);
    }
    let before = review.object.clone();
    let made = super::params::params(&bound.policy, &bound.binding, review).and_then(|params| {
        for params in params {
            let seen = Scene::of(review, &bound.kind);
            let object = bound.compiled.changed(&seen, &params, bound.kind.of())?;
            let Some(object) = object else { continue };
            review.object = matching::converted(&object, &bound.kind, review.kind);
        }
        Ok(())
    });
    let made = made.and_then(|()| {
        if review.object == before {
            return Ok(false);
        }
        let nothing = Value::Null;
        let object = std::mem::take(&mut review.object);
        let completed = codec::complete(call, review.old.unwrap_or(&nothing), object);
        (review.object, _) = completed.map_err(|status| status.message().to_owned())?;
        Ok(review.object != before)
    });
    match made {
        Ok(changed) => Ok(changed),
        Err(_) if bound.ignores() => {
            review.object = before;
            Ok(false)
        }
        Err(why) => {
            review.object = before;
            Err(bound.refusal(review, "MutatingAdmissionPolicy", Objection::failed(why)))
        }
    }
}

/// What a change makes of an object.
pub(super) fn applied(change: &Change, made: &Value, object: &Value, of: meta::TypeRef<'_>) -> Result<Value, String> {
    match change {
        Change::Configuration => meta::apply::merged(object, made, of),
        Change::Patch => meta::patch::json_patch(object, made).map_err(|error| error.status().message().to_owned()),
    }
}
