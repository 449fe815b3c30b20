//! One question to one hook: the `AdmissionReview` that is sent, and what its answer means.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use meta::{Reason, Status, Str, Value, json};

use crate::Server;
use crate::admission::Review;
use crate::callee::Callee;
use crate::scene::Scene;

const GROUP: &str = "admission.k8s.io";
/// How long an answer is waited for when the hook does not say.
const TIMEOUT_S: u64 = 10;
/// The lowest code of a refusal.
const REFUSAL: i64 = 400;

pub struct Question {
    hook: Str,
    callee: Result<Callee, String>,
    patience: Duration,
    ignores: bool,
    uid: String,
    body: Bytes,
}

/// What a hook that lets the request pass says of it.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// A JSON patch.
    pub patch: Option<Value>,
    pub warnings: Vec<String>,
}

impl Question {
    pub fn of(hook: &Value, scene: &Scene, review: &Review<'_>) -> Question {
        let known = hook["admissionReviewVersions"].items().iter().map(Value::text);
        let version = known.clone().find(|version| matches!(*version, "v1" | "v1beta1")).unwrap_or("v1");
        let uid = crate::uid::new();
        let options = match review.operation {
            "CREATE" => "CreateOptions",
            "UPDATE" => "UpdateOptions",
            "DELETE" => "DeleteOptions",
            _ => "",
        };
        let mut request = scene.request.clone();
        request.set(&["uid"], &uid);
        request.set(&["object"], scene.object.clone());
        request.set(&["oldObject"], scene.old.clone());
        if !options.is_empty() {
            request.set(&["options"], json!({"apiVersion": "meta.k8s.io/v1", "kind": options}));
        }
        let asked =
            json!({"apiVersion": (format!("{GROUP}/{version}")), "kind": "AdmissionReview", "request": request});
        let seconds = hook["timeoutSeconds"].as_int().and_then(|seconds| u64::try_from(seconds).ok());
        Question {
            hook: hook["name"].text().into(),
            callee: Callee::of(&hook["clientConfig"]),
            patience: Duration::from_secs(seconds.unwrap_or(TIMEOUT_S)),
            ignores: hook["failurePolicy"].text() == "Ignore",
            uid,
            body: asked.to_json().into(),
        }
    }

    /// Asks. No answer, or one that cannot be understood, is passed over where the hook says so.
    pub async fn ask(&self, server: &Server) -> Result<Answer, Status> {
        let heard = match &self.callee {
            Ok(callee) => callee.post(server, self.body.clone(), self.patience).await,
            Err(why) => Err(why.clone()),
        };
        let heard = heard.map_err(|why| format!("failed to call webhook: {why}"));
        match heard.and_then(|bytes| self.understood(&bytes)) {
            Ok(answer) => answer,
            Err(_) if self.ignores => Ok(Answer::default()),
            Err(why) => Err(self.failed(&why)),
        }
    }

    fn failed(&self, why: &str) -> Status {
        Status::internal(format!("failed calling webhook {:?}: {why}", self.hook.as_str()))
    }

    /// What an answer says: that the request passes, or a refusal.
    fn understood(&self, bytes: &[u8]) -> Result<Result<Answer, Status>, String> {
        let review = Value::parse(bytes).map_err(|error| format!("the answer is no JSON: {error}"))?;
        let response = &review["response"];
        if response.is_null() {
            return Err("webhook response was absent".to_owned());
        }
        if response["uid"].text() != self.uid {
            return Err(format!("expected response.uid={:?}, got {:?}", self.uid, response["uid"].text()));
        }
        if !response["allowed"].is_true() {
            return Ok(Err(refusal(&self.hook, &response["status"])));
        }
        let patch = match (response["patchType"].text(), response["patch"].text()) {
            ("" | "JSONPatch", "") => None,
            ("JSONPatch", text) => {
                let bytes = STANDARD.decode(text).map_err(|error| format!("the patch is no base64: {error}"))?;
                Some(Value::parse(&bytes).map_err(|error| format!("the patch is no JSON: {error}"))?)
            }
            (other, _) => return Err(format!("unsupported patch type {other:?}")),
        };
        let warnings = response["warnings"].items().iter().map(|warning| warning.text().to_owned()).collect();
        Ok(Ok(Answer { patch, warnings }))
    }

    /// The object with the hook's patch.
    pub fn patched(&self, object: &Value, patch: &Value) -> Result<Value, Status> {
        meta::patch::json_patch(object, patch).map_err(|error| self.failed(error.status().message()))
    }
}

/// A refusal in the hook's words, which may name its reason and code.
fn refusal(hook: &str, said: &Value) -> Status {
    let mut said = if said.is_null() { Value::map() } else { said.clone() };
    let (message, reason) = (said["message"].text(), said["reason"].text());
    let denied = format!("admission webhook {hook:?} denied the request");
    let message = match (message, reason) {
        ("", "") => format!("{denied} without explanation"),
        ("", why) | (why, _) => format!("{denied}: {why}"),
    };
    said.set(&["message"], message);
    if said["code"].as_int().unwrap_or(0) < REFUSAL {
        said.set(&["code"], REFUSAL);
    }
    let mut status = Status::from_value(&said);
    if status.0.reason == Reason::Unknown && status.0.code == Reason::Forbidden.code() {
        status.0.reason = Reason::Forbidden;
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        let (hook, uid) = ("a.b.c".into(), "u".to_owned());
        Question { hook, callee: Err(String::new()), patience: Duration::ZERO, ignores: false, uid, body: Bytes::new() }
    }

    #[test]
    fn answers_pass_change_or_refuse() {
        let denied = "admission webhook \"a.b.c\" denied the request";
        let patch = STANDARD.encode(r#"[{"op":"add","path":"/a","value":1}]"#);
        for (response, wanted) in [
            (json!({"uid": "u", "allowed": true}), Ok(Ok(None))),
            (json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": patch}), Ok(Ok(Some(1)))),
            (json!({"uid": "u", "allowed": false}), Ok(Err((400, format!("{denied} without explanation"))))),
            (
                json!({"uid": "u", "status": {"code": 403, "message": "never"}}),
                Ok(Err((403, format!("{denied}: never")))),
            ),
            (json!({"uid": "other", "allowed": true}), Err(())),
            (json!({"uid": "u", "allowed": true, "patchType": "Merge", "patch": "e30="}), Err(())),
            (Value::Null, Err(())),
        ] {
            let found = question().understood(&json!({"response": (response.clone())}).to_json());
            let found = found.map(|answer| {
                answer
                    .map(|answer| answer.patch.map(|patch| patch.items().len()))
                    .map_err(|status| (status.code(), status.message().to_owned()))
            });
            assert_eq!(found.map_err(|_| ()), wanted, "{response:?}");
        }
    }
}
