//! A whole cluster with a real node: `gantry up`, an image to run, and pods that are watched until they are ready.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use meta::Value;
use runtime::testing::{Compression, TestImage};

use crate::child::Server;
use crate::cluster::{Task, lock, watch};
use crate::door::Ask;
use crate::error::Error;
use crate::frame::Run;
use crate::machine::Process;

pub const IMAGE: &str = "bench.example/busybox:1";
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `gantry up`.
pub struct Up {
    pub server: Server,
}

impl Up {
    /// Starts a cluster of one node whose store of images has [`IMAGE`].
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(run: &Run, name: &str) -> Result<Up, Error> {
        Up::start_with_images(run, name, Up::make_images(run, name)?).await
    }

    /// The folder for a cluster of this name, with [`IMAGE`] among its images.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn make_images(run: &Run, name: &str) -> Result<PathBuf, Error> {
        let data = run.dir().join(name);
        let images = data.join("images");
        std::fs::create_dir_all(&images).map_err(Error::while_doing("make a folder"))?;
        let image = TestImage { compression: Compression::None, ..TestImage::busybox() };
        image.write_oci(&images.join("busybox.tar"), IMAGE).map_err(Error::while_doing("make an image"))?;
        Ok(data)
    }

    /// Starts it in a folder of [`Up::make_images`].
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_with_images(run: &Run, name: &str, data: PathBuf) -> Result<Up, Error> {
        let port = free_port()?;
        let mut command = Command::new(&run.binary);
        command.args(["up", "--nodes", "1", "--log", "warn", "--listen", &format!("127.0.0.1:{port}"), "--data"]);
        command.arg(&data);
        let server = Server::of(command, data, &[], &run.dir().join(format!("{name}.log"))).await?;
        Ok(Up { server })
    }

    /// The process of the node's agent.
    ///
    /// # Errors
    /// There is none.
    pub fn agent(&self) -> Result<Process, Error> {
        let children = self.server.process().children();
        let agent = children.into_iter().find(|child| child.words().iter().any(|word| word == "agent"));
        agent.ok_or_else(|| Error::doing("find the agent", "no process of the cluster is one"))
    }

    /// Waits until the node takes pods.
    ///
    /// # Errors
    /// It does not within a minute.
    pub async fn ready(&self) -> Result<(), Error> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let text = self.server.door.get("/api/v1/nodes").await?;
            let nodes = Value::parse(&text).map_err(Error::while_doing("read the nodes"))?;
            let all = nodes["items"].items();
            let ready = |node: &Value| {
                node["status"]["conditions"]
                    .items()
                    .iter()
                    .any(|one| one["type"].text() == "Ready" && one["status"].text() == "True")
            };
            if !all.is_empty() && all.iter().all(ready) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(Error::doing("see the node ready", "it is not within a minute"))
    }
}

/// A port that nobody listens on now.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16, Error> {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").map_err(Error::while_doing("find a port"))?;
    let address = socket.local_addr().map_err(Error::while_doing("find a port"))?;
    Ok(address.port())
}

/// Notes when pods of a namespace become ready, and when they are gone.
pub struct Readiness {
    pods: Mutex<HashMap<String, Seen>>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub ready: Option<Instant>,
    pub gone: bool,
}

impl Readiness {
    /// Watches until the task is dropped.
    ///
    /// # Errors
    /// The watch is refused.
    pub async fn watch(server: &Server, namespace: &str) -> Result<(Arc<Readiness>, Task), Error> {
        let found = Arc::new(Readiness { pods: Mutex::default() });
        let seen = found.clone();
        let status = Finder::new(br#""status":{"#).into_owned();
        let take = move |line: &[u8]| {
            if status.find(line).is_none() {
                return;
            }
            let Ok(event) = Value::parse(line) else { return };
            let pod = &event["object"];
            let mut pods = lock(&seen.pods);
            let entry = pods.entry(pod["metadata"]["name"].text().to_owned()).or_default();
            entry.gone = event["type"].text() == "DELETED";
            let ready = pod["status"]["conditions"]
                .items()
                .iter()
                .any(|one| one["type"].text() == "Ready" && one["status"].text() == "True");
            if ready && entry.ready.is_none() {
                entry.ready = Some(Instant::now());
            }
        };
        let path = format!("/api/v1/namespaces/{namespace}/pods?watch=true");
        let task = watch(Some(server.door.two().await?), &path, take).await?;
        Ok((found, task))
    }

    pub fn of(&self, name: &str) -> Seen {
        lock(&self.pods).get(name).copied().unwrap_or_default()
    }

    /// Waits until `holds` of all named pods.
    ///
    /// # Errors
    /// It does not within a minute.
    pub async fn wait(&self, names: &[String], what: &str, holds: impl Fn(Seen) -> bool) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            let missing = names.iter().filter(|name| !holds(self.of(name))).count();
            if missing == 0 {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::doing(format!("see all pods {what}"), format!("{missing} are not within a minute")));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A pod that runs until it is told to end.
pub fn pod(namespace: &str, name: &str) -> Value {
    meta::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": IMAGE, "command": ["sleep", "1000000"], "imagePullPolicy": "IfNotPresent",
                "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}, "limits": {"memory": "64Mi"}},
            }],
        },
    })
}

/// The request that makes it.
pub fn creation(namespace: &str, name: &str) -> Ask {
    Ask::post(&format!("/api/v1/namespaces/{namespace}/pods"), &pod(namespace, name))
}

/// The request that ends it at once.
pub fn deletion(namespace: &str, name: &str) -> Ask {
    Ask::delete(&format!("/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=1"))
}
