//! The schema of all built-in kinds, from the generated table `schema/table.txt` (see the crate `schemagen`).

use std::sync::{Arc, LazyLock};

use meta::{Schema, TypeRef};

static SCHEMA: LazyLock<Arc<Schema>> = LazyLock::new(|| {
    Arc::new(Schema::parse(include_str!("../schema/table.txt")).expect("the table is committed and a test reads it"))
});

/// The schema of all built-in kinds; read when it is first asked for.
pub fn builtin() -> &'static Arc<Schema> {
    &SCHEMA
}

/// The type of a built-in kind's objects.
pub fn kind(group: &str, version: &str, kind: &str) -> Option<TypeRef<'static>> {
    builtin().kind(group, version, kind)
}

/// The type `name` of `meta/v1`: `ObjectMeta`, `DeleteOptions` …
///
/// # Panics
/// When there is no such type; names are literals in our own code.
pub fn meta_v1(name: &str) -> TypeRef<'static> {
    let full = format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}");
    builtin().named(&full).expect("the table has all of meta/v1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_has_more_fields_than_the_writer_holds() {
        let messages = builtin().structs().iter().filter(|found| found.numbered().len() > 0);
        let most = messages.map(|found| found.fields().len()).max().unwrap();
        assert!(most > 10 && most <= meta::proto::FIELDS_MAX, "{most} fields");
    }

    #[test]
    fn the_table_is_read_and_small() {
        assert!(builtin().size_bytes() < 1_500_000, "{}", builtin().size_bytes());
        assert!(kind("", "v1", "Pod").is_some() && kind("apps", "v1", "DeploymentList").is_some());
        for name in ["ObjectMeta", "ListMeta", "Status", "DeleteOptions", "WatchEvent", "PartialObjectMetadataList"] {
            assert!(meta_v1(name).as_struct().is_some());
        }
    }
}
