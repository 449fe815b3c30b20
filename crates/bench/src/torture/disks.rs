//! Disks that are full, under the store, under logs, under images; and store files with a flipped byte.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base::Rng;
use meta::json;

use super::cluster::{NODES, Torture, container, eventually, is_ready};
use crate::door::Ask;
use crate::error::Error;

const TALKER: &str = "talker";
const PULLED: &str = "pulled-late";
/// How long the store's disk stays full.
const FULL: Duration = Duration::from_secs(4);

/// A disk that is full until this goes.
struct Full(PathBuf);

impl Full {
    fn fill(folder: &Path) -> Full {
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

/// Flips a byte in a copy of each of the store's files: the check must refuse in one sentence, or find all that was there.
pub fn rot(binary: &Path, store: &Path, copies: &Path, rng: &mut Rng) -> Result<u32, Error> {
    let check = |data: &Path| Command::new(binary).args(["store", "check", "--data"]).arg(data).output();
    let (mut refused, wrong) = (0, Error::while_doing::<std::io::Error>("copy the store"));
    let files: Vec<PathBuf> = std::fs::read_dir(store).map_err(wrong)?.flatten().map(|entry| entry.path()).collect();
    for (number, file) in files.iter().enumerate() {
        let name = file.file_name().unwrap_or_default();
        let bytes = std::fs::read(file).map_err(Error::while_doing("read the store"))?;
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if !name.to_string_lossy().ends_with(".gantry") || used < 1024 {
            continue;
        }
        let copy = copies.join(number.to_string()).join("store");
        std::fs::create_dir_all(&copy).map_err(Error::while_doing("copy the store"))?;
        for other in &files {
            let to = copy.join(other.file_name().unwrap_or_default());
            std::fs::copy(other, to).map_err(Error::while_doing("copy the store"))?;
        }
        let mut rotten = bytes;
        // The last record may be the torn end of the log for all that anyone can tell.
        let at = usize::try_from(rng.below(used as u64 / 2)).unwrap_or(0);
        rotten[at] ^= 1 << rng.below(8);
        std::fs::write(copy.join(name), rotten).map_err(Error::while_doing("flip a byte"))?;
        let data = copies.join(number.to_string());
        let output = check(&data).map_err(Error::while_doing("check a store"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            return Err(Error::doing("refuse a damaged store", format!("byte {at} of {name:?} was taken for sound")));
        }
        if said.is_empty() || said.contains("panicked") {
            return Err(Error::doing("refuse a damaged store in a sentence", said));
        }
        refused += 1;
    }
    Ok(refused)
}
