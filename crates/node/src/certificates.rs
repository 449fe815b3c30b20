//! What the certificates of pods are made of: bundles of trust that are mirrored here, and credentials that a signer gives
//! out for a pod: the node makes the key, asks (PodCertificateRequest), waits, and asks again before the end.
//!
//! A key is in memory and in the tmpfs of the pod's volume, nowhere else; a new agent asks for new credentials. Keys of
//! RSA and of P-521 are not made here, which the pod is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::certificates::pem;
use base::{Revision, Time};
use cache::Part;
use client::{Interest, Request};
use meta::{Resource, Selector, Str, Value, json};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SignatureAlgorithm};

use crate::agent::{Agent, NODES};

pub const TRUST_BUNDLES: Resource = Resource("clustertrustbundles.certificates.k8s.io");
const REQUESTS: Resource = Resource("podcertificaterequests.certificates.k8s.io");
const ACCOUNTS: Resource = Resource("serviceaccounts");

/// How long the first look at the bundles may take.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(10);
/// How long a pod's preparation waits for its signer before it says so and begins anew.
const SIGNER_PATIENCE: Duration = Duration::from_secs(20);
/// Refreshes are spread over this time, so that pods of one template do not ask at once.
const REFRESH_SPREAD_MS: u64 = 300_000;
/// A request that is not there this long after it was made was deleted.
const LOST_MS: u64 = 600_000;

/// A source of a projected volume: the pod's uid, the volume, the place among its sources.
type Place = (Str, Str, usize);

/// A key and the chain of certificates for it, both as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub key_pem: String,
    pub chain_pem: String,
}

/// A request under way.
#[derive(Clone)]
struct Asked {
    name: Str,
    key_pem: String,
    made: Time,
    /// Since when the mirror shows it.
    revision: Revision,
}

/// How it stands with one source.
#[derive(Clone, Default)]
struct State {
    held: Option<Credentials>,
    /// When what is held is to be replaced.
    refresh_at: Time,
    asked: Option<Asked>,
    /// What the signer said in the end; it is not asked again.
    refusal: Option<String>,
}

/// The credentials of all pods here.
#[derive(Default)]
pub struct Store(Mutex<BTreeMap<Place, State>>);

impl Store {
    fn get(&self, place: &Place) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(place).cloned().unwrap_or_default()
    }

    fn put(&self, place: &Place, state: State) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(place.clone(), state);
    }

    /// Forgets what a pod had.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(owner, ..), _| owner != uid);
    }
}

/// What the sources of a pod's volumes come to, by volume and place.
pub type Found<T> = BTreeMap<(Str, usize), Result<T, String>>;

/// The sources of one sort: volume, place, source.
fn sources_of<'a>(pod: &'a Value, sort: &'static str) -> impl Iterator<Item = (Str, usize, &'a Value)> {
    pod.at(&["spec", "volumes"]).items().iter().flat_map(move |volume| {
        let sources = volume.at(&["projected", "sources"]).items().iter().enumerate();
        sources.filter_map(move |(at, source)| Some((volume["name"].text().into(), at, source.get(sort)?)))
    })
}

/// The anchors that each source of trust asks for, as PEM.
pub async fn anchors(agent: &Agent, pod: &Value) -> Found<String> {
    let sources: Vec<_> = sources_of(pod, "clusterTrustBundle").collect();
    if sources.is_empty() {
        return Found::new();
    }
    agent.follow(TRUST_BUNDLES, String::new());
    let first = agent.mirror.knows(TRUST_BUNDLES, Revision(1));
    if tokio::time::timeout(FIRST_LOOK_MAX, first).await.is_err() {
        let late = || Err("the bundles of trust are not known yet".to_owned());
        return sources.into_iter().map(|(volume, at, _)| ((volume, at), late())).collect();
    }
    let view = agent.mirror.view();
    let bundles: Vec<Value> = view.list(TRUST_BUNDLES, "").map(meta::Object::value).collect();
    sources.into_iter().map(|(volume, at, source)| ((volume, at), anchors_of(source, &bundles))).collect()
}

