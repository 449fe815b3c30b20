//! Pods of a runtime class get its overhead, node selector and tolerations.

use meta::{Resource, Status, Str};

use super::{Admission, Review};

const CLASSES: Resource = Resource("runtimeclasses.node.k8s.io");

pub struct RuntimeClass;

impl Admission for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn mutate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation != "CREATE" || !review.is("pods", "") {
            return Ok(());
        }
        let name = Str::from(review.object.at(&["spec", "runtimeClassName"]).text());
        if name.is_empty() {
            if !review.object.at(&["spec", "overhead"]).entries().is_empty() {
                return Err(
                    review.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined")
                );
            }
            return Ok(());
        }
        let Some(class) = review.view.one(CLASSES, "", &name) else {
            return Err(review.forbidden(format!("pod rejected: RuntimeClass {name:?} not found")));
        };
        let class = class.value();
        let fixed = class.at(&["overhead", "podFixed"]);
        let own = review.object.at(&["spec", "overhead"]);
        if !own.entries().is_empty() && own != fixed {
            return Err(review.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        }
        if !fixed.is_null() {
            review.object.set(&["spec", "overhead"], fixed.clone());
        }
        for (key, value) in class.at(&["scheduling", "nodeSelector"]).entries().iter() {
            let known = review.object.at(&["spec", "nodeSelector"])[key].as_str().map(str::to_owned);
            if known.is_some_and(|known| known != value.text()) {
                let why = "pod rejected: conflict: runtimeClass.scheduling.nodeSelector and pod nodeSelector differ";
                return Err(review.forbidden(why));
            }
            review.object.set(&["spec", "nodeSelector", key], value.clone());
        }
        for toleration in class.at(&["scheduling", "tolerations"]).items() {
            let own = review.object.make(&["spec", "tolerations"]).make_list();
            if !own.contains(toleration) {
                own.push(toleration.clone());
            }
        }
        if review.object.at(&["spec", "tolerations"]).items().is_empty() {
            review.object.take(&["spec", "tolerations"]);
        }
        Ok(())
    }
}
