//! What the agent tells a shim to do: every choice made, nothing left to look up on the host.
//!
//! Plain data that travels as JSON. Fields may be added; unknown ones are ignored, so that an agent and a shim of
//! neighbouring versions understand each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::seam::{NetworkNamespace, PidNamespace, Propagation};

/// How the shim sets up the pod before any container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxPlan {
    pub id: String,
    pub hostname: Option<String>,
    pub network: NetworkNamespace,
    pub host_ipc: bool,
    pub share_processes: bool,
    pub sysctls: Vec<(String, String)>,
    pub shm_bytes: u64,
    #[serde(default)]
    pub held_until_ms: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Capabilities {
    pub bounding: u64,
    pub permitted: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// One process of a container: its first, or one more (exec).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ProcessPlan {
    pub argv: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    /// `user[:group]` as the image or the caller says; looked up in the container's own files.
    pub user: String,
    pub group: Option<u32>,
    pub groups: Vec<u32>,
    pub ignore_image_groups: bool,
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    /// The filter's instructions as base64; empty for none.
    pub seccomp: String,
    pub oom_score_adj: Option<i32>,
    pub tty: bool,
    pub stdin: bool,
    /// Files that the process, which has one thread, writes its id to, to join its cgroups.
    pub cgroup_procs: Vec<PathBuf>,
    /// Those of them that come last, when the container is made.
    #[serde(default)]
    pub cgroup_last: Vec<PathBuf>,
    /// First window size as (columns, rows).
    pub size: Option<(u16, u16)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum MountPlan {
    Bind {
        source: PathBuf,
        target: PathBuf,
        read_only: bool,
        recursive_read_only: bool,
        recursive: bool,
        propagation: Propagation,
        /// Refuse symbolic links in the source.
        no_links: bool,
        /// Refuse symbolic links in the target: for what the runtime itself mounts.
        fixed: bool,
    },
    Fs {
        kind: String,
        target: PathBuf,
        options: Vec<(String, String)>,
        read_only: bool,
        no_exec: bool,
        devices: bool,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DevicePlan {
    pub path: PathBuf,
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// The overlay that becomes the container's root.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RootPlan {
    /// Where layer names are relative to.
    pub layers: PathBuf,
    /// Topmost first.
    pub lower: Vec<String>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// A directory to mount it on. What lies there is covered, in the container's mount namespace only.
    pub target: PathBuf,
    pub read_only: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LogPlan {
    pub path: PathBuf,
    pub max_bytes: u64,
    pub max_files: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerPlan {
    pub id: String,
    pub process: ProcessPlan,
    pub root: RootPlan,
    pub mounts: Vec<MountPlan>,
    pub devices: Vec<DevicePlan>,
    pub masked: Vec<PathBuf>,
    pub read_only_paths: Vec<PathBuf>,
    pub pid: PidNamespace,
    pub stdin_once: bool,
    pub log: Option<LogPlan>,
    /// File that counts kills for memory: `memory.oom_control` (v1) or `memory.events` (v2).
    pub oom_file: Option<PathBuf>,
    /// Where to kill what is left when the first process has ended.
    pub cgroup_procs: Vec<PathBuf>,
}

/// How a container's first process went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub container: String,
    pub pid: i32,
    pub started_us: i64,
    /// 0 while it runs.
    pub finished_us: i64,
    pub exit_code: i32,
    pub signal: i32,
    pub oom: bool,
}

/// Version of the protocol between agent and shim.
pub(crate) const PROTOCOL: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Opens a control connection: the shim answers with everything it knows and then sends events.
    Hello,
    Start(Box<ContainerPlan>),
    /// `everything`: the whole cgroup, not only the first process.
    Kill {
        container: String,
        signal: i32,
        everything: bool,
    },
    /// Forget an ended container.
    Forget {
        container: String,
    },
    ReopenLog {
        container: String,
    },
    /// From then on, by the clock of the machine since its boot, nothing runs or is started.
    Hold {
        until_ms: u64,
    },
    /// Kill what runs and end the shim.
    Quit,
    /// Turns this connection into the streams of a new process.
    Exec {
        container: String,
        process: Box<ProcessPlan>,
    },
    /// Turns this connection into the streams of the container.
    Attach {
        container: String,
        stdin: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Hello {
        protocol: u32,
        pid: i32,
        records: Vec<Record>,
    },
    Done,
    /// The time until which the pod was held has passed.
    LetGo,
    Started(Record),
    Failed {
        why: String,
    },
    /// A container ended. Comes without a request.
    Ended(Record),
    Attached {
        tty: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope<T> {
    /// The request this belongs to; 0 for events.
    pub id: u64,
    pub body: T,
}

/// Frames are a little-endian u32 length of what follows, one byte of kind, and the payload.
pub(crate) mod frame {
    /// JSON of an [`super::Envelope`].
    pub const MESSAGE: u8 = 0;
    pub const STDIN: u8 = 1;
    pub const STDOUT: u8 = 2;
    pub const STDERR: u8 = 3;
    /// columns and rows, u16 little-endian each.
    pub const RESIZE: u8 = 4;
    pub const STDIN_END: u8 = 5;
    /// exit code, i32 little-endian.
    pub const EXIT: u8 = 6;

    /// Longest frame either side accepts.
    pub const MAX_BYTES: usize = 8 << 20;
    pub const HEAD_BYTES: usize = 5;

    pub fn put(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
        out.extend_from_slice(&(payload.len() as u32 + 1).to_le_bytes());
        out.push(kind);
        out.extend_from_slice(payload);
    }

    /// Splits the first whole frame off `bytes`: its kind, its payload's range and where the next begins.
    /// `Err` when the length is out of bounds.
    #[expect(clippy::type_complexity, reason = "a triple read at two places")]
    pub fn split(bytes: &[u8]) -> Result<Option<(u8, std::ops::Range<usize>, usize)>, &'static str> {
        let Some(head) = bytes.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if length == 0 || length > MAX_BYTES {
            return Err("a frame of impossible length");
        }
        if bytes.len() < 4 + length {
            return Ok(None);
        }
        Ok(Some((bytes[4], HEAD_BYTES..4 + length, 4 + length)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_damage_is_an_error() {
        let mut bytes = Vec::new();
        frame::put(&mut bytes, frame::STDOUT, b"hello");
        frame::put(&mut bytes, frame::EXIT, &7i32.to_le_bytes());
        let (kind, range, next) = frame::split(&bytes).unwrap().unwrap();
        assert_eq!((kind, &bytes[range]), (frame::STDOUT, &b"hello"[..]));
        let (kind, range, _) = frame::split(&bytes[next..]).unwrap().unwrap();
        assert_eq!((kind, &bytes[next..][range]), (frame::EXIT, &7i32.to_le_bytes()[..]));
        assert!(frame::split(&bytes[..7]).unwrap().is_none());
        assert!(frame::split(&[0, 0, 0, 0, 0]).is_err() && frame::split(&[255; 9]).is_err());
    }

    #[test]
    fn messages_of_a_newer_version_are_read() {
        let text = r#"{"id":3,"body":{"Started":{"container":"a","pid":7,"started_us":1,"finished_us":0,
            "exit_code":0,"signal":0,"oom":false,"new_field":[1]}},"trace":"x"}"#;
        let envelope: Envelope<Reply> = serde_json::from_str(text).unwrap();
        assert!(matches!(envelope.body, Reply::Started(r) if r.pid == 7));
    }
}
