//! The vocabulary: the schema of the built-in kinds, and one file per kind.
//!
//! Not here: IO, storage, async.

pub mod address;
pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod check;
pub mod columns;
pub mod coordination;
pub mod core;
pub mod custom;
pub mod default_class;
pub mod descriptions;
pub mod discovery;
pub mod expressions;
pub mod flowcontrol;
pub mod kinds;
pub mod networking;
pub mod node;
pub mod policy;
pub mod rbac;
pub mod resource;
pub mod scheduling;
pub mod schema;
pub mod storage;
pub mod storagemigration;
pub mod usage;

use meta::{Object, Resource, Str};

/// An index that a cache of these kinds keeps: resource, name, and what adds the values under which an object is filed.
pub type IndexRow = (Resource, &'static str, fn(&Object, &mut Vec<Str>));

/// The indexes that readers may count on.
pub const INDEXES: &[IndexRow] = &[
    (Resource("pods"), "node", core::pod_facts::node_of),
    (Resource("pods"), "orphans", core::pod_facts::orphan_of),
    (Resource("pods"), core::selection::LABELS, core::selection::labels_of),
    (Resource("nodes"), core::node_facts::PLACE, core::node_facts::place_of),
    (Resource("services"), core::selection::SELECTOR, core::selection::selector_of),
    (
        Resource("apiservices.apiregistration.k8s.io"),
        apiregistration::api_service::REMOTE,
        apiregistration::api_service::remote_of,
    ),
    (Resource("clusterroles.rbac.authorization.k8s.io"), rbac::role::AGGREGATING, rbac::role::aggregating_of),
    (Resource("daemonsets.apps"), core::selection::SELECTOR, core::selection::selector_of),
    (Resource("deployments.apps"), core::selection::SELECTOR, core::selection::selector_of),
    (Resource("jobs.batch"), core::selection::SELECTOR, core::selection::selector_of),
    (Resource("replicasets.apps"), core::selection::SELECTOR, core::selection::selector_of),
    (Resource("replicationcontrollers"), core::selection::SELECTOR, core::selection::selector_of),
    (Resource("statefulsets.apps"), core::selection::SELECTOR, core::selection::selector_of),
];

/// The indexes that file under the value of a selectable field: resource, field, index. An empty value is not filed.
pub const INDEXED_FIELDS: &[(Resource, &str, &str)] = &[(Resource("pods"), "spec.nodeName", "node")];
