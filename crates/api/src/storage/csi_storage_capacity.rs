//! CSIStorageCapacity: how much storage of a class there is for some nodes.

use meta::{At, Change, Errors, Rules, names};

use crate::check;

pub struct CsiStorageCapacity;

impl Rules for CsiStorageCapacity {
    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let (class, topology) = (at.field("storageClassName"), at.field("nodeTopology"));
        check::invalid(&class, names::dns_subdomain(class.text()), errors);
        check::label_selector(&topology, errors);
        for key in ["capacity", "maximumVolumeSize"] {
            check::quantity(&at.field(key), errors);
        }
        if let Some(old) = change.old {
            check::immutable(&topology, &old["nodeTopology"], errors);
            check::immutable(&class, &old["storageClassName"], errors);
        }
    }
}
