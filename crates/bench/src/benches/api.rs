//! The API over TLS: pods of the usual size, read and written by an ordinary client, over HTTP/2 and HTTP/1.1, as JSON
//! and as protobuf. The server runs on one processor, the client on the other.
//!
//! The pods wait at a gate, so that the scheduler has nothing to do with them; controllers and scheduler run as always.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Method;
use meta::Value;

use crate::child::Server;
use crate::door::{Ask, JSON, PROTOBUF};
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::load::{self, Load, Maker, Until};
use crate::machine;
use crate::shapes::{NAMESPACE, gated_pod, pod_name, pods_path, stored_pods};

pub const BENCH: Bench = Bench {
    name: "api",
    about: "80 % reads and 20 % writes of pods of the usual size over TLS, HTTP/2 and 1.1, JSON and protobuf",
    options: &[
        option("seconds", "4", "1", "How long each measurement lasts"),
        option("rounds", "3", "1", "How often; the median counts"),
        option("pods", "2000", "50", "Pods that are there"),
        option("outstanding", "64", "8", "Requests at once: enough to keep both processors busy"),
        option("pin", "0", "0", "1: server and client on a processor each; 0: both on all"),
    ],
    figures: &[
        figure("requests_per_s", Want::AtLeast(20_000.0, 50_000.0)),
        figure("p50_ms", Want::Nothing),
        figure("p99_ms", Want::AtMost(10.0, 10.0)),
        figure("cpu_us_per_get", Want::Nothing),
        figure("cpu_us_per_write", Want::Nothing),
    ],
    peer: None,
    needs_root: false,
    run,
};

fn run(run: &mut Run) -> Result<(), Error> {
    let pinned = run.number("pin")? == 1 && machine::cores() > 1;
    let server_cores: &[usize] = if pinned { &[0] } else { &[] };
    let tokio = runtime()?;
    let outcome = tokio.block_on(async {
        let server = Server::start(run, "server", server_cores).await?;
        if pinned {
            machine::pin(&[1]);
        }
        measure(run, &server).await
    });
    machine::unpin();
    outcome
}

async fn measure(run: &mut Run, server: &Server) -> Result<(), Error> {
    server.door.namespace(NAMESPACE).await?;
    let (pods, outstanding) = (run.count("pods")?, run.count("outstanding")?);
    let path = pods_path(NAMESPACE);
    run.say(format!("making {pods} pods"));
    let made: Maker = {
        let path = path.clone();
        Arc::new(move |number| Ask::post(&path, &gated_pod(&pod_name("pod", number))))
    };
    load::piped(server.process(), &server.door, outstanding, made, Until::Requests(pods)).await?;
    let one = server.door.get(&format!("{path}/{}", pod_name("pod", 0))).await?;
    run.figure("pod_bytes", one.len() as f64);

    let (seconds, rounds) = (run.number("seconds")? as f64, run.number("rounds")?);
    let stored = Arc::new(stored_pods(&server.door, &path).await?);
    let mix = Mix { path, stored, created: Arc::new(AtomicUsize::new(0)) };
    for round in 1..=rounds {
        run.say(format!("round {round} of {rounds}"));
        for (name, two, media) in [("", true, JSON), ("http1_", false, JSON), ("protobuf_", true, PROTOBUF)] {
            let load = drive(server, outstanding, two, seconds, mix.maker(media, 20)).await?;
            tell(run, name, load);
        }
        let load = drive(server, outstanding, true, seconds, mix.maker(JSON, 0)).await?;
        run.figure("gets_per_s", load.per_s());
        run.figure("cpu_us_per_get", load.cpu_us());
        run.figure("client_cpu_us_per_get", load.client_cpu_us());
        let load = drive(server, outstanding, true, seconds, mix.maker(JSON, 100)).await?;
        run.figure("writes_per_s", load.per_s());
        run.figure("cpu_us_per_write", load.cpu_us());
        let load = drive(server, 1, true, seconds / 4.0, mix.maker(JSON, 0)).await?;
        run.figure("serial_get_us", 1e6 / load.per_s());
    }
    run.figure("server_rss_mb", server.process().rss_mb());
    Ok(())
}

