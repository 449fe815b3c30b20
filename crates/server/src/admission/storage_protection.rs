//! Volumes, claims and classes of attributes are held by a finalizer from their first moment on, so that none goes while
//! it is in use; a controller takes the finalizer away.

use meta::{Status, Value};

use super::{Admission, Review};

/// Resources and their finalizers, as upstream's `StorageObjectInUseProtection` has them.
const PROTECTED: &[(&str, &str)] = &[
    ("persistentvolumes", "kubernetes.io/pv-protection"),
    ("persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    ("volumeattributesclasses.storage.k8s.io", "kubernetes.io/vac-protection"),
];

pub struct StorageObjectInUseProtection;

impl Admission for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn mutate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        let found = PROTECTED.iter().find(|(resource, _)| review.is(resource, ""));
        if let (Some((_, finalizer)), "CREATE") = (found, review.operation) {
            let finalizers = review.object.make(&["metadata", "finalizers"]).make_list();
            if !finalizers.iter().any(|known| known.text() == *finalizer) {
                finalizers.push(Value::from(*finalizer));
            }
        }
        Ok(())
    }
}
