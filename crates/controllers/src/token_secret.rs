//! Fills secrets of the type `kubernetes.io/service-account-token`: the token of the account that the secret names, the
//! cluster's certificates, the namespace. A secret whose account is gone goes, too.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cache::{Event, View};
use meta::{Object, Resource, Str, Value};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::Issue;
use crate::common::*;

const SECRETS: Resource = Resource("secrets");
const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// For whom a token is asked, and which secret will hold it.
#[derive(Clone, Copy, Debug)]
pub struct TokenFor<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    pub secret: &'a str,
    pub secret_uid: &'a str,
}

pub struct TokenSecrets {
    pub issue: Option<Issue>,
    pub root_ca_pem: String,
}

impl Reconciler for TokenSecrets {
    fn name(&self) -> &'static str {
        "tokens-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[SECRETS, SERVICE_ACCOUNTS]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        if resource == SECRETS {
            out.extend(event.new.iter().filter(|secret| is_token(&secret.value())).map(key_of));
            return;
        }
        // An account that comes or goes decides about the secrets that name it.
        for account in sides(event).take(1) {
            let names = |secret: &&Object| {
                let value = secret.value();
                is_token(&value) && annotation(&value, ACCOUNT) == account.name()
            };
            out.extend(view.list(SECRETS, account.namespace()).filter(names).map(key_of));
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(issue) = &self.issue else { return Outcome::Settled };
        let Some(secret) = view.one(SECRETS, namespace, name).filter(|secret| !is_deleting(secret)) else {
            return Outcome::Settled;
        };
        let mut value = secret.value();
        let wanted = Str::from(annotation(&value, ACCOUNT));
        if !is_token(&value) || wanted.is_empty() {
            return Outcome::Settled;
        }
        let account = view.one(SERVICE_ACCOUNTS, namespace, &wanted);
        let known = Str::from(annotation(&value, ACCOUNT_UID));
        let Some(account) = account.filter(|account| known.is_empty() || account.uid() == known) else {
            delete(cx, secret, "");
            return Outcome::Settled;
        };
        let has = |value: &Value, key: &str| !value["data"][key].text().is_empty();
        if !has(&value, "token") {
            let asked = TokenFor {
                namespace,
                account: account.name(),
                account_uid: account.uid(),
                secret: name,
                secret_uid: secret.uid(),
            };
            // What cannot be signed now is tried again when the secret or the account changes.
            let Ok(token) = issue(&asked) else { return Outcome::Settled };
            value.set(&["data", "token"], STANDARD.encode(token));
        }
        value.set(&["data", "ca.crt"], STANDARD.encode(&self.root_ca_pem));
        value.set(&["data", "namespace"], STANDARD.encode(namespace));
        value.set(&["metadata", "annotations", ACCOUNT_UID], account.uid());
        if value != secret.value() {
            cx.push(Effect::Update { resource: SECRETS, object: value });
        }
        Outcome::Settled
    }
}

fn is_token(secret: &Value) -> bool {
    secret["type"].text() == TYPE
}

fn annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"]["annotations"][key].text()
}
