//! Certificate signing requests: approves what a kubelet asks for itself, has approved ones signed, forgets old ones.

use base::Time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cache::{Event, View};
use meta::{Object, Resource, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::Sign;
use crate::common::*;
use crate::subject::{Subject, subject_of};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";
const NODES_GROUP: &str = "system:nodes";
const BOOTSTRAPPERS: &str = "system:bootstrappers";
const NODE_PREFIX: &str = "system:node:";
/// A certificate's life when the request names none.
const EXPIRATION_SECONDS: i64 = 365 * 24 * 3600;
/// Requests are forgotten this long after they were answered, or left without an answer.
const ANSWERED_MS: u64 = 3_600_000;
const PENDING_MS: u64 = 24 * 3_600_000;

pub struct SigningRequests {
    pub sign: Option<Sign>,
}

impl Reconciler for SigningRequests {
    fn name(&self) -> &'static str {
        "certificate-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[SIGNING_REQUESTS]
    }

    fn keys(&self, _: Resource, event: &Event, _: &View, out: &mut Vec<Str>) {
        out.extend(event.new.iter().map(key_of));
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let Some(request) = view.one(SIGNING_REQUESTS, "", key).filter(|request| !is_deleting(request)) else {
            return Outcome::Settled;
        };
        let value = request.value();
        let is = |of_type: &str| condition(&value["status"], of_type)["status"].text() == "True";
        let (approved, refused) = (is("Approved"), is("Denied") || is("Failed"));
        let certified = !value["status"]["certificate"].text().is_empty();
        let answered = refused || (approved && certified);
        let until = request.facts().created.plus_ms(if answered { ANSWERED_MS } else { PENDING_MS });
        if until <= cx.now {
            delete(cx, request, "");
            return Outcome::Settled;
        }
        if !approved && !refused && may_approve(&value) {
            approve(&value, cx);
        } else if approved && !refused && !certified {
            self.have_signed(request, &value, cx);
        }
        Outcome::Again(until)
    }
}

impl SigningRequests {
    fn have_signed(&self, request: &Object, value: &Value, cx: &mut Context) {
        let spec = &value["spec"];
        let signer = spec["signerName"].text();
        let ours = [CLIENT, SERVING, "kubernetes.io/kube-apiserver-client"].contains(&signer);
        let (Some(sign), true) = (&self.sign, ours) else { return };
        let usages: Vec<String> = spec["usages"].items().iter().map(|usage| usage.text().to_owned()).collect();
        let seconds = spec["expirationSeconds"].as_int().unwrap_or(EXPIRATION_SECONDS);
        let result = match pem_of(value) {
            Some(pem) if conforms(signer, &usages, subject_of(&pem).as_ref()) => sign(&pem, &usages, seconds),
            Some(_) => Err("the subject or the usages are not those of the signer".to_owned()),
            None => Err("the request is not a PEM text".to_owned()),
        };
        let mut status = value["status"].clone();
        match result {
            Ok(pem) => status.set(&["certificate"], STANDARD.encode(pem)),
            Err(why) => {
                let mut conditions = status["conditions"].items().to_vec();
                conditions.push(made("Failed", "SignerValidationFailure", &why, cx.now));
                status.set(&["conditions"], Value::from(conditions));
            }
        }
        write_status(cx, request, value, status);
    }
}

fn pem_of(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value["spec"]["request"].text()).ok()?).ok()
}

fn made(of_type: &str, reason: &str, message: &str, now: Time) -> Value {
    let now = now.rfc3339();
    json!({
        "type": of_type, "status": "True", "reason": reason, "message": message, "lastUpdateTime": (&now),
        "lastTransitionTime": (&now),
    })
}

/// Whether subject and usages are what the signer gives out.
fn conforms(signer: &str, usages: &[String], subject: Option<&Subject>) -> bool {
    let Some(subject) = subject else { return false };
    let purpose = match signer {
        CLIENT => "client auth",
        SERVING => "server auth",
        _ => {
            let client = usages.iter().any(|usage| usage == "client auth");
            let server = usages.iter().any(|usage| usage == "server auth");
            return client && !server && !subject.organizations.iter().any(|one| one == "system:masters");
        }
    };
    subject.common_name.starts_with(NODE_PREFIX)
        && subject.organizations == [NODES_GROUP]
        && usages.iter().any(|usage| usage == purpose)
        && usages.iter().all(|usage| usage == purpose || usage == "digital signature" || usage == "key encipherment")
}

/// Nodes may renew their own certificates, and newcomers with a token may ask for a first one.
fn may_approve(value: &Value) -> bool {
    let spec = &value["spec"];
    let signer = spec["signerName"].text();
    if signer != CLIENT && signer != SERVING {
        return false;
    }
    let usages: Vec<String> = spec["usages"].items().iter().map(|usage| usage.text().to_owned()).collect();
    let subject = pem_of(value).and_then(|pem| subject_of(&pem));
    if !conforms(signer, &usages, subject.as_ref()) {
        return false;
    }
    let member = |group: &str| spec["groups"].items().iter().any(|one| one.text() == group);
    let own = member(NODES_GROUP) && subject.is_some_and(|subject| subject.common_name == spec["username"].text());
    own || (signer == CLIENT && member(BOOTSTRAPPERS))
}

fn approve(value: &Value, cx: &mut Context) {
    let mut object = value.clone();
    let mut conditions = object["status"]["conditions"].items().to_vec();
    conditions.push(made("Approved", "AutoApproved", "A kubelet asks for its own certificate", cx.now));
    object.set(&["status", "conditions"], Value::from(conditions));
    cx.push(Effect::UpdateSub { resource: SIGNING_REQUESTS, subresource: "approval", object });
}
