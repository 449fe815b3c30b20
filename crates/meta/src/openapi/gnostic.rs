//! The v2 document in the protobuf form that older clients ask for (`com.github.proto-openapi.spec.v2@v1.0`): tables of
//! the format's messages, and a writer that follows them.
//!
//! Not here: what the document says; members that the format does not have are left out, except extensions (`x-…`).

use crate::value::{Map, Value};

/// How a member is written.
enum Form {
    Text,
    Texts,
    Flag,
    Int,
    Double,
    /// Any value, as the YAML in an `Any`.
    Any,
    Anys,
    Message(&'static Message),
    Messages(&'static Message),
    /// A message with one field, which is this.
    Inside(u64, &'static Form),
    /// A message whose field holds pairs of a name and a message.
    Named(u64, &'static Message),
    /// A schema, or whether there may be any.
    SchemaOrFlag,
    /// A parameter, by where it stands.
    Parameters,
}

struct Message {
    fields: &'static [(&'static str, u64, Form)],
    /// The field of extensions; 0 where there is none.
    extensions: u64,
}

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Form::Text),
        ("info", 2, Form::Message(&INFO)),
        ("host", 3, Form::Text),
        ("basePath", 4, Form::Text),
        ("schemes", 5, Form::Texts),
        ("consumes", 6, Form::Texts),
        ("produces", 7, Form::Texts),
        ("paths", 8, Form::Named(2, &PATH)),
        ("definitions", 9, Form::Named(1, &SCHEMA)),
    ],
    extensions: 16,
};
static INFO: Message = Message {
    fields: &[("title", 1, Form::Text), ("version", 2, Form::Text), ("description", 3, Form::Text)],
    extensions: 7,
};
static PATH: Message = Message {
    fields: &[
        ("$ref", 1, Form::Text),
        ("get", 2, Form::Message(&OPERATION)),
        ("put", 3, Form::Message(&OPERATION)),
        ("post", 4, Form::Message(&OPERATION)),
        ("delete", 5, Form::Message(&OPERATION)),
        ("options", 6, Form::Message(&OPERATION)),
        ("head", 7, Form::Message(&OPERATION)),
        ("patch", 8, Form::Message(&OPERATION)),
        ("parameters", 9, Form::Parameters),
    ],
    extensions: 10,
};
static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Form::Texts),
        ("summary", 2, Form::Text),
        ("description", 3, Form::Text),
        ("operationId", 5, Form::Text),
        ("produces", 6, Form::Texts),
        ("consumes", 7, Form::Texts),
        ("parameters", 8, Form::Parameters),
        ("responses", 9, Form::Named(1, &RESPONSE_VALUE)),
        ("schemes", 10, Form::Texts),
        ("deprecated", 11, Form::Flag),
    ],
    extensions: 13,
};
/// A response stands in a choice of its own; `""` is the value itself.
static RESPONSE_VALUE: Message = Message { fields: &[("", 1, Form::Message(&RESPONSE))], extensions: 0 };
static RESPONSE: Message = Message {
    fields: &[("description", 1, Form::Text), ("schema", 2, Form::Inside(1, &Form::Message(&SCHEMA)))],
    extensions: 5,
};
static BODY: Message = Message {
    fields: &[
        ("description", 1, Form::Text),
        ("name", 2, Form::Text),
        ("in", 3, Form::Text),
        ("required", 4, Form::Flag),
        ("schema", 5, Form::Message(&SCHEMA)),
    ],
    extensions: 6,
};
static QUERY: Message = Message {
    fields: &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("allowEmptyValue", 5, Form::Flag),
        ("type", 6, Form::Text),
        ("format", 7, Form::Text),
        ("uniqueItems", 20, Form::Flag),
    ],
    extensions: 23,
};
static PATH_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("type", 5, Form::Text),
        ("format", 6, Form::Text),
        ("uniqueItems", 19, Form::Flag),
    ],
    extensions: 22,
};
static REFERENCE: Message = Message { fields: &[("$ref", 1, Form::Text)], extensions: 0 };
static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Form::Text),
        ("format", 2, Form::Text),
        ("title", 3, Form::Text),
        ("description", 4, Form::Text),
        ("default", 5, Form::Any),
        ("multipleOf", 6, Form::Double),
        ("maximum", 7, Form::Double),
        ("exclusiveMaximum", 8, Form::Flag),
        ("minimum", 9, Form::Double),
        ("exclusiveMinimum", 10, Form::Flag),
        ("maxLength", 11, Form::Int),
        ("minLength", 12, Form::Int),
        ("pattern", 13, Form::Text),
        ("maxItems", 14, Form::Int),
        ("minItems", 15, Form::Int),
        ("uniqueItems", 16, Form::Flag),
        ("maxProperties", 17, Form::Int),
        ("minProperties", 18, Form::Int),
        ("required", 19, Form::Texts),
        ("enum", 20, Form::Anys),
        ("additionalProperties", 21, Form::SchemaOrFlag),
        ("type", 22, Form::Inside(1, &Form::Text)),
        ("items", 23, Form::Inside(1, &Form::Message(&SCHEMA))),
        ("allOf", 24, Form::Messages(&SCHEMA)),
        ("properties", 25, Form::Named(1, &SCHEMA)),
        ("example", 30, Form::Any),
    ],
    extensions: 31,
};

