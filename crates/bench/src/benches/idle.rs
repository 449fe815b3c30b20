//! A cluster of one node with nothing to do: how soon it works, and what it then costs.

use std::time::{Duration, Instant};

use meta::json;

use crate::door::Ask;
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::real::{Readiness, Up, creation, deletion};

const NAMESPACE: &str = "default";
/// Between the end of the last pod and the measurement.
const SETTLE: Duration = Duration::from_secs(5);

pub const BENCH: Bench = Bench {
    name: "idle",
    about: "gantry up with one node: how soon the first write and the first pod, and what it costs without load",
    options: &[
        option("rounds", "3", "1", "How often it is started; the median counts"),
        option("seconds", "20", "2", "How long nothing happens"),
    ],
    figures: &[
        figure("rss_mb", Want::AtMost(100.0, 30.0)),
        figure("agent_rss_mb", Want::AtMost(20.0, 8.0)),
        figure("cpu_percent", Want::AtMost(1.0, 0.2)),
        figure("first_write_ms", Want::AtMost(500.0, 50.0)),
        figure("first_pod_running_ms", Want::AtMost(2_000.0, 1_000.0)),
    ],
    peer: None,
    needs_root: true,
    run,
};

fn run(run: &mut Run) -> Result<(), Error> {
    let tokio = runtime()?;
    for round in 1..=run.number("rounds")? {
        run.say(format!("round {round}"));
        tokio.block_on(once(run, round))?;
    }
    Ok(())
}

async fn once(run: &mut Run, round: u64) -> Result<(), Error> {
    let name = format!("up-{round}");
    // Not a part of the start.
    let data = Up::make_images(run, &name)?;
    let began = Instant::now();
    let up = Up::start_with_images(run, &name, data).await?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "first"}, "data": {"a": "b"}});
    let mut line = up.server.door.two().await?;
    line.ask(&Ask::post(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps"), &map)).await?;
    run.figure("first_write_ms", began.elapsed().as_secs_f64() * 1e3);
    let (pods, watch) = Readiness::watch(&up.server, NAMESPACE).await?;
    let names = ["first".to_owned()];
    loop {
        // Until the controllers have made the service account, pods are refused, as they are by Kubernetes.
        if line.exchange(&creation(NAMESPACE, &names[0])).await?.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    run.figure("first_pod_accepted_ms", began.elapsed().as_secs_f64() * 1e3);
    pods.wait(&names, "ready", |seen| seen.ready.is_some()).await?;
    run.figure("first_pod_running_ms", began.elapsed().as_secs_f64() * 1e3);
    line.ask(&deletion(NAMESPACE, &names[0])).await?;
    pods.wait(&names, "gone", |seen| seen.gone).await?;
    drop((pods, watch, line));
    tokio::time::sleep(SETTLE).await;
    let (server, agent) = (up.server.process(), up.agent()?);
    let seconds = run.number("seconds")? as f64;
    let before = (server.cpu_fine_us(), agent.cpu_fine_us());
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let percent = |us: u64| us as f64 / 1e6 / seconds * 100.0;
    let spent = (server.cpu_fine_us().since(&before.0), agent.cpu_fine_us().since(&before.1));
    run.figure("agent_cpu_percent", percent(spent.1));
    run.figure("cpu_percent", percent(spent.0 + spent.1));
    run.figure("server_rss_mb", server.rss_mb());
    run.figure("agent_rss_mb", agent.rss_mb());
    run.figure("rss_mb", server.rss_mb() + agent.rss_mb());
    Ok(())
}