fn anchors_of(source: &Value, bundles: &[Value]) -> Result<String, String> {
    let (name, signer) = (source["name"].text(), source["signerName"].text());
    let labels = source.get("labelSelector").map(Selector::of);
    let is_wanted = |bundle: &&Value| match name {
        "" => {
            let fits = |labels: &Selector| labels.matches_value(bundle.at(&["metadata", "labels"]));
            bundle.at(&["spec", "signerName"]).text() == signer && labels.as_ref().is_some_and(fits)
        }
        name => bundle.at(&["metadata", "name"]).text() == name,
    };
    let mut wanted = bundles.iter().filter(is_wanted).peekable();
    if wanted.peek().is_none() && !source["optional"].is_true() {
        return Err(match name {
            "" => format!("no ClusterTrustBundle of signer {signer:?} has the labels that are asked for"),
            name => format!("clustertrustbundle {name:?} not found"),
        });
    }
    let texts = wanted.map(|bundle| bundle.at(&["spec", "trustBundle"]).text());
    let anchors: BTreeSet<Vec<u8>> = texts.flat_map(|text| pem::blocks(text).map(|block| block.bytes)).collect();
    Ok(anchors.iter().map(|anchor| pem::write("CERTIFICATE", anchor)).collect())
}

/// The credentials of each source of a pod; asks for what is missing or near its end, and waits for the first ones.
pub async fn credentials(agent: &Agent, pod: &Value) -> Found<Credentials> {
    let sources = sources_of(pod, "podCertificate").map(|(volume, at, source)| async move {
        let place = (Str::from(pod.at(&["metadata", "uid"]).text()), volume.clone(), at);
        ((volume, at), credential(agent, pod, &place, source).await)
    });
    futures_util::future::join_all(sources).await.into_iter().collect()
}

async fn credential(agent: &Agent, pod: &Value, place: &Place, source: &Value) -> Result<Credentials, String> {
    agent.follow(REQUESTS, format!("spec.nodeName={}", agent.options.node));
    let listener = agent.mirror.listen(Interest::Parts(vec![(REQUESTS, Part::All)]));
    let deadline = tokio::time::Instant::now() + SIGNER_PATIENCE;
    loop {
        let mut state = agent.credentials.get(place);
        let result = step(agent, pod, source, &mut state).await;
        agent.credentials.put(place, state.clone());
        if let Some(why) = state.refusal {
            return Err(why);
        }
        // Whoever has something does not wait for its successor.
        if let Some(held) = state.held {
            return result.map(|()| held);
        }
        result?;
        if tokio::time::timeout_at(deadline, listener.changed()).await.is_err() {
            let name = state.asked.map(|asked| asked.name).unwrap_or_default();
            return Err(format!("PodCertificateRequest {name:?} is not answered yet"));
        }
    }
}

/// One step: ask when nothing is held or it is near its end, or look at what became of the request.
async fn step(agent: &Agent, pod: &Value, source: &Value, state: &mut State) -> Result<(), String> {
    let (now, namespace) = (agent.now(), pod.at(&["metadata", "namespace"]).text());
    let Some(asked) = state.asked.clone() else {
        if state.refusal.is_none() && (state.held.is_none() || now >= state.refresh_at) {
            state.asked = Some(ask(agent, pod, source).await?);
        }
        return Ok(());
    };
    // What the mirror cannot know yet is not missing.
    if agent.mirror.read().known(REQUESTS) < asked.revision {
        return Ok(());
    }
    let Some(request) = agent.mirror.one(REQUESTS, namespace, &asked.name).map(|object| object.value()) else {
        if now.ms_since(asked.made) > LOST_MS || state.held.is_none() {
            state.asked = None;
        }
        return Ok(());
    };
    let Some(end) = api::certificates::pod_certificate_request::end_of(&request) else { return Ok(()) };
    state.asked = None;
    let status = &request["status"];
    if end != "Issued" {
        let said = &status["conditions"].items().first().cloned().unwrap_or_default();
        let (reason, message) = (said["reason"].text(), said["message"].text());
        let word = if end == "Denied" { "was denied" } else { "failed" };
        let why =
            format!("PodCertificateRequest {namespace}/{} {word}, reason={reason:?}, message={message:?}", asked.name);
        agent.event(pod, "", "Warning", end, why.clone());
        state.refusal = Some(why);
        return Ok(());
    }
    let chain = pem::blocks(status["certificateChain"].text()).map(|block| pem::write("CERTIFICATE", &block.bytes));
    state.held = Some(Credentials { key_pem: asked.key_pem, chain_pem: chain.collect() });
    let spread = base::hash64(asked.name.as_bytes()) % REFRESH_SPREAD_MS;
    state.refresh_at = Time::parse(status["beginRefreshAt"].text()).unwrap_or(now).plus_ms(spread);
    Ok(())
}

