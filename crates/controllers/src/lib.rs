//! The controllers: one file each, and the table [`CONTROLLERS`].
//!
//! Not here: clocks, randomness, IO, HTTP, the store. A controller is a [`reconcile::Reconciler`]: it looks at a view
//! and says as values what is to be done; the driver in the shell does it.
//!
//! Invariants: same view, same time, same key give the same effects, byte for byte; no controller remembers anything
//! between two looks.

mod cluster_role_aggregation;
mod common;
mod cron_job;
mod daemon_set;
mod deployment;
mod disruption;
mod endpoint_slice;
mod endpoints;
mod ephemeral_volume;
mod garbage_collector;
mod history;
mod job;
mod namespace;
mod node_lifecycle;
mod pod_certificate_cleaner;
mod pod_gc;
mod policy_status;
mod replica_set;
mod resource_quota;
mod root_ca;
mod service_account;
mod service_cidr;
mod service_endpoints;
mod signing_request;
mod stateful_set;
mod storage_migration;
mod storage_protection;
mod subject;
mod taint_eviction;
mod token_secret;
mod trust_bundle_publisher;
mod ttl_after_finished;
mod volume_binder;

#[cfg(test)]
mod again;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use reconcile::Reconciler;
pub use token_secret::TokenFor;

/// Signs a certificate request: PEM of the request, usages, validity in seconds; PEM of the certificate or why not.
pub type Sign = Arc<dyn Fn(&str, &[String], i64) -> Result<String, String> + Send + Sync>;

/// Issues the token of a service account that a secret will hold, or says why not.
pub type Issue = Arc<dyn Fn(&TokenFor<'_>) -> Result<String, String> + Send + Sync>;

/// What a cluster says to its controllers.
#[derive(Clone)]
pub struct Settings {
    /// What clients verify the API server with.
    pub root_ca_pem: String,
    /// Further config maps of every namespace, each with one key (name, key, text): those that the API server was told to
    /// project beside the tokens of pods.
    pub token_config_maps: Vec<(String, String, String)>,
    pub cluster_domain: String,
    pub service_cidr: String,
    /// A node whose lease is older than this is unreachable.
    pub node_monitor_grace_ms: u64,
    /// Terminated pods beyond this number are removed, oldest first; 0 removes none.
    pub terminated_pods_max: usize,
    /// Signs approved requests of the built-in signers; without it they stay approved only.
    pub sign: Option<Sign>,
    /// Issues tokens for secrets; without it such secrets stay empty.
    pub issue: Option<Issue>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            root_ca_pem: String::new(),
            token_config_maps: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            node_monitor_grace_ms: 40_000,
            terminated_pods_max: 12_500,
            sign: None,
            issue: None,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("cluster_domain", &self.cluster_domain).finish_non_exhaustive()
    }
}

/// The user as whom a controller acts: its own service account, or the manager of all where Kubernetes gives it none.
pub fn user_of(controller: &str) -> String {
    match controller {
        "tokens-controller" => "system:kube-controller-manager".to_owned(),
        name => format!("system:serviceaccount:kube-system:{name}"),
    }
}

type Make = fn(&Settings) -> Box<dyn Reconciler>;

/// All controllers. Each acts as [`user_of`] its name.
pub const CONTROLLERS: &[Make] = &[
    |_| Box::new(service_account::ServiceAccounts),
    |settings| {
        let (pem, also) = (settings.root_ca_pem.clone(), settings.token_config_maps.clone());
        Box::new(root_ca::RootCa { pem, also })
    },
    |settings| {
        let (issue, root_ca_pem) = (settings.issue.clone(), settings.root_ca_pem.clone());
        Box::new(token_secret::TokenSecrets { issue, root_ca_pem })
    },
    |_| Box::new(replica_set::ReplicaSets::new()),
    |_| Box::new(deployment::Deployments),
    |_| Box::new(stateful_set::StatefulSets),
    |_| Box::new(daemon_set::DaemonSets),
    |_| Box::new(job::Jobs),
    |_| Box::new(cron_job::CronJobs),
    |_| Box::new(ttl_after_finished::TtlAfterFinished),
    |_| Box::new(endpoints::EndpointsOfServices),
    |_| Box::new(endpoint_slice::Slices),
    |_| Box::new(endpoint_slice::Mirrors),
    |_| Box::new(namespace::Namespaces),
    |_| Box::new(garbage_collector::GarbageCollector),
    |settings| Box::new(node_lifecycle::NodeLifecycle { grace_ms: settings.node_monitor_grace_ms }),
    |_| Box::new(taint_eviction::TaintEviction),
    |settings| Box::new(pod_gc::PodGc { terminated_max: settings.terminated_pods_max }),
    |_| Box::new(disruption::Disruption),
    |_| Box::new(resource_quota::ResourceQuotas),
    |_| Box::new(cluster_role_aggregation::ClusterRoleAggregation),
    |_| Box::new(storage_protection::StorageProtection::of_claims()),
    |_| Box::new(storage_protection::StorageProtection::of_volumes()),
    |_| Box::new(storage_protection::StorageProtection::of_classes()),
    |settings| Box::new(signing_request::SigningRequests { sign: settings.sign.clone() }),
    |_| Box::new(replica_set::ReplicaSets::of_replication_controllers()),
    |settings| Box::new(trust_bundle_publisher::TrustBundlePublisher { pem: settings.root_ca_pem.clone() }),
    |_| Box::new(pod_certificate_cleaner::PodCertificateCleaner),
    |_| Box::new(storage_migration::StorageMigration),
    |_| Box::new(service_cidr::ServiceCidrs),
    |_| Box::new(volume_binder::VolumeBinder),
    |_| Box::new(ephemeral_volume::EphemeralVolumes),
    |_| Box::new(policy_status::PolicyStatus),
];
