//! Who selects whom by labels, found without a look at everybody: pods are filed under their labels, services and owners
//! of pods under one of those that they ask for.

use base::hash64;
use meta::labels::Op;
use meta::{Object, Selector, Str};

use super::selecting::with_selector;

/// The index of pods by each of their labels.
pub const LABELS: &str = "labels";
/// The index of those who select by one label that they ask for.
pub const SELECTOR: &str = "selector";

/// Labels that controllers give to tell their own pods apart. Pods are not filed under them: hardly anybody else asks for
/// them, and each entry costs memory for every pod.
const OWN: [&str; 9] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

/// The place of a label of a namespace. Different labels may share one: what is found there is to be looked at.
pub fn place(namespace: &str, key: &str, value: &str) -> Str {
    let hash = hash64(namespace.as_bytes())
        ^ hash64(key.as_bytes()).rotate_left(21)
        ^ hash64(value.as_bytes()).rotate_left(42);
    format!("{hash:016x}").into()
}

/// For [`LABELS`].
pub fn labels_of(pod: &Object, out: &mut Vec<Str>) {
    let labels = pod.labels().iter().filter(|(key, _)| !OWN.contains(key));
    out.extend(labels.map(|(key, value)| place(pod.namespace(), key, value)));
}

/// A place where every pod of the namespace stands that `selector` selects; `None` when there is no such place.
pub fn place_of_all(namespace: &str, selector: &Selector) -> Option<Str> {
    pairs(selector).find(|(key, _)| !OWN.contains(key)).map(|(key, value)| place(namespace, key, value))
}

/// For [`SELECTOR`]: any label will do, as whoever looks for them looks at all labels of a pod. Those that ask for no label
/// with one value stand together under none.
pub fn selector_of(selecting: &Object, out: &mut Vec<Str>) {
    with_selector(selecting, |selector| {
        let (key, value) = pairs(selector).next().unwrap_or_default();
        out.push(place(selecting.namespace(), key, value));
    });
}

/// The places of [`SELECTOR`] where everybody stands who may select an object: of each of its labels, and of none.
pub fn places_of(object: &Object) -> impl Iterator<Item = Str> + '_ {
    let labels = object.labels().iter().chain([("", "")]);
    labels.map(|(key, value)| place(object.namespace(), key, value))
}

/// The labels that a selector asks for, each with the one value that it takes.
fn pairs(selector: &Selector) -> impl Iterator<Item = (&str, &str)> {
    selector.requirements.iter().filter_map(|requirement| match &requirement.op {
        Op::In(values) => match values.as_slice() {
            [value] => Some((requirement.key.as_str(), value.as_str())),
            _ => None,
        },
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::{Facts, Resource, Value, json};

    fn object(resource: &'static str, spec: Value, labels: &Value) -> Object {
        let value = json!({"metadata": {"name": "x", "namespace": "n", "labels": (labels.clone())}, "spec": spec});
        Object::new(Facts::of(Resource(resource), &value), value.to_json())
    }

    #[test]
    fn who_is_selected_stands_where_he_is_looked_for() {
        let mut rng = base::Rng::new(1);
        let mut some = || -> Value {
            let keys = ["app", "tier", "pod-template-hash", "version"];
            let chosen: Vec<&str> = keys.into_iter().filter(|_| rng.below(2) == 0).collect();
            Value::Map(chosen.into_iter().map(|key| (key, ["a", "b"][rng.below(2) as usize])).collect())
        };
        let (mut selected, mut without_place) = (0, 0);
        for _ in 0..2_000 {
            let (labels, wanted) = (some(), some());
            let (pod, service) = (
                object("pods", Value::map(), &labels),
                object("services", json!({"selector": (wanted.clone())}), &Value::map()),
            );
            let selector = Selector::of_map(&wanted);
            if wanted.entries().is_empty() || !selector.matches(pod.labels()) {
                continue;
            }
            selected += 1;
            let (mut filed, mut asked) = (Vec::new(), Vec::new());
            labels_of(&pod, &mut filed);
            selector_of(&service, &mut asked);
            assert!(places_of(&pod).any(|place| asked.contains(&place)), "{labels:?} {wanted:?}");
            match place_of_all("n", &selector) {
                Some(place) => assert!(filed.contains(&place), "{labels:?} {wanted:?}"),
                None => without_place += 1,
            }
        }
        assert!(selected > 100 && without_place > 10 && without_place < selected / 2);
        assert_eq!(place_of_all("n", &Selector::everything()), None);
        assert_eq!(place_of_all("n", &Selector::parse("app in (a,b),!tier,version").unwrap()), None);
    }
}
