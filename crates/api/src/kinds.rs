//! The table of built-in kinds: one row each. A kind whose behaviour is more than storing has a file beside it, named in
//! its row; all others are [`Plain`].

use std::sync::Arc;

use meta::{Kind, Names, Resource, Rules, Str, Subresource, Verb};

use crate::{
    admissionregistration, apiextensions, apiregistration, apps, autoscaling, batch, certificates, coordination, core,
    discovery, flowcontrol, networking, node, policy, rbac, resource, scheduling, storage, storagemigration,
};
use Verb::{Create, Delete, DeleteCollection, Get, List, Patch, Update, Watch};

const ALL: &[Verb] = &[Create, Delete, DeleteCollection, Get, List, Patch, Update, Watch];
const NO_COLLECTION: &[Verb] = &[Create, Delete, Get, List, Patch, Update, Watch];
const CREATE: &[Verb] = &[Create];
const READ: &[Verb] = &[Get, List];

const FINALIZE: Subresource = Subresource { name: "finalize", body: ("", "", ""), verbs: &[Update] };
const STATUS: Subresource = Subresource { name: "status", body: ("", "", ""), verbs: &[Get, Patch, Update] };
const PROXY: Subresource =
    Subresource { name: "proxy", body: ("", "", "NodeProxyOptions"), verbs: &[Create, Delete, Get, Patch, Update] };
const ATTACH: Subresource = Subresource { name: "attach", body: ("", "", "PodAttachOptions"), verbs: &[Create, Get] };
const BINDING: Subresource = Subresource { name: "binding", body: ("", "", "Binding"), verbs: &[Create] };
const EPHEMERALCONTAINERS: Subresource =
    Subresource { name: "ephemeralcontainers", body: ("", "", ""), verbs: &[Get, Patch, Update] };
const EVICTION: Subresource = Subresource { name: "eviction", body: ("policy", "v1", "Eviction"), verbs: &[Create] };
const EXEC: Subresource = Subresource { name: "exec", body: ("", "", "PodExecOptions"), verbs: &[Create, Get] };
const LOG: Subresource = Subresource { name: "log", body: ("", "", ""), verbs: &[Get] };
const PORTFORWARD: Subresource =
    Subresource { name: "portforward", body: ("", "", "PodPortForwardOptions"), verbs: &[Create, Get] };
const PROXY_OF_PODS: Subresource =
    Subresource { name: "proxy", body: ("", "", "PodProxyOptions"), verbs: &[Create, Delete, Get, Patch, Update] };
const RESIZE: Subresource = Subresource { name: "resize", body: ("", "", ""), verbs: &[Get, Patch, Update] };
const SCALE: Subresource =
    Subresource { name: "scale", body: ("autoscaling", "v1", "Scale"), verbs: &[Get, Patch, Update] };
const TOKEN: Subresource =
    Subresource { name: "token", body: ("authentication.k8s.io", "v1", "TokenRequest"), verbs: &[Create] };
const PROXY_OF_SERVICES: Subresource =
    Subresource { name: "proxy", body: ("", "", "ServiceProxyOptions"), verbs: &[Create, Delete, Get, Patch, Update] };
const APPROVAL: Subresource = Subresource { name: "approval", body: ("", "", ""), verbs: &[Get, Patch, Update] };

/// A kind that is stored as it is.
pub struct Plain;

impl Rules for Plain {}

/// One row: group, version, kind, plural, short names, categories, namespaced, verbs, subresources, behaviour.
struct Row(
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    bool,
    &'static [Verb],
    &'static [Subresource],
    fn() -> Arc<dyn Rules>,
);

fn plain() -> Arc<dyn Rules> {
    Arc::new(Plain)
}

