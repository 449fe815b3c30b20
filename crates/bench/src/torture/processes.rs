//! Processes that are killed or stand still, and a node that is cut off.

use std::process::Command;
use std::time::Duration;

use base::Rng;
use rustix::process::Signal;

use super::cluster::{NODES, Torture, command, signal, victim};
use crate::error::Error;

/// How long the cluster has to notice that something was killed, before the next fault.
const NOTICE: Duration = Duration::from_secs(2);

impl Torture {
    pub async fn kill_agent(&mut self, rng: &mut Rng) -> Result<(), Error> {
        signal(self.agent(rng)?, Signal::KILL);
        tokio::time::sleep(NOTICE).await;
        Ok(())
    }

    pub async fn stop_agent(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let agent = self.agent(rng)?;
        signal(agent, Signal::STOP);
        tokio::time::sleep(self.stand).await;
        signal(agent, Signal::CONT);
        self.nodes_ready().await
    }

    pub async fn stop_server(&mut self) -> Result<(), Error> {
        let server = self.server()?.process();
        signal(server, Signal::STOP);
        tokio::time::sleep(self.stand).await;
        signal(server, Signal::CONT);
        Ok(())
    }

    /// Takes the switch's end of a node's link down, so that the node keeps its routes.
    pub async fn cut_node(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let switch = format!("--net=/run/gantry-{}/nodes/switch", self.name()?);
        // Its namespaces are mounted where the cluster sees them.
        let cluster = format!("--target={}", self.server()?.process().0);
        let port = format!("node{}", rng.below(NODES));
        let set = |state: &str| {
            let words = [cluster.as_str(), "--mount", "nsenter", &switch, "ip", "link", "set", &port, state];
            command(Command::new("nsenter").args(words))
        };
        set("down")?;
        tokio::time::sleep(self.stand).await;
        set("up")?;
        self.nodes_ready().await
    }

    pub async fn kill_container(&mut self, rng: &mut Rng) -> Result<(), Error> {
        signal(victim(rng)?.0, Signal::KILL);
        tokio::time::sleep(NOTICE).await;
        Ok(())
    }

    pub async fn kill_shim(&mut self, rng: &mut Rng) -> Result<(), Error> {
        signal(victim(rng)?.1, Signal::KILL);
        tokio::time::sleep(NOTICE).await;
        Ok(())
    }

    /// Kills the server, and with `all` everything else of the cluster, and starts the cluster anew.
    pub async fn kill_server(&mut self, all: bool) -> Result<(), Error> {
        self.end(all)?;
        self.start().await
    }

    /// Kills the server, and with `all` everything else of the cluster.
    pub fn end(&mut self, all: bool) -> Result<(), Error> {
        let server = self.server()?.process();
        let agents = server.children();
        signal(server, Signal::KILL);
        if all {
            agents.into_iter().for_each(|agent| signal(agent, Signal::KILL));
        }
        self.server = None;
        Ok(())
    }
}