fn tell(run: &mut Run, name: &str, mut load: Load) {
    run.figure(&format!("{name}requests_per_s"), load.per_s());
    run.figure(&format!("{name}p50_ms"), load.ms(0.5));
    run.figure(&format!("{name}p99_ms"), load.ms(0.99));
    run.figure(&format!("{name}cpu_us_per_request"), load.cpu_us());
}

async fn drive(server: &Server, outstanding: usize, two: bool, seconds: f64, make: Maker) -> Result<Load, Error> {
    if two {
        return load::piped(server.process(), &server.door, outstanding, make, Until::Seconds(seconds)).await;
    }
    let lines = load::lines(&server.door, outstanding, two).await?;
    load::closed(server.process(), lines, make, Until::Seconds(seconds)).await
}

/// What is asked: reads of pods that stay; writes are in turn a new pod, a replacement of one that stays, and the
/// deletion of the new one.
struct Mix {
    path: String,
    /// The pods that stay, as the server gave them out.
    stored: Arc<Vec<Value>>,
    created: Arc<AtomicUsize>,
}

impl Mix {
    /// `writes` of 100 requests are writes.
    fn maker(&self, media: &'static str, writes: usize) -> Maker {
        let (path, created) = (self.path.clone(), self.created.clone());
        let pods = self.stored.len();
        let gets: Vec<Ask> =
            (0..pods).map(|number| Ask::get(&format!("{path}/{}", pod_name("pod", number))).accepting(media)).collect();
        // Written beforehand: what it costs to make bodies is not the question.
        let post = body(Method::POST, &path, &gated_pod(NEW), media);
        let windows = post.body.windows(NEW.len()).enumerate();
        let places: Vec<usize> =
            windows.filter(|(_, found)| *found == NEW.as_bytes()).map(|(place, _)| place).collect();
        let puts: Vec<[Ask; 2]> =
            self.stored.iter().map(|pod| ["0", "1"].map(|turn| put(&path, pod, turn, media))).collect();
        Arc::new(move |number| {
            // Spread evenly: with 20 of 100 every fifth is a write.
            if (number * writes) % 100 >= writes {
                return gets[number * 7919 % pods].clone();
            }
            let write = created.fetch_add(1, Ordering::Relaxed);
            match write % 2 {
                0 => Ask { body: named(&post.body, &places, &format!("new-{write:09}")), ..post.clone() },
                // When a pod's turn comes again it is changed again.
                _ => puts[write * 7919 % pods][write / pods % 2].clone(),
            }
        })
    }
}

/// The name that the body of a new pod bears until it has its own, which is as long.
const NEW: &str = "new-NNNNNNNNN";

fn named(body: &Bytes, places: &[usize], name: &str) -> Bytes {
    let mut named = body.to_vec();
    for place in places {
        named[*place..*place + NEW.len()].copy_from_slice(name.as_bytes());
    }
    named.into()
}

/// The replacement of a pod by itself with another annotation.
fn put(path: &str, pod: &Value, turn: &str, media: &'static str) -> Ask {
    let mut pod = pod.clone();
    pod.set(&["metadata", "annotations", "example.com/turn"], turn);
    body(Method::PUT, &format!("{path}/{}", pod["metadata"]["name"].text()), &pod, media)
}

/// A write with its body in the form of `media`.
fn body(method: Method, path: &str, object: &Value, media: &'static str) -> Ask {
    let encoded = match (media, api::schema::kind("", "v1", "Pod")) {
        (PROTOBUF, Some(of)) => meta::proto::encode(object, of).ok(),
        _ => None,
    };
    let (content_type, bytes) = match encoded {
        Some(bytes) => (PROTOBUF, Bytes::from(bytes)),
        None => (JSON, Bytes::from(object.to_json())),
    };
    Ask { content_type, accept: media, ..Ask::new(method, path, bytes) }
}
