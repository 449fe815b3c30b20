//! Reads the table of the built-in kinds.
//!
//! `package P` starts a package; a line without indent is a struct (`NAME [atomic] [GROUP/VERSION[/KIND]]…`), an
//! indented one a field: `NAME NUMBER TYPE [FLAGS] [KEY=VALUE]…`. A number may be a path (`2.5`) into embedded
//! messages, `-` where protobuf lacks the field. A type is a scalar's word or a struct (`Pod`, or `core.v1.Pod` from
//! another package) after any of `*` (pointer), `[]` (list), `w[]` (list that is a message in protobuf), `{}` (map).
//! Flags: `a` atomic, `o` left out when empty, `r` required, `z` left out when zero. Keys: `d` default, `l` list
//! type, `k` merge key, `s` patch strategy.

use std::collections::HashMap;

use super::{Either, Field, ListKind, Node, NodeId, Scalar, Schema, Struct, Unknown, kind_key};
use crate::value::{Str, Value};

struct Reader<'a> {
    schema: Schema,
    known: HashMap<Node, NodeId>,
    /// Places of structs by `group.version.Name`.
    short: HashMap<String, u32>,
    package: &'a str,
}

pub fn parse(text: &str) -> Result<Schema, String> {
    let mut reader = Reader { schema: Schema::default(), known: HashMap::new(), short: HashMap::new(), package: "" };
    let atomic = reader.headers(text)?;
    reader.fields(text)?;
    for at in atomic {
        reader.schema.nodes[at] = Node::Struct { of: at as u32, atomic: true };
    }
    reader.schema.settle();
    Ok(reader.schema)
}

fn two(package: &str) -> &str {
    let at = package.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
    &package[at..]
}

impl<'a> Reader<'a> {
    /// Finds all structs, so that fields may refer to later ones. Returns the places of the atomic ones.
    fn headers(&mut self, text: &'a str) -> Result<Vec<usize>, String> {
        let mut atomic = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with([' ', '#'])) {
            if let Some(package) = line.strip_prefix("package ") {
                self.package = package;
                continue;
            }
            let mut words = line.split(' ');
            let name = words.next().unwrap_or_default();
            let at = u32::try_from(self.schema.structs.len()).map_err(|_| "too many structs".to_owned())?;
            for word in words {
                match word.split('/').collect::<Vec<_>>().as_slice() {
                    ["atomic"] => atomic.push(at as usize),
                    [group, version] => drop(self.schema.kinds.insert(kind_key(group, version, name), at)),
                    [group, version, kind] => drop(self.schema.kinds.insert(kind_key(group, version, kind), at)),
                    _ => return Err(line.to_owned()),
                }
            }
            let full = compact_str::format_compact!("{}.{name}", self.package);
            self.short.insert(format!("{}.{name}", two(self.package)), at);
            self.schema.names.insert(full.clone(), at);
            self.schema.structs.push(Struct::new(full, Vec::new(), Unknown::Drop));
            self.schema.nodes.push(Node::Struct { of: at, atomic: false });
        }
        Ok(atomic)
    }

    fn fields(&mut self, text: &'a str) -> Result<(), String> {
        let mut at = 0;
        let mut fields = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(package) = line.strip_prefix("package ") {
                if at > 0 {
                    self.close(at - 1, &mut fields);
                }
                self.package = package;
            } else if let Some(field) = line.strip_prefix(' ') {
                fields.push(self.field(field).ok_or_else(|| line.to_owned())?);
            } else {
                if at > 0 {
                    self.close(at - 1, &mut fields);
                }
                at += 1;
            }
        }
        if at > 0 {
            self.close(at - 1, &mut fields);
        }
        Ok(())
    }

    fn close(&mut self, at: usize, fields: &mut Vec<Field>) {
        if !fields.is_empty() {
            let name = self.schema.structs[at].name.clone();
            self.schema.structs[at] = Struct::new(name, std::mem::take(fields), Unknown::Drop);
        }
    }

    fn field(&mut self, line: &str) -> Option<Field> {
        let mut words = line.split(' ');
        let (name, number, of) = (words.next()?, words.next()?, words.next()?);
        let (mut flags, mut list, mut default) = ("", ListKind::Atomic, None);
        let mut field = Field::new(name.into(), NodeId(0));
        for word in words {
            field.list_said |= word.starts_with("l=");
            match word.split_once('=') {
                None => flags = word,
                Some(("d", value)) => default = Some(Box::new(Value::parse(value.as_bytes()).ok()?)),
                Some(("k", key)) => field.merge_key = key.into(),
                Some(("l", "set")) => list = ListKind::Set,
                Some(("l", kind)) => {
                    if let Some(keys) = kind.strip_prefix("map:") {
                        list = ListKind::Map(keys.split(',').map(Str::from).collect());
                    }
                }
                Some(("s", strategy)) => {
                    field.patch_merge = strategy.split(',').any(|word| word == "merge");
                    field.patch_replace = strategy == "replace";
                    field.patch_retain_keys = strategy.split(',').any(|word| word == "retainKeys");
                }
                Some(_) => return None,
            }
        }
        for (at, part) in number.split('.').filter(|part| *part != "-").enumerate() {
            *field.number.0.get_mut(at)? = part.parse().ok()?;
        }
        let inner = of.strip_prefix('*');
        field.pointer = inner.is_some();
        field.of = self.node(inner.unwrap_or(of), list, flags.contains('a'))?;
        field.omit_empty = flags.contains('o');
        field.omit_zero = flags.contains('z');
        field.required = flags.contains('r');
        field.default = default;
        Some(field)
    }

    fn node(&mut self, of: &str, list: ListKind, atomic: bool) -> Option<NodeId> {
        let plain = |reader: &mut Self, of: &str| reader.node(of.trim_start_matches('*'), ListKind::Atomic, false);
        let node = if let Some(item) = of.strip_prefix("w[]") {
            Node::List { item: plain(self, item)?, kind: list, wrapped: true }
        } else if let Some(item) = of.strip_prefix("[]") {
            Node::List { item: plain(self, item)?, kind: list, wrapped: false }
        } else if let Some(value) = of.strip_prefix("{}") {
            Node::Map { value: plain(self, value)?, atomic }
        } else if let Some(scalar) = scalar(of) {
            Node::Scalar(scalar)
        } else if let Some(either) = either(of) {
            Node::Either(either, self.find("JSONSchemaProps")?)
        } else {
            let id = self.find(of)?;
            if !atomic {
                return Some(id);
            }
            Node::Struct { of: id.0, atomic: true }
        };
        if let Some(id) = self.known.get(&node) {
            return Some(*id);
        }
        let id = NodeId(u32::try_from(self.schema.nodes.len()).ok()?);
        self.schema.nodes.push(node.clone());
        self.known.insert(node, id);
        Some(id)
    }

    fn find(&self, name: &str) -> Option<NodeId> {
        let own = format!("{}.{name}", two(self.package));
        self.short.get(&own).or_else(|| self.short.get(name)).map(|at| NodeId(*at))
    }
}

