//! `Status`: the answer to everything that did not go as asked, in Kubernetes' own form.

use std::fmt;

use crate::field::Errors;
use crate::json;
use crate::value::{Map, Value};

/// Why a request was refused; the names and codes are those of `metav1.StatusReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Unknown,
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    Invalid,
    Timeout,
    TooManyRequests,
    MethodNotAllowed,
    NotAcceptable,
    UnsupportedMediaType,
    RequestEntityTooLarge,
    ServiceUnavailable,
    ServerTimeout,
    InternalError,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::Unknown => "",
            Reason::BadRequest => "BadRequest",
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::NotFound => "NotFound",
            Reason::AlreadyExists => "AlreadyExists",
            Reason::Conflict => "Conflict",
            Reason::Gone => "Gone",
            Reason::Expired => "Expired",
            Reason::Invalid => "Invalid",
            Reason::Timeout => "Timeout",
            Reason::TooManyRequests => "TooManyRequests",
            Reason::MethodNotAllowed => "MethodNotAllowed",
            Reason::NotAcceptable => "NotAcceptable",
            Reason::UnsupportedMediaType => "UnsupportedMediaType",
            Reason::RequestEntityTooLarge => "RequestEntityTooLarge",
            Reason::ServiceUnavailable => "ServiceUnavailable",
            Reason::ServerTimeout => "ServerTimeout",
            Reason::InternalError => "InternalError",
        }
    }

    /// The HTTP code that belongs to the reason.
    pub fn code(self) -> u16 {
        match self {
            Reason::BadRequest => 400,
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::NotFound => 404,
            Reason::MethodNotAllowed => 405,
            Reason::NotAcceptable => 406,
            Reason::AlreadyExists | Reason::Conflict => 409,
            Reason::Gone | Reason::Expired => 410,
            Reason::RequestEntityTooLarge => 413,
            Reason::UnsupportedMediaType => 415,
            Reason::Invalid => 422,
            Reason::TooManyRequests => 429,
            Reason::Unknown | Reason::InternalError => 500,
            Reason::ServiceUnavailable => 503,
            Reason::Timeout | Reason::ServerTimeout => 504,
        }
    }

    /// Whether what was refused may be taken at another time, though nothing of it changes: the server was busy, or has a
    /// fault.
    pub fn passes(self) -> bool {
        use Reason::{InternalError, ServerTimeout, ServiceUnavailable, Timeout, TooManyRequests};
        matches!(self, InternalError | ServerTimeout | ServiceUnavailable | Timeout | TooManyRequests)
    }
}

/// One line of `details.causes`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// A refusal. Small on the stack, because every fallible path carries it.
#[derive(Clone, Debug, PartialEq)]
pub struct Status(pub Box<Failure>);

/// What a [`Status`] holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub reason: Reason,
    pub code: u16,
    pub message: String,
    pub group: String,
    /// The kind or, as upstream does it for many reasons, the plural resource.
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
    /// Where an expired list may go on, at the newest state; mostly empty.
    pub continue_token: String,
}

impl Status {
    pub fn new(reason: Reason, message: impl Into<String>) -> Status {
        Status(Box::new(Failure {
            reason,
            code: reason.code(),
            message: message.into(),
            group: String::new(),
            kind: String::new(),
            name: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
            continue_token: String::new(),
        }))
    }

    pub fn bad_request(message: impl Into<String>) -> Status {
        Status::new(Reason::BadRequest, message)
    }

    pub fn internal(message: impl fmt::Display) -> Status {
        Status::new(Reason::InternalError, format!("Internal error occurred: {message}"))
    }

    /// The object was not there. `resource` is the plural, `group` may be empty.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Status {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Status::new(Reason::NotFound, message).about(group, resource, name)
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Status {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        Status::new(Reason::AlreadyExists, message).about(group, resource, name)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Status {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, resource));
        Status::new(Reason::Conflict, message).about(group, resource, name)
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Status {
        let message = match name {
            "" => format!("{} is forbidden: {why}", qualified(group, resource)),
            name => format!("{} {name:?} is forbidden: {why}", qualified(group, resource)),
        };
        Status::new(Reason::Forbidden, message).about(group, resource, name)
    }

