//! The seed: one process per agent of which shims are forked.
//!
//! To execute the whole program for each pod costs 2 ms and a megabyte of memory that is its own: loading, relocations,
//! the first pages of everything. The seed has that behind it, and its children share it.
//!
//! It is asked through a socket that only its agent has: one message per shim, the pod's id and the pipe on which the
//! shim says that it is ready. It ends when the agent has; shims do not. Like a shim it has one thread.
//!
//! A shim is told apart by its words, so one that is forked gets the words that it would have been executed with.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::{SEED_WORD, SHIM_WORD};
use crate::sys;

/// Digits of a sandbox's id.
pub(crate) const ID_BYTES: usize = 64;

/// Serves until the agent is gone. `place` is a pod's directory with an id that no pod has.
pub(super) fn serve(place: &Path) -> Result<(), String> {
    let pods = place.parent().ok_or("the place of pods is missing")?;
    sys::reset_signals();
    super::IGNORED.iter().for_each(|signal| sys::ignore_signal(*signal));
    // Who is forked is nobody's to wait for.
    sys::ignore_signal(libc::SIGCHLD);
    rustix::process::setsid().map_err(|e| format!("leave the session: {e}"))?;
    let _ = rustix::thread::set_name(c"gantry-seed");
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(|e| format!("take the socket: {e}"))?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|e| format!("open /dev/null: {e}"))?;
    sys::dup_to(null.as_fd(), 0).map_err(|e| format!("detach from the agent: {e}"))?;
    let nothing = super::root::nothing()?;
    while let Some((id, mut report)) = next(&socket).map_err(|e| format!("hear the agent: {e}"))? {
        match sys::fork(0) {
            Ok(sys::Fork::Parent { .. }) => {}
            Ok(sys::Fork::Child) => {
                drop((socket, null));
                let dir = pods.join(&id);
                let begun = sys::dup_to(report.as_fd(), 1).map_err(|e| format!("take the pipe: {e}"));
                drop(report);
                let begun = begun.and_then(|()| {
                    take_words(&id).map_err(|e| format!("take the shim's words: {e}"))?;
                    super::hold(&dir, nothing)
                });
                if let Err(why) = begun {
                    let _ = std::io::stdout().write_all(why.as_bytes());
                }
                sys::leave(0)
            }
            Err(error) => {
                let _ = report.write_all(format!("fork: {error}").as_bytes());
            }
        }
    }
    Ok(())
}

/// The next message, or `None` when the agent is gone.
fn next(socket: &OwnedFd) -> rustix::io::Result<Option<(String, std::fs::File)>> {
    let mut text = [0; ID_BYTES];
    loop {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [std::io::IoSliceMut::new(&mut text)];
        let taken = match rustix::net::recvmsg(socket, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?.bytes,
        };
        if taken == 0 {
            return Ok(None);
        }
        let pipe = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let id = std::str::from_utf8(&text[..taken]).unwrap_or_default();
        if let (ID_BYTES, true, Some(pipe)) = (id.len(), id.bytes().all(|b| b.is_ascii_hexdigit()), pipe) {
            return Ok(Some((id.to_owned(), pipe.into())));
        }
    }
}

/// Changes this process' words from the seed's to a shim's of the same length.
fn take_words(id: &str) -> std::io::Result<()> {
    let words = std::fs::read("/proc/self/cmdline")?;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let shape = || std::io::Error::other("the words are not those of a seed");
    let new = words_of_shim(&words, id).ok_or_else(shape)?;
    // Counted behind the name, which is in parentheses: field 48 of all.
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' '));
    let start = fields.and_then(|mut fields| fields.nth(45)?.parse::<usize>().ok()).ok_or_else(shape)?;
    sys::overwrite_words(start, &new);
    Ok(())
}

fn words_of_shim(words: &[u8], id: &str) -> Option<Vec<u8>> {
    const { assert!(SEED_WORD.len() == SHIM_WORD.len()) };
    let place = words.len().checked_sub(ID_BYTES + 1)?;
    let before = words[..place].iter().rposition(|byte| *byte == 0)?;
    let word = before.checked_sub(SEED_WORD.len())?;
    if words[word..before] != *SEED_WORD.as_bytes() || words.last() != Some(&0) || id.len() != ID_BYTES {
        return None;
    }
    let mut new = words.to_vec();
    new[word..before].copy_from_slice(SHIM_WORD.as_bytes());
    new[place..place + ID_BYTES].copy_from_slice(id.as_bytes());
    Some(new)
}

/// The agent's end. Dropping it ends the seed.
pub(crate) struct Seed {
    socket: Option<OwnedFd>,
    process: std::process::Child,
}

impl Seed {
    /// Starts `command`, which gets its socket as standard input.
    pub fn start(mut command: std::process::Command) -> std::io::Result<Seed> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (own, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let process = command.stdin(theirs).spawn()?;
        Ok(Seed { socket: Some(own), process })
    }

    /// Has a shim forked; it reports through `pipe`.
    pub fn ask(&self, id: &str, pipe: OwnedFd) -> std::io::Result<()> {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        assert_eq!(id.len(), ID_BYTES, "ids are made in one place");
        let socket = self.socket.as_ref().ok_or_else(|| std::io::Error::other("the seed is gone"))?;
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [pipe.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(rustix::io::Errno::NOBUFS.into());
        }
        sendmsg(socket, &[std::io::IoSlice::new(id.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        self.socket = None;
        // It ends at once; one that does not is a defect that must not hold up its agent.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeds_words_become_a_shims() {
        let (none, id) = ("0".repeat(ID_BYTES), "a".repeat(ID_BYTES));
        let words = format!("gantry\0seed\0/run/x/pods/{none}\0");
        let new = words_of_shim(words.as_bytes(), &id).unwrap();
        assert_eq!(String::from_utf8(new).unwrap(), format!("gantry\0shim\0/run/x/pods/{id}\0"));
        assert_eq!(words_of_shim(b"gantry\0agent\0x\0", &id), None);
        assert_eq!(words_of_shim(b"", &id), None);
    }
}
