//! Objects are created only in namespaces that exist and are not being deleted; some namespaces cannot be deleted.

use meta::{Resource, Status};

use super::{Admission, Review};

pub const NAMESPACES: Resource = Resource("namespaces");
/// Namespaces that a cluster cannot do without.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

impl Admission for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn mutate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation != "CREATE" || !review.kind.names.namespaced || review.namespace.is_empty() {
            return Ok(());
        }
        // Reviews of access in a namespace ask about it and put nothing into it.
        if review.group == "authorization.k8s.io" {
            return Ok(());
        }
        let Some(namespace) = review.view.one(NAMESPACES, "", review.namespace) else {
            return Err(Status::not_found("", "namespaces", review.namespace));
        };
        if namespace.facts().deleting.is_some() {
            let why = format!(
                "unable to create new content in namespace {} because it is being terminated",
                review.namespace
            );
            let message = format!("namespace {} is being terminated", review.namespace);
            return Err(review.forbidden(why).caused("NamespaceTerminating", "metadata.namespace", message));
        }
        Ok(())
    }

    fn validate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation == "DELETE" && review.resource == NAMESPACES && IMMORTAL.contains(&review.name()) {
            return Err(review.forbidden("this namespace may not be deleted"));
        }
        Ok(())
    }
}
