//! Who owns which field: `metadata.managedFields`, kept by every write, and server-side apply.

use meta::{Status, Value};

use crate::Server;
use crate::verbs::Call;
use crate::verbs::update::Edited;

/// Records the change from `old` (none: a creation) to `value` as the caller's.
pub fn track(call: &Call<'_>, old: Option<&Value>, value: &mut Value) {
    let _ = (call, old, value);
}

/// Applies `patch` as the caller's whole intent.
pub fn apply(_: &Server, _: &Call<'_>, _: Option<&Value>, _: &Value) -> Result<Edited, Status> {
    Err(Status::internal("apply is not wired yet"))
}
