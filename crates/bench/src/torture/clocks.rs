//! Clocks that jump: the time of the wall, of one process at a time, forwards and backwards, while it runs.
//!
//! Linux has no namespace for that clock, so a small library stands between the process and the kernel (`clock.c`, built
//! here). Times that only go forwards, by which timers run, stay as they are, as they do when somebody sets a clock.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base::Rng;

use super::cluster::{Torture, command, signal};
use crate::error::Error;
use crate::machine::Process;
use rustix::process::Signal;

const SOURCE: &str = include_str!("clock.c");
/// How far clocks jump.
const JUMPS_S: [i64; 6] = [3, 40, 400, 7_200, -40, -7_200];
/// How long a cluster shows what it thinks of its new time.
pub const SHOWN: Duration = Duration::from_secs(4);

/// The library, and the folder with one file for each process that has it.
pub struct Clocks {
    library: PathBuf,
    folder: PathBuf,
}

impl Clocks {
    pub fn make(dir: &Path) -> Result<Clocks, Error> {
        let (source, library, folder) = (dir.join("clock.c"), dir.join("clock.so"), dir.join("clocks"));
        std::fs::create_dir_all(&folder).map_err(Error::while_doing("make a folder"))?;
        std::fs::write(&source, SOURCE).map_err(Error::while_doing("write the clock's source"))?;
        let mut cc = Command::new("cc");
        command(cc.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source).arg("-ldl"))?;
        Ok(Clocks { library, folder })
    }

    /// Gives a program, and what it starts, clocks that can be set.
    pub fn wind(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("TORTURE_CLOCKS", &self.folder);
    }

    /// How far a clock may jump.
    pub fn some(rng: &mut Rng) -> i64 {
        JUMPS_S[usize::try_from(rng.below(JUMPS_S.len() as u64)).unwrap_or(0)]
    }

    /// Lets the clock of a process jump to this far off; one that has no such clock is an error.
    pub fn jump(&self, process: Process, off: i64) -> Result<(), Error> {
        // The process may read its clock at any moment: it stands while the eight bytes change.
        signal(process, Signal::STOP);
        let set = self.set(process, off);
        signal(process, Signal::CONT);
        set
    }

    fn set(&self, process: Process, off: i64) -> Result<(), Error> {
        let file = self.folder.join(process.0.to_string());
        let file = std::fs::File::options().write(true).open(file).map_err(Error::while_doing("find a clock"))?;
        file.write_all_at(&(off * 1_000_000).to_ne_bytes(), 0).map_err(Error::while_doing("set a clock"))
    }
}

impl Torture {
    pub async fn jump_server(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let server = self.server()?.process();
        self.jump(server, rng).await
    }

    pub async fn jump_agent(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let agent = self.agent(rng)?;
        self.jump(agent, rng).await
    }

    async fn jump(&mut self, process: Process, rng: &mut Rng) -> Result<(), Error> {
        for off in [Clocks::some(rng), 0] {
            self.clocks.jump(process, off)?;
            tokio::time::sleep(SHOWN).await;
            self.writes().await?;
            self.nodes_ready().await?;
        }
        Ok(())
    }
}
