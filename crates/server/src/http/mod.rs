//! The door to the network: listening, TLS, HTTP/1.1 and HTTP/2, and the bodies of answers.

pub mod body;
pub mod first_look;
pub mod gather;
pub mod negotiate;
pub mod sending;
pub mod serve;

pub use body::{Body, Response};
