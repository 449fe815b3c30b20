//! Custom resources whose versions differ in more than their name: a program that the definition names (`spec.conversion`)
//! says what an object is in another version.
//!
//! Everything that shows objects shows them in the version asked for; so objects pass through here first, many by one
//! question, and go on as if they had been stored in that version. Kinds without such a program pass untouched.
//!
//! Not here: the parameters of admission policies, and what hooks see that match a request by an equivalent version
//! (`admission::matching`): they are shown with the other version's name only.

use std::time::Duration;

use meta::kind::Conversion;
use meta::{Facts, Kind, Labels, Object, Reason, Status, Value, json};

use crate::Server;
use crate::callee::Callee;

const GROUP: &str = "apiextensions.k8s.io";
/// How long an answer is waited for (`webhook_converter.go`).
const PATIENCE: Duration = Duration::from_secs(30);

/// Objects as they are stored, in the version of `kind`.
///
/// # Errors
/// The program was not reached, or did not say what the objects are.
pub async fn shown(server: &Server, kind: &Kind, mut objects: Vec<Object>) -> Result<Vec<Object>, Status> {
    let Some(conversion) = kind.rules.conversion() else { return Ok(objects) };
    let wanted = kind.names.api_version();
    let (mut places, mut values) = (Vec::new(), Vec::new());
    for (place, object) in objects.iter().enumerate() {
        let value = object.value();
        if value["apiVersion"].text() != wanted {
            places.push(place);
            values.push(value);
        }
    }
    let converted = ask(server, kind, &conversion, &wanted, values).await?;
    for (place, value) in places.into_iter().zip(converted) {
        let labels = Labels::of(&value["metadata"]["labels"]);
        let facts = Facts { labels, ..objects[place].facts().clone() };
        objects[place] = Object::new(facts, value.to_json());
    }
    Ok(objects)
}

/// The same for one object.
///
/// # Errors
/// As [`shown`].
pub async fn shown_one(server: &Server, kind: &Kind, object: &Object) -> Result<Object, Status> {
    let mut converted = shown(server, kind, vec![object.clone()]).await?;
    Ok(converted.pop().unwrap_or_else(|| object.clone()))
}

/// An object as it is shown in `kind`'s version, of one as it is stored.
///
/// # Errors
/// As [`shown`].
pub async fn present(server: &Server, kind: &Kind, value: &mut Value) -> Result<(), Status> {
    if let Some(conversion) = kind.rules.conversion() {
        convert(server, kind, &conversion, &kind.names.api_version(), value).await?;
    }
    kind.rules.present(value);
    Ok(())
}

/// An object in `kind`'s version as it is to be stored.
///
/// # Errors
/// As [`shown`].
pub async fn to_stored(server: &Server, kind: &Kind, value: &mut Value) -> Result<(), Status> {
    if let Some(conversion) = kind.rules.conversion() {
        convert(server, kind, &conversion, conversion.stored, value).await?;
    }
    kind.rules.to_stored(value);
    Ok(())
}

async fn convert(
    server: &Server,
    kind: &Kind,
    conversion: &Conversion<'_>,
    wanted: &str,
    value: &mut Value,
) -> Result<(), Status> {
    if value["apiVersion"].text() != wanted {
        let converted = ask(server, kind, conversion, wanted, vec![value.clone()]).await?;
        converted.into_iter().for_each(|converted| *value = converted);
    }
    Ok(())
}

/// Asks what objects are in the version `wanted`; the answers come in their order.
async fn ask(
    server: &Server,
    kind: &Kind,
    conversion: &Conversion<'_>,
    wanted: &str,
    objects: Vec<Value>,
) -> Result<Vec<Value>, Status> {
    let Some(first) = objects.first() else { return Ok(objects) };
    let gvk = format!("{}, Kind={}", first["apiVersion"].text(), kind.names.kind);
    let failed =
        |why: String| Status::new(Reason::InternalError, format!("conversion webhook for {gvk} failed: {why}"));
    let known = conversion.webhook["conversionReviewVersions"].items().iter().map(Value::text);
    let version = known.clone().find(|version| matches!(*version, "v1" | "v1beta1")).unwrap_or("v1");
    let uid = crate::uid::new();
    let review = json!({
        "apiVersion": (format!("{GROUP}/{version}")), "kind": "ConversionReview",
        "request": {"uid": (&uid), "desiredAPIVersion": wanted, "objects": (objects.clone())},
    });
    let callee = Callee::of(&conversion.webhook["clientConfig"]).map_err(failed)?;
    let heard = callee.post(server, review.to_json().into(), PATIENCE).await.map_err(failed)?;
    understood(&heard, &uid, wanted, &objects).map_err(failed)
}