async fn ask(agent: &Agent, pod: &Value, source: &Value) -> Result<Asked, String> {
    use base64::Engine;
    let (meta, namespace) = (&pod["metadata"], pod.at(&["metadata", "namespace"]).text());
    let account_name = pod.at(&["spec", "serviceAccountName"]).text();
    let account = agent.fetch(ACCOUNTS, namespace, account_name).await?;
    let account = account.ok_or_else(|| format!("serviceaccount {account_name:?} not found"))?;
    let node = agent.mirror.one(NODES, "", &agent.options.node).ok_or("the node's own object is not known yet")?;
    let (key_pem, stub) = make_key(source["keyType"].text())?;
    let mut spec = json!({
        "signerName": (source["signerName"].clone()), "podName": (meta["name"].clone()), "podUID": (meta["uid"].clone()),
        "serviceAccountName": account_name, "serviceAccountUID": (account.at(&["metadata", "uid"]).clone()),
        "nodeName": (agent.options.node.as_str()), "nodeUID": (node.uid()),
        "stubPKCS10Request": (base64::engine::general_purpose::STANDARD.encode(stub)),
    });
    for (key, value) in [
        ("maxExpirationSeconds", source.get("maxExpirationSeconds")),
        ("unverifiedUserAnnotations", source.get("userAnnotations")),
    ] {
        if let Some(value) = value {
            spec.set(&[key], value.clone());
        }
    }
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "PodCertificateRequest",
        "metadata": {"namespace": namespace, "generateName": "req-", "ownerReferences": [{
            "apiVersion": "v1", "kind": "Pod", "name": (meta["name"].clone()), "uid": (meta["uid"].clone()),
        }]},
        "spec": spec,
    });
    let answer =
        agent.api.call(Request::create(REQUESTS, object)).await.map_err(|status| status.message().to_owned())?;
    let (name, revision) = (answer.object.name().into(), answer.object.revision());
    Ok(Asked { name, key_pem, made: agent.now(), revision })
}

/// A new key as PEM, and a request that says nothing but that its sender holds the key.
fn make_key(of_type: &str) -> Result<(String, Vec<u8>), String> {
    let algorithm: &SignatureAlgorithm = match of_type {
        "ECDSAP256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ECDSAP384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "ED25519" => &rcgen::PKCS_ED25519,
        other => {
            return Err(format!(
                "keys of type {other} are not made on this node; ECDSAP256, ECDSAP384 and ED25519 are"
            ));
        }
    };
    let failed = |error: rcgen::Error| format!("cannot make a key: {error}");
    let key = KeyPair::generate_for(algorithm).map_err(failed)?;
    let mut stub = CertificateParams::default();
    stub.distinguished_name = DistinguishedName::new();
    let stub = stub.serialize_request(&key).map_err(failed)?;
    Ok((key.serialize_pem(), stub.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(name: &str, signer: &str, alive: &str, anchors: &[&str]) -> Value {
        let text: String = anchors.iter().map(|anchor| pem::write("CERTIFICATE", anchor.as_bytes())).collect();
        json!({"metadata": {"name": name, "labels": {"alive": alive}}, "spec": {"signerName": signer, "trustBundle": text}})
    }

    #[test]
    fn anchors_are_those_asked_for_each_once() {
        let all = [
            bundle("mine", "", "no", &["m"]),
            bundle("a:b:1", "a/b", "yes", &["x", "y"]),
            bundle("a:b:2", "a/b", "no", &["y", "z"]),
        ];
        let check = |source: Value, expected: Option<&[&str]>| {
            let found = anchors_of(&source, &all).ok();
            let expected =
                expected.map(|anchors| bundle("", "", "", anchors).at(&["spec", "trustBundle"]).text().to_owned());
            assert_eq!(found, expected, "{source:?}");
        };
        check(json!({"name": "mine"}), Some(&["m"]));
        check(json!({"name": "other"}), None);
        check(json!({"name": "other", "optional": true}), Some(&[]));
        check(json!({"signerName": "a/b", "labelSelector": {}}), Some(&["x", "y", "z"]));
        check(json!({"signerName": "a/b", "labelSelector": {"matchLabels": {"alive": "no"}}}), Some(&["y", "z"]));
        check(json!({"signerName": "a/b", "labelSelector": {"matchLabels": {"alive": "so"}}}), None);
        check(json!({"signerName": "a/b", "optional": true}), Some(&[]));
    }

    #[test]
    fn a_stub_says_nothing_but_who_holds_the_key() {
        use x509_parser::prelude::{FromDer, X509CertificationRequest};
        for of_type in ["ECDSAP256", "ECDSAP384", "ED25519"] {
            let (key_pem, stub) = make_key(of_type).unwrap();
            assert_eq!(pem::blocks(&key_pem).next().unwrap().label, "PRIVATE KEY");
            let (_, request) = X509CertificationRequest::from_der(&stub).unwrap();
            request.verify_signature().unwrap();
            assert_eq!(request.certification_request_info.subject.iter().count(), 0);
        }
        assert!(make_key("RSA3072").unwrap_err().contains("RSA3072"));
    }
}
