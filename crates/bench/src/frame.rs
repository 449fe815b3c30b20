//! The frame of all benches: options with defaults in, figures out as one JSON object.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base::Time;
use meta::{Map, Value, json};

use crate::error::Error;
use crate::machine::Meter;
use crate::numbers::{median, rounded};

/// How temporary folders are named, and the file in them that names the process they belong to.
const FOLDER_PREFIX: &str = "gantry-bench-";
const OWNER_FILE: &str = "owner";

/// Where a bench's client runs: on one thread, so that the other processor is the server's.
///
/// # Errors
/// The system gives it no place.
pub fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
    tokio.map_err(Error::while_doing("start the client"))
}

/// One bench.
pub struct Bench {
    pub name: &'static str,
    /// What it does and through which door.
    pub about: &'static str,
    pub options: &'static [OptionRow],
    pub figures: &'static [Figure],
    /// The program that is run beside it, when it is installed.
    pub peer: Option<&'static str>,
    /// It works in namespaces and control groups.
    pub needs_root: bool,
    pub run: fn(&mut Run) -> Result<(), Error>,
}

/// One option. Options are numbers, but for the few that are a word.
pub struct OptionRow {
    pub name: &'static str,
    pub default: &'static str,
    /// Its value in the tiny form that tests run.
    pub small: &'static str,
    pub help: &'static str,
}

pub const fn option(name: &'static str, default: &'static str, small: &'static str, help: &'static str) -> OptionRow {
    OptionRow { name, default, small, help }
}

/// A figure that is promised, with the value that must be reached and the one that is wished for.
pub struct Figure {
    pub key: &'static str,
    pub want: Want,
}

/// Floor and goal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Want {
    /// Only told.
    Nothing,
    AtLeast(f64, f64),
    AtMost(f64, f64),
    /// So many times the peer's figure of the same name, or more.
    TimesPeer(f64, f64),
    /// At most so many times the peer's.
    OfPeer(f64, f64),
}

impl Want {
    /// Floor, goal, and whether more is better; `None` when nothing is wanted or there is no peer to compare with.
    fn lines(self, peer: Option<f64>) -> Option<(f64, f64, bool)> {
        match (self, peer) {
            (Want::AtLeast(floor, goal), _) => Some((floor, goal, true)),
            (Want::AtMost(floor, goal), _) => Some((floor, goal, false)),
            (Want::TimesPeer(floor, goal), Some(peer)) => Some((floor * peer, goal * peer, true)),
            (Want::OfPeer(floor, goal), Some(peer)) => Some((floor * peer, goal * peer, false)),
            (Want::Nothing | Want::TimesPeer(..) | Want::OfPeer(..), _) => None,
        }
    }
}

pub const fn figure(key: &'static str, want: Want) -> Figure {
    Figure { key, want }
}

/// What the user said: options by name, and whether the tiny form is wanted.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub options: BTreeMap<String, String>,
    pub small: bool,
    /// Do not run peers.
    pub alone: bool,
}

/// One run of one bench.
pub struct Run {
    pub bench: &'static Bench,
    /// The program that is measured.
    pub binary: PathBuf,
    pub alone: bool,
    pub small: bool,
    options: BTreeMap<&'static str, String>,
    dir: tempfile::TempDir,
    figures: BTreeMap<String, Vec<f64>>,
    peer_name: Option<String>,
    peer: BTreeMap<String, Vec<f64>>,
    notes: Vec<String>,
    wants: BTreeMap<&'static str, Want>,
    meter: Meter,
    say: Box<dyn Fn(&str)>,
}

impl Run {
    /// `binary` is the program under test; `say` shows progress.
    ///
    /// # Errors
    /// An option that the bench does not have, or no temporary folder.
    pub fn new(bench: &'static Bench, said: &Said, binary: &Path, say: impl Fn(&str) + 'static) -> Result<Run, Error> {
        let mut options: BTreeMap<&'static str, String> = bench
            .options
            .iter()
            .map(|row| (row.name, if said.small { row.small } else { row.default }.to_owned()))
            .collect();
        for (name, text) in &said.options {
            let Some(row) = bench.options.iter().find(|row| row.name == name) else {
                let known: Vec<&str> = bench.options.iter().map(|row| row.name).collect();
                let why = format!("bench {} has no such option, only {}", bench.name, known.join(", "));
                return Err(Error::Option { name: name.clone(), why });
            };
            options.insert(row.name, text.clone());
        }
        sweep();
        let dir = tempfile::Builder::new().prefix(FOLDER_PREFIX).tempdir();
        let dir = dir.map_err(Error::while_doing("make a temporary folder"))?;
        std::fs::write(dir.path().join(OWNER_FILE), std::process::id().to_string())
            .map_err(Error::while_doing("write into the temporary folder"))?;
        Ok(Run {
            bench,
            binary: binary.to_owned(),
            alone: said.alone,
            small: said.small,
            options,
            dir,
            figures: BTreeMap::new(),
            peer_name: None,
            peer: BTreeMap::new(),
            notes: Vec::new(),
            wants: bench.figures.iter().map(|figure| (figure.key, figure.want)).collect(),
            meter: Meter::start(),
            say: Box::new(say),
        })
    }

