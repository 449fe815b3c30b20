//! Pods get the number of their priority class; there is one default class at most.

use meta::{Object, Resource, Status, Value};

use super::{Admission, Review};

pub const CLASSES: Resource = Resource("priorityclasses.scheduling.k8s.io");

pub struct Priority;

impl Admission for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn mutate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation != "CREATE" || !review.is("pods", "") {
            return Ok(());
        }
        let name = review.object.at(&["spec", "priorityClassName"]).text().to_owned();
        let class = match name.as_str() {
            "" => default_class(review),
            name => match review.view.one(CLASSES, "", name) {
                Some(class) => Some(class.clone()),
                None => return Err(review.forbidden(format!("no PriorityClass with name {name} was found"))),
            },
        };
        let value = class.as_ref().map(Object::value).unwrap_or_default();
        let priority = value["value"].as_int().unwrap_or(0);
        let policy = match value["preemptionPolicy"].text() {
            "" => "PreemptLowerPriority",
            policy => policy,
        };
        if let Some(asked) = review.object.at(&["spec", "priority"]).as_int()
            && asked != priority
        {
            return Err(review.forbidden(format!(
                "the integer value of priority ({asked}) must not be provided in pod spec; priority admission \
                 controller computed {priority} from the given PriorityClass name"
            )));
        }
        if let Some(asked) = review.object.at(&["spec", "preemptionPolicy"]).as_str()
            && asked != policy
        {
            return Err(review.forbidden(format!(
                "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            )));
        }
        if let (true, Some(class)) = (name.is_empty(), &class) {
            review.object.set(&["spec", "priorityClassName"], class.name());
        }
        review.object.set(&["spec", "priority"], priority);
        review.object.set(&["spec", "preemptionPolicy"], policy);
        Ok(())
    }

    fn validate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation == "DELETE" || review.resource != CLASSES || !review.object["globalDefault"].is_true() {
            return Ok(());
        }
        let other = review
            .view
            .list(CLASSES, "")
            .find(|class| class.name() != review.name() && class.value()["globalDefault"].is_true());
        match other {
            Some(other) => {
                let why =
                    format!("PriorityClass {} is already marked as default. Only one default can exist", other.name());
                Err(review.forbidden(why))
            }
            None => Ok(()),
        }
    }
}

/// The class that is marked as default; with several (made at the same time), the lowest.
fn default_class(review: &Review<'_>) -> Option<Object> {
    let marked = review.view.list(CLASSES, "").map(|class| (class, class.value()));
    let marked = marked.filter(|(_, value): &(_, Value)| value["globalDefault"].is_true());
    marked.min_by_key(|(_, value)| value["value"].as_int().unwrap_or(0)).map(|(class, _)| class.clone())
}
