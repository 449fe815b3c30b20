//! Claims and ingresses that name no class get the one that is marked as the default.

use api::core::volume_binding::{CLAIMS, CLASSES, OLD_CLASS};
use api::default_class;
use meta::{Resource, Status, Str};

use super::{Admission, Review};

/// What gets a class, and where classes are marked.
pub struct DefaultClass {
    name: &'static str,
    resource: Resource,
    classes: Resource,
    /// The field that names the class.
    field: &'static str,
    /// The annotation that named it before there was the field.
    annotation: &'static str,
    marks: &'static [&'static str],
}

pub const STORAGE: DefaultClass = DefaultClass {
    name: "DefaultStorageClass",
    resource: CLAIMS,
    classes: CLASSES,
    field: "storageClassName",
    annotation: OLD_CLASS,
    marks: default_class::STORAGE,
};

pub const INGRESS: DefaultClass = DefaultClass {
    name: "DefaultIngressClass",
    resource: Resource("ingresses.networking.k8s.io"),
    classes: Resource("ingressclasses.networking.k8s.io"),
    field: "ingressClassName",
    annotation: "kubernetes.io/ingress.class",
    marks: default_class::INGRESS,
};

impl Admission for DefaultClass {
    fn name(&self) -> &'static str {
        self.name
    }

    fn mutate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation != "CREATE" || !review.is(self.resource.0, "") {
            return Ok(());
        }
        let named = !review.object.at(&["spec", self.field]).is_null()
            || review.object.at(&["metadata", "annotations"]).get(self.annotation).is_some();
        if named {
            return Ok(());
        }
        let chosen = default_class::of(review.view.list(self.classes, ""), self.marks);
        if let Some(class) = chosen.map(|class| Str::from(class.name())) {
            review.object.set(&["spec", self.field], class);
        }
        Ok(())
    }
}
