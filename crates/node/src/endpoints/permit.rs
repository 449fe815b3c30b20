//! Who else than the API server gets in: users and service accounts whom the API server allows parts of the node, as
//! scrapers of metrics. Answers are good for a while, so that a scraper does not cost two calls each time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use base::Time;
use client::Request;
use http::StatusCode;
use meta::{Resource, Value, json};

use crate::agent::Agent;
use crate::kubelet::Proof;

const TOKENS: Resource = Resource("tokenreviews.authentication.k8s.io");
const ACCESS: Resource = Resource("subjectaccessreviews.authorization.k8s.io");
/// How long an answer is good for.
const GOOD_MS: u64 = 30_000;
/// Answers kept.
const KEPT_MAX: usize = 1_000;

type Answer = Result<(), StatusCode>;

/// Answers of the API server, by what was shown and asked.
#[derive(Debug, Default)]
pub struct Permits(Mutex<BTreeMap<Vec<u8>, (Time, Answer)>>);

impl Permits {
    fn known(&self, key: &[u8], now: Time) -> Option<Answer> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (at, _)| now.ms_since(*at) < GOOD_MS);
        known.get(key).map(|(_, answer)| *answer)
    }

    fn note(&self, key: Vec<u8>, now: Time, answer: Answer) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT_MAX {
            known.clear();
        }
        known.insert(key, (now, answer));
    }
}

/// Asks the API server who this is and what they may.
pub(super) async fn permit(agent: &Agent, who: Proof, verb: &str, part: &str) -> Answer {
    if who == Proof::Nothing {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let text = format!("{who:?} {verb} {part}");
    let key = text.into_bytes();
    if let Some(answer) = agent.permits.known(&key, agent.now()) {
        return answer;
    }
    let answer = ask(agent, who, verb, part).await;
    // Who could not be asked about is asked about again.
    if answer != Err(StatusCode::SERVICE_UNAVAILABLE) {
        agent.permits.note(key, agent.now(), answer);
    }
    answer
}

async fn ask(agent: &Agent, who: Proof, verb: &str, part: &str) -> Answer {
    let (name, groups) = match who {
        Proof::User { name, groups } => {
            let groups = groups.into_iter().chain(["system:authenticated".to_owned()]);
            (name, groups.map(Value::from).collect::<Vec<Value>>())
        }
        Proof::Token(token) => {
            let status = review(agent, TOKENS, json!({"spec": {"token": token}})).await?;
            if !status["authenticated"].is_true() {
                return Err(StatusCode::UNAUTHORIZED);
            }
            (status.at(&["user", "username"]).text().to_owned(), status.at(&["user", "groups"]).items().to_vec())
        }
        Proof::Nothing => return Err(StatusCode::UNAUTHORIZED),
    };
    let attributes = json!({
        "verb": verb, "version": "v1", "resource": "nodes", "subresource": part, "name": (agent.options.node.as_str()),
    });
    let spec = json!({"user": name, "groups": groups, "resourceAttributes": attributes});
    let status = review(agent, ACCESS, json!({"spec": spec})).await?;
    if status["allowed"].is_true() { Ok(()) } else { Err(StatusCode::FORBIDDEN) }
}

async fn review(agent: &Agent, resource: Resource, review: Value) -> Result<Value, StatusCode> {
    match agent.api.call(Request::create(resource, review)).await {
        Ok(answer) => Ok(answer.object.value()["status"].clone()),
        Err(status) => {
            tracing::warn!("the server does not say who may come in: {status}");
            Err(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_good_for_a_while() {
        let permits = Permits::default();
        let start = Time::from_seconds(1_000);
        permits.note(b"a".to_vec(), start, Err(StatusCode::FORBIDDEN));
        assert_eq!(permits.known(b"a", start.plus_ms(GOOD_MS - 1)), Some(Err(StatusCode::FORBIDDEN)));
        assert_eq!(permits.known(b"b", start), None);
        assert_eq!(permits.known(b"a", start.plus_ms(GOOD_MS)), None);
    }
}
