//! The leader of several servers is struck in the middle of its work: while it places the pods of a deployment, and while it
//! replaces them by others. Another leads and goes on; what the first still writes is refused; no pod is bound twice and
//! none is too many; and whoever speaks to another server notices nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use meta::{Value, json};
use rustix::process::Signal;

use super::cluster::{Patience, eventually, is_ready, pods_path, signal, told};
use super::members::{Ring, SERVERS};
use super::{NAMESPACE, Tortured};
use crate::cluster::{Task, lock, watch};
use crate::door::{Ask, Door, Line};
use crate::error::Error;
use crate::real::pod;
use crate::shapes;

const REPLICAS: usize = 60;
/// With so many pods of a version placed, the work is in its middle.
const MIDDLE: usize = REPLICAS / 4;
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-scheduler";
/// Tells how many writes the store refused of a leader of the past.
const REFUSED: &str = "gantry_leader_fenced_writes_total ";
/// What a server says whose time as leader is over.
const OVER: &str = "leads no more";
/// How long an answer of a server may take that nobody struck, and how often one is asked for.
const ANSWER: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// How soon it is looked again whether a pod is placed.
const LOOK: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Blow {
    Stop,
    Kill,
}

impl Ring {
    pub async fn stop_leader(&mut self) -> Result<(), Error> {
        self.strike_leader(Blow::Stop).await
    }

    pub async fn kill_leader(&mut self) -> Result<(), Error> {
        self.strike_leader(Blow::Kill).await
    }

    async fn strike_leader(&mut self, blow: Blow) -> Result<(), Error> {
        self.works += 1;
        let name = format!("work-{}", self.works);
        // First its pods are placed, then replaced.
        for version in [1, 3] {
            self.strike_in(&name, version, blow).await?;
        }
        let door = self.server_at(0)?.door.clone();
        door.two().await?.ask(&Ask::delete(&format!("{}/{name}", deployments()))).await?;
        eventually("see a deployment's pods gone", async || {
            let pods = listed(&door, &format!("{}?labelSelector=app%3D{name}", pods_path())).await?;
            Ok(pods.is_empty().then_some(()))
        })
        .await
    }

    /// Strikes the leader while the deployment comes to `version`, and heals it while it comes to the next.
    async fn strike_in(&mut self, name: &str, version: usize, blow: Blow) -> Result<(), Error> {
        let leader = self.leader(None).await?;
        let others = (0..SERVERS).filter(|server| *server != leader);
        let others: Vec<Door> =
            others.map(|server| Ok(self.server_at(server)?.door.clone())).collect::<Result<_, Error>>()?;
        let (witness, work) = (Witness::start(&others), Work::watch(&others[0], name).await?);
        let server = self.server_at(leader)?;
        let (process, door) = (server.process(), server.door.clone());
        let (over, refused) = (server.child.said().matches(OVER).count(), refused(&door).await?);
        work.ask_for(version).await?;
        work.middle(version).await?;
        let struck = Instant::now();
        signal(process, if blow == Blow::Stop { Signal::STOP } else { Signal::KILL });
        self.leader(Some(leader)).await?;
        work.done(version).await?;
        if blow == Blow::Stop {
            tokio::time::sleep(self.stand.saturating_sub(struck.elapsed())).await;
        }
        work.ask_for(version + 1).await?;
        work.middle(version + 1).await?;
        match blow {
            Blow::Stop => signal(process, Signal::CONT),
            Blow::Kill => self.kill_these(&[leader]).await?,
        }
        work.done(version + 1).await?;
        if blow == Blow::Stop {
            let server = self.server_at(leader)?;
            let noticed = async || Ok((server.child.said().matches(OVER).count() > over).then_some(()));
            eventually("see a leader of the past notice it", noticed).await?;
        }
        self.answers().await?;
        if blow == Blow::Stop {
            self.fenced += self::refused(&door).await? - refused;
        }
        work.judge(&self.doors(), version + 1).await?;
        self.slowest = self.slowest.max(witness.end()?);
        Ok(())
    }

    /// Which server leads, as its scheduler's lease says; with `not`, as soon as it is another.
    pub async fn leader(&self, not: Option<usize>) -> Result<usize, Error> {
        let asked = self.server_at((not.unwrap_or(0) + 1) % SERVERS)?.door.clone();
        eventually("see a leader", async || {
            let lease = Value::parse(&asked.get(LEASE).await?).map_err(Error::while_doing("read a lease"))?;
            let holder = lease.at(&["spec", "holderIdentity"]).text().split('_').next().unwrap_or_default().to_owned();
            let port = holder.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            Ok(port.and_then(|port| self.at_port(port)).filter(|found| Some(*found) != not))
        })
        .await
    }

