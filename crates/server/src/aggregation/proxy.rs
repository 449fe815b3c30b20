//! Requests of callers, passed on to an aggregated server.
//!
//! Who asks was found and whether he may was decided here, before. The other server is told the user in headers; what
//! proved him to us stays here, and so do headers of the caller that name a user. A path that the other server could read
//! otherwise than it was authorized is refused.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::Full;
use meta::{Reason, Status};

use super::Remote;
use super::front_proxy::{is_of_identity, name_user};
use crate::Server;
use crate::authz::Authorized;
use crate::dispatch::Incomer;
use crate::flow::places::Place;
use crate::http::{Body, Response, body};
use crate::request::decode;
use crate::subresource::node;

/// How long an aggregated server may take to begin its answer: the request holds a seat meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Headers that are of one connection.
const HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Passes a request on and its answer back; an upgraded connection becomes a tunnel.
pub async fn pass(
    server: &Arc<Server>,
    remote: &Remote,
    auth: &Authorized,
    incomer: Incomer,
) -> Result<Response, Status> {
    check_path(incomer.uri.path())?;
    let target = incomer.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    pass_to(server, remote, auth, incomer, &target).await
}

/// The same, to a path of the other server that is not the caller's.
pub async fn pass_to(
    server: &Arc<Server>,
    remote: &Remote,
    auth: &Authorized,
    incomer: Incomer,
    target: &str,
) -> Result<Response, Status> {
    if !remote.is_available {
        return Err(Status::new(Reason::ServiceUnavailable, format!("service unavailable: {}", remote.name)));
    }
    let places = if auth.info.verb == "watch" { &server.watches } else { &server.passed };
    let place = places.take(&auth.user.name)?;
    let late = |_| {
        let why = format!("{} did not begin to answer within {} s", remote.name, ANSWER_TIMEOUT.as_secs());
        Status::new(Reason::Timeout, why)
    };
    let answering = answer(server, remote, auth, incomer, target, place);
    tokio::time::timeout(ANSWER_TIMEOUT, answering).await.map_err(late)?
}

async fn answer(
    server: &Arc<Server>,
    remote: &Remote,
    auth: &Authorized,
    mut incomer: Incomer,
    target: &str,
    place: Place,
) -> Result<Response, Status> {
    let upgrade = incomer.headers.get(header::UPGRADE).cloned();
    let body = if upgrade.is_some() { Bytes::new() } else { incomer.body().await? };
    let request = Request::builder().method(incomer.method.clone()).uri(target).body(Full::new(body));
    let mut request = request.map_err(Status::internal)?;
    *request.headers_mut() = kept(&incomer.headers);
    name_user(request.headers_mut(), &auth.user).map_err(Status::internal)?;
    let upgrades = upgrade.is_some();
    if let Some(upgrade) = upgrade {
        request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
        request.headers_mut().insert(header::UPGRADE, upgrade);
    }
    let answer = remote.link.send(server, request, upgrades).await;
    let answer = answer.map_err(|why| {
        Status::new(
            Reason::ServiceUnavailable,
            format!("error trying to reach service: {}: {why}", remote.link.place()),
        )
    })?;
    if answer.status().is_redirection() && answer.status() != StatusCode::NOT_MODIFIED {
        // It would be a way to make clients go elsewhere with what proves them.
        return Ok(body::text(502, "the backend attempted to redirect this request, which is not permitted"));
    }
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS || !upgrades {
        let (mut parts, incoming) = answer.into_parts();
        parts.headers = of_the_whole_way(&parts.headers);
        return Ok(http::Response::from_parts(parts, Body::Incoming(incoming).holding(place)));
    }
    Ok(node::tunnel(answer, incomer, place))
}

/// Headers without those that are of one connection, which its `Connection` may add to.
fn of_the_whole_way(headers: &HeaderMap) -> HeaderMap {
    let said = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> =
        said.flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase())).collect();
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if !HOP.contains(&name.as_str()) && !named.iter().any(|other| other == name.as_str()) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// The headers of a caller that the other server sees.
fn kept(headers: &HeaderMap) -> HeaderMap {
    let mut kept = of_the_whole_way(headers);
    kept.remove(header::HOST);
    kept.remove(header::CONTENT_LENGTH);
    let identity: Vec<_> = kept.keys().filter(|name| is_of_identity(name.as_str())).cloned().collect();
    for name in identity {
        kept.remove(name);
    }
    kept
}

/// # Errors
/// When parts of the path could be read in two ways: empty ones, `.` and `..`, encoded slashes.
fn check_path(path: &str) -> Result<(), Status> {
    let parts = path.strip_prefix('/').unwrap_or(path);
    let parts = parts.strip_suffix('/').unwrap_or(parts);
    for part in parts.split('/') {
        let part = decode(part, false);
        if matches!(&*part, "" | "." | "..") || part.contains(['/', '\\', '\u{fffd}']) {
            let why =
                format!("the path {path:?} is not passed on: its part {part:?} could be read otherwise elsewhere");
            return Err(Status::bad_request(why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proves_and_what_pretends_stays_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("x-remote-user", "root"),
            ("x_remote_group", "system:masters"),
            ("x-remote-extra-a", "b"),
            ("impersonate-user", "jane"),
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("host", "a"),
            ("accept", "application/json"),
            ("content-type", "application/json"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let kept = kept(&headers);
        let names: Vec<&str> = kept.keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["accept", "content-type"]);
    }

    #[test]
    fn paths_mean_the_same_to_everybody() {
        for good in ["/apis/a.b/v1", "/apis/a.b/v1/", "/apis/a.b/v1/namespaces/x/cats/tom%20cat/status"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in [
            "/apis/a.b/v1//cats",
            "/apis/a.b/v1/namespaces/x%2Fsecrets/cats",
            "/apis/a.b/v1/cats/../dogs",
            "/apis/a.b/v1/%2e%2e/dogs",
            "/apis/a.b/v1/cats/a%5cb",
            "/apis/a.b/v1/cats/%ff",
        ] {
            assert_eq!(check_path(bad).unwrap_err().code(), 400, "{bad}");
        }
    }
}
