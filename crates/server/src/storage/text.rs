//! An object's canonical text, with a place for the revision that the store gives it.

use std::cell::RefCell;

use bytes::Bytes;
use meta::Value;

thread_local! {
    /// Where texts are written until their length is known: a buffer that grows with each text costs more than the copy.
    static DRAFT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of a text whose draft is kept for the next one.
const DRAFT_MAX_BYTES: usize = 64 << 10;

/// The object's text, and where in it the revision's digits go: between the quotes of `metadata.resourceVersion`.
pub(super) fn encode(object: &Value) -> Option<(Bytes, u32)> {
    DRAFT.with_borrow_mut(|text| {
        text.clear();
        let place = write(object, text);
        let bytes = Bytes::copy_from_slice(text);
        if text.capacity() > DRAFT_MAX_BYTES {
            *text = Vec::new();
        }
        Some((bytes, place?))
    })
}

/// Writes an object's text and says where the revision's digits go.
fn write(object: &Value, text: &mut Vec<u8>) -> Option<u32> {
    let mut place = None;
    text.push(b'{');
    for (at, (key, value)) in object.entries().iter().enumerate() {
        write_key(text, at, key);
        if key != "metadata" {
            value.write_json(text);
            continue;
        }
        text.push(b'{');
        for (at, (key, value)) in value.entries().iter().enumerate() {
            write_key(text, at, key);
            if key == "resourceVersion" {
                place = u32::try_from(text.len() + 1).ok();
            }
            value.write_json(text);
        }
        text.push(b'}');
    }
    text.push(b'}');
    place
}

fn write_key(text: &mut Vec<u8>, at: usize, key: &str) {
    if at > 0 {
        text.push(b',');
    }
    meta::value::write_str(text, key);
    text.push(b':');
}

#[cfg(test)]
mod tests {
    use super::super::stamped;
    use super::*;
    use base::Revision;
    use meta::json;

    #[test]
    fn the_revision_has_one_place() {
        let object = json!({
            "data": {"metadata": {"resourceVersion": ""}},
            "metadata": {"annotations": {"a": "\"resourceVersion\":\"\""}, "name": "x", "resourceVersion": ""},
        });
        let (bytes, stamp) = encode(&object).unwrap();
        assert_eq!(bytes, object.to_json());
        let value = Value::parse(&stamped(&bytes, stamp, Revision(42))).unwrap();
        assert_eq!(value.at(&["metadata", "resourceVersion"]).text(), "42");
        assert_eq!(value.at(&["data", "metadata", "resourceVersion"]).text(), "");
    }
}
