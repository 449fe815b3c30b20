//! The grammar of objects: values and their text, schemas, field errors, `Status`, patches, ownership of fields,
//! selectors, quantities, names; and the two types everything above speaks of, [`Kind`] and [`Object`].
//!
//! Not here: any concrete kind (that is `api`), any IO.
//!
//! Invariants: a [`Map`] is sorted by key, so a value has one text; reading outside bytes never panics; an [`Object`]
//! never changes after it was made.

pub mod apply;
pub mod decode;
pub mod field;
pub mod kind;
pub mod labels;
pub mod names;
pub mod normalise;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod proto;
pub mod quantity;
pub mod schema;
pub mod status;
pub mod value;

pub use decode::{DecodeError, FieldValidation, Media};
pub use field::{At, Errors, Fault, FieldError, Path};
pub use kind::{Change, Column, Companion, Head, Kind, Lookup, Names, Prepare, Rules, Subresource, Verb};
pub use labels::{FieldSelector, Selector};
pub use object::{Facts, Labels, Object, Owner, Resource};
pub use quantity::Quantity;
pub use schema::{Schema, TypeRef};
pub use status::{Reason, Status};
pub use value::{List, Map, Str, Value};
