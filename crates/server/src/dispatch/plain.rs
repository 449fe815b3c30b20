//! Paths that are no resources: discovery, health, metrics, keys.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::Revision;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, header};
use meta::{Status, Value, json};

use crate::Server;
use crate::aggregation::proxy;
use crate::authz::Authorized;
use crate::codec;
use crate::discovery;
use crate::http::negotiate::content_type;
use crate::http::{Response, body};

use super::{Incomer, accept_of, no_such_resource, not_allowed};

/// Paths that are no resources.
pub(super) async fn plain(server: &Arc<Server>, auth: &Authorized, incomer: Incomer) -> Result<Response, Status> {
    let path = auth.info.path.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let registry = server.storage.registry();
    if let ["apis", group, version] = parts.as_slice()
        && let Some(remote) = registry.remote(group, version)
    {
        return proxy::pass(server, remote, auth, incomer).await;
    }
    if !matches!(incomer.method, Method::GET | Method::HEAD) {
        return Err(not_allowed());
    }
    if let ["openapi", "v3", "apis", group, version] = parts.as_slice()
        && let Some(remote) = registry.remote(group, version)
    {
        // Without the hash that the caller may have: one that is not the newest would be answered elsewhere.
        let target = format!("/openapi/v3/apis/{}/{}", remote.group, remote.version);
        return proxy::pass_to(server, remote, auth, incomer, &target).await;
    }
    match parts.as_slice() {
        ["healthz" | "livez", ..] => Ok(health(server, &incomer, &parts, true)),
        ["readyz", ..] => {
            let ready = server.ready.load(Ordering::Acquire);
            Ok(health(server, &incomer, &parts, ready))
        }
        ["version"] => Ok(body::json(200, &version())),
        ["api"] | ["apis"] => {
            let core = parts[0] == "api";
            let aggregated =
                incomer.header(header::ACCEPT).is_some_and(|accept| accept.contains("APIGroupDiscoveryList"));
            if aggregated {
                return Ok(aggregated_discovery(&registry, core, &incomer));
            }
            let plain =
                if core { discovery::core_versions(&server.options.advertise) } else { discovery::groups(&registry) };
            discovery_answer(&incomer, &plain)
        }
        ["api", version] => {
            let resources = discovery::resources(&registry, "", version).ok_or_else(no_such_resource)?;
            discovery_answer(&incomer, &resources)
        }
        ["apis", group] => match discovery::one_group(&registry, group) {
            Some(group) => discovery_answer(&incomer, &group),
            None => Ok(body::text(404, "404 page not found\n")),
        },
        ["apis", group, version] => match discovery::resources(&registry, group, version) {
            Some(resources) => discovery_answer(&incomer, &resources),
            None => Ok(body::text(404, "404 page not found\n")),
        },
        ["openapi", ..] => crate::subresource::openapi::answer(&registry, &parts, &incomer),
        ["openid", "v1", "jwks"] => {
            Ok(body::answer(200, "application/jwk-set+json", server.authn.tokens.key_set().to_json()))
        }
        [".well-known", "openid-configuration"] => Ok(body::json(
            200,
            &json!({
                "issuer": (crate::tokens::ISSUER),
                "jwks_uri": (format!("https://{}/openid/v1/jwks", server.options.advertise)),
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            }),
        )),
        ["metrics"] => Ok(body::text(200, metrics(server))),
        ["metrics", "slis"] => Ok(body::text(200, health_metrics(server))),
        ["beat", node] => {
            let key = STANDARD.encode(server.beats().of(node));
            Ok(body::json(200, &json!({"key": key})))
        }
        ["join", "ca"] => Ok(body::text(200, server.ca.pem().to_owned())),
        [""] | [] => {
            let paths: Vec<Value> = [
                "/api",
                "/apis",
                "/healthz",
                "/livez",
                "/metrics",
                "/metrics/slis",
                "/openapi/v2",
                "/openapi/v3",
                "/readyz",
                "/version",
            ]
            .into_iter()
            .map(Value::from)
            .collect();
            Ok(body::json(200, &json!({"paths": paths})))
        }
        _ => Ok(body::text(404, "404 page not found\n")),
    }
}

