//! A node of one pod, to try the kubelet's endpoints with any client:
//! `cargo run -p node --example kubelet -- KUBELET_PEM KUBELET_KEY CA_PEM PORT`.
//!
//! It runs one busybox container `main` as pod `default/demo` (a web server on port 8080 and a ticking log), and a
//! terminal as container `tty`. Node and pod objects are made by whoever tries it. Ends with its standard input.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use meta::{Status, Value, json};
use node::kubelet::{ContainerRef, Metrics, Pods, serve, tls};
use runtime::testing::{Compression, TestImage};
use runtime::{Config, ContainerSpec, Embedded, LogSpec, Runtime, SandboxSpec};

runtime::testing::shim_here!();

const IMAGE: &str = "registry.test/busybox:1";
const SCRIPT: &str = "mkdir -p /www; echo hello from the pod > /www/index.html; httpd -p 127.0.0.1:8080 -h /www; \
    n=0; while true; do echo tick $n; echo tock $n >&2; n=$((n+1)); sleep 1; done";

struct One {
    runtime: Arc<dyn Runtime>,
    sandbox: String,
    containers: Vec<(&'static str, String, PathBuf)>,
}

impl Pods for One {
    fn container(&self, namespace: &str, pod: &str, container: &str) -> Result<ContainerRef, Status> {
        if (namespace, pod) != ("default", "demo") {
            return Err(Status::not_found("", "pods", pod));
        }
        let found = self.containers.iter().find(|(name, ..)| *name == container);
        let (name, id, log_path) =
            found.ok_or_else(|| Status::internal(format!("container not found ({container:?})")))?.clone();
        let tty = name == "tty";
        Ok(ContainerRef { id, log_path, previous_log_path: None, tty, stdin: true, stdin_once: false })
    }

    fn sandbox(&self, _: &str, _: &str) -> Result<String, Status> {
        Ok(self.sandbox.clone())
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    fn pods_json(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "PodList", "items": []})
    }

    fn running_json(&self) -> Value {
        json!({"kind": "PodList", "items": []})
    }

    fn stats_json(&self, _: bool) -> BoxFuture<'_, Value> {
        Box::pin(async { json!({"node": {}, "pods": []}) })
    }

    fn metrics(&self, _: Metrics) -> BoxFuture<'_, String> {
        Box::pin(async { "# none\n".to_owned() })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, cert, key, ca, port] = args.as_slice() else { return Err("CERT KEY CA PORT".into()) };
    let tls = tls(&std::fs::read_to_string(cert)?, &std::fs::read_to_string(key)?, &std::fs::read_to_string(ca)?)?;
    let dir = tempfile::Builder::new().prefix("gantry-kubelet-").tempdir()?;
    let embedded = Embedded::open(Config::new(dir.path().join("root"), dir.path().join("state")))?;
    let runtime: Arc<dyn Runtime> = Arc::new(embedded.clone());
    runtime.found().await?;
    let archive = dir.path().join("busybox.tar");
    TestImage { compression: Compression::None, ..TestImage::busybox() }.write_oci(&archive, IMAGE)?;
    runtime.load(archive).await?;
    let parent = format!("/{}", dir.path().file_name().unwrap_or_default().to_string_lossy());
    let mut spec = SandboxSpec::new("default", "demo", "uid-demo");
    spec.cgroup_parent = format!("{parent}/pod");
    let sandbox = runtime.run_sandbox(spec).await?.id;
    let mut containers = Vec::new();
    for name in ["main", "tty"] {
        let log = dir.path().join(name).join("0.log");
        let mut spec = ContainerSpec::new(&sandbox, name, IMAGE);
        spec.command = vec!["sh".into()];
        if name == "main" {
            spec.command.extend(["-c".into(), SCRIPT.into()]);
        }
        (spec.tty, spec.stdin) = (name == "tty", name == "tty");
        spec.log = Some(LogSpec { path: log.clone(), max_bytes: 400, max_files: 100 });
        let id = runtime.create(spec).await?;
        runtime.start(&id).await?;
        containers.push((name, id, log));
    }
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
    let pods = Arc::new(One { runtime: runtime.clone(), sandbox: sandbox.clone(), containers });
    let serving = tokio::spawn(serve(listener, tls, pods));
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    serving.abort();
    runtime.remove_sandbox(&sandbox).await?;
    embedded.cgroups().remove(&parent)?;
    Ok(())
}