/// The document's bytes.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    message(document, &DOCUMENT, &mut out);
    out
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn bytes(number: u64, content: &[u8], out: &mut Vec<u8>) {
    varint(number << 3 | 2, out);
    varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

fn nested(number: u64, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    bytes(number, &inner, out);
}

fn message(value: &Value, of: &Message, out: &mut Vec<u8>) {
    for (key, number, form) in of.fields {
        match *key {
            "" => member(value, *number, form, out),
            key => {
                if let Some(found) = value.get(key).filter(|found| !found.is_null()) {
                    member(found, *number, form, out);
                }
            }
        }
    }
    if of.extensions > 0 {
        for (key, found) in value.entries().iter().filter(|(key, _)| key.starts_with("x-")) {
            nested(of.extensions, out, |out| {
                bytes(1, key.as_bytes(), out);
                any(found, 2, out);
            });
        }
    }
}

fn any(value: &Value, number: u64, out: &mut Vec<u8>) {
    nested(number, out, |out| {
        let mut yaml = value.to_json();
        yaml.push(b'\n');
        bytes(2, &yaml, out);
    });
}

fn member(value: &Value, number: u64, form: &Form, out: &mut Vec<u8>) {
    match form {
        Form::Text => bytes(number, value.text().as_bytes(), out),
        Form::Texts => value.items().iter().for_each(|item| bytes(number, item.text().as_bytes(), out)),
        Form::Flag if value.is_true() => {
            varint(number << 3, out);
            out.push(1);
        }
        Form::Flag => {}
        Form::Int => {
            varint(number << 3, out);
            varint(value.as_int().unwrap_or(0) as u64, out);
        }
        Form::Double => {
            let found = match value {
                Value::Int(found) => *found as f64,
                Value::Float(found) => *found,
                _ => 0.0,
            };
            varint(number << 3 | 1, out);
            out.extend_from_slice(&found.to_le_bytes());
        }
        Form::Any => any(value, number, out),
        Form::Anys => value.items().iter().for_each(|item| any(item, number, out)),
        Form::Message(of) => nested(number, out, |out| message(value, of, out)),
        Form::Messages(of) => {
            value.items().iter().for_each(|item| nested(number, out, |out| message(item, of, out)));
        }
        Form::Inside(inner, form) => nested(number, out, |out| member(value, *inner, form, out)),
        Form::Named(inner, of) => nested(number, out, |out| named(value.entries(), *inner, of, out)),
        Form::SchemaOrFlag => nested(number, out, |out| match value {
            Value::Bool(_) => member(value, 2, &Form::Flag, out),
            schema => member(schema, 1, &Form::Message(&SCHEMA), out),
        }),
        Form::Parameters => value.items().iter().for_each(|item| nested(number, out, |out| parameter(item, out))),
    }
}

fn named(entries: &Map, number: u64, of: &Message, out: &mut Vec<u8>) {
    for (name, value) in entries.iter() {
        nested(number, out, |out| {
            bytes(1, name.as_bytes(), out);
            nested(2, out, |out| message(value, of, out));
        });
    }
}

fn parameter(value: &Value, out: &mut Vec<u8>) {
    if value.get("$ref").is_some() {
        return nested(2, out, |out| message(value, &REFERENCE, out));
    }
    nested(1, out, |out| match value["in"].text() {
        "body" => nested(1, out, |out| message(value, &BODY, out)),
        "path" => nested(2, out, |out| nested(4, out, |out| message(value, &PATH_PARAMETER, out))),
        _ => nested(2, out, |out| nested(3, out, |out| message(value, &QUERY, out))),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    /// Every field of a message: its number, and its bytes or number as text.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        let read = |bytes: &mut &[u8]| {
            let (mut number, mut shift) = (0u64, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                number |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return number;
                }
            }
        };
        while !bytes.is_empty() {
            let tag = read(&mut bytes);
            let content = match tag & 7 {
                0 => vec![read(&mut bytes) as u8],
                1 => {
                    let (content, rest) = bytes.split_at(8);
                    bytes = rest;
                    content.to_vec()
                }
                _ => {
                    let length = read(&mut bytes) as usize;
                    let (content, rest) = bytes.split_at(length);
                    bytes = rest;
                    content.to_vec()
                }
            };
            found.push((tag >> 3, content));
        }
        found
    }

    fn only(bytes: &[u8], number: u64) -> Vec<u8> {
        fields(bytes).into_iter().find(|(found, _)| *found == number).unwrap().1
    }

    #[test]
    fn documents_are_written_by_their_tables() {
        let bytes = encode(&json!({
            "swagger": "2.0", "info": {"title": "t", "version": "v"},
            "paths": {"/a": {"get": {"operationId": "o", "parameters": [{"in": "query", "name": "q"}]}}},
            "definitions": {"D": {
                "type": "object", "x-kubernetes-map-type": "atomic",
                "properties": {"p": {"type": "array", "items": {"$ref": "#/definitions/D"}}},
            }},
        }));
        assert_eq!(only(&bytes, 1), b"2.0");
        let path = only(&only(&bytes, 8), 2);
        assert_eq!(only(&path, 1), b"/a");
        let operation = only(&only(&path, 2), 2);
        assert_eq!(only(&operation, 5), b"o");
        let query = only(&only(&only(&only(&operation, 8), 1), 2), 3);
        assert_eq!((only(&query, 2), only(&query, 4)), (b"query".to_vec(), b"q".to_vec()));
        let schema = only(&only(&only(&bytes, 9), 1), 2);
        assert_eq!(only(&only(&schema, 22), 1), b"object");
        let extension = only(&schema, 31);
        assert_eq!(
            (only(&extension, 1), only(&only(&extension, 2), 2)),
            (b"x-kubernetes-map-type".to_vec(), b"\"atomic\"\n".to_vec())
        );
        let property = only(&only(&only(&schema, 25), 1), 2);
        assert_eq!(only(&only(&only(&property, 23), 1), 1), b"#/definitions/D");
    }
}
