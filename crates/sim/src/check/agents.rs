//! Agents: a pod runs on one node, the one that it is bound to.

use std::collections::BTreeMap;

use meta::Str;

use super::{Checker, Seen};
use crate::desired::facts;
use crate::truth::Past;
use crate::user::PODS;

#[derive(Default)]
pub struct Agents {
    /// Where each pod is bound to, by uid.
    bound: BTreeMap<Str, Str>,
}

impl Checker for Agents {
    fn name(&self) -> &'static str {
        "agents"
    }

    fn see(&mut self, seen: &Seen<'_>, _: &Past<'_>) -> Result<(), String> {
        match seen {
            Seen::Commit { changes, .. } => {
                for pod in changes.iter().filter_map(|change| change.new.as_ref()) {
                    if pod.resource() == PODS && !facts(pod).node.is_empty() {
                        self.bound.insert(pod.uid().into(), facts(pod).node);
                    }
                }
                Ok(())
            }
            Seen::Container { node, pod, uid, runs: true, .. } => match self.bound.get(*uid) {
                Some(bound) if bound == node => Ok(()),
                Some(bound) => Err(format!("{node} runs pod {pod}, which is bound to {bound}")),
                None => Err(format!("{node} runs pod {pod}, which is not bound")),
            },
            _ => Ok(()),
        }
    }
}
