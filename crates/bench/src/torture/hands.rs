//! Nodes without machines, for servers that share an etcd: what is placed on them runs at once, and goes at once when it is
//! to. Whichever server answers is spoken to.

use std::time::{Duration, Instant};

use meta::{Value, json};

use super::cluster::pods_path;
use super::place_of;
use crate::cluster::Task;
use crate::door::{Ask, Door, Line};
use crate::error::Error;
use crate::frame::now;
use crate::shapes::{self, NODES};

const COUNT: usize = 6;
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// How often nodes look at their pods, and how often they say that they are well.
const LOOK: Duration = Duration::from_millis(50);
const TELL: Duration = Duration::from_secs(5);
/// How long a server may take to answer before another is asked.
const ANSWER: Duration = Duration::from_secs(4);

/// The nodes at work. They end with this.
pub struct Hands {
    _work: Task,
}

impl Hands {
    pub fn start(doors: &[Door]) -> Hands {
        let doors = doors.to_vec();
        let work = Task::spawn(async move {
            let (mut line, mut told): (Option<Line>, Option<Instant>) = (None, None);
            let mut at = 0;
            loop {
                tokio::time::sleep(LOOK).await;
                let tells = told.is_none_or(|told| told.elapsed() > TELL);
                let looked = tokio::time::timeout(ANSWER, look(&doors[place_of(&doors, at)], &mut line, tells)).await;
                match looked {
                    Ok(Ok(())) if tells => told = Some(Instant::now()),
                    Ok(Ok(())) => {}
                    // What was not told is told to the next.
                    Ok(Err(_)) | Err(_) => (line, at) = (None, at + 1),
                }
            }
        });
        Hands { _work: work }
    }
}

/// Tells of the nodes, with `tells`, and makes of their pods what they are to be.
async fn look(door: &Door, line: &mut Option<Line>, tells: bool) -> Result<(), Error> {
    if line.is_none() {
        *line = Some(door.two().await?);
    }
    let Some(line) = line else { return Err(Error::doing("speak to the server", "there is no line")) };
    if tells {
        for number in 0..COUNT {
            tell(line, number).await?;
        }
    }
    let pods = Value::parse(&line.ask(&Ask::get(&pods_path())).await?).map_err(Error::while_doing("read pods"))?;
    let placed = pods["items"].items().iter().filter(|pod| !pod.at(&["spec", "nodeName"]).text().is_empty());
    for (number, pod) in placed.enumerate() {
        let path = format!("{}/{}", pods_path(), pod.at(&["metadata", "name"]).text());
        // One that is gone already is as it is to be.
        if !pod.at(&["metadata", "deletionTimestamp"]).is_null() {
            drop(line.exchange(&Ask::delete(&format!("{path}?gracePeriodSeconds=0"))).await?);
        } else if pod.at(&["status", "phase"]).text() != "Running" {
            let status = shapes::running_status(number, now());
            let path = format!("{path}/status?fieldManager=kubelet");
            drop(line.exchange(&Ask::patch(&path, shapes::MERGE, &status)).await?);
        }
    }
    Ok(())
}

/// Makes a node and its lease, or says that it is well.
async fn tell(line: &mut Line, number: usize) -> Result<(), Error> {
    let name = shapes::node_name(number);
    let status = json!({"status": {"conditions": (node::node_object::conditions(now()))}});
    let path = format!("{NODES}/{name}/status?fieldManager=kubelet");
    if line.exchange(&Ask::patch(&path, shapes::STRATEGIC, &status)).await?.is_err_and(|status| status.code() == 404) {
        line.ask(&Ask::post(NODES, &shapes::node(number, 1, now()))).await?;
    }
    let lease = shapes::lease(&name, now());
    if line.exchange(&Ask::put(&format!("{LEASES}/{name}"), &lease)).await?.is_err_and(|status| status.code() == 404) {
        line.ask(&Ask::post(LEASES, &lease)).await?;
    }
    Ok(())
}