fn scalar(word: &str) -> Option<Scalar> {
    Some(match word {
        "bool" => Scalar::Bool,
        "i32" => Scalar::Int32,
        "i64" => Scalar::Int64,
        "f64" => Scalar::Double,
        "str" => Scalar::String,
        "bytes" => Scalar::Bytes,
        "time" => Scalar::Time,
        "microtime" => Scalar::MicroTime,
        "duration" => Scalar::Duration,
        "quantity" => Scalar::Quantity,
        "intstr" => Scalar::IntOrString,
        "raw" => Scalar::Raw,
        "json" => Scalar::Json,
        "fieldsv1" => Scalar::FieldsV1,
        "any" => Scalar::Any,
        _ => return None,
    })
}

fn either(word: &str) -> Option<Either> {
    Some(match word {
        "orbool" => Either::Bool,
        "orarray" => Either::List,
        "orstrings" => Either::Strings,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_becomes_types() {
        let schema = Schema::parse(
            "# x\npackage io.k8s.api.core.v1\nPod /v1\n spec 2 *Spec o\nSpec\n ports 1 []Port o k=p l=map:p,q s=merge\n\
             Port\n p 2.1 i32 r\n q 3 str o d=\"TCP\"\nRef atomic\n a 1 str\n",
        )
        .unwrap();
        let pod = schema.kind("", "v1", "Pod").unwrap();
        let ports = pod.member("spec").unwrap().as_struct().unwrap().field("ports").unwrap();
        assert!(ports.patch_merge && ports.merge_key == "p" && !ports.pointer);
        let Node::List { kind: ListKind::Map(keys), .. } = schema.node(ports.of) else { panic!() };
        assert_eq!(keys.as_ref(), ["p", "q"]);
        assert_eq!(
            schema.named("io.k8s.api.core.v1.Port").unwrap().as_struct().unwrap().fields()[0].number.0,
            [2, 1, 0]
        );
        assert!(matches!(schema.named("io.k8s.api.core.v1.Ref").unwrap().kind(), Node::Struct { atomic: true, .. }));
        assert!(Schema::parse("package a.b.v1\nA\n f 1 Nothing\n").is_err());
    }
}