    /// A folder that goes with the run.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Shows what is being done.
    pub fn say(&self, what: impl AsRef<str>) {
        (self.say)(what.as_ref());
    }

    /// The option as a number.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&self, name: &str) -> Result<u64, Error> {
        let text = self.word(name);
        text.parse().map_err(|_| Error::Option { name: name.to_owned(), why: format!("{text:?} is no number") })
    }

    /// The option as a count.
    ///
    /// # Errors
    /// It is none.
    pub fn count(&self, name: &str) -> Result<usize, Error> {
        Ok(usize::try_from(self.number(name)?).unwrap_or(usize::MAX))
    }

    pub fn word(&self, name: &str) -> &str {
        self.options.get(name).map_or("", String::as_str)
    }

    /// Tells a figure; of several rounds the median counts.
    pub fn figure(&mut self, key: &str, value: f64) {
        self.say(format!("{key} {}", rounded(value)));
        self.figures.entry(key.to_owned()).or_default().push(value);
    }

    /// Tells a figure of the peer.
    pub fn peer_figure(&mut self, peer: &str, key: &str, value: f64) {
        self.say(format!("{peer}: {key} {}", rounded(value)));
        self.peer_name = Some(peer.to_owned());
        self.peer.entry(key.to_owned()).or_default().push(value);
    }

    /// What the reader of the figures must know.
    pub fn note(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.say(&what);
        self.notes.push(what);
    }

    /// With these options another value is wanted than the table says.
    pub fn want(&mut self, key: &'static str, want: Want) {
        self.wants.insert(key, want);
    }

    /// All that was found.
    pub fn finish(self) -> Value {
        let told = |all: &BTreeMap<String, Vec<f64>>| {
            let pairs = all.iter().map(|(key, values)| (key.clone(), number(rounded(median(values)))));
            Value::Map(pairs.collect::<Map>())
        };
        let options = self.options.iter().map(|(name, text)| {
            let value = text.parse::<i64>().map_or_else(|_| Value::from(text.as_str()), Value::from);
            ((*name).to_owned(), value)
        });
        let peer = match &self.peer_name {
            Some(name) => json!({"name": (name.as_str()), "figures": (told(&self.peer))}),
            None => Value::Null,
        };
        let mut machine = self.meter.tell();
        let verdicts = verdicts(&self);
        machine.set(&["date"], now().rfc3339());
        json!({
            "bench": (self.bench.name), "options": (Value::Map(options.collect::<Map>())),
            "figures": (told(&self.figures)), "peer": peer, "machine": machine,
            "verdicts": verdicts,
            "notes": (self.notes.iter().map(|note| Value::from(note.as_str())).collect::<Vec<_>>()),
        })
    }
}

/// Removes the folders of runs that were killed; their processes ended with them.
fn sweep() {
    let Ok(all) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for folder in all.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX)) {
        let owner = std::fs::read_to_string(folder.path().join(OWNER_FILE)).unwrap_or_default();
        // One without an owner is being made just now, or is not ours.
        if owner.parse::<u32>().is_ok_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            unmount_below(&folder.path());
            // What cannot be removed is tried again by the next run.
            let _ = std::fs::remove_dir_all(folder.path());
        }
    }
}

/// Takes away what a killed run had mounted in its folder, the innermost first.
fn unmount_below(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(folder));
    for at in below.collect::<Vec<_>>().into_iter().rev() {
        // One that stays keeps the folder, and is tried again with it.
        let _ = std::process::Command::new("umount").args(["--lazy", at]).status();
    }
}

/// A whole number without a fraction, as people read it.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { Value::Int(value as i64) } else { Value::Float(value) }
}

/// The time of the wall.
pub fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// How the figures stand to what is wanted.
fn verdicts(run: &Run) -> Value {
    let one = |all: &BTreeMap<String, Vec<f64>>, key: &str| all.get(key).map(|values| median(values));
    let rows = run.wants.iter().filter_map(|(key, want)| {
        let (value, peer) = (one(&run.figures, key)?, one(&run.peer, key));
        let (floor, goal, upwards) = want.lines(peer)?;
        let reached = |line: f64| if upwards { value >= line } else { value <= line };
        Some((
            *key,
            json!({
                "floor": (number(rounded(floor))), "goal": (number(rounded(goal))),
                "floor_reached": (reached(floor)), "goal_reached": (reached(goal)),
            }),
        ))
    });
    Value::Map(rows.collect::<Map>())
}
