//! May this caller do this? The answer is a type: a handler takes [`Authorized`], and only this module makes one.

pub mod node;
pub mod rbac;

use cache::View;
use meta::{FieldSelector, Reason, Status, Str};

use crate::identity::{MASTERS, User};
use crate::request::RequestInfo;

/// What is asked of the authorizers.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a User,
    pub verb: &'a str,
    pub is_resource: bool,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub path: &'a str,
    /// What a list or watch was narrowed to.
    pub fields: &'a FieldSelector,
}

impl<'a> Attributes<'a> {
    pub fn of(user: &'a User, info: &'a RequestInfo) -> Attributes<'a> {
        Attributes {
            user,
            verb: info.verb,
            is_resource: info.is_resource,
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            // A list of one name asks for that object.
            name: match (info.name.as_str(), info.fields.exact("metadata.name")) {
                ("", Some(name)) => name,
                (name, _) => name,
            },
            path: &info.path,
            fields: &info.fields,
        }
    }
}

/// What the authorizers say, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    /// Nobody allows it.
    NoOpinion(String),
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allow(_))
    }
}

/// Asks the authorizers in turn: masters, node, RBAC. The first that allows decides.
pub fn decide(attributes: &Attributes<'_>, view: &View) -> Decision {
    if attributes.user.in_group(MASTERS) {
        return Decision::Allow(String::new());
    }
    match node::decide(attributes, view) {
        Decision::Allow(why) => Decision::Allow(why),
        Decision::NoOpinion(node_says) => match rbac::decide(attributes, view) {
            Decision::NoOpinion(_) if !node_says.is_empty() => Decision::NoOpinion(node_says),
            decision => decision,
        },
    }
}

/// A request that was allowed. There is no other way to make one than [`authorize`].
#[derive(Clone, Debug)]
pub struct Authorized {
    pub user: User,
    pub info: RequestInfo,
    proof: Proof,
}

/// Only this module can name it, so only this module can make an [`Authorized`].
#[derive(Clone, Copy, Debug)]
struct Proof;

impl Authorized {
    /// The same permission for one object of the collection that was allowed.
    pub fn narrowed(&self, info: RequestInfo) -> Authorized {
        Authorized { user: self.user.clone(), info, proof: self.proof }
    }
}

/// Allows the request or refuses it with the `Status` that upstream gives.
pub fn authorize(user: User, info: RequestInfo, view: &View) -> Result<Authorized, (User, Status)> {
    let attributes = Attributes::of(&user, &info);
    match decide(&attributes, view) {
        Decision::Allow(_) => Ok(Authorized { user, info, proof: Proof }),
        Decision::NoOpinion(why) => {
            let status = refusal(&attributes, &why);
            Err((user, status))
        }
    }
}

/// The `Forbidden` status for attributes that nobody allowed.
pub fn refusal(attributes: &Attributes<'_>, why: &str) -> Status {
    let user = &attributes.user.name;
    if !attributes.is_resource {
        let message = format!("forbidden: User {user:?} cannot {} path {:?}", attributes.verb, attributes.path);
        return Status::new(Reason::Forbidden, message);
    }
    let resource = match attributes.subresource {
        "" => attributes.resource.to_owned(),
        subresource => format!("{}/{subresource}", attributes.resource),
    };
    let place = match attributes.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let mut sentence = format!(
        "User {user:?} cannot {} resource {resource:?} in API group {:?} {place}",
        attributes.verb, attributes.group
    );
    if !why.is_empty() {
        sentence.push_str(": ");
        sentence.push_str(why);
    }
    Status::forbidden(attributes.group, attributes.resource, attributes.name, sentence)
}

/// Names of all groups of a user, for matching.
pub(crate) fn groups(user: &User) -> impl Iterator<Item = &str> + Clone {
    user.groups.iter().map(Str::as_str)
}
