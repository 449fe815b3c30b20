//! The one verb pipeline: what create, update, patch, delete, get, list and watch do, for every kind alike.
//!
//! Nothing here names a kind. What a kind does differently is in its rules, what a policy adds is in the admission
//! table, what a subresource means is in `subresource`.

pub mod create;
pub mod delete;
pub mod list;
pub mod metadata;
pub mod options;
pub mod patch;
pub mod update;
pub mod watch;

use std::sync::Arc;

use base::Time;
use meta::{Kind, Object, Status, Value};

use crate::authz::Authorized;
use options::WriteOptions;

/// A write that was allowed, to one kind in one version.
pub struct Call<'a> {
    pub auth: &'a Authorized,
    pub kind: &'a Arc<Kind>,
    pub options: &'a WriteOptions,
    pub now: Time,
}

/// What a write brought.
#[derive(Debug)]
pub struct Outcome {
    pub code: u16,
    /// In the version that was asked for.
    pub value: Value,
    /// Set where the object went into the store as it is.
    pub stored: Option<Object>,
    pub warnings: Vec<String>,
}

impl Call<'_> {
    pub fn namespace(&self) -> &str {
        if self.kind.names.namespaced { &self.auth.info.namespace } else { "" }
    }

    pub fn group(&self) -> &str {
        &self.kind.names.group
    }

    pub fn plural(&self) -> &str {
        &self.kind.names.plural
    }

    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(self.group(), self.plural(), name)
    }

    pub fn conflict(&self, name: &str) -> Status {
        Status::conflict(
            self.group(),
            self.plural(),
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }
}
