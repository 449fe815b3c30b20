//! Pods run as a service account: the default one if they name none, with its token and the cluster's root mounted.

use meta::{Resource, Status, Str, Value, json};

use super::{Admission, Review};

pub const ACCOUNTS: Resource = Resource("serviceaccounts");
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const ROOT_CA: &str = "kube-root-ca.crt";
/// Seconds that a mounted token holds; the node renews it long before.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";

pub struct ServiceAccount;

impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn mutate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation != "CREATE" || !review.is("pods", "") {
            return Ok(());
        }
        // The mirror of a static pod has no account: it must not name one.
        if review.object.at(&["metadata", "annotations"]).get(MIRROR).is_some() {
            return match review.object.at(&["spec", "serviceAccountName"]).text() {
                "" => Ok(()),
                _ => Err(review.forbidden("a mirror pod may not reference service accounts")),
            };
        }
        if review.object.at(&["spec", "serviceAccountName"]).text().is_empty() {
            review.object.set(&["spec", "serviceAccountName"], "default");
        }
        let name = Str::from(review.object.at(&["spec", "serviceAccountName"]).text());
        review.object.set(&["spec", "serviceAccount"], &name);
        let Some(account) = review.view.one(ACCOUNTS, review.namespace, &name) else {
            let why = format!(
                "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                review.namespace
            );
            return Err(review.forbidden(why));
        };
        let account = account.value();
        let mounts = match review.object.at(&["spec", "automountServiceAccountToken"]).as_bool() {
            Some(mounts) => mounts,
            None => account["automountServiceAccountToken"].as_bool() != Some(false),
        };
        if mounts {
            mount_token(&mut review.object, &review.server.options.token_config_maps);
        }
        if review.object.at(&["spec", "imagePullSecrets"]).items().is_empty()
            && !account["imagePullSecrets"].items().is_empty()
        {
            review.object.set(&["spec", "imagePullSecrets"], account["imagePullSecrets"].clone());
        }
        Ok(())
    }
}

/// The volumes of siblings have one name, so that their specs differ by their nodes only and take the room of one; pods
/// without a controller are siblings of those of their namespace.
fn name_seed(pod: &Value) -> u64 {
    let namespace = &pod["metadata"]["namespace"];
    let alike = meta::object::controller_of(pod).map_or(namespace, |owner| &owner["uid"]);
    base::hash64(alike.text().as_bytes())
}

/// Mounts the token where no container has something of its own at its place.
fn mount_token(pod: &mut Value, also: &[(String, String)]) {
    let is_token = |volume: &Value| volume["name"].text().starts_with("kube-api-access-");
    let known = pod.at(&["spec", "volumes"]).items().iter().find(|volume| is_token(volume));
    let name = match known {
        Some(volume) => Str::from(volume["name"].text()),
        None => format!("kube-api-access-{}", base::Rng::new(name_seed(pod)).suffix(5)).into(),
    };
    let has_volume = known.is_some();
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) = pod.at_mut(&["spec", list]) else { continue };
        for container in containers.items_mut() {
            let mounts = container.make(&["volumeMounts"]).make_list();
            if mounts.iter().any(|mount| mount["mountPath"].text() == TOKEN_PATH) {
                continue;
            }
            mounts.push(json!({"name": (&name), "readOnly": true, "mountPath": TOKEN_PATH}));
            used = true;
        }
    }
    if !used || has_volume {
        return;
    }
    let of_map = |name: &str, key: &str| json!({"configMap": {"name": name, "items": [{"key": key, "path": key}]}});
    let mut sources = vec![
        json!({"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}}),
        of_map(ROOT_CA, "ca.crt"),
        json!({"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
        ]}}),
    ];
    sources.extend(also.iter().map(|(name, key)| of_map(name, key)));
    pod.make(&["spec", "volumes"]).make_list().push(json!({
        "name": (&name), "projected": {"defaultMode": 420i64, "sources": sources},
    }));
}
