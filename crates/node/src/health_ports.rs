//! Health checks of balancers outside of the cluster: for each service that keeps its outside traffic on the nodes of its
//! pods, this node says on the service's `healthCheckNodePort` whether it has a ready pod of it.
//!
//! Plain HTTP, as balancers ask; an answer tells nothing but names and a number. A port that cannot be had is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base::Revision;
use bytes::Bytes;
use cache::{Key, View};
use client::Mirror;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use meta::{Resource, Str};
use net::plan::{OF_SERVICE, SERVICES, SLICES, Touched};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::network::{Cursor, interest};

/// How long a client may take for what it asks.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After a port that could not be had.
const RETRY: Duration = Duration::from_secs(10);
/// Clients of one port at once; more wait.
const CLIENTS_MAX: usize = 64;
const WATCHED: &[Resource] = &[SERVICES, SLICES];

/// A port that is answered; it is not any more when this goes.
struct Open {
    port: u16,
    ready: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers for as long as the future lives.
pub async fn keep(mirror: Arc<Mirror>, node: String) {
    for resource in WATCHED {
        mirror.knows(*resource, Revision(1)).await;
    }
    let listener = mirror.listen(interest(WATCHED));
    let mut cursor = Cursor::new(WATCHED);
    let (mut open, mut missing) = (BTreeMap::new(), BTreeSet::new());
    loop {
        let (view, touched) = cursor.touched(&mirror);
        let services = match touched {
            Touched::Some { services, .. } => services.into_iter().chain(std::mem::take(&mut missing)).collect(),
            Touched::All => {
                let known = open.keys().cloned().chain(std::mem::take(&mut missing));
                let there = view.list(SERVICES, "").map(|service| Key::of(service.namespace(), service.name()));
                there.chain(known).collect::<BTreeSet<Key>>()
            }
        };
        for key in services {
            if let Err(error) = update(&view, &node, &key, &mut open).await {
                tracing::warn!("the health of service {} is not told: {error}", key.0);
                missing.insert(key);
            }
        }
        drop(view);
        tokio::select! {
            () = listener.changed() => {}
            () = tokio::time::sleep(RETRY), if !missing.is_empty() => {}
        }
    }
}

/// Brings the port of one service up to date.
async fn update(view: &View, node: &str, key: &Key, open: &mut BTreeMap<Key, Open>) -> std::io::Result<()> {
    let Some((port, ready)) = wanted(view, node, key) else {
        open.remove(key);
        return Ok(());
    };
    if let Some(known) = open.get(key).filter(|known| known.port == port) {
        known.ready.store(ready, Ordering::Relaxed);
        return Ok(());
    }
    open.remove(key);
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await?;
    let ready = Arc::new(AtomicUsize::new(ready));
    let task = tokio::spawn(serve(listener, key.clone(), ready.clone())).abort_handle();
    open.insert(key.clone(), Open { port, ready, task });
    Ok(())
}

/// The port on which a service's health is told, and the number of its ready pods here.
fn wanted(view: &View, node: &str, key: &Key) -> Option<(u16, usize)> {
    let (namespace, name) = key.0.split_once('/')?;
    let port = view.one(SERVICES, namespace, name)?.value()["spec"]["healthCheckNodePort"].as_int()?;
    let port = u16::try_from(port).ok().filter(|port| *port > 0)?;
    let mut addresses = BTreeSet::new();
    for slice in view.by(SLICES, OF_SERVICE, &key.0) {
        let value = slice.value();
        let ready = value["endpoints"].items().iter().filter(|endpoint| {
            endpoint["nodeName"].text() == node && endpoint.at(&["conditions", "ready"]).as_bool() != Some(false)
        });
        addresses.extend(ready.map(|endpoint| Str::from(endpoint["addresses"][0].text())));
    }
    Some((port, addresses.len()))
}

async fn serve(listener: TcpListener, service: Key, ready: Arc<AtomicUsize>) {
    let service = Arc::new(service);
    let mut clients = tokio::task::JoinSet::new();
    loop {
        while clients.len() >= CLIENTS_MAX {
            clients.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        while clients.try_join_next().is_some() {}
        let (service, ready) = (service.clone(), ready.clone());
        clients.spawn(async move {
            let answer = service_fn(move |_| {
                let answer = answer(&service, ready.load(Ordering::Relaxed));
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
                tracing::debug!("a question about a service's health ended: {error}");
            }
        });
    }
}

fn answer(service: &Key, ready: usize) -> Response<Full<Bytes>> {
    let (namespace, name) = service.0.split_once('/').unwrap_or(("", &service.0));
    let body = meta::json!({
        "service": {"namespace": namespace, "name": name}, "localEndpoints": (i64::try_from(ready).unwrap_or(i64::MAX)),
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(body.to_json().into()));
    *response.status_mut() = if ready > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", header::HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", ready.into());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache::{Cache, Change, Index};
    use meta::{Facts, Object, Value, json};

    #[test]
    fn ready_pods_of_this_node_count_once() {
        let indexes = net::plan::INDEXES.iter();
        let mut cache = Cache::new(
            indexes.map(|(resource, name, of)| Index { resource: *resource, name, of: *of }).collect::<Vec<_>>(),
        );
        let mut put = |revision: u64, resource: Resource, value: Value| {
            let object = Object::new(Facts::of(resource, &value), value.to_json());
            let revision = Revision(revision);
            cache.apply(revision, [Change { revision, old: None, new: Some(object) }]);
        };
        let endpoint = |address: &str, node: &str, ready: bool| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": ready}});
        let slice = |name: &str, of: &str, endpoints: Vec<Value>| json!({"metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": of}}, "endpoints": endpoints});
        put(
            1,
            SERVICES,
            json!({"metadata": {"namespace": "ns", "name": "a"}, "spec": {"healthCheckNodePort": 30001i64}}),
        );
        put(2, SERVICES, json!({"metadata": {"namespace": "ns", "name": "b"}, "spec": {}}));
        put(3, SLICES, slice("a-1", "a", vec![endpoint("1.1.1.1", "n", true), endpoint("1.1.1.2", "n", false)]));
        put(4, SLICES, slice("a-2", "a", vec![endpoint("1.1.1.1", "n", true), endpoint("1.1.1.3", "other", true)]));
        put(5, SLICES, slice("b-1", "b", vec![endpoint("1.1.1.4", "n", true)]));
        let (view, service) = (cache.view(), Key::of("ns", "a"));
        assert_eq!(wanted(&view, "n", &service), Some((30001, 1)));
        assert_eq!(wanted(&view, "none", &service), Some((30001, 0)));
        assert_eq!(wanted(&view, "n", &Key::of("ns", "b")), None);
        assert_eq!(answer(&service, 0).status(), 503);
        assert_eq!(answer(&service, 2).headers()["x-load-balancing-endpoint-weight"], "2");
    }
}