    /// Field errors of an object. `kind` is the kind's name, as upstream has it here.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &Errors) -> Status {
        let listed: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        let listed = match listed.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {listed}", qualified(group, kind));
        let mut status = Status::new(Reason::Invalid, message).about(group, kind, name);
        status.0.causes = errors
            .0
            .iter()
            .map(|error| Cause {
                reason: error.fault.reason().to_owned(),
                message: error.message(),
                field: error.field.clone(),
            })
            .collect();
        status
    }

    /// The same status with `details.group`, `kind` and `name` set.
    pub fn about(mut self, group: &str, kind: &str, name: &str) -> Status {
        (self.0.group, self.0.kind, self.0.name) = (group.to_owned(), kind.to_owned(), name.to_owned());
        self
    }

    pub fn caused(mut self, reason: &str, field: &str, message: impl Into<String>) -> Status {
        let cause = Cause { reason: reason.to_owned(), message: message.into(), field: field.to_owned() };
        self.0.causes.push(cause);
        self
    }

    pub fn retry_after(mut self, seconds: u32) -> Status {
        self.0.retry_after_seconds = seconds;
        self
    }

    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    pub fn code(&self) -> u16 {
        self.0.code
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The `Status` object that goes over the wire.
    pub fn to_value(&self) -> Value {
        let failure = &self.0;
        let mut details = Map::new();
        for (key, text) in
            [("group", &failure.group), ("kind", &failure.kind), ("name", &failure.name), ("uid", &failure.uid)]
        {
            if !text.is_empty() {
                details.insert(key, text);
            }
        }
        if !failure.causes.is_empty() {
            let causes = failure.causes.iter().map(|cause| {
                let mut map = Map::new();
                for (key, text) in [("field", &cause.field), ("message", &cause.message), ("reason", &cause.reason)] {
                    if !text.is_empty() {
                        map.insert(key, text);
                    }
                }
                Value::Map(map)
            });
            details.insert("causes", causes.collect::<Vec<_>>());
        }
        if failure.retry_after_seconds > 0 {
            details.insert("retryAfterSeconds", failure.retry_after_seconds);
        }
        let mut status = json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
            "message": (&failure.message), "code": (i64::from(failure.code)),
        });
        if !failure.continue_token.is_empty() {
            status.set(&["metadata", "continue"], &failure.continue_token);
        }
        if !failure.reason.name().is_empty() {
            status.set(&["reason"], failure.reason.name());
        }
        if !details.is_empty() {
            status.set(&["details"], details);
        }
        status
    }

    /// Reads a `Status` object that came over the wire.
    pub fn from_value(value: &Value) -> Status {
        const ALL: [Reason; 19] = [
            Reason::Unknown,
            Reason::BadRequest,
            Reason::Unauthorized,
            Reason::Forbidden,
            Reason::NotFound,
            Reason::AlreadyExists,
            Reason::Conflict,
            Reason::Gone,
            Reason::Expired,
            Reason::Invalid,
            Reason::Timeout,
            Reason::TooManyRequests,
            Reason::MethodNotAllowed,
            Reason::NotAcceptable,
            Reason::UnsupportedMediaType,
            Reason::RequestEntityTooLarge,
            Reason::ServiceUnavailable,
            Reason::ServerTimeout,
            Reason::InternalError,
        ];
        let name = value["reason"].text();
        let reason = ALL.into_iter().find(|reason| reason.name() == name).unwrap_or(Reason::Unknown);
        let details = &value["details"];
        let mut status = Status::new(reason, value["message"].text()).about(
            details["group"].text(),
            details["kind"].text(),
            details["name"].text(),
        );
        status.0.code = value["code"].as_int().and_then(|code| u16::try_from(code).ok()).unwrap_or(reason.code());
        status.0.continue_token = value.at(&["metadata", "continue"]).text().to_owned();
        status.0.retry_after_seconds =
            details["retryAfterSeconds"].as_int().and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(0);
        for cause in details["causes"].items() {
            status = status.caused(cause["reason"].text(), cause["field"].text(), cause["message"].text());
        }
        status
    }
}

/// `deployments.apps`, or `pods` in the core group.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_the_wire() {
        let mut errors = Errors::default();
        errors.required(&crate::Path::ROOT.field("spec"), "needed");
        errors.forbidden(&crate::Path::ROOT.field("x"), "no");
        for status in [
            Status::not_found("apps", "deployments", "web"),
            Status::invalid("", "Pod", "a", &errors),
            Status::new(Reason::TooManyRequests, "slow down").retry_after(3),
        ] {
            assert_eq!(Status::from_value(&Value::parse(&status.to_value().to_json()).unwrap()), status);
        }
    }
}
