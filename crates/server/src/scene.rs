//! What policies and webhooks see of a request.

use std::sync::Arc;

use api::expressions::{NAMESPACE, REQUEST};
use cache::View;
use cel::{About, Ask, Authorizer, Type, Val};
use meta::{FieldSelector, Kind, Resource, Value, json};

use crate::admission::Review;
use crate::admission::matching::converted;
use crate::authz::{Attributes, Decision, decide};
use crate::identity::{User, service_account_user};
use crate::subresource::review::user_info;

const NAMESPACES: Resource = Resource("namespaces");

/// A request as it is seen: the objects in the version that is asked for.
#[derive(Clone)]
pub struct Scene {
    pub object: Value,
    pub old: Value,
    pub request: Value,
    namespace: Value,
    /// The question that `authorizer` begins with, and the one about what is asked for.
    asks: [Arc<Ask>; 2],
}

impl Scene {
    pub fn of(review: &Review<'_>, seen_as: &Kind) -> Scene {
        let old = review.old.map_or(Value::Null, |old| converted(old, review.kind, seen_as));
        let namespace = match review.kind.names.namespaced {
            true => review.view.one(NAMESPACES, "", review.namespace).map_or(Value::Null, meta::Object::value),
            false => Value::Null,
        };
        let about = About::Resource {
            group: review.group.to_owned(),
            resource: review.kind.names.plural.to_string(),
            subresource: review.subresource.to_owned(),
            namespace: review.namespace.to_owned(),
            name: review.name().to_owned(),
            field_selector: String::new(),
            label_selector: String::new(),
        };
        let first = Ask::new(Arc::new(Access { view: review.view.clone(), user: review.user.clone() }));
        let asked = Ask { about, ..first.clone() };
        Scene {
            object: converted(&review.object, review.kind, seen_as),
            old,
            request: request(review, seen_as),
            namespace,
            asks: [first, asked].map(Arc::new),
        }
    }

    /// The same request with another object.
    pub fn with_object(&self, object: Value) -> Scene {
        Scene { object, ..self.clone() }
    }

    /// The variables of expressions, with these parameters.
    pub fn variables<'a>(&'a self, params: &'a Value) -> Vec<(&'a str, Val<'a>)> {
        let [authorizer, resource] = &self.asks;
        vec![
            ("object", Val::of(&self.object, &Type::Dyn)),
            ("oldObject", Val::of(&self.old, &Type::Dyn)),
            ("request", Val::of(&self.request, &REQUEST)),
            ("namespaceObject", Val::of(&self.namespace, &NAMESPACE)),
            ("params", Val::of(params, &Type::Dyn)),
            ("authorizer", Val::Ask(authorizer.clone())),
            ("authorizer.requestResource", Val::Ask(resource.clone())),
        ]
    }
}

fn request(review: &Review<'_>, seen_as: &Kind) -> Value {
    let kind =
        |of: &Kind| json!({"group": (&of.names.group), "version": (&of.names.version), "kind": (&of.names.kind)});
    let resource =
        |of: &Kind| json!({"group": (&of.names.group), "version": (&of.names.version), "resource": (&of.names.plural)});
    // What connects is no object of the kind: it says itself what it is.
    let asked = match review.operation {
        "CONNECT" => json!({"group": "", "version": "v1", "kind": (review.object["kind"].text())}),
        _ => kind(seen_as),
    };
    json!({
        "kind": asked, "resource": (resource(seen_as)), "subResource": (review.subresource),
        "requestKind": (kind(review.kind)), "requestResource": (resource(review.kind)),
        "requestSubResource": (review.subresource), "name": (review.name()), "namespace": (review.namespace),
        "operation": (review.operation), "userInfo": (user_info(review.user)), "dryRun": (review.dry_run),
    })
}

/// Answers questions of authorization about who asks, at the state that the request is judged by.
struct Access {
    view: View,
    user: User,
}

impl Authorizer for Access {
    fn check(&self, ask: &Ask, verb: &str) -> Result<(bool, String), String> {
        let account = ask.service_account.as_ref().map(|(namespace, name)| service_account_user(namespace, name));
        let user = account.as_ref().unwrap_or(&self.user);
        let nothing = FieldSelector::default();
        let blank = Attributes {
            user,
            verb,
            is_resource: false,
            group: "",
            resource: "",
            subresource: "",
            namespace: "",
            name: "",
            path: "",
            fields: &nothing,
        };
        let selected;
        let attributes = match &ask.about {
            About::Path(path) => Attributes { path, ..blank },
            About::Resource { group, resource, subresource, namespace, name, field_selector, .. } => {
                selected = FieldSelector::parse(field_selector)?;
                let fields = &selected;
                Attributes { is_resource: true, group, resource, subresource, namespace, name, fields, ..blank }
            }
            About::Nothing | About::Group(_) | About::Answer(_) => return Err("nothing was asked about".to_owned()),
        };
        Ok(match decide(&attributes, &self.view) {
            Decision::Allow(why) => (true, why),
            Decision::NoOpinion(why) => (false, why),
        })
    }
}