fn discovery_answer(incomer: &Incomer, value: &Value) -> Result<Response, Status> {
    let accept = accept_of(incomer, false, false)?;
    let name = format!("io.k8s.apimachinery.pkg.apis.meta.v1.{}", value["kind"].text());
    let of = api::schema::builtin().named(&name);
    Ok(body::answer(200, content_type(accept.media), codec::write(accept, value, of)))
}

fn aggregated_discovery(registry: &crate::registry::Registry, core: bool, incomer: &Incomer) -> Response {
    let text = discovery::aggregated(registry, core).to_json();
    let tag = format!("\"{:016X}\"", base::hash64(&text));
    // Caches take over the headers of a 304, so it names the same type as the answer that it stands for.
    let form = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let known = incomer.header(header::IF_NONE_MATCH) == Some(tag.as_str());
    let mut response = if known { body::answer(304, form, Bytes::new()) } else { body::answer(200, form, text) };
    if let Ok(tag) = header::HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("Accept"));
    response
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "37", "gitVersion": (format!("v1.37.0+gantry.{}", env!("CARGO_PKG_VERSION"))),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "",
        "compiler": "rustc", "platform": (format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" })),
        "emulationMajor": "1", "emulationMinor": "37", "minCompatibilityMajor": "1", "minCompatibilityMinor": "36",
    })
}

/// What is checked by `/healthz`, `/livez` and `/readyz`.
fn checks(server: &Server) -> [(&'static str, bool); 4] {
    [
        ("ping", true),
        ("etcd", true),
        ("cache", server.storage.mirror().revision() > Revision::ZERO),
        ("bootstrap", server.ready.load(Ordering::Acquire)),
    ]
}

/// The same for those who count how often all is well.
fn health_metrics(server: &Server) -> String {
    let mut text = String::from("# TYPE kubernetes_healthcheck gauge\n");
    for of in ["healthz", "livez", "readyz"] {
        for (name, passed) in checks(server) {
            let passed = u8::from(passed);
            text.push_str(&format!("kubernetes_healthcheck{{name=\"{name}\",type=\"{of}\"}} {passed}\n"));
        }
    }
    text
}

fn health(server: &Server, incomer: &Incomer, parts: &[&str], good: bool) -> Response {
    let checks = checks(server);
    if let Some(name) = parts.get(1) {
        return match checks.iter().find(|(check, _)| check == name) {
            Some((_, true)) => body::text(200, "ok"),
            Some((_, false)) => body::text(500, "internal server error: not ready\n"),
            None => body::text(404, "404 page not found\n"),
        };
    }
    if incomer.query.get("verbose").is_none() && good {
        return body::text(200, "ok");
    }
    let mut text = String::new();
    for (check, passed) in checks {
        text.push_str(if passed { "[+]" } else { "[-]" });
        text.push_str(check);
        text.push_str(if passed { " ok\n" } else { " failed\n" });
    }
    let name = parts[0];
    text.push_str(&format!("{name} check {}\n", if good { "passed" } else { "failed" }));
    body::text(if good { 200 } else { 500 }, text)
}

fn metrics(server: &Server) -> String {
    let view = server.storage.mirror().view();
    let mut text = String::from("# TYPE apiserver_storage_objects gauge\n");
    for resource in view.resources() {
        text.push_str(&format!("apiserver_storage_objects{{resource=\"{resource}\"}} {}\n", view.count(resource)));
    }
    text.push_str(&server.flows.text());
    text.push_str(&format!("# TYPE gantry_revision counter\ngantry_revision {}\n", view.at()));
    // What a leader of the past still sent.
    let late = server.storage.late();
    text.push_str(&format!(
        "# TYPE gantry_leader_fenced_writes_total counter\ngantry_leader_fenced_writes_total {late}\n"
    ));
    text
}