#[rustfmt::skip]
const KINDS: &[Row] = &[
    Row("", "v1", "Binding", "bindings", "", "", true, CREATE, &[], plain),
    Row("", "v1", "ComponentStatus", "componentstatuses", "cs", "", false, READ, &[], || Arc::new(core::component_status::ComponentStatus::new())),
    Row("", "v1", "ConfigMap", "configmaps", "cm", "", true, ALL, &[], || Arc::new(core::config_map::ConfigMap::new())),
    Row("", "v1", "Endpoints", "endpoints", "ep", "", true, ALL, &[], || Arc::new(core::endpoints::Endpoints::new())),
    Row("", "v1", "Event", "events", "ev", "", true, ALL, &[], || Arc::new(core::event::Event::new(false))),
    Row("", "v1", "LimitRange", "limitranges", "limits", "", true, ALL, &[], || Arc::new(core::limit_range::LimitRange)),
    Row("", "v1", "Namespace", "namespaces", "ns", "", false, NO_COLLECTION, &[FINALIZE, STATUS], || Arc::new(core::namespace::Namespace::new())),
    Row("", "v1", "Node", "nodes", "no", "", false, ALL, &[PROXY, STATUS], || Arc::new(core::node::Node::new())),
    Row("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", "pvc", "", true, ALL, &[STATUS], || Arc::new(core::persistent_volume_claim::PersistentVolumeClaim::new())),
    Row("", "v1", "PersistentVolume", "persistentvolumes", "pv", "", false, ALL, &[STATUS], || Arc::new(core::persistent_volume::PersistentVolume::new())),
    Row("", "v1", "Pod", "pods", "po", "all", true, ALL, &[ATTACH, BINDING, EPHEMERALCONTAINERS, EVICTION, EXEC, LOG, PORTFORWARD, PROXY_OF_PODS, RESIZE, STATUS], || Arc::new(core::pod::Pod::new())),
    Row("", "v1", "PodTemplate", "podtemplates", "", "", true, ALL, &[], || Arc::new(core::pod_template::PodTemplate::new())),
    Row("", "v1", "ReplicationController", "replicationcontrollers", "rc", "all", true, ALL, &[SCALE, STATUS], || Arc::new(apps::replica_set::ReplicaSet::controller())),
    Row("", "v1", "ResourceQuota", "resourcequotas", "quota", "", true, ALL, &[STATUS], || Arc::new(core::resource_quota::ResourceQuota::new())),
    Row("", "v1", "Secret", "secrets", "", "", true, ALL, &[], || Arc::new(core::secret::Secret::new())),
    Row("", "v1", "ServiceAccount", "serviceaccounts", "sa", "", true, ALL, &[TOKEN], || Arc::new(core::service_account::ServiceAccount::new())),
    Row("", "v1", "Service", "services", "svc", "all", true, ALL, &[PROXY_OF_SERVICES, STATUS], || Arc::new(core::service::Service::new())),
    Row("apiregistration.k8s.io", "v1", "APIService", "apiservices", "", "api-extensions", false, ALL, &[STATUS], || Arc::new(apiregistration::api_service::ApiService::new())),
    Row("apps", "v1", "ControllerRevision", "controllerrevisions", "", "", true, ALL, &[], || Arc::new(apps::controller_revision::ControllerRevision::new())),
    Row("apps", "v1", "DaemonSet", "daemonsets", "ds", "all", true, ALL, &[STATUS], || Arc::new(apps::daemon_set::DaemonSet::new())),
    Row("apps", "v1", "Deployment", "deployments", "deploy", "all", true, ALL, &[SCALE, STATUS], || Arc::new(apps::deployment::Deployment::new())),
    Row("apps", "v1", "ReplicaSet", "replicasets", "rs", "all", true, ALL, &[SCALE, STATUS], || Arc::new(apps::replica_set::ReplicaSet::new())),
    Row("apps", "v1", "StatefulSet", "statefulsets", "sts", "all", true, ALL, &[SCALE, STATUS], || Arc::new(apps::stateful_set::StatefulSet::new())),
    Row("events.k8s.io", "v1", "Event", "events", "ev", "", true, ALL, &[], || Arc::new(core::event::Event::new(true))),
    Row("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", "", "", false, CREATE, &[], plain),
    Row("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", "", "", false, CREATE, &[], plain),
    Row("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", "", "", true, CREATE, &[], plain),
    Row("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", "", "", false, CREATE, &[], plain),
    Row("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", "", "", false, CREATE, &[], plain),
    Row("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", "", "", false, CREATE, &[], plain),
    Row("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", "hpa", "all", true, ALL, &[STATUS], || Arc::new(autoscaling::horizontal_pod_autoscaler::HorizontalPodAutoscaler::new(false))),
    Row("autoscaling", "v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers", "hpa", "all", true, ALL, &[STATUS], || Arc::new(autoscaling::horizontal_pod_autoscaler::HorizontalPodAutoscaler::new(true))),
    Row("batch", "v1", "CronJob", "cronjobs", "cj", "all", true, ALL, &[STATUS], || Arc::new(batch::cron_job::CronJob::new())),
    Row("batch", "v1", "Job", "jobs", "", "all", true, ALL, &[STATUS], || Arc::new(batch::job::Job::new())),
    Row("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests", "csr", "", false, ALL, &[APPROVAL, STATUS], || Arc::new(certificates::certificate_signing_request::CertificateSigningRequest::new())),
    Row("certificates.k8s.io", "v1", "ClusterTrustBundle", "clustertrustbundles", "", "", false, ALL, &[], || Arc::new(certificates::cluster_trust_bundle::ClusterTrustBundle::new())),
    Row("certificates.k8s.io", "v1", "PodCertificateRequest", "podcertificaterequests", "", "", true, ALL, &[STATUS], || Arc::new(certificates::pod_certificate_request::PodCertificateRequest::new())),
    Row("networking.k8s.io", "v1", "IngressClass", "ingressclasses", "", "", false, ALL, &[], || Arc::new(networking::ingress_class::IngressClass::new())),
    Row("networking.k8s.io", "v1", "Ingress", "ingresses", "ing", "", true, ALL, &[STATUS], || Arc::new(networking::ingress::Ingress::new())),
    Row("networking.k8s.io", "v1", "IPAddress", "ipaddresses", "ip", "", false, ALL, &[], || Arc::new(networking::ip_address::IpAddress::new())),
    Row("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", "netpol", "", true, ALL, &[], || Arc::new(networking::network_policy::NetworkPolicy::new())),
    Row("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", "", "", false, ALL, &[STATUS], || Arc::new(networking::service_cidr::ServiceCidr::new())),
    Row("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", "pdb", "", true, ALL, &[STATUS], || Arc::new(policy::pod_disruption_budget::PodDisruptionBudget::new())),
    Row("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", "", "", false, ALL, &[], || Arc::new(rbac::binding::Binding::new(true))),
    Row("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", "", "", false, ALL, &[], || Arc::new(rbac::role::Role { cluster: true })),
    Row("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", "", "", true, ALL, &[], || Arc::new(rbac::binding::Binding::new(false))),
    Row("rbac.authorization.k8s.io", "v1", "Role", "roles", "", "", true, ALL, &[], || Arc::new(rbac::role::Role { cluster: false })),
    Row("storage.k8s.io", "v1", "CSIDriver", "csidrivers", "", "", false, ALL, &[], || Arc::new(storage::csi_driver::CsiDriver::new())),
    Row("storage.k8s.io", "v1", "CSINode", "csinodes", "", "", false, ALL, &[], || Arc::new(storage::csi_node::CsiNode::new())),
    Row("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities", "", "", true, ALL, &[], || Arc::new(storage::csi_storage_capacity::CsiStorageCapacity)),
    Row("storage.k8s.io", "v1", "StorageClass", "storageclasses", "sc", "", false, ALL, &[], || Arc::new(storage::storage_class::StorageClass::new())),
    Row("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", "", "", false, ALL, &[STATUS], || Arc::new(storage::volume_attachment::VolumeAttachment::new())),
    Row("storage.k8s.io", "v1", "VolumeAttributesClass", "volumeattributesclasses", "vac", "", false, ALL, &[], || Arc::new(storage::volume_attributes_class::VolumeAttributesClass::new())),
    Row("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies", "", "api-extensions", false, ALL, &[], || Arc::new(admissionregistration::mutating_admission_policy::MutatingAdmissionPolicy::new())),
    Row("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", "", "api-extensions", false, ALL, &[], || Arc::new(admissionregistration::policy_binding::PolicyBinding::new(true))),
    Row("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", "", "api-extensions", false, ALL, &[], || Arc::new(admissionregistration::webhook_configuration::WebhookConfiguration::new(true))),
    Row("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", "", "api-extensions", false, ALL, &[STATUS], || Arc::new(admissionregistration::validating_admission_policy::ValidatingAdmissionPolicy::new())),
    Row("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", "", "api-extensions", false, ALL, &[], || Arc::new(admissionregistration::policy_binding::PolicyBinding::new(false))),
    Row("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", "", "api-extensions", false, ALL, &[], || Arc::new(admissionregistration::webhook_configuration::WebhookConfiguration::new(false))),
    Row("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", "crd crds", "api-extensions", false, ALL, &[STATUS], || Arc::new(apiextensions::custom_resource_definition::CustomResourceDefinition)),
    Row("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", "pc", "", false, ALL, &[], || Arc::new(scheduling::priority_class::PriorityClass::new())),
    Row("coordination.k8s.io", "v1", "Lease", "leases", "", "", true, ALL, &[], || Arc::new(coordination::lease::Lease::new())),
    Row("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", "", "", false, ALL, &[], || Arc::new(node::runtime_class::RuntimeClass::new())),
    Row("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "", "", true, ALL, &[], || Arc::new(discovery::endpoint_slice::EndpointSlice::new())),
    Row("resource.k8s.io", "v1", "DeviceClass", "deviceclasses", "", "", false, ALL, &[], || Arc::new(resource::device_class::DeviceClass::new())),
    Row("resource.k8s.io", "v1", "DeviceTaintRule", "devicetaintrules", "", "", false, ALL, &[STATUS], || Arc::new(resource::device_taint_rule::DeviceTaintRule::new())),
    Row("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims", "", "", true, ALL, &[STATUS], || Arc::new(resource::resource_claim::ResourceClaim::new())),
    Row("resource.k8s.io", "v1", "ResourceClaimTemplate", "resourceclaimtemplates", "", "", true, ALL, &[], || Arc::new(resource::resource_claim_template::ResourceClaimTemplate::new())),
    Row("resource.k8s.io", "v1", "ResourceSlice", "resourceslices", "", "", false, ALL, &[], || Arc::new(resource::resource_slice::ResourceSlice::new())),
    Row("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema", "flowschemas", "", "", false, ALL, &[STATUS], || Arc::new(flowcontrol::flow_schema::FlowSchema::new())),
    Row("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration", "prioritylevelconfigurations", "", "", false, ALL, &[STATUS], || Arc::new(flowcontrol::priority_level::PriorityLevel::new())),
    Row("storagemigration.k8s.io", "v1", "StorageVersionMigration", "storageversionmigrations", "", "", false, ALL, &[STATUS], || Arc::new(storagemigration::storage_version_migration::StorageVersionMigration::new())),
];

/// All built-in kinds, in discovery's order.
pub fn kinds() -> Vec<Kind> {
    KINDS.iter().map(Row::kind).collect()
}

/// Where every built-in kind's objects are stored and what it is called. Without the schema, which takes megabytes: for
/// programs that only speak to a server.
pub fn names() -> impl Iterator<Item = (Resource, Names)> {
    KINDS.iter().map(|row| (stored_as(row.0, row.3), row.names()))
}

impl Row {
    fn names(&self) -> Names {
        let Row(group, version, kind, plural, short, categories, namespaced, ..) = *self;
        let words = |text: &str| -> Vec<Str> { text.split_whitespace().map(Into::into).collect() };
        Names {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            list_kind: format!("{kind}List").into(),
            plural: plural.into(),
            singular: kind.to_lowercase().into(),
            short: words(short),
            categories: words(categories),
            namespaced,
        }
    }

    fn kind(&self) -> Kind {
        let Row(group, version, kind, plural, _, _, _, verbs, subresources, rules) = *self;
        Kind {
            names: self.names(),
            resource: stored_as(group, plural),
            verbs: verbs.to_vec(),
            subresources: subresources.to_vec(),
            schema: crate::schema::builtin().clone(),
            node: crate::schema::builtin()
                .kind(group, version, kind)
                .expect("every kind of the table is in the schema, as a test shows")
                .node,
            rules: rules(),
        }
    }
}

/// Events of both groups are one resource; everything else is stored under its own group.
fn stored_as(group: &str, plural: &str) -> Resource {
    match (group, plural) {
        ("events.k8s.io", plural) => Resource::intern(plural),
        ("", plural) => Resource::intern(plural),
        (group, plural) => Resource::intern(&format!("{plural}.{group}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Time;
    use meta::{At, Change, Errors, Value, json};

    /// Objects that lack nearly everything must neither panic nor change when their defaults are filled twice.
    #[test]
    fn every_kind_bears_empty_objects() {
        for kind in kinds() {
            for object in [Value::map(), json!({"metadata": {"name": "a"}, "spec": {}}), json!({"spec": (Value::Null)})]
            {
                let mut once = object;
                kind.rules.defaults(&mut once);
                let mut twice = once.clone();
                kind.rules.defaults(&mut twice);
                assert_eq!(once, twice, "{}", kind.names.kind);
                for (old, subresource) in [(None, ""), (Some(&twice), ""), (Some(&twice), "status")] {
                    let change = Change {
                        old,
                        sibling: None,
                        subresource,
                        now: Time::ZERO,
                        user: "a",
                        groups: &[],
                        uid: "",
                        extra: &[],
                    };
                    kind.rules.check(&change, &At::root(&once), &mut Errors::default());
                }
                let (cells, columns) = (kind.rules.cells(&once, Time::ZERO).len(), kind.rules.columns().len());
                // The table of addresses has one cell that no column names, upstream too.
                let unnamed = usize::from(kind.names.kind == "IPAddress");
                assert_eq!(cells, columns + unnamed, "{}", kind.names.kind);
            }
        }
    }
}
