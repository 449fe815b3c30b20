//! Bodies to values and values to bodies, by the kind's schema.

use base::Time;
use bytes::Bytes;
use client::PatchType;
use http::header;
use meta::decode::{FieldValidation, Media, conform_change, read, read_like, yaml_repeats};
use meta::proto::{Encoder, envelope};
use meta::schema::TypeRef;
use meta::{Kind, Object, Reason, Status, Value, json};

use crate::http::negotiate::{Accept, Shape, content_type};
use crate::http::{Response, body};
use crate::table;
use crate::verbs::{Call, Outcome};

/// Reads a body that must be an object of `kind`, and fills its defaults. What it has in common with `standing` (null:
/// nothing), a complete object of that kind, is shared with it.
pub fn decode(
    kind: &Kind,
    media: Media,
    bytes: &[u8],
    standing: &Value,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let names = &kind.names;
    let (of, version) = (kind.of(), names.api_version());
    let (mut value, warnings) = decode_like(of, &version, &names.kind, media, bytes, standing, validation)?;
    kind.rules.defaults(&mut value);
    value.graft(standing);
    Ok((value, warnings))
}

/// Reads a body that must be a `kind` of `api_version`; both are set if the body leaves them out.
pub fn decode_as(
    of: TypeRef<'_>,
    api_version: &str,
    kind: &str,
    media: Media,
    bytes: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    decode_like(of, api_version, kind, media, bytes, &Value::Null, validation)
}

fn decode_like(
    of: TypeRef<'_>,
    api_version: &str,
    kind: &str,
    media: Media,
    bytes: &[u8],
    like: &Value,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let version = api_version.rsplit('/').next().unwrap_or(api_version);
    let mut duplicates = Vec::new();
    let mut value = read_like(bytes, media, of, like, &mut duplicates).map_err(|error| error.status(version, kind))?;
    if value.is_null() {
        value = Value::map();
    }
    if !matches!(value, Value::Map(_)) {
        return Err(Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: the body is no object"
        )));
    }
    check_type(&mut value, api_version, kind)?;
    let warnings = conform_change(&mut value, settled(like, of), of, validation, &duplicates);
    Ok((value, warnings.map_err(|error| error.status(version, kind))?))
}

/// What of a standing object need not be looked at again: what a definition makes of an object changes with it.
fn settled<'a>(standing: &'a Value, of: TypeRef<'_>) -> &'a Value {
    if of.schema.is_custom() { &Value::Null } else { standing }
}

/// The body's own type must be the one that the URL stands for; what it leaves out is filled in.
fn check_type(value: &mut Value, api_version: &str, kind: &str) -> Result<(), Status> {
    let (found_version, found_kind) = (value["apiVersion"].text(), value["kind"].text());
    if (!found_version.is_empty() && found_version != api_version) || (!found_kind.is_empty() && found_kind != kind) {
        return Err(Status::bad_request(format!(
            "the object provided is a {found_kind:?} of {found_version:?}, but the URL stands for a {kind:?} of \
             {api_version:?}"
        )));
    }
    value.set(&["apiVersion"], api_version);
    value.set(&["kind"], kind);
    Ok(())
}

/// Makes a value complete that was made of `old` (null: of nothing), an object of the same kind that is complete: its
/// type, its form, its defaults. What is equal in both is shared. What a patch put in that the kind does not have is a
/// warning or an error, as asked.
pub fn complete(call: &Call<'_>, old: &Value, mut value: Value) -> Result<(Value, Vec<String>), Status> {
    use meta::decode::DecodeError;
    let names = &call.kind.names;
    if let Err(status) = check_type(&mut value, &names.api_version(), &names.kind) {
        return Err(meta::patch::misfit(&value, status.message()));
    }
    let of = call.kind.of();
    let warnings = conform_change(&mut value, settled(old, of), of, call.options.validation, &[]);
    let warnings = match warnings {
        Ok(warnings) => warnings,
        // As upstream: a patch that leads to a wrong type is unprocessable, not malformed.
        Err(DecodeError::Type(error)) => return Err(meta::patch::unfit(&value, &error)),
        Err(error) => return Err(error.status(&names.version, &names.kind)),
    };
    call.kind.rules.defaults(&mut value);
    value.graft(old);
    Ok((value, warnings))
}

/// Applies a patch to the object as it is.
pub fn patched(call: &Call<'_>, kind: PatchType, old: &Value, patch: &Value) -> Result<Value, Status> {
    // A patch that cannot be applied is about the object that the URL names.
    patched_as(call.kind.of(), kind, old, patch).map_err(|mut status| {
        if status.reason() == Reason::Invalid {
            status = status.about(call.group(), &call.kind.names.kind, &call.auth.info.name);
        }
        status
    })
}

