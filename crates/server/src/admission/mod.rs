//! The admission table: what policies of the cluster add to, or hold against, a write.
//!
//! One file per rule, one line in [`RULES`]. Mutating steps run in order, then defaults and the kind's own preparation,
//! validation, and then the validating steps. All are pure over a view; what must change together with the object
//! (a quota's use) is a companion of the same commit.

pub mod certificate_signers;
pub mod certificate_subject;
pub mod connect;
pub mod default_class;
pub mod default_tolerations;
pub mod limit_ranger;
pub mod matching;
pub mod namespace_lifecycle;
pub mod node_ports;
pub mod node_restriction;
pub mod pod_security;
pub mod policies;
pub mod priority;
pub mod rbac_escalation;
pub mod resource_quota;
pub mod runtime_class;
pub mod service_account;
pub mod storage_protection;
pub mod taint_nodes;
pub mod webhooks;

use cache::View;
use meta::{Resource, Status, Value};

use crate::identity::User;
use crate::verbs::Call;
use crate::verbs::update::CompanionWrite;
use crate::{Server, codec};

/// One write under review.
pub struct Review<'a> {
    pub server: &'a Server,
    pub view: &'a View,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: &'static str,
    pub group: &'a str,
    pub resource: Resource,
    pub kind: &'a meta::Kind,
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// The name in the path; `""` on create.
    pub called: &'a str,
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
    &default_class::STORAGE,
    &storage_protection::StorageObjectInUseProtection,
    &runtime_class::RuntimeClass,
    &certificate_signers::CertificateSigners,
    &certificate_subject::CertificateSubjectRestriction,
    &default_class::INGRESS,
    &rbac_escalation::RbacEscalation,
    &node_ports::NodePorts,
    &policies::validating::ValidatingAdmissionPolicy,
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
            called: &call.auth.info.name,
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

    /// The object to be, or on delete the one that is.
    pub fn shown(&self) -> &Value {
        if self.object.is_null() { self.old.unwrap_or(&self.object) } else { &self.object }
    }

    /// The object's name; that of the path where the object has none, as options of connections.
    pub fn name(&self) -> &str {
        match self.shown().at(&["metadata", "name"]).text() {
            "" => self.called,
            name => name,
        }
    }

    pub fn forbidden(&self, why: impl std::fmt::Display) -> Status {
        Status::forbidden(self.group, &self.kind.names.plural, self.name(), why)
    }
}

/// What became of an object before it is prepared.
pub struct Mutated {
    /// The view on which the rules looked at it last.
    pub view: View,
    pub object: Value,
    pub companions: Vec<CompanionWrite>,
    pub warnings: Vec<String>,
}

/// A write on its way through what may change or refuse it.
pub struct Written<'a> {
    pub server: &'a Server,
    pub call: &'a Call<'a>,
    pub old: Option<&'a Value>,
}

impl Written<'_> {
    /// All that may change an object: the rules, then webhooks; where these changed it, the rules look at it again.
    pub async fn mutate(&self, view: View, object: Value) -> Result<Mutated, Status> {
        let first = self.mutate_by_rules(view, object)?;
        if !webhooks::are_there(&first.view) {
            return Ok(first);
        }
        let Mutated { view, object, companions, mut warnings } = first;
        // Nobody holds a view while others are asked.
        drop(view);
        let before = object.clone();
        let object = webhooks::mutate(self, object, &mut warnings).await?;
        let view = self.server.storage.mirror().view();
        if object == before {
            return Ok(Mutated { view, object, companions, warnings });
        }
        let again = self.mutate_by_rules(view, object)?;
        warnings.extend(again.warnings);
        Ok(Mutated { warnings, ..again })
    }

    fn mutate_by_rules(&self, view: View, object: Value) -> Result<Mutated, Status> {
        let mut review = Review::new(self.server, self.call, &view, self.old, object);
        RULES.iter().try_for_each(|rule| rule.mutate(&mut review))?;
        policies::mutating::mutate(self.call, &mut review)?;
        let Review { object, companions, warnings, .. } = review;
        Ok(Mutated { view, object, companions, warnings })
    }

    /// Lets webhooks judge what will be stored (null: what will be gone), and lets go of the view.
    pub async fn ask(&self, view: View, object: &Value) -> Result<Vec<String>, Status> {
        let mut warnings = Vec::new();
        if webhooks::are_there(&view) {
            drop(view);
            if object.is_null() {
                webhooks::mutate(self, Value::Null, &mut warnings).await?;
            }
            webhooks::validate(self, object, &mut warnings).await?;
        }
        Ok(warnings)
    }
}

impl webhooks::Asked for Written<'_> {
    fn server(&self) -> &Server {
        self.server
    }

    fn review<'a>(&'a self, view: &'a View, object: Value) -> Review<'a> {
        Review::new(self.server, self.call, view, self.old, object)
    }

    fn complete(&self, object: Value) -> Result<Value, Status> {
        let nothing = Value::Null;
        Ok(codec::complete(self.call, self.old.unwrap_or(&nothing), object)?.0)
    }
}

pub fn validate(review: &mut Review<'_>) -> Result<(), Status> {
    RULES.iter().try_for_each(|rule| rule.validate(review))
}
