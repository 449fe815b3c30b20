//! The value rules of custom resources.

use crate::value::Value;

/// The value rules of one type.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub nullable: bool,
    pub default: Option<Value>,
}
