//! Who owns which field: `metadata.managedFields`, kept by every write, and server-side apply.
//!
//! As upstream does it, ownership is told right after decoding, before admission and before the kind prepares the
//! object: what the system fills in belongs to nobody.

use std::sync::LazyLock;

use meta::apply::{Set, Writer, keep_times, track_update};
use meta::{Status, Value};

use crate::Server;
use crate::codec;
use crate::verbs::Call;
use crate::verbs::update::Edited;

static NOTHING: LazyLock<Set> = LazyLock::new(Set::new);
static STATUS: LazyLock<Set> = LazyLock::new(|| Set::of_fields(&[&["status"]]));
static SPEC: LazyLock<Set> = LazyLock::new(|| Set::of_fields(&[&["spec"]]));

fn writer<'a>(call: &'a Call<'_>, api_version: &'a str) -> Writer<'a> {
    let subresource = call.auth.info.subresource.as_str();
    let reset = match subresource {
        "" if call.kind.subresource("status").is_some() => &STATUS,
        "status" => &SPEC,
        _ => &NOTHING,
    };
    Writer { manager: &call.options.manager, api_version, subresource, now: call.now, reset }
}

/// Records the change from `old` (none: a creation) to `value` as the caller's.
pub fn track(call: &Call<'_>, old: Option<&Value>, value: &mut Value) {
    let api_version = call.kind.names.api_version();
    track_update(old, value, call.kind.of(), &writer(call, &api_version));
}

/// Where nothing changed but the times of ownership, they are put back, so that a write without effect stays one.
pub fn settle(old: &Value, value: &mut Value) {
    keep_times(old, value);
}

/// Applies `patch` as the caller's whole intent on `live` (none: a creation).
pub fn apply(_: &Server, call: &Call<'_>, live: Option<&Value>, patch: &Value) -> Result<Edited, Status> {
    let api_version = call.kind.names.api_version();
    let mut patch = patch.clone();
    let warnings = codec::check_applied(call, &mut patch)?;
    let merged = meta::apply::apply(live, &patch, call.kind.of(), &writer(call, &api_version), call.options.force);
    let old = live.unwrap_or(&Value::Null);
    let (value, _) = codec::complete(call, old, merged.map_err(|error| error.status())?)?;
    Ok(Edited { value, warnings, owned: true })
}