/// Applies a patch to any value of a known type.
pub fn patched_as(of: TypeRef<'_>, kind: PatchType, old: &Value, patch: &Value) -> Result<Value, Status> {
    let patched = match kind {
        PatchType::Json => meta::patch::json_patch(old, patch),
        PatchType::Merge => {
            let mut value = old.clone();
            meta::patch::merge_patch(&mut value, patch);
            Ok(value)
        }
        PatchType::Strategic | PatchType::Apply => meta::patch::strategic(old, patch, of),
    };
    patched.map_err(|error| error.status())
}

/// Reads a patch; apply patches may be YAML.
pub fn read_patch(bytes: &[u8], is_apply: bool, validation: FieldValidation) -> Result<Value, Status> {
    let failed = |error: &dyn std::fmt::Display| Status::bad_request(format!("error decoding patch: {error}"));
    if is_apply {
        let (of, mut repeated) = (api::schema::meta_v1("Status"), Vec::new());
        let value = read(bytes, Media::Yaml, of, &mut repeated).map_err(|error| failed(&error))?;
        if validation == FieldValidation::Strict
            && !repeated.is_empty()
            && let Some(found) = yaml_repeats(bytes)
        {
            let why = format!("error converting YAML to JSON: yaml: unmarshal errors:\n  {found}");
            return Err(Status::bad_request(format!("error strict decoding YAML: {why}")));
        }
        return Ok(value);
    }
    Value::parse(bytes).map_err(|error| failed(&error))
}

/// Checks that an applied configuration says what it is. Members that the kind does not have are told by the merge,
/// whatever the client wants of field validation (`applyPatcher` of upstream's API server).
pub fn check_applied(call: &Call<'_>, patch: &mut Value) -> Result<(), Status> {
    let names = &call.kind.names;
    for key in ["apiVersion", "kind"] {
        if patch[key].text().is_empty() {
            return Err(Status::bad_request(format!("an applied configuration must have {key:?}")));
        }
    }
    check_type(patch, &names.api_version(), &names.kind)
}

/// The text of one object in the form that was asked for.
pub fn encode(kind: &Kind, accept: Accept, value: &Value, now: Time) -> Bytes {
    let shaped;
    let (value, of) = match accept.shape {
        Shape::Object => (value, Some(kind.of())),
        Shape::Table => {
            shaped = table::table(kind, std::iter::once(value), now, true, &Value::map(), accept.form);
            (&shaped, None)
        }
        Shape::PartialMetadata => {
            shaped = table::partial(value, accept.form);
            (&shaped, api::schema::builtin().named("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata"))
        }
    };
    write(accept, value, of)
}

/// Any value in the media type that was asked for. Types without a protobuf form are written as JSON.
pub fn write(accept: Accept, value: &Value, of: Option<TypeRef<'_>>) -> Bytes {
    match (accept.media, of) {
        (Media::Protobuf, Some(of)) => match meta::proto::encode(value, of) {
            Ok(bytes) => bytes.into(),
            Err(_) => value.to_json().into(),
        },
        (Media::Yaml, _) => to_yaml(value).into(),
        _ if accept.pretty => {
            let mut text = meta::value::pretty(value);
            text.push(b'\n');
            text.into()
        }
        _ => value.to_json().into(),
    }
}

/// Block YAML.
fn to_yaml(value: &Value) -> Vec<u8> {
    serde_saphyr::to_string(value).map(String::into_bytes).unwrap_or_else(|_| value.to_json())
}

/// The answer to a write.
pub fn respond(kind: &Kind, accept: Accept, outcome: &Outcome, now: Time) -> Response {
    let bytes = match outcome.stored.as_ref().and_then(|object| as_stored(kind, accept, object)) {
        Some(bytes) => bytes,
        _ if outcome.value["kind"].text() == "Status" => {
            write(accept, &outcome.value, api::schema::builtin().named("io.k8s.apimachinery.pkg.apis.meta.v1.Status"))
        }
        _ => encode(kind, accept, &outcome.value, now),
    };
    let mut response = body::answer(outcome.code, content_type(accept.media), bytes);
    add_warnings(&mut response, &outcome.warnings);
    response
}

