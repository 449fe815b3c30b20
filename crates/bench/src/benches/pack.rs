//! How well pods of many sizes are packed onto nodes of many sizes: pods arrive until none fits any more; then the volume
//! that was placed is compared with what the nodes have, and with what best fit places of the same pods in the same order.
//!
//! Nodes over the lower bound: the nodes there are, over the share of them that the placed volume would fill without any
//! waste. Over best fit: the same ratio, over best fit's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::Rng;
use meta::json;

use crate::child::Server;
use crate::cluster::{Nodes, Pods};
use crate::door::Ask;
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, now, option, runtime};
use crate::load::{self, Maker, Until};
use crate::shapes::{NAMESPACE, base_pod, node, pod_name, pods_path};

/// CPU in thousandths and memory in MiB of the sorts of nodes.
const NODE_SORTS: [Size; 4] = [Size(4_000, 16_384), Size(8_000, 32_768), Size(8_000, 65_536), Size(16_000, 65_536)];
/// Thousandths of CPU, memory in MiB for each CPU; how many of a hundred.
const POD_SORTS: [(u64, u64, u64); 8] = [
    (100, 4_096, 20),
    (250, 4_096, 20),
    (500, 2_048, 15),
    (500, 8_192, 10),
    (1_000, 4_096, 15),
    (2_000, 4_096, 10),
    (3_000, 2_048, 5),
    (4_000, 8_192, 5),
];
const PODS_OF_A_NODE: u64 = 110;
/// Pods offered, in hundredths of what the nodes have.
const OFFERED_PERCENT: u64 = 120;
/// When nothing more is bound for so long, nothing fits any more.
const STILL: Duration = Duration::from_secs(8);

pub const BENCH: Bench = Bench {
    name: "pack",
    about: "Pods of many sizes on nodes of many sizes until none fits; compared with the volume and with best fit",
    options: &[
        option("nodes", "500", "4", "Nodes, in four sizes"),
        option("seed", "1", "1", "Which pods, in which order"),
        option("outstanding", "64", "8", "Requests at once"),
    ],
    figures: &[
        figure("nodes_over_lower_bound", Want::AtMost(1.05, 1.03)),
        figure("nodes_over_best_fit", Want::AtMost(1.0, 0.97)),
    ],
    peer: None,
    needs_root: false,
    run,
};

/// CPU in thousandths, memory in MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size(u64, u64);

impl Size {
    fn plus(self, other: Size) -> Size {
        Size(self.0 + other.0, self.1 + other.1)
    }

    /// The larger share of `whole` that this is.
    fn share(self, whole: Size) -> f64 {
        (self.0 as f64 / whole.0 as f64).max(self.1 as f64 / whole.1 as f64)
    }
}

fn run(run: &mut Run) -> Result<(), Error> {
    runtime()?.block_on(async {
        let server = Server::start(run, "server", &[]).await?;
        measure(run, &server).await
    })
}

/// What nodes have and pods want.
fn trace(nodes: usize, seed: u64) -> (Vec<Size>, Vec<Size>) {
    let sizes: Vec<Size> = (0..nodes).map(|number| NODE_SORTS[number % NODE_SORTS.len()]).collect();
    let whole = sizes.iter().fold(Size::default(), |sum, size| sum.plus(*size));
    let (mut rng, mut offered, mut pods) = (Rng::new(seed), Size::default(), Vec::new());
    while offered.0 * 100 < whole.0 * OFFERED_PERCENT {
        let mut draw = rng.below(100);
        let sort = POD_SORTS.iter().find(|(_, _, weight)| {
            let found = draw < *weight;
            draw = draw.saturating_sub(*weight);
            found
        });
        let (cpu, per_cpu, _) = sort.copied().unwrap_or(POD_SORTS[0]);
        let pod = Size(cpu, cpu * per_cpu / 1_000);
        offered = offered.plus(pod);
        pods.push(pod);
    }
    (sizes, pods)
}