/// What an answer says.
///
/// # Errors
/// Why it does not say what the objects are.
fn understood(heard: &[u8], uid: &str, wanted: &str, asked: &[Value]) -> Result<Vec<Value>, String> {
    let review = Value::parse(heard).map_err(|error| format!("the answer is no JSON: {error}"))?;
    let response = &review["response"];
    if response.is_null() {
        return Err("no response provided".to_owned());
    }
    if response["uid"].text() != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", response["uid"].text()));
    }
    let result = &response["result"];
    if result["status"].text() != "Success" {
        return Err(match result["message"].text() {
            "" => format!("response.result.status was '{}', not 'Success'", result["status"].text()),
            why => why.to_owned(),
        });
    }
    let converted = response["convertedObjects"].items();
    if converted.len() != asked.len() {
        return Err(format!("expected {} converted objects, got {}", asked.len(), converted.len()));
    }
    let pairs = asked.iter().zip(converted).enumerate();
    pairs.map(|(index, (asked, converted))| checked(index, wanted, asked, converted)).collect()
}

/// A converted object may say other things, but of the same thing: of its metadata only labels and annotations count
/// (`webhook_converter.go`, `restoreObjectMeta`).
fn checked(index: usize, wanted: &str, asked: &Value, converted: &Value) -> Result<Value, String> {
    let invalid = |why: String| Err(format!("invalid converted object at index {index}: {why}"));
    let (version, kind) = (converted["apiVersion"].text(), converted["kind"].text());
    if version != wanted {
        return invalid(format!("invalid groupVersion (expected: {wanted}, got: {version})"));
    }
    if kind != asked["kind"].text() {
        return invalid(format!("invalid kind (expected: {}, got: {kind})", asked["kind"].text()));
    }
    let (known, said) = (&asked["metadata"], &converted["metadata"]);
    for key in ["name", "namespace", "uid"] {
        if known[key] != said[key] {
            return invalid(format!("must have the same {key}: {:?} != {:?}", known[key].text(), said[key].text()));
        }
    }
    let mut metadata = known.clone();
    for key in ["labels", "annotations"] {
        let value = &said[key];
        let texts = value.entries().iter().all(|(_, value)| value.as_str().is_some());
        if !(value.is_null() || value.as_map().is_some() && texts) {
            return invalid(format!("metadata.{key} is no map of texts"));
        }
        match value.entries().is_empty() {
            true => drop(metadata.take(&[key])),
            false => metadata.set(&[key], value.clone()),
        }
    }
    let mut object = converted.clone();
    object.set(&["metadata"], metadata);
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: &str) -> Value {
        json!({
            "apiVersion": version, "kind": "Thing", "spec": {"size": 1i64},
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "7", "labels": {"old": "yes"}},
        })
    }

    fn told(change: impl Fn(&mut Value, &mut Value)) -> Result<Vec<Value>, String> {
        let mut converted = json!({
            "apiVersion": "x/v2", "kind": "Thing", "spec": {"sizes": [1i64]},
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "9", "labels": {"new": "yes"}},
        });
        let mut response = json!({"uid": "r", "result": {"status": "Success"}});
        change(&mut response, &mut converted);
        response.default("convertedObjects", json!([converted]));
        understood(&json!({"response": response}).to_json(), "r", "x/v2", &[object("x/v1")])
    }

    #[test]
    fn a_converted_object_is_the_same_thing_with_other_words() {
        let converted = told(|_, _| {}).unwrap();
        assert_eq!(converted[0]["spec"], json!({"sizes": [1i64]}));
        let metadata = json!({"name": "a", "uid": "u", "resourceVersion": "7", "labels": {"new": "yes"}});
        assert_eq!(converted[0]["metadata"], metadata);
    }

    #[test]
    fn an_answer_that_says_something_else_is_refused_with_its_reason() {
        type Change = fn(&mut Value, &mut Value);
        let changes: [(Change, &str); 8] = [
            (|response, _| response.set(&["uid"], "other"), "expected response.uid=\"r\", got \"other\""),
            (|response, _| response.set(&["result"], json!({"status": "Failure", "message": "no"})), "no"),
            (|response, _| response.set(&["result"], Value::Null), "response.result.status was '', not 'Success'"),
            (|response, _| response.set(&["convertedObjects"], json!([])), "expected 1 converted objects, got 0"),
            (|_, object| object.set(&["apiVersion"], "x/v3"), "invalid groupVersion (expected: x/v2, got: x/v3)"),
            (|_, object| object.set(&["kind"], "Other"), "invalid kind (expected: Thing, got: Other)"),
            (|_, object| object.set(&["metadata", "name"], "b"), "must have the same name: \"a\" != \"b\""),
            (|_, object| object.set(&["metadata", "labels"], "x"), "metadata.labels is no map of texts"),
        ];
        for (change, why) in changes {
            let refused = told(change).unwrap_err();
            assert!(refused.ends_with(why), "{refused}");
        }
    }
}
