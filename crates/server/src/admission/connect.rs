//! Connections (exec, attach, port-forward, proxies) under admission: policies and webhooks may refuse them, and nothing can
//! be changed.

use cache::View;
use meta::{Kind, Status, Value, json};

use super::policies::validating::ValidatingAdmissionPolicy;
use super::{Admission, Review, webhooks};
use crate::Server;
use crate::authz::Authorized;
use crate::request::Query;

struct Connection<'a> {
    server: &'a Server,
    auth: &'a Authorized,
    kind: &'a Kind,
}

/// Whether the connection may be made.
pub async fn check(server: &Server, auth: &Authorized, kind: &Kind, query: &Query) -> Result<(), Status> {
    let connection = Connection { server, auth, kind };
    let options = options(kind, &auth.info.subresource, query);
    let view = server.storage.mirror().view();
    ValidatingAdmissionPolicy.validate(&mut webhooks::Asked::review(&connection, &view, options.clone()))?;
    let asks = webhooks::are_there(&view);
    drop(view);
    if asks {
        let mut warnings = Vec::new();
        webhooks::mutate(&connection, options.clone(), &mut warnings).await?;
        webhooks::validate(&connection, &options, &mut warnings).await?;
    }
    Ok(())
}

/// The query as the object that it stands for: `PodExecOptions` and the like.
fn options(kind: &Kind, subresource: &str, query: &Query) -> Value {
    let of = kind.subresource(subresource).map_or("", |subresource| subresource.body.2);
    let mut options = json!({"apiVersion": "v1", "kind": of});
    for flag in ["stdin", "stdout", "stderr", "tty"] {
        if matches!(query.text(flag), "1" | "true") {
            options.set(&[flag], true);
        }
    }
    for word in ["container", "path"] {
        if !query.text(word).is_empty() {
            options.set(&[word], query.text(word));
        }
    }
    let command: Vec<Value> = query.all("command").map(Value::from).collect();
    if !command.is_empty() {
        options.set(&["command"], Value::from(command));
    }
    options
}

impl webhooks::Asked for Connection<'_> {
    fn server(&self) -> &Server {
        self.server
    }

    fn review<'a>(&'a self, view: &'a View, object: Value) -> Review<'a> {
        let info = &self.auth.info;
        Review {
            server: self.server,
            view,
            operation: "CONNECT",
            group: &self.kind.names.group,
            resource: self.kind.resource,
            kind: self.kind,
            subresource: &info.subresource,
            namespace: &info.namespace,
            called: &info.name,
            user: &self.auth.user,
            dry_run: false,
            now: self.server.now(),
            old: None,
            object,
            companions: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn complete(&self, object: Value) -> Result<Value, Status> {
        Ok(object)
    }
}
