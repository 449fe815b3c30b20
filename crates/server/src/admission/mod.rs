//! The admission table: what policies of the cluster add to, or hold against, a write.
//!
//! One file per rule, one line in [`RULES`]. Mutating steps run in order, then defaults and the kind's own preparation,
//! validation, and then the validating steps. All are pure over a view; what must change together with the object
//! (a quota's use) is a companion of the same commit.

pub mod certificate_signers;
pub mod certificate_subject;
pub mod default_tolerations;
pub mod limit_ranger;
pub mod namespace_lifecycle;
pub mod node_ports;
pub mod node_restriction;
pub mod pod_security;
pub mod priority;
pub mod rbac_escalation;
pub mod resource_quota;
pub mod runtime_class;
pub mod service_account;
pub mod storage_protection;
pub mod taint_nodes;

use cache::View;
use meta::{Resource, Status, Value};

use crate::Server;
use crate::identity::User;
use crate::verbs::Call;
use crate::verbs::update::CompanionWrite;

/// One write under review.
pub struct Review<'a> {
    pub server: &'a Server,
    pub view: &'a View,
    /// `CREATE`, `UPDATE` or `DELETE`.
    pub operation: &'static str,
    pub group: &'a str,
    pub resource: Resource,
    pub kind: &'a meta::Kind,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub user: &'a User,
    pub dry_run: bool,
    pub now: base::Time,
    /// The stored object, in the version asked for; `None` on create.
    pub old: Option<&'a Value>,
    /// The object to be; null on delete.
    pub object: Value,
    pub companions: Vec<CompanionWrite>,
    pub warnings: Vec<String>,
}

/// One rule of admission.
pub trait Admission: Sync {
    /// As in upstream's list of admission plugins, for messages and metrics.
    fn name(&self) -> &'static str;

    /// May change `review.object`.
    fn mutate(&self, _review: &mut Review<'_>) -> Result<(), Status> {
        Ok(())
    }

    /// Sees the final object; may add companions.
    fn validate(&self, _review: &mut Review<'_>) -> Result<(), Status> {
        Ok(())
    }
}

/// All rules, in upstream's order.
pub const RULES: &[&dyn Admission] = &[
    &namespace_lifecycle::NamespaceLifecycle,
    &limit_ranger::LimitRanger,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &taint_nodes::TaintNodesByCondition,
    &pod_security::PodSecurity,
    &priority::Priority,
    &default_tolerations::DefaultTolerationSeconds,
    &storage_protection::StorageObjectInUseProtection,
    &runtime_class::RuntimeClass,
    &certificate_signers::CertificateSigners,
    &certificate_subject::CertificateSubjectRestriction,
    &rbac_escalation::RbacEscalation,
    &node_ports::NodePorts,
    &resource_quota::ResourceQuota,
];

impl<'a> Review<'a> {
    pub fn new(server: &'a Server, call: &'a Call<'a>, view: &'a View, old: Option<&'a Value>, object: Value) -> Self {
        let operation = match (old.is_some(), object.is_null()) {
            (_, true) => "DELETE",
            (true, false) => "UPDATE",
            (false, false) => "CREATE",
        };
        Review {
            server,
            view,
            operation,
            group: call.group(),
            resource: call.kind.resource,
            kind: call.kind,
            subresource: &call.auth.info.subresource,
            namespace: call.namespace(),
            user: &call.auth.user,
            dry_run: call.options.dry_run,
            now: call.now,
            old,
            object,
            companions: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Whether this is a write of `resource` itself (or of the named subresource).
    pub fn is(&self, resource: &str, subresource: &str) -> bool {
        self.resource.0 == resource && self.subresource == subresource
    }

    /// The object's name, or what it will be generated from.
    pub fn name(&self) -> &str {
        let object = if self.object.is_null() { self.old.unwrap_or(&self.object) } else { &self.object };
        object.at(&["metadata", "name"]).text()
    }

    pub fn forbidden(&self, why: impl std::fmt::Display) -> Status {
        Status::forbidden(self.group, &self.kind.names.plural, self.name(), why)
    }
}

pub fn mutate(review: &mut Review<'_>) -> Result<(), Status> {
    RULES.iter().try_for_each(|rule| rule.mutate(review))
}

pub fn validate(review: &mut Review<'_>) -> Result<(), Status> {
    RULES.iter().try_for_each(|rule| rule.validate(review))
}
