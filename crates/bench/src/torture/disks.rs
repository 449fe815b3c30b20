//! Disks that are full, under the store, under logs, under images.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use meta::json;

use super::cluster::{NODES, Torture, container, eventually, is_ready};
use crate::door::Ask;
use crate::error::Error;

const TALKER: &str = "talker";
const PULLED: &str = "pulled-late";
/// How long the store's disk stays full.
const FULL: Duration = Duration::from_secs(4);

/// A disk that is full until this goes.
pub struct Full(PathBuf);

impl Full {
    pub fn fill(folder: &Path) -> Full {
        let filler = folder.join("filler");
        // It ends with the disk being full, which is what is wanted.
        let _ = Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display())).output();
        Full(filler)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        // One that is not there any more frees nothing.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Torture {
    /// The folders of this name of all nodes, each a disk of its own.
    pub fn node_folders(&self, name: &str) -> Vec<PathBuf> {
        (1..=NODES).map(|number| self.data.join("nodes").join(format!("node-{number}")).join(name)).collect()
    }

    pub async fn fill_disk(&mut self) -> Result<(), Error> {
        let full = Full::fill(&self.data);
        tokio::time::sleep(FULL).await;
        drop(full);
        self.writes().await
    }

    /// Containers whose logs cannot be written run on, and what they say afterwards is kept again.
    pub async fn fill_logs(&mut self) -> Result<(), Error> {
        let talk = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";
        self.make_pod(TALKER, json!(["sh", "-c", talk]), |_| ()).await?;
        let path = format!("/api/v1/namespaces/{}/pods/{TALKER}/log?tailLines=1", super::NAMESPACE);
        let said = async || {
            let text = self.server()?.door.two().await?.exchange(&Ask::get(&path)).await?;
            let number = text.ok().and_then(|text| String::from_utf8_lossy(&text).trim().parse::<u64>().ok());
            Ok(number.filter(|number| *number > 0))
        };
        eventually("read a log", said).await?;
        let full: Vec<Full> = self.node_folders("logs").iter().map(|folder| Full::fill(folder)).collect();
        tokio::time::sleep(self.stand).await;
        self.writes().await?;
        let before = self.pod(TALKER).await?;
        if !is_ready(&before) {
            return Err(Error::doing("let a container run whose log cannot be written", "it is not ready any more"));
        }
        drop(full);
        let freed_at = eventually("read a log on a disk that was full", said).await?;
        let goes_on = async || Ok(said().await?.filter(|number| *number > freed_at));
        eventually("see a log go on when the disk has room again", goes_on).await?;
        let after = self.pod(TALKER).await?;
        if container(&before) != container(&after) {
            return Err(Error::doing("let a container run whose log cannot be written", "it was started anew"));
        }
        self.remove_pod(TALKER).await
    }

    /// Images that do not fit are told of, and pulled when there is room.
    pub async fn fill_images(&mut self) -> Result<(), Error> {
        let (image, name) = self.registry.new_image();
        let serving = self.registry.serve(image, None).await?;
        let full: Vec<Full> = self.node_folders("runtime").iter().map(|folder| Full::fill(folder)).collect();
        self.make_pod(PULLED, json!(["sleep", "1000000"]), |container| container.set(&["image"], name.as_str()))
            .await?;
        let told = async || {
            let pod = self.pod(PULLED).await?;
            let status = pod.at(&["status", "containerStatuses"]).items().first().cloned().unwrap_or_default();
            let waiting = &status["state"]["waiting"];
            let pull = ["ErrImagePull", "ImagePullBackOff"].contains(&waiting["reason"].text());
            Ok((pull && !waiting["message"].text().is_empty()).then_some(()))
        };
        eventually("be told that an image does not fit on the disk", told).await?;
        self.writes().await?;
        drop(full);
        let ready = async || Ok(is_ready(&self.pod(PULLED).await?).then_some(()));
        eventually("see a pod run whose image had no room", ready).await?;
        drop(serving);
        self.remove_pod(PULLED).await?;
        self.remove_image(&name)
    }

    /// Takes an image away from all nodes.
    pub fn remove_image(&self, name: &str) -> Result<(), Error> {
        let mut remove = Command::new(&self.binary);
        super::cluster::command(remove.args(["image", "remove", name, "--data"]).arg(&self.data)).map(|_| ())
    }
}
