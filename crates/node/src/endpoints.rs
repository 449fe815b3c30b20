//! The agent behind the kubelet's endpoints: which container is meant; [`summary`] and [`exposition`] tell the numbers
//! of pods and node, [`permit`] who else than the API server gets in.

mod exposition;
pub mod permit;
mod summary;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use futures_util::future::BoxFuture;
use meta::{Reason, Status, Str, Value, json};
use runtime::Runtime;

use crate::agent::{Agent, PODS};
use crate::kubelet::{ContainerRef, Metrics, Pods, Proof};
use crate::pod::{Observed, Seen, SeenState};

/// What was last seen of a pod, for those who ask from outside.
#[derive(Clone, Debug)]
pub struct Known {
    pub uid: Str,
    pub sandbox: Option<String>,
    pub observed: Observed,
}

/// Namespace and name.
pub type PodName = (Str, Str);
pub type KnownPods = BTreeMap<PodName, Known>;

impl Agent {
    /// Notes what was seen of a pod.
    pub fn know(&self, pod: &Value, known: Known) {
        let meta = &pod["metadata"];
        let key = (meta["namespace"].text().into(), meta["name"].text().into());
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // What had ended at the first look, an earlier agent saw.
        let ended = all.get(&key).map(|before| ended_since(&before.observed, &known.observed)).unwrap_or_default();
        all.insert(key, known);
        drop(all);
        for (name, code, reason) in ended {
            let is_of = |list: &str| pod["spec"][list].items().iter().any(|one| one["name"].text() == name.as_str());
            let sort = match () {
                () if is_of("initContainers") => "init_container",
                () if is_of("ephemeralContainers") => "ephemeral_container",
                () => "container",
            };
            let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
            *ends.entry((sort, code, reason)).or_default() += 1;
        }
    }

    /// Forgets a pod, unless another of the same name took its place.
    pub fn forget(&self, pod: &Value) {
        let meta = &pod["metadata"];
        let key = (Str::from(meta["namespace"].text()), Str::from(meta["name"].text()));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(&key).is_some_and(|known| known.uid == meta["uid"].text()) {
            known.remove(&key);
        }
    }

    fn find(&self, namespace: &str, pod: &str) -> Result<Known, Status> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(&(namespace.into(), pod.into())).cloned();
        found.ok_or_else(|| Status::not_found("", "pods", pod))
    }

    /// All pods that were seen, with their objects.
    fn known_pods(&self) -> Vec<(PodName, Known)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(key, known)| (key.clone(), known.clone())).collect()
    }

    fn log_of(&self, known: &Known, container: &str, attempt: u32) -> PathBuf {
        self.dirs(&known.uid).log(container, attempt)
    }

    fn spec_of(&self, namespace: &str, pod: &str, container: &str) -> Value {
        let pod = self.mirror.one(PODS, namespace, pod).map(|pod| pod.value()).unwrap_or_default();
        crate::pod::decide::all_containers(&pod)
            .find(|one| one["name"].text() == container)
            .cloned()
            .unwrap_or_default()
    }
}

/// Name, exit code and reason of the containers that have ended between two looks.
fn ended_since(before: &Observed, now: &Observed) -> Vec<(Str, i32, Str)> {
    let has_ended = |seen: &&Seen| seen.state == SeenState::Exited;
    let is_new = |(name, seen): &(&Str, &Seen)| {
        before.containers.get(*name).filter(has_ended).is_none_or(|known| known.id != seen.id)
    };
    let ended = now.containers.iter().filter(|(_, seen)| has_ended(seen)).filter(is_new);
    ended.map(|(name, seen)| (name.clone(), seen.exit_code, seen.reason.clone())).collect()
}

impl Pods for Agent {
    fn container(&self, namespace: &str, pod: &str, container: &str) -> Result<ContainerRef, Status> {
        let known = self.find(namespace, pod)?;
        let Some(seen) = known.observed.containers.get(container) else {
            let state = self.mirror.one(PODS, namespace, pod).map(|pod| pod.value()).unwrap_or_default();
            let statuses = state.at(&["status", "containerStatuses"]).items();
            let status = statuses.iter().find(|status| status["name"].text() == container);
            let why = status.map(|status| status.at(&["state", "waiting", "reason"]).text()).unwrap_or_default();
            let message = format!("container {container:?} in pod {pod:?} is waiting to start: {why}");
            return Err(Status::new(Reason::BadRequest, message));
        };
        let spec = self.spec_of(namespace, pod, container);
        let previous = known.observed.previous.get(container);
        Ok(ContainerRef {
            id: seen.id.to_string(),
            log_path: self.log_of(&known, container, seen.attempt),
            previous_log_path: previous.map(|previous| self.log_of(&known, container, previous.attempt)),
            tty: spec["tty"].is_true(),
            stdin: spec["stdin"].is_true(),
            stdin_once: spec["stdinOnce"].is_true(),
        })
    }

    fn sandbox(&self, namespace: &str, pod: &str) -> Result<String, Status> {
        let known = self.find(namespace, pod)?;
        known.sandbox.ok_or_else(|| Status::new(Reason::BadRequest, format!("pod {pod:?} is not running")))
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    fn pods_json(&self) -> Value {
        let view = self.mirror.view();
        let items: Vec<Value> = view.by(PODS, "node", &self.options.node).map(|pod| pod.value()).collect();
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items})
    }

    fn running_json(&self) -> Value {
        let pods = self.known_pods().into_iter().filter_map(|((namespace, name), known)| {
            let running = known.observed.containers.iter().filter(|(_, seen)| seen.state == SeenState::Running);
            let containers: Vec<Value> =
                running.map(|(name, seen)| json!({"name": name, "image": (&seen.image)})).collect();
            let metadata = json!({"name": name, "namespace": namespace, "uid": (&known.uid)});
            (!containers.is_empty()).then(|| json!({"metadata": metadata, "spec": {"containers": containers}}))
        });
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": (pods.collect::<Vec<Value>>())})
    }

    fn stats_json(&self, brief: bool) -> BoxFuture<'_, Value> {
        Box::pin(summary::summary(self, brief))
    }

    fn permit(
        &self,
        who: Proof,
        verb: &'static str,
        part: &'static str,
    ) -> BoxFuture<'_, Result<(), http::StatusCode>> {
        Box::pin(permit::permit(self, who, verb, part))
    }

    fn metrics(&self, of: Metrics) -> BoxFuture<'_, String> {
        Box::pin(async move {
            match of {
                Metrics::Agent => exposition::agent(self),
                Metrics::Resource => exposition::resource(self),
                Metrics::Containers => exposition::containers(self),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_new_once() {
        let seen = |id: &str, state| Seen {
            id: id.into(),
            attempt: 0,
            state,
            image: "".into(),
            image_id: "".into(),
            started: None,
            finished: None,
            exit_code: 139,
            signal: 0,
            reason: "Error".into(),
            message: "".into(),
            limits: None,
        };
        let look = |all: &[(&str, &str, SeenState)]| Observed {
            containers: all.iter().map(|(name, id, state)| (Str::from(*name), seen(id, *state))).collect(),
            ..Observed::default()
        };
        let (running, ended) = (look(&[("a", "1", SeenState::Running)]), look(&[("a", "1", SeenState::Exited)]));
        let end = vec![(Str::from("a"), 139, Str::from("Error"))];
        assert_eq!(ended_since(&look(&[]), &running), []);
        assert_eq!(ended_since(&running, &ended), end);
        assert_eq!(ended_since(&ended, &ended), []);
        assert_eq!(ended_since(&ended, &look(&[("a", "2", SeenState::Exited)])), end);
    }
}
