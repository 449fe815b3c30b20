//! The class that objects get which name none: one is marked for that by an annotation.

use std::cmp::Reverse;

use meta::Object;

/// Marks of a default storage class, the older one last.
pub const STORAGE: &[&str] =
    &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// The mark of a default ingress class.
pub const INGRESS: &[&str] = &["ingressclass.kubernetes.io/is-default-class"];

/// Of several that are marked the youngest, and of those made in one second the first by name.
pub fn of<'a>(classes: impl Iterator<Item = &'a Object>, marks: &[&str]) -> Option<&'a Object> {
    let marked = classes.filter(|class| {
        let value = class.value();
        let annotations = value.at(&["metadata", "annotations"]);
        marks.iter().any(|mark| annotations[*mark].text() == "true")
    });
    marked.min_by_key(|class| (Reverse(class.facts().created), class.name().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::{Facts, Resource, json};

    #[test]
    fn the_youngest_that_is_marked() {
        let class = |name: &str, second: i64, marked: &str| {
            let mut value = json!({"metadata": {
                "name": name, "creationTimestamp": (base::Time::from_seconds(second).rfc3339()),
            }});
            value.set(&["metadata", "annotations", STORAGE[0]], marked);
            Object::new(Facts::of(Resource("storageclasses.storage.k8s.io"), &value), value.to_json())
        };
        let all =
            [class("old", 1, "true"), class("b", 2, "true"), class("a", 2, "true"), class("unmarked", 3, "false")];
        assert_eq!(of(all.iter(), STORAGE).map(Object::name), Some("a"));
        assert_eq!(of(all[3..].iter(), STORAGE).map(Object::name), None);
    }
}