    /// How long it takes until a pod is placed that is made now; with `kills`, right after the leader was killed, who then
    /// begins anew.
    pub async fn time_placing(&mut self, name: &str, kills: bool) -> Result<Duration, Error> {
        let leader = self.leader(None).await?;
        let door = self.server_at((leader + 1) % SERVERS)?.door.clone();
        let seen = Arc::<Mutex<Option<Instant>>>::default();
        let (kept, wanted) = (seen.clone(), name.to_owned());
        let take = move |event: &[u8]| {
            let pod = Value::parse(event).unwrap_or_default()["object"].clone();
            if told(&pod) == wanted && !pod.at(&["spec", "nodeName"]).text().is_empty() {
                lock(&kept).get_or_insert_with(Instant::now);
            }
        };
        let _watching = watch(Some(door.two().await?), &format!("{}?watch=true", pods_path()), take).await?;
        let (mut line, process) = (door.two().await?, self.server_at(leader)?.process());
        let began = Instant::now();
        if kills {
            signal(process, Signal::KILL);
        }
        line.ask(&Ask::post(&pods_path(), &pod(NAMESPACE, name))).await?;
        let patience = Patience::begin();
        let placed = loop {
            if let Some(placed) = *lock(&seen) {
                break placed.saturating_duration_since(began);
            }
            if patience.is_over() {
                return Err(Error::doing("see a pod placed", "it is not"));
            }
            tokio::time::sleep(LOOK).await;
        };
        line.ask(&Ask::delete(&format!("{}/{name}?gracePeriodSeconds=0", pods_path()))).await?;
        if kills {
            self.leader(Some(leader)).await?;
            self.kill_these(&[leader]).await?;
            self.answers().await?;
        }
        Ok(placed)
    }
}

fn deployments() -> String {
    format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments")
}

async fn listed(door: &Door, path: &str) -> Result<Vec<Value>, Error> {
    let list = Value::parse(&door.get(path).await?).map_err(Error::while_doing("read a list"))?;
    Ok(list["items"].items().to_vec())
}

/// How many writes the store refused of this server as a leader of the past.
async fn refused(door: &Door) -> Result<u64, Error> {
    let text = door.get("/metrics").await?;
    let text = String::from_utf8_lossy(&text);
    let number = text.lines().find_map(|line| line.strip_prefix(REFUSED)?.parse().ok());
    number.ok_or_else(|| Error::doing("read what was refused", "the server does not tell"))
}

/// A deployment whose pods are watched.
struct Work {
    door: Door,
    name: String,
    seen: Arc<Mutex<Seen>>,
    _watching: Task,
}

/// What the watch showed of the pods, by their uids, and what must not be.
#[derive(Default)]
struct Seen {
    pods: BTreeMap<String, Pod>,
    broken: BTreeSet<String>,
}

#[derive(Default)]
struct Pod {
    version: String,
    node: String,
    ready: bool,
    over: bool,
}

impl Seen {
    fn take(&mut self, event: &Value) {
        let (pod, text) = (&event["object"], |path: &[&str]| event["object"].at(path).text().to_owned());
        let (version, node) = (text(&["metadata", "labels", "version"]), text(&["spec", "nodeName"]));
        let known = self.pods.entry(text(&["metadata", "uid"])).or_default();
        if !known.node.is_empty() && known.node != node {
            self.broken.insert(format!("{} was bound to {} and then to {node:?}", told(pod), known.node));
        }
        let over = event["type"].text() == "DELETED" || !pod.at(&["metadata", "deletionTimestamp"]).is_null();
        *known = Pod { version: version.clone(), node, ready: is_ready(pod), over };
        let live = self.live().filter(|pod| pod.version == version).count();
        if live > REPLICAS {
            self.broken.insert(format!("{live} pods of version {version} where {REPLICAS} are wanted"));
        }
    }

    fn live(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().filter(|pod| !pod.over)
    }
}

impl Work {
    async fn watch(door: &Door, name: &str) -> Result<Work, Error> {
        let seen = Arc::<Mutex<Seen>>::default();
        let kept = seen.clone();
        let take = move |event: &[u8]| {
            let event = Value::parse(event).unwrap_or_default();
            if !event["object"].is_null() {
                lock(&kept).take(&event);
            }
        };
        let path = format!("{}?labelSelector=app%3D{name}&watch=true", pods_path());
        let watching = watch(Some(door.two().await?), &path, take).await?;
        Ok(Work { door: door.clone(), name: name.to_owned(), seen, _watching: watching })
    }

