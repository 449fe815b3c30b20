//! Admission policies in CEL: what their expressions say ([`programs`]), with which parameters they hold ([`params`]), the step
//! that changes ([`mutating`]) and the rule that refuses ([`validating`]). Which requests they are about is told by
//! [`super::matching`], what expressions see by `scene`.
//!
//! Not here: the check that expressions compile (`api::expressions`), annotations of the audit log.
//!
//! Invariants: a policy that is about nothing costs a write one look; an evaluation ends with its budget; policies and
//! their bindings are never held against each other, so that a wrong one can be taken away.

pub mod mutating;
mod params;
mod programs;
pub mod validating;

use std::sync::Arc;

use meta::status::Cause;
use meta::{Kind, Resource, Status, Value};

use programs::Objection;
pub use programs::{Conditions, Known, Policy};

use super::Review;
use super::matching::seen_as;

/// Policies and their bindings.
#[derive(Clone, Copy)]
struct Sort {
    policies: Resource,
    bindings: Resource,
}

const VALIDATING: Sort = Sort {
    policies: Resource("validatingadmissionpolicies.admissionregistration.k8s.io"),
    bindings: Resource("validatingadmissionpolicybindings.admissionregistration.k8s.io"),
};
const MUTATING: Sort = Sort {
    policies: Resource("mutatingadmissionpolicies.admissionregistration.k8s.io"),
    bindings: Resource("mutatingadmissionpolicybindings.admissionregistration.k8s.io"),
};
/// What no policy is about.
pub const EXEMPT: &[Resource] = &[VALIDATING.policies, VALIDATING.bindings, MUTATING.policies, MUTATING.bindings];

/// A policy by one of its bindings, about a request.
struct Bound {
    policy: Value,
    binding: Value,
    /// The version in which the policy sees the request.
    kind: Arc<Kind>,
    compiled: Arc<Policy>,
}

/// The bound policies whose own constraints let them see the request in some version, by the names of their bindings.
fn bound(of: Sort, review: &Review<'_>) -> Vec<Bound> {
    let bindings = review.view.list(of.bindings, "").map(meta::Object::value);
    let bound = bindings.filter_map(|binding| {
        let object = review.view.one(of.policies, "", binding["spec"]["policyName"].text())?;
        let policy = object.value();
        let wanted = &policy["spec"]["matchConstraints"];
        let kind = seen_as(wanted, &wanted["resourceRules"], review)?;
        let compiled = review.server.policies.of(object, review.view, Policy::of);
        Some(Bound { policy, binding, kind, compiled })
    });
    bound.collect()
}

impl Bound {
    /// Whether policy and binding are about the request as it is now.
    fn is_about(&self, review: &Review<'_>) -> bool {
        let constraints = [&self.policy["spec"]["matchConstraints"], &self.binding["spec"]["matchResources"]];
        constraints.iter().all(|wanted| wanted.is_null() || seen_as(wanted, &wanted["resourceRules"], review).is_some())
    }

    /// Whether what cannot be said is passed over.
    fn ignores(&self) -> bool {
        self.policy["spec"]["failurePolicy"].text() == "Ignore"
    }

    /// The names of the policy and of the binding.
    fn names(&self) -> (&str, &str) {
        (self.policy.at(&["metadata", "name"]).text(), self.binding.at(&["metadata", "name"]).text())
    }

    fn refusal(&self, review: &Review<'_>, rule: &str, objection: Objection) -> Status {
        let ((policy, binding), Objection { message, reason, .. }) = (self.names(), objection);
        let mut status =
            review.forbidden(format!("{rule} '{policy}' with binding '{binding}' denied request: {message}"));
        (status.0.reason, status.0.code) = (reason, reason.code());
        status.0.causes.push(Cause { reason: String::new(), message, field: String::new() });
        status
    }
}