async fn measure(run: &mut Run, server: &Server) -> Result<(), Error> {
    let (sizes, wanted) = trace(run.count("nodes")?, run.number("seed")?);
    let outstanding = run.count("outstanding")?;
    server.door.namespace(NAMESPACE).await?;
    run.say(format!("{} nodes, {} pods", sizes.len(), wanted.len()));
    let all = sizes.clone();
    let make: Maker = Arc::new(move |number| {
        let mut node = node(number, 3, now());
        let (Size(cpu, memory), pods) = (all[number], PODS_OF_A_NODE.to_string());
        let amounts = json!({"cpu": (format!("{cpu}m")), "memory": (format!("{memory}Mi")), "pods": pods});
        node.set(&["status", "capacity"], amounts.clone());
        node.set(&["status", "allocatable"], amounts);
        Ask::post(crate::shapes::NODES, &node)
    });
    let _nodes = Nodes::made(server, sizes.len(), make, outstanding).await?;
    let (pods, _watch) = Pods::watch(server).await?;
    pods.count("p-");
    let (path, all) = (pods_path(NAMESPACE), wanted.clone());
    let make: Maker = Arc::new(move |number| {
        let mut pod = base_pod(&pod_name("p", number));
        let Size(cpu, memory) = all[number];
        let amounts = json!({"cpu": (format!("{cpu}m")), "memory": (format!("{memory}Mi"))});
        if let Some(container) = pod.at_mut(&["spec", "containers"]).and_then(|all| all.items_mut().first_mut()) {
            container.set(&["resources"], json!({"requests": amounts}));
        }
        Ask::post(&path, &pod)
    });
    load::piped(server.process(), &server.door, outstanding, make, Until::Requests(wanted.len())).await?;
    let (mut known, mut since) = (0, Instant::now());
    while since.elapsed() < STILL {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let bound = pods.counted();
        if bound > known {
            (known, since) = (bound, Instant::now());
        }
    }
    let whole = sizes.iter().fold(Size::default(), |sum, size| sum.plus(*size));
    let names = (0..wanted.len()).filter(|number| pods.bound_us(&pod_name("p", *number)).is_some());
    let placed = names.fold(Size::default(), |sum, number| sum.plus(wanted[number]));
    let best = best_fit(&sizes, &wanted);
    run.figure("pods_placed", known as f64);
    run.figure("placed_percent", placed.share(whole) * 100.0);
    run.figure("best_fit_placed_percent", best.share(whole) * 100.0);
    run.figure("nodes_over_lower_bound", 1.0 / placed.share(whole));
    run.figure("nodes_over_best_fit", best.share(whole) / placed.share(whole));
    Ok(())
}

/// What best fit places: each pod goes where, of the nodes that have room, the least is left.
fn best_fit(nodes: &[Size], pods: &[Size]) -> Size {
    let mut free: Vec<(Size, u64)> = nodes.iter().map(|size| (*size, PODS_OF_A_NODE)).collect();
    let mut placed = Size::default();
    for pod in pods {
        let fits = |(free, places): &(Size, u64)| free.0 >= pod.0 && free.1 >= pod.1 && *places > 0;
        let left = |at: usize| {
            let ((free, _), whole) = (&free[at], nodes[at]);
            (free.0 - pod.0) as f64 / whole.0 as f64 + (free.1 - pod.1) as f64 / whole.1 as f64
        };
        let best = (0..free.len()).filter(|at| fits(&free[*at])).min_by(|a, b| left(*a).total_cmp(&left(*b)));
        if let Some(at) = best {
            let (Size(cpu, memory), places) = free[at];
            free[at] = (Size(cpu - pod.0, memory - pod.1), places - 1);
            placed = placed.plus(*pod);
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_fit_leaves_the_large_gap() {
        let nodes = [Size(1_000, 1_000), Size(600, 600)];
        assert_eq!(best_fit(&nodes, &[Size(500, 500), Size(1_000, 1_000), Size(200, 200)]), Size(1_500, 1_500));
    }

    #[test]
    fn traces_repeat_and_are_full() {
        let (nodes, pods) = trace(8, 3);
        assert_eq!(trace(8, 3), (nodes.clone(), pods.clone()));
        let whole = nodes.iter().fold(Size::default(), |sum, size| sum.plus(*size));
        let offered = pods.iter().fold(Size::default(), |sum, size| sum.plus(*size));
        assert!(offered.share(whole) >= 1.2);
    }
}
