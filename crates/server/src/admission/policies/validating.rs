//! Refuses what the bound policies object to, or warns of it.

use meta::Status;

use super::params::params;
use super::programs::Objection;
use super::{Bound, EXEMPT, VALIDATING, bound};
use crate::admission::{Admission, Review};
use crate::scene::Scene;

pub struct ValidatingAdmissionPolicy;

impl Admission for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn validate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.view.count(VALIDATING.bindings) == 0 || EXEMPT.contains(&review.resource) {
            return Ok(());
        }
        for bound in bound(VALIDATING, review) {
            if !bound.is_about(review) {
                continue;
            }
            for objection in objections(&bound, review) {
                if !objection.failed || !bound.ignores() {
                    self.act(review, &bound, objection)?;
                }
            }
        }
        Ok(())
    }
}

fn objections(bound: &Bound, review: &Review<'_>) -> Vec<Objection> {
    match params(&bound.policy, &bound.binding, review) {
        Err(why) => vec![Objection::failed(why)],
        Ok(params) => {
            let scene = Scene::of(review, &bound.kind);
            params.iter().flat_map(|params| bound.compiled.objections(&scene, params)).collect()
        }
    }
}

impl ValidatingAdmissionPolicy {
    /// Does what the binding says of objections. A policy that could not say refuses, whatever the binding says.
    fn act(&self, review: &mut Review<'_>, bound: &Bound, objection: Objection) -> Result<(), Status> {
        let actions = bound.binding["spec"]["validationActions"].items();
        let has = |word: &str| actions.iter().any(|action| action.text() == word);
        if objection.failed || has("Deny") {
            return Err(bound.refusal(review, self.name(), objection));
        }
        if has("Warn") {
            let (policy, binding) = bound.names();
            review.warnings.push(format!(
                "Validation failed for {} '{policy}' with binding '{binding}': {}",
                self.name(),
                objection.message
            ));
        }
        Ok(())
    }
}
