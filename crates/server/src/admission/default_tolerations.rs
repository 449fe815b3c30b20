//! Pods stay on a node that is not ready or not reachable for five minutes, unless they say otherwise.

use meta::{Status, json};

use super::{Admission, Review};

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub struct DefaultTolerationSeconds;

impl Admission for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn mutate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if !matches!(review.operation, "CREATE" | "UPDATE") || !review.is("pods", "") {
            return Ok(());
        }
        for taint in TAINTS {
            let tolerations = review.object.make(&["spec", "tolerations"]).make_list();
            let tolerated = tolerations.iter().any(|toleration| {
                let key = toleration["key"].text();
                (key == taint || (key.is_empty() && toleration["operator"].text() == "Exists"))
                    && matches!(toleration["effect"].text(), "NoExecute" | "")
            });
            if !tolerated {
                tolerations.push(json!({
                    "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
                }));
            }
        }
        if review.object.at(&["spec", "tolerations"]).items().is_empty() {
            review.object.take(&["spec", "tolerations"]);
        }
        Ok(())
    }
}