    /// Wants the deployment in this version; the first makes it.
    async fn ask_for(&self, version: usize) -> Result<(), Error> {
        let (path, label) = (["spec", "template", "metadata", "labels", "version"], version.to_string());
        let ask = if version == 1 {
            let mut made = shapes::deployment(NAMESPACE, &self.name, REPLICAS);
            made.set(&path, label);
            Ask::post(&deployments(), &made)
        } else {
            let mut patch = json!({});
            patch.set(&path, label);
            Ask::patch(&format!("{}/{}", deployments(), self.name), shapes::MERGE, &patch)
        };
        self.door.two().await?.ask(&ask).await.map(|_| ())
    }

    /// Waits until a part of the version's pods is placed.
    async fn middle(&self, version: usize) -> Result<(), Error> {
        let version = version.to_string();
        let placed = async || {
            let seen = lock(&self.seen);
            let placed = seen.pods.values().filter(|pod| pod.version == version && !pod.node.is_empty()).count();
            Ok((placed >= MIDDLE).then_some(()))
        };
        eventually("see pods placed", placed).await
    }

    /// Waits until all pods are of the version, and ready.
    async fn done(&self, version: usize) -> Result<(), Error> {
        let version = version.to_string();
        let done = async || {
            let seen = lock(&self.seen);
            let all = seen.live().all(|pod| pod.version == version && pod.ready && !pod.node.is_empty());
            Ok((all && seen.live().count() == REPLICAS).then_some(()))
        };
        eventually(&format!("see {} whole in version {version}", self.name), done).await
    }

    /// Every server shows the same whole work, and nothing was seen on the way that must not be.
    async fn judge(&self, doors: &[Door], versions: usize) -> Result<(), Error> {
        let mut broken = std::mem::take(&mut lock(&self.seen).broken);
        for door in doors {
            let pods = listed(door, &format!("{}?labelSelector=app%3D{}", pods_path(), self.name)).await?;
            let live = pods.iter().filter(|pod| pod.at(&["metadata", "deletionTimestamp"]).is_null());
            let bound = live.clone().filter(|pod| !pod.at(&["spec", "nodeName"]).text().is_empty()).count();
            let sets = format!("/apis/apps/v1/namespaces/{NAMESPACE}/replicasets?labelSelector=app%3D{}", self.name);
            let (live, sets) = (live.count(), listed(door, &sets).await?.len());
            if (live, bound, sets) != (REPLICAS, REPLICAS, versions) {
                let found = format!("{live} pods, {bound} of them placed, in {sets} sets of {versions} versions");
                broken.insert(format!("{} shows {found}", door.address()));
            }
        }
        match broken.is_empty() {
            true => Ok(()),
            false => Err(Error::doing("do a leader's work once", broken.into_iter().collect::<Vec<_>>().join("; "))),
        }
    }
}

/// Clients of the servers that nobody strikes.
struct Witness {
    heard: Arc<Mutex<Heard>>,
    _asking: Vec<Task>,
}

#[derive(Default)]
struct Heard {
    slowest: Duration,
    broken: Vec<String>,
}

impl Witness {
    fn start(doors: &[Door]) -> Witness {
        let heard = Arc::<Mutex<Heard>>::default();
        let ask = |door: &Door| Task::spawn(ask_again(door.clone(), heard.clone()));
        let asking = doors.iter().map(ask).collect();
        Witness { heard, _asking: asking }
    }

    /// How long the slowest answer took.
    fn end(self) -> Result<Duration, Error> {
        let heard = lock(&self.heard);
        match heard.broken.is_empty() {
            true => Ok(heard.slowest),
            false => Err(Error::doing("serve as if nothing were", heard.broken.join("; "))),
        }
    }
}

/// Writes and reads at one server, over and over.
async fn ask_again(door: Door, heard: Arc<Mutex<Heard>>) {
    let name = format!("witness-{}", door.address().replace(':', "-"));
    let path = format!("/api/v1/namespaces/default/configmaps/{name}");
    let mut line: Option<Line> = None;
    for count in 0u64.. {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": (name.as_str())},
            "data": {"count": (count.to_string())},
        });
        let applies = format!("{path}?fieldManager=witness");
        for ask in [Ask::patch(&applies, "application/apply-patch+yaml", &map), Ask::get(&path)] {
            let began = Instant::now();
            let asked = async {
                if line.is_none() {
                    line = Some(door.two().await?);
                }
                match &mut line {
                    Some(line) => line.ask(&ask).await.map(|_| ()),
                    None => Ok(()),
                }
            };
            let answer = tokio::time::timeout(ANSWER, asked).await;
            let answer = answer.unwrap_or_else(|_| Err(Error::doing("hear an answer", "none came in time")));
            let mut heard = lock(&heard);
            heard.slowest = heard.slowest.max(began.elapsed());
            heard.broken.extend(answer.err().map(|error| error.to_string()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
