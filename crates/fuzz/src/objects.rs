//! Objects of every kind out of bytes: the schema says which fields there are, the bytes choose.
//!
//! An input is the seed of a stream of choices, so that also a mutated one makes a whole object; most of what it makes
//! has the right types and odd values, which is what defaults, checks, columns and encodings must stand.

use base::{Rng, hash64};
use meta::schema::{Node, NodeId, Scalar, Schema};
use meta::{Map, Value};

/// Structs within structs.
const DEPTH_MAX: u32 = 12;

const TEXTS: &[&str] = &[
    "",
    "a",
    "A",
    "a-b",
    "-a",
    "a.b",
    "a/b",
    "example.com/a",
    "a b",
    "0",
    "1",
    "-1",
    "100%",
    "25%",
    "101%",
    "-5%",
    "80",
    "65536",
    "http",
    "TCP",
    "UDP",
    "SCTP",
    "Always",
    "Never",
    "OnFailure",
    "Exists",
    "In",
    "NotIn",
    "Gt",
    "Lt",
    "NoSchedule",
    "NoExecute",
    "ClusterIP",
    "NodePort",
    "LoadBalancer",
    "ExternalName",
    "None",
    "10.0.0.1",
    "::1",
    "10.0.0.0/8",
    "fd00::/8",
    "1.2.3.4.5",
    "kubernetes.io/hostname",
    "node.kubernetes.io/not-ready",
    "* * * * *",
    "*/0 * * * *",
    "@daily",
    "Europe/Berlin",
    "1970-01-01T00:00:00Z",
    "2262-04-12T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "100m",
    "1Gi",
    "-1",
    "1e3",
    "0.1",
    "9223372036854775807",
    "sha256:00",
    "RollingUpdate",
    "Recreate",
    "OnDelete",
    "Indexed",
    "NonIndexed",
    "Failed",
    "Succeeded",
    "Running",
    "Pending",
    "True",
    "False",
    "Unknown",
    "system:masters",
    "*",
    "v1",
    "apps/v1",
    "Pod",
    "metadata.name",
    "status.podIP",
    "metadata.labels['a']",
    "limits.cpu",
    "$(A)",
    "$(A",
    "{.spec.a}",
    "self.a > 0",
    "string",
    "integer",
    "object",
    "array",
];

/// An object of a kind, as a client might send it.
pub fn make(schema: &Schema, of: NodeId, input: &[u8]) -> Value {
    let mut rng = Rng::new(hash64(input));
    node(schema, of, &mut rng, 0)
}

fn node(schema: &Schema, of: NodeId, rng: &mut Rng, depth: u32) -> Value {
    // Now and then something of another type.
    if rng.chance(5) {
        return scalar(Scalar::Any, rng);
    }
    match schema.node(of) {
        Node::Scalar(of) => scalar(*of, rng),
        Node::Struct { of, .. } => {
            let mut map = Map::new();
            let fields = schema.structs()[*of as usize].fields();
            // A few of many fields at each level, all at the top.
            let share = if depth == 0 { 900 } else { (3000 / (fields.len() as u64 + 1)).clamp(60, 700) };
            for field in fields {
                let wanted = if field.required { 950 } else { share };
                if depth < DEPTH_MAX && rng.chance(wanted) {
                    map.insert(field.name.as_str(), node(schema, field.of, rng, depth + 1));
                }
            }
            Value::Map(map)
        }
        Node::List { item, .. } => {
            let count = if depth < DEPTH_MAX { rng.below(4) } else { 0 };
            Value::List((0..count).map(|_| node(schema, *item, rng, depth + 1)).collect())
        }
        Node::Map { value, .. } => {
            let mut map = Map::new();
            for _ in 0..rng.below(4) {
                let key = TEXTS[rng.below(TEXTS.len() as u64) as usize];
                map.insert(key, node(schema, *value, rng, depth + 1));
            }
            Value::Map(map)
        }
        Node::Either(_, inner) => {
            if rng.chance(300) {
                scalar(Scalar::Bool, rng)
            } else {
                node(schema, *inner, rng, depth + 1)
            }
        }
    }
}

fn scalar(of: Scalar, rng: &mut Rng) -> Value {
    let number = |rng: &mut Rng| -> i64 {
        match rng.below(8) {
            0 => i64::MAX,
            1 => i64::MIN,
            2 => i64::from(i32::MAX) + rng.below(2) as i64,
            3 => -1,
            4 => 0,
            _ => rng.below(100_000) as i64,
        }
    };
    let text = |rng: &mut Rng| -> Value {
        match rng.below(40) {
            0 => "x".repeat(300).into(),
            1 => "ü\u{202e}".into(),
            _ => TEXTS[rng.below(TEXTS.len() as u64) as usize].into(),
        }
    };
    match of {
        Scalar::Bool => Value::Bool(rng.chance(500)),
        Scalar::Int32 => number(rng).clamp(i64::from(i32::MIN), i64::from(i32::MAX)).into(),
        Scalar::Int64 => number(rng).into(),
        Scalar::Any | Scalar::Json | Scalar::IntOrString | Scalar::Quantity | Scalar::Raw | Scalar::FieldsV1 => {
            match rng.below(6) {
                0 => Value::Null,
                1 => Value::map(),
                2 => Value::from(vec![Value::Null]),
                3 => number(rng).into(),
                _ => text(rng),
            }
        }
        _ => text(rng),
    }
}
