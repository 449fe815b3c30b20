//! Patches: RFC 6902 operations, RFC 7386 merges, and Kubernetes' strategic merges.
//!
//! Invariants: a patch that fails leaves nothing changed (they work on a copy or give a new value); the work a patch
//! asks for is limited before it is done.

mod json;
mod merge;
mod strategic;

use std::fmt;

pub use json::json_patch;
pub use merge::merge_patch;
pub use strategic::strategic;

use crate::normalise::TypeError;
use crate::status::{Reason, Status};
use crate::value::Value;

/// Most operations of a JSON patch.
pub const MAX_OPERATIONS: usize = 10_000;
/// Most values a patched object may have; `copy` could double it with every operation.
pub const MAX_VALUES: usize = 1_000_000;

/// Why a patch was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatchError {
    /// The patch is no patch.
    Malformed(String),
    /// A test failed, a path does not exist, or an operation is unknown.
    Failed(String),
    /// More than [`MAX_OPERATIONS`] operations, or a result that is too large.
    TooLarge(String),
}

impl fmt::Display for PatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PatchError::Malformed(what) | PatchError::Failed(what) | PatchError::TooLarge(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for PatchError {}

impl PatchError {
    pub fn status(&self) -> Status {
        match self {
            PatchError::Malformed(what) => Status::bad_request(what.clone()),
            PatchError::Failed(what) => Status::new(Reason::Invalid, what.clone()),
            PatchError::TooLarge(what) => Status::new(Reason::RequestEntityTooLarge, what.clone()),
        }
    }
}

/// The refusal of a patched object that no longer fits its type.
pub fn unfit(patched: &Value, error: &TypeError) -> Status {
    misfit(patched, &error.to_string())
}

/// The refusal of a patched object that is not what it should be, with the reason.
pub fn misfit(patched: &Value, why: &str) -> Status {
    let mut errors = crate::field::Errors::default();
    let path = crate::field::Path::ROOT;
    let text = String::from_utf8_lossy(&patched.to_json()).into_owned();
    errors.invalid_value(&path.field("patch"), text, why);
    Status::invalid("", "", "", &errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies random patches made of parts of `parts`; only panics and hangs are failures.
    #[test]
    fn any_patch_is_applied_or_refused() {
        let schema = crate::schema::Schema::parse(
            "package io.k8s.api.core.v1\nA /v1\n m 1 {}str o\n l 2 []A o k=n s=merge,retainKeys\n n 3 str o\n p 4 []str o s=merge\n a 5 *A o s=retainKeys\n",
        )
        .unwrap();
        let of = schema.kind("", "v1", "A").unwrap();
        let mut rng = base::Rng::new(5);
        for _ in 0..20_000 {
            let value = random(&mut rng, 4);
            let patch = random(&mut rng, 4);
            let _ = strategic(&value, &patch, of);
            let mut merged = value.clone();
            merge_patch(&mut merged, &patch);
            let operations: Vec<Value> = (0..rng.below(4)).map(|_| operation(&mut rng)).collect();
            let _ = json_patch(&value, &Value::from(operations));
        }
    }

    fn random(rng: &mut base::Rng, depth: u64) -> Value {
        const KEYS: [&str; 11] = [
            "m",
            "l",
            "n",
            "p",
            "a",
            "$patch",
            "$retainKeys",
            "$setElementOrder/l",
            "$setElementOrder/p",
            "$deleteFromPrimitiveList/p",
            "x",
        ];
        match rng.below(if depth == 0 { 4 } else { 8 }) {
            0 => Value::Null,
            1 => Value::Int(1),
            2 => ["delete", "replace", "merge", "n", "y"][rng.below(5) as usize].into(),
            3 => Value::Bool(true),
            4 | 5 => Value::List((0..rng.below(4)).map(|_| random(rng, depth - 1)).collect()),
            _ => {
                let entries = (0..rng.below(5)).map(|_| (KEYS[rng.below(11) as usize], random(rng, depth - 1)));
                Value::Map(entries.collect::<Vec<_>>().into_iter().collect())
            }
        }
    }

    fn operation(rng: &mut base::Rng) -> Value {
        let path = |rng: &mut base::Rng| {
            let parts = (0..rng.below(4))
                .map(|_| ["/l", "/0", "/-", "/a", "/~0", "/99999999999999999999"][rng.below(6) as usize]);
            parts.collect::<String>()
        };
        let op = ["add", "remove", "replace", "move", "copy", "test", "x"][rng.below(7) as usize];
        let (to, from, value) = (path(rng), path(rng), random(rng, 2));
        crate::json!({"op": op, "path": to, "from": from, "value": value})
    }
}
