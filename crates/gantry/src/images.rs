//! `gantry image load|pull|list|remove`: the images of nodes, also while their agents run.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use runtime::{Credentials, ImageStatus, ImageStore, Progress, RegistryConfig, no_progress};

use crate::error::Error;
use crate::flags::Settings;
use crate::machine;

/// A node whose images are meant.
struct Target {
    /// Empty for the folder of a single agent.
    name: String,
    store: ImageStore,
}

pub fn run(settings: &Settings) -> Result<(), Error> {
    let changes = settings.command != "image list";
    if changes {
        machine::need_root(settings.command)?;
    }
    let targets = targets(settings)?;
    if changes {
        // Unpacking mounts; what an interruption leaves mounted ends with this process.
        machine::own_mounts()?;
    }
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::doing("start the threads", error))?;
    tokio.block_on(async {
        match settings.command {
            "image load" => load(settings, &targets).await,
            "image pull" => pull(settings, &targets).await,
            "image list" => {
                list(&targets);
                Ok(())
            }
            _ => remove(settings, &targets),
        }
    })
}

/// What registries need; shared with the agent.
pub fn registries(settings: &Settings) -> RegistryConfig {
    RegistryConfig {
        insecure: settings.all("insecure-registry").to_vec(),
        roots: settings.path("registry-ca").into_iter().collect(),
    }
}

/// The nodes of a data folder: those of `gantry up`, or the one of `gantry agent`.
fn targets(settings: &Settings) -> Result<Vec<Target>, Error> {
    let data = settings.data();
    let wanted = settings.text("node");
    let open = |name: &str, dir: PathBuf| -> Result<Target, Error> {
        let dir = dir.canonicalize().map_err(Error::file("find", &dir))?;
        Ok(Target { name: name.to_owned(), store: ImageStore::open(&dir.join("runtime"), registries(settings))? })
    };
    let nodes = data.join("nodes");
    if nodes.is_dir() {
        let mut found = folders(&nodes)?;
        found.retain(|(name, _)| wanted.is_none_or(|wanted| wanted == name));
        if found.is_empty() {
            let why = match wanted {
                Some(wanted) => format!("{} has no node {wanted}", data.display()),
                None => format!("{} has no nodes yet; start gantry up first", data.display()),
            };
            return Err(Error::Machine(why));
        }
        return found.into_iter().map(|(name, dir)| open(&name, dir)).collect();
    }
    if data.join("runtime").is_dir() {
        return Ok(vec![open("", data)?]);
    }
    let why = "holds no node; give the --data of gantry up or gantry agent";
    Err(Error::Machine(format!("{} {why}", data.display())))
}

fn folders(dir: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let entries = std::fs::read_dir(dir).map_err(Error::file("read", dir))?;
    let mut found: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    found.sort();
    Ok(found)
}

impl Target {
    fn tell(&self, what: &str) {
        match self.name.as_str() {
            "" => say!("{what}"),
            name => say!("{name}: {what}"),
        }
    }
}

async fn load(settings: &Settings, targets: &[Target]) -> Result<(), Error> {
    let path = PathBuf::from(settings.argument());
    std::fs::File::open(&path).map_err(Error::file("open the archive", &path))?;
    for target in targets {
        for image in target.store.load(&path).await? {
            target.tell(&format!("loaded {}", name_of(&image)));
        }
    }
    Ok(())
}

async fn pull(settings: &Settings, targets: &[Target]) -> Result<(), Error> {
    let credentials = match (settings.text("registry-user"), settings.path("registry-password-file")) {
        (None, None) => None,
        (Some(user), Some(path)) => {
            let text = std::fs::read_to_string(&path).map_err(Error::file("read the password", &path))?;
            Some(Credentials::Basic { user: user.to_owned(), password: text.trim_end().to_owned() })
        }
        (Some(_), None) => return Err(settings.complain("registry-user", "needs --registry-password-file beside it")),
        (None, Some(_)) => return Err(settings.complain("registry-password-file", "needs --registry-user beside it")),
    };
    for target in targets {
        let image = target.store.pull(settings.argument(), credentials.clone(), bar()).await?;
        target.tell(&format!("pulled {} ({})", name_of(&image), image.id));
    }
    Ok(())
}

/// Shows a pull's progress on a terminal, a whole percent at a time.
fn bar() -> Progress {
    if !std::io::stderr().is_terminal() {
        return no_progress();
    }
    let shown = AtomicU64::new(u64::MAX);
    Arc::new(move |done, total| {
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        if shown.swap(percent, Ordering::Relaxed) != percent {
            let end = if done >= total { "\n" } else { "" };
            eprint!("\r{percent:3} % of {:.1} MB{end}", total as f64 / 1e6);
        }
    })
}

fn name_of(image: &ImageStatus) -> &str {
    image.tags.first().or(image.digests.first()).unwrap_or(&image.id)
}

fn list(targets: &[Target]) {
    let named = targets.iter().any(|target| !target.name.is_empty());
    let mut rows = vec![["NODE", "IMAGE", "ID", "SIZE"].map(str::to_owned)];
    for target in targets {
        for image in target.store.list() {
            let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
            let size = format!("{:.1} MB", image.size_bytes as f64 / 1e6);
            let names = if image.tags.is_empty() { vec![name_of(&image).to_owned()] } else { image.tags.clone() };
            rows.extend(names.into_iter().map(|name| [target.name.clone(), name, id.clone(), size.clone()]));
        }
    }
    let first = usize::from(!named);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).skip(first).map(|(cell, width)| format!("{cell:width$}"));
        say!("{}", cells.collect::<Vec<_>>().join("   ").trim_end());
    }
}

fn remove(settings: &Settings, targets: &[Target]) -> Result<(), Error> {
    let mut missing = None;
    let mut removed = 0;
    for target in targets {
        match target.store.remove(settings.argument()) {
            Ok(()) => {
                removed += 1;
                target.tell(&format!("removed {}", settings.argument()));
            }
            Err(error @ runtime::Error::ImageMissing { .. }) => missing = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    match missing {
        // One that some nodes have and others not is gone everywhere now.
        Some(error) if removed == 0 => Err(error.into()),
        _ => Ok(()),
    }
}