/// Answers with a list of objects that are not stored but made for the question.
pub fn respond_listed(kind: &Kind, accept: Accept, items: Vec<Value>, now: Time) -> Response {
    let (list, of) = match accept.shape {
        Shape::Table => {
            (table::table(kind, items.iter(), now, true, &json!({"resourceVersion": ""}), accept.form), None)
        }
        Shape::PartialMetadata => {
            let list = json!({
                "apiVersion": (accept.form.api_version), "kind": "PartialObjectMetadataList", "metadata": {},
                "items": (items.iter().map(|item| table::partial(item, accept.form)).collect::<Vec<Value>>()),
            });
            (list, api::schema::builtin().named("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList"))
        }
        Shape::Object => {
            let names = &kind.names;
            let list = json!({
                "apiVersion": (names.api_version()), "kind": (&names.list_kind), "metadata": {}, "items": items,
            });
            (list, kind.schema.kind(&names.group, &names.version, &names.list_kind))
        }
    };
    body::answer(200, content_type(accept.media), write(accept, &list, of))
}

/// An object as it is asked for, where that is its text or its message: what is made once, for all who ask.
pub fn as_stored(kind: &Kind, accept: Accept, object: &Object) -> Option<Bytes> {
    if accept.shape != Shape::Object || accept.pretty && accept.media == Media::Json {
        return None;
    }
    match accept.media {
        Media::Json => stored_text(kind, object),
        Media::Protobuf => {
            stored_text(kind, object)?;
            // A kind without a form in protobuf is shown, or refused, by the general way.
            let message = object.protobuf(&mut Encoder::default(), kind.of()).ok()?;
            Some(envelope(&kind.names.api_version(), &kind.names.kind, &message.bytes()).into())
        }
        Media::Yaml => None,
    }
}

/// An object's text, where it is shown as it is stored and in `kind`'s version: the text begins with it, as keys are
/// sorted.
pub fn stored_text(kind: &Kind, object: &Object) -> Option<Bytes> {
    if !kind.rules.shows_as_stored() {
        return None;
    }
    let version = |text: &'_ [u8]| {
        let rest = text.strip_prefix(b"{\"apiVersion\":\"")?;
        let rest = match kind.names.group.as_str() {
            "" => rest,
            group => rest.strip_prefix(group.as_bytes())?.strip_prefix(b"/")?,
        };
        rest.strip_prefix(kind.names.version.as_bytes())?.first().copied()
    };
    let text = object.text();
    (version(&text) == Some(b'"')).then_some(text)
}

/// Warnings for the user, one header each.
pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    /// Bytes of all warnings; what is beyond is cut, as headers must stay small.
    const MAX_BYTES: usize = 4096;
    let mut left = MAX_BYTES;
    for warning in warnings {
        let clean: String = warning.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text = format!("299 - \"{}\"", clean.replace('\\', "\\\\").replace('"', "\\\""));
        if text.len() > left {
            break;
        }
        left -= text.len();
        if let Ok(value) = header::HeaderValue::from_bytes(text.as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// The canonical text of an object without `apiVersion` and `kind`, in three parts; `None` when they do not stand where
/// canonical text has them.
pub fn without_type(text: &[u8]) -> Option<[&[u8]; 3]> {
    const START: &[u8] = b"{\"apiVersion\":\"";
    const KIND: &[u8] = b"\"kind\":\"";
    let value_end = |from: usize| {
        let end = from + text[from..].iter().position(|byte| *byte == b'"')? + 1;
        (text.get(end) == Some(&b',')).then_some(end + 1)
    };
    if !text.starts_with(START) {
        return None;
    }
    let rest = value_end(START.len())?;
    // Keys are sorted, so little stands before the kind: look for its key at the first level.
    let (mut at, mut depth, mut in_string) = (rest, 1usize, false);
    loop {
        match *text.get(at)? {
            b'"' if !in_string && depth == 1 && text[at..].starts_with(KIND) => break,
            b'"' => in_string = !in_string,
            b'\\' if in_string => at += 1,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.checked_sub(1)?,
            _ => {}
        }
        at += 1;
    }
    let after = value_end(at + KIND.len())?;
    Some([b"{", &text[rest..at], &text[after..]])
}

#[cfg(test)]
mod tests {
    #[test]
    fn items_of_lists_do_not_say_what_they_are() {
        for (text, without) in [
            (r#"{"apiVersion":"v1","kind":"Pod","metadata":{}}"#, Some(r#"{"metadata":{}}"#)),
            (
                r#"{"apiVersion":"v1","data":{"a":"\\\"kind\":\"","kind":"x"},"kind":"ConfigMap","metadata":{}}"#,
                Some(r#"{"data":{"a":"\\\"kind\":\"","kind":"x"},"metadata":{}}"#),
            ),
            (r#"{"kind":"Pod","metadata":{}}"#, None),
            (r#"{"apiVersion":"v1"}"#, None),
        ] {
            let parts = super::without_type(text.as_bytes()).map(|parts| String::from_utf8(parts.concat()).unwrap());
            assert_eq!(parts.as_deref(), without);
        }
    }
}
