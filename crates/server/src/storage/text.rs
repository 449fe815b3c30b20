//! An object's canonical text, with a place for the revision that the store gives it.

use std::cell::RefCell;

use base::Revision;
use bytes::Bytes;
use meta::Value;

thread_local! {
    /// Where texts are written until their length is known: a buffer that grows with each text costs more than the copy.
    static DRAFT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of a text whose draft is kept for the next one.
const DRAFT_MAX_BYTES: usize = 64 << 10;

/// An object's text.
pub(super) struct Text {
    pub bytes: Bytes,
    /// Where in it the revision's digits go: between the quotes of `metadata.resourceVersion`.
    pub stamp: u32,
    /// A number in it is a float: one that is whole is read back as an integer.
    pub floats: bool,
}

/// The text of an object; `None` without a place for its revision.
pub(super) fn encode(object: &Value) -> Option<Text> {
    DRAFT.with_borrow_mut(|text| {
        text.clear();
        let (place, floats) = write(object, text);
        let bytes = Bytes::copy_from_slice(text);
        if text.capacity() > DRAFT_MAX_BYTES {
            *text = Vec::new();
        }
        Some(Text { bytes, stamp: place?, floats })
    })
}

/// The text with another revision in it; `None` where the place is not plain, because some other member bears the same name
/// and the same revision.
pub(super) fn restamp(text: &[u8], known: Revision, revision: Revision) -> Option<Bytes> {
    // Within a string the quotes would be escaped: what is found is a member.
    let (name, digits) = (b"\"resourceVersion\":\"".as_slice(), known.to_string());
    let member = [name, digits.as_bytes(), b"\""].concat();
    let mut places = memchr::memmem::find_iter(text, &member);
    let (place, None) = (places.next()? + name.len(), places.next()) else { return None };
    let (before, after) = (&text[..place], &text[place + digits.len()..]);
    Some([before, revision.to_string().as_bytes(), after].concat().into())
}

/// Writes an object's text and says where the revision's digits go, and whether a number is a float.
fn write(object: &Value, text: &mut Vec<u8>) -> (Option<u32>, bool) {
    let (mut place, mut floats) = (None, false);
    text.push(b'{');
    for (at, (key, value)) in object.entries().iter().enumerate() {
        write_key(text, at, key);
        if key != "metadata" {
            floats |= value.write_json(text);
            continue;
        }
        text.push(b'{');
        for (at, (key, value)) in value.entries().iter().enumerate() {
            write_key(text, at, key);
            if key == "resourceVersion" {
                place = u32::try_from(text.len() + 1).ok();
            }
            floats |= value.write_json(text);
        }
        text.push(b'}');
    }
    text.push(b'}');
    (place, floats)
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
    use super::super::{restamped, stamped};
    use super::*;
    use meta::{Facts, Object, Resource, json};

    #[test]
    fn the_revision_has_one_place() {
        let object = json!({
            "data": {"metadata": {"resourceVersion": ""}},
            "metadata": {"annotations": {"a": "\"resourceVersion\":\"\""}, "name": "x", "resourceVersion": ""},
        });
        let Text { bytes, stamp, floats } = encode(&object).unwrap();
        assert_eq!((&bytes[..], floats), (&object.to_json()[..], false));
        assert!(encode(&json!({"metadata": {"resourceVersion": ""}, "spec": {"a": [1.0]}})).unwrap().floats);
        let value = Value::parse(&stamped(&bytes, stamp, Revision(42))).unwrap();
        assert_eq!(value.at(&["metadata", "resourceVersion"]).text(), "42");
        assert_eq!(value.at(&["data", "metadata", "resourceVersion"]).text(), "");
    }

    #[test]
    fn a_text_at_another_revision_differs_in_that_alone() {
        let at = |revision: &str, other: &str| {
            json!({
                "involvedObject": {"resourceVersion": other},
                "metadata": {"annotations": {"a": "\"resourceVersion\":\"9\""}, "name": "x", "resourceVersion": revision},
            })
        };
        // Of two that are equal it must be the object's own.
        for other in ["8", "9", "99"] {
            let value = at("9", other);
            let object = Object::new(Facts::of(Resource("things"), &value), value.to_json());
            assert_eq!(restamped(&object, Revision(12)), at("12", other).to_json());
        }
        assert!(restamp(&at("9", "8").to_json(), Revision(9), Revision(12)).is_some());
        assert!(restamp(&at("9", "9").to_json(), Revision(9), Revision(12)).is_none());
    }
}
