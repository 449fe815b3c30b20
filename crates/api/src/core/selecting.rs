//! What is read once of everything that selects pods or other objects by labels: its selector.

use std::any::Any;
use std::sync::Arc;

use meta::{Object, Resource, Selector, Value};

/// Kinds whose selector is a plain map of labels; the others have a `LabelSelector`.
const BY_MAP: [Resource; 2] = [Resource("services"), Resource("replicationcontrollers")];

/// The projection of whoever selects.
#[derive(Clone, Debug)]
pub struct Selecting {
    pub selector: Selector,
}

type Facts = Option<Arc<dyn Any + Send + Sync>>;

/// For `Rules::facts` of kinds whose `spec.selector` is a map of labels.
pub fn by_map(object: &Value) -> Facts {
    Some(Arc::new(Selecting { selector: Selector::of_map(&object["spec"]["selector"]) }))
}

/// For `Rules::facts` of kinds whose `spec.selector` is a `LabelSelector`.
pub fn by_terms(object: &Value) -> Facts {
    Some(Arc::new(Selecting { selector: Selector::of(&object["spec"]["selector"]) }))
}

/// Whether one selects the other; namespaces are the caller's to compare.
pub fn selects(selecting: &Object, object: &Object) -> bool {
    with_selector(selecting, |selector| selector.matches(object.labels()))
}

/// Looks at the selector of an object; it is read anew where its mirror keeps no facts.
pub fn with_selector<T>(object: &Object, look: impl FnOnce(&Selector) -> T) -> T {
    if let Some(facts) = object.own::<Selecting>() {
        return look(&facts.selector);
    }
    let value = object.value();
    let selector = &value["spec"]["selector"];
    look(&if BY_MAP.contains(&object.resource()) { Selector::of_map(selector) } else { Selector::of(selector) })
}
