//! Patches: JSON patch, JSON merge patch, strategic merge patch, and server-side apply.

use client::PatchType;
use meta::{Kind, Reason, Status, Value};

use super::update::{Edit, Edited, change};
use super::{Call, Outcome, create};
use crate::Server;
use crate::{codec, ownership};

/// The type of a patch from its media type. Custom resources know no strategic merge.
pub fn patch_type(content_type: Option<&str>, kind: &Kind) -> Result<PatchType, Status> {
    let main = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match main {
        "application/json-patch+json" => Ok(PatchType::Json),
        "application/merge-patch+json" => Ok(PatchType::Merge),
        "application/strategic-merge-patch+json" if kind.rules.openapi().is_none() => Ok(PatchType::Strategic),
        "application/apply-patch+yaml" => Ok(PatchType::Apply),
        other => Err(Status::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format {other:?} - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, \
                 application/strategic-merge-patch+json, application/apply-patch+yaml"
            ),
        )),
    }
}

/// A patch that was read but not yet applied.
pub struct Patch {
    pub kind: PatchType,
    pub patch: Value,
}

impl Edit for Patch {
    fn apply(&self, server: &Server, call: &Call<'_>, old: &Value) -> Result<Edited, Status> {
        match self.kind {
            PatchType::Apply => ownership::apply(server, call, Some(old), &self.patch),
            kind => {
                let patched = codec::patched(call, kind, old, &self.patch)?;
                let (value, warnings) = codec::complete(call, old, patched)?;
                Ok(Edited { value, warnings, owned: false })
            }
        }
    }

    fn is_exact(&self) -> bool {
        // A patch that sets the revision says which state it means.
        self.kind != PatchType::Json && !self.patch.at(&["metadata", "resourceVersion"]).text().is_empty()
    }
}

/// Patches the object that the call names; apply creates it when it is missing.
pub async fn patch(server: &Server, call: &Call<'_>, patch: Patch) -> Result<Outcome, Status> {
    let info = &call.auth.info;
    if patch.kind == PatchType::Apply
        && info.subresource.is_empty()
        && server.storage.mirror().one(call.kind.resource, call.namespace(), &info.name).is_none()
    {
        let meta = &patch.patch["metadata"];
        if !meta["uid"].text().is_empty() {
            return Err(Status::conflict(call.group(), call.plural(), &info.name, "uid mismatch: the object is gone"));
        }
        let name = meta["name"].text();
        if !name.is_empty() && name != info.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                info.name
            )));
        }
        let edited = ownership::apply(server, call, None, &patch.patch)?;
        let mut outcome = match create::create_owned(server, call, edited.value, true).await {
            // Somebody created it meanwhile: then it is a change.
            Err(status) if status.reason() == Reason::AlreadyExists => return change(server, call, &patch).await,
            outcome => outcome?,
        };
        outcome.warnings.extend(edited.warnings);
        return Ok(outcome);
    }
    change(server, call, &patch).await
}
