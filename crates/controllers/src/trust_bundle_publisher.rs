//! Publishes what the API server's certificate is verified with as the bundle of the signer
//! `kubernetes.io/kube-apiserver-serving`. A bundle is named by its content, so that a new authority is a new bundle; those
//! of former ones go.

use api::certificates::pem;
use cache::{Event, View};
use meta::{Resource, Str, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;

const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";
/// The namespace that every cluster has: it wakes this controller when there is no bundle yet.
const FIRST: &str = "kube-system";

pub struct TrustBundlePublisher {
    pub pem: String,
}

impl TrustBundlePublisher {
    fn bundle_name(&self) -> String {
        format!("{}:{:016x}", SIGNER.replace('/', ":"), base::hash64(self.pem.as_bytes()))
    }
}

impl Reconciler for TrustBundlePublisher {
    fn name(&self) -> &'static str {
        "kube-apiserver-serving-clustertrustbundle-publisher"
    }

    fn watches(&self) -> &[Resource] {
        &[TRUST_BUNDLES]
    }

    fn lives(&self) -> &[Resource] {
        &[NAMESPACES]
    }

    fn keys(&self, resource: Resource, event: &Event, _: &View, out: &mut Vec<Str>) {
        let is_ours = |object: &meta::Object| match resource == NAMESPACES {
            true => object.name() == FIRST,
            false => object.value().at(&["spec", "signerName"]).text() == SIGNER,
        };
        if pem::blocks(&self.pem).next().is_some() && sides(event).any(is_ours) {
            out.push(SIGNER.into());
        }
    }

    fn reconcile(&self, _: &str, view: &View, cx: &mut Context) -> Outcome {
        let name = self.bundle_name();
        match view.one(TRUST_BUNDLES, "", &name) {
            None => cx.push(Effect::Create {
                resource: TRUST_BUNDLES,
                object: json!({
                    "apiVersion": "certificates.k8s.io/v1", "kind": "ClusterTrustBundle", "metadata": {"name": (name.as_str())},
                    "spec": {"signerName": SIGNER, "trustBundle": (self.pem.as_str())},
                }),
            }),
            Some(found) => {
                let mut value = found.value();
                if value.at(&["spec", "trustBundle"]).text() != self.pem {
                    value.set(&["spec", "trustBundle"], self.pem.as_str());
                    cx.push(Effect::Update { resource: TRUST_BUNDLES, object: value });
                }
            }
        }
        let of_signer = |bundle: &&meta::Object| bundle.value().at(&["spec", "signerName"]).text() == SIGNER;
        for former in view.list(TRUST_BUNDLES, "").filter(of_signer).filter(|bundle| bundle.name() != name) {
            delete(cx, former, "");
        }
        Outcome::Settled
    }
}
