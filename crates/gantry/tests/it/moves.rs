//! A cluster that moves between a store of its own and etcd, as its users do it: nothing changes but the place.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use client::{Api, HttpApi, PatchType, Request};
use meta::{Value, json};

use crate::servers::{MAPS, Process, door, port, start_etcd, surely, until};

/// A server on a data folder, with its port.
async fn start(data: &Path, log: &Path, more: &[&str]) -> (Process, u16) {
    let port = port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gantry"));
    command.args(["server", "--listen", &format!("127.0.0.1:{port}"), "--parts", "api,controllers,scheduler"]);
    let process = Process::start(command.arg("--data").arg(data).args(more), log);
    until("the start", async || process.words().contains("The API answers on").then_some(())).await;
    (process, port)
}

fn stop(mut process: Process) {
    process.signal("-TERM");
    process.child.wait().unwrap();
}

/// Runs a command to its end: what it said when it went well, and what when not.
fn gantry(words: &[&str]) -> Result<String, String> {
    let done = Command::new(env!("CARGO_BIN_EXE_gantry")).args(words).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "labels": {"of": "moves"}}, "data": {"n": name}})
}

/// The objects, and their revisions.
async fn shown(api: &HttpApi) -> BTreeMap<String, (String, String)> {
    let text = api.get_raw("/api/v1/namespaces/default/configmaps?labelSelector=of%3Dmoves").await.unwrap();
    let list = Value::parse(&text).unwrap();
    let text = |item: &Value, path: &[&str]| item.at(path).text().to_owned();
    let one = |item: &Value| {
        let (name, revision) = (text(item, &["metadata", "name"]), text(item, &["metadata", "resourceVersion"]));
        (name, (revision, text(item, &["data", "n"])))
    };
    list["items"].items().iter().map(one).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_moves_into_etcd_and_back_with_every_object_at_its_revision() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).display().to_string();
    let (data, back) = (place("data"), place("back"));
    let (_etcd, endpoint) = start_etcd(dir.path());
    let (server, at) = start(Path::new(&data), &dir.path().join("first"), &[]).await;
    let url = |port: u16| format!("https://127.0.0.1:{port}");
    let api = door(Path::new(&data), &url(at));
    for number in 0..50 {
        surely(&api, Request::create(MAPS, map(&format!("moved-{number}")))).await;
    }
    api.call(Request::delete(MAPS, "default", "moved-7")).await.unwrap();
    let before = shown(&api).await;
    let etcd = ["--etcd-endpoints", &endpoint];
    let there = [&["store", "migrate", "--from", "embedded", "--to", "etcd", "--data", &data], &etcd[..]].concat();
    gantry(&there).expect_err("its server runs");
    stop(server);
    let said = gantry(&there).unwrap();
    assert!(said.contains("All arrived"), "{said}");
    let in_etcd = [&["--backend", "etcd"], &etcd[..]].concat();
    let (server, at) = start(Path::new(&data), &dir.path().join("second"), &in_etcd).await;
    // The same authority, the same token.
    let api = door(Path::new(&data), &url(at));
    assert_eq!(shown(&api).await, before);
    let patch = Request::patch(MAPS, "default", "moved-1", PatchType::Merge, json!({"data": {"n": "other"}}));
    api.call(patch).await.unwrap();
    surely(&api, Request::create(MAPS, map("made-in-etcd"))).await;
    let after = shown(&api).await;
    let revision = |of: &BTreeMap<String, (String, String)>, name: &str| of[name].0.parse::<u64>().unwrap();
    assert!(before.keys().all(|name| revision(&after, "made-in-etcd") > revision(&before, name)));
    let secret = format!("{data}/cluster-secret");
    let home = ["store", "migrate", "--from", "etcd", "--to", "embedded", "--data", &back, "--cluster-secret-file"];
    let home = [&home[..], &[&secret], &etcd[..]].concat();
    let refused = gantry(&home).expect_err("a server runs on this etcd");
    assert!(refused.contains("servers still run"), "{refused}");
    stop(server);
    // Its sign of being there goes with it, or with its lease.
    let said = until("the way home", async || gantry(&home).ok()).await;
    assert!(said.contains("All arrived"), "{said}");
    let (server, at) = start(Path::new(&back), &dir.path().join("third"), &[]).await;
    let api = door(Path::new(&back), &url(at));
    assert_eq!(shown(&api).await, after);
    surely(&api, Request::create(MAPS, map("made-at-home"))).await;
    let last = shown(&api).await;
    assert!(after.keys().all(|name| revision(&last, "made-at-home") > revision(&after, name)));
    stop(server);
}
