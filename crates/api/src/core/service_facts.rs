//! What is read of every service once: which pods it selects.

use std::any::Any;
use std::sync::Arc;

use meta::{Object, Selector, Value};

/// A service's projection.
#[derive(Clone, Debug)]
pub struct ServiceFacts {
    pub selector: Selector,
}

impl ServiceFacts {
    pub fn of(service: &Value) -> ServiceFacts {
        ServiceFacts { selector: Selector::of_map(&service["spec"]["selector"]) }
    }
}

/// For `Rules::facts` of services.
pub fn facts(service: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
    Some(Arc::new(ServiceFacts::of(service)))
}

/// Whether a service selects a pod.
pub fn selects(service: &Object, pod: &Object) -> bool {
    with_selector(service, |selector| selector.matches(pod.labels()))
}

/// Looks at the selector of a service; it is read anew where its mirror keeps no facts.
pub fn with_selector<T>(service: &Object, look: impl FnOnce(&Selector) -> T) -> T {
    match service.own::<ServiceFacts>() {
        Some(facts) => look(&facts.selector),
        None => look(&ServiceFacts::of(&service.value()).selector),
    }
}
