//! The door for callers in this process: behind TLS and decoding, never behind admission.

use std::sync::Arc;

use client::{Action, Answer, Api, Reply, Request};
use meta::decode::FieldValidation;
use meta::{Facts, Object, Status};
use store::Compare;

use crate::Server;
use crate::authz::authorize;
use crate::codec;
use crate::identity::{MASTERS, User};
use crate::request::RequestInfo;
use crate::storage::fenced;
use crate::subresource;
use crate::verbs::options::{DeleteOptions, WriteOptions};
use crate::verbs::patch::{Patch, patch};
use crate::verbs::update::{Replace, change, standing};
use crate::verbs::{Call, delete};

/// The server itself.
pub fn system() -> User {
    User::new("system:apiserver", &[MASTERS])
}

/// A door for one identity.
pub struct Local {
    pub server: Arc<Server>,
    pub user: User,
}

impl Api for Local {
    fn call(&self, request: Request) -> Reply<'_, Answer> {
        Box::pin(call(&self.server, &self.user, request))
    }
}

/// A door through which nothing is written once `fence` has fallen.
pub struct Fenced {
    pub api: Arc<dyn Api>,
    pub fence: Compare,
}

impl Api for Fenced {
    fn call(&self, request: Request) -> Reply<'_, Answer> {
        Box::pin(fenced(self.fence.clone(), self.api.call(request)))
    }
}

/// Carries out one request as `user`.
pub async fn call(server: &Arc<Server>, user: &User, request: Request) -> Result<Answer, Status> {
    server.storage.refusal().map_or(Ok(()), Err)?;
    let registry = server.storage.registry();
    let resource = request.resource;
    let kind = registry
        .stored(resource)
        .ok_or_else(|| Status::not_found(resource.group(), resource.plural(), &request.name))?;
    let verb = match (&request.action, request.subresource.is_empty()) {
        (Action::Get, _) => "get",
        (Action::Find, _) => "list",
        (Action::Create(_), _) => "create",
        (Action::Update(_), _) => "update",
        (Action::Patch(..), _) => "patch",
        (Action::Delete, _) => "delete",
    };
    let info = RequestInfo {
        verb,
        is_resource: true,
        group: kind.names.group.clone(),
        version: kind.names.version.clone(),
        resource: kind.names.plural.clone(),
        subresource: request.subresource.clone(),
        namespace: request.namespace.clone(),
        name: request.name.clone(),
        ..RequestInfo::default()
    };
    let view = server.storage.mirror().view();
    let auth = authorize(user.clone(), info, &view).map_err(|(_, status)| status)?;
    drop(view);
    let options = WriteOptions {
        dry_run: request.options.dry_run,
        manager: request.options.manager.clone(),
        force: request.options.force,
        validation: FieldValidation::Ignore,
    };
    let call = Call { auth: &auth, kind, options: &options, now: server.now() };
    let outcome = match request.action {
        Action::Get => {
            let object = server.one(resource, &request.namespace, &request.name);
            let object = object.ok_or_else(|| call.not_found(&request.name))?;
            let revision = object.revision();
            return Ok(Answer { object, revision });
        }
        Action::Find => {
            let view = server.storage.mirror().view();
            let object = view.one(resource, &request.namespace, &request.name).cloned();
            return Ok(Answer { object: object.ok_or_else(|| call.not_found(&request.name))?, revision: view.at() });
        }
        Action::Create(given) if request.subresource.is_empty() => {
            let like = server.creations.like(&call, &given);
            // The next one, made of the same template, is then seen to be complete.
            let template = like.is_null().then(|| given.clone());
            let (mut value, _) = codec::complete(&call, &like, given)?;
            if let Some(template) = template {
                value.graft(&template);
            }
            subresource::create_or_review(server, &call, value).await?
        }
        Action::Create(value) => subresource::post_value(server, &call, value).await?,
        Action::Update(value) => {
            let (value, _) = codec::complete(&call, &standing(server, &call), value)?;
            change(server, &call, &Replace { value, warnings: Vec::new() }).await?
        }
        Action::Patch(kind, value) => patch(server, &call, Patch { kind, patch: value }).await?,
        Action::Delete => {
            let options = DeleteOptions {
                dry_run: request.options.dry_run,
                grace_seconds: request.options.grace_seconds,
                uid: request.options.uid.clone(),
                revision: request.options.revision,
                propagation: request.options.propagation,
                ..DeleteOptions::default()
            };
            delete::delete(server, &call, &options).await?
        }
    };
    let revision = server.storage.mirror().revision();
    let object = match outcome.stored {
        Some(object) => object,
        None => Object::new(Facts::of(resource, &outcome.value), outcome.value.to_json()),
    };
    Ok(Answer { object, revision })
}
