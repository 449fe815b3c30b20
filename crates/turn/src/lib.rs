//! A thread's turn at the processor: whether it runs soon after it wakes, or when others have had theirs.
//!
//! A thread that wakes often for a few microseconds waits, on a machine whose processors are all busy, until another has
//! used up its slice of about 3 ms, and does so at each waking: what comes meanwhile gathers behind it. From 6.12 on, the
//! kernel lets a thread that asks for shorter slices than the running one go before it; that is no larger share. An older
//! kernel heeds the niceness alone.
//!
//! Not here: which thread is which; those who start them say so. Nobody depends on having had a turn: a process without
//! the right to ask for more goes on without.

use std::io;

/// The kernel takes no shorter slice.
const SHORTEST_NS: u64 = 100_000;

/// How a thread stands to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// What it does is little, and late is wrong.
    First,
    /// Others wait for it.
    Soon,
    /// Nobody waits for it, but it is to end: about a tenth of a turn beside those who serve.
    Later,
    /// What others leave. A processor that runs nothing else counts as free: whoever wakes goes there and runs at once.
    /// (With a low niceness alone it counted as busy: others queued up on the next one and waited.)
    Spare,
}

impl Turn {
    fn nice(self) -> i32 {
        match self {
            Turn::First => -20,
            Turn::Soon => -5,
            // Among what others leave there is no niceness.
            Turn::Spare => 0,
            Turn::Later => 10,
        }
    }

    fn policy(self) -> libc::c_int {
        match self {
            Turn::First | Turn::Soon | Turn::Later => libc::SCHED_OTHER,
            Turn::Spare => libc::SCHED_IDLE,
        }
    }

    /// Zero is the kernel's own choice.
    fn slice_ns(self) -> u64 {
        match self {
            Turn::First | Turn::Soon => SHORTEST_NS,
            Turn::Later | Turn::Spare => 0,
        }
    }
}

/// Gives the calling thread this turn from here on.
///
/// # Errors
/// The caller may not raise its priority; that includes any other turn after [`Turn::Spare`].
pub fn take(turn: Turn) -> io::Result<()> {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: turn.policy() as u32,
        sched_flags: 0,
        sched_nice: turn.nice(),
        sched_priority: 0,
        // For threads of this policy, the slice they ask for.
        sched_runtime: turn.slice_ns(),
        sched_deadline: 0,
        sched_period: 0,
    };
    let (this_thread, no_flags) = (0, 0);
    // SAFETY: the pointer is to attributes that outlive the call, with their true size in them.
    let outcome = unsafe { libc::syscall(libc::SYS_sched_setattr, this_thread, &raw const attributes, no_flags) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> io::Result<libc::sched_attr> {
        let size = size_of::<libc::sched_attr>() as u32;
        // SAFETY: attributes are numbers, for which zeros are values.
        let mut found: libc::sched_attr = unsafe { std::mem::zeroed() };
        let (this_thread, no_flags) = (0, 0);
        // SAFETY: the pointer is to attributes that outlive the call, with their true size beside it.
        let outcome = unsafe { libc::syscall(libc::SYS_sched_getattr, this_thread, &raw mut found, size, no_flags) };
        if outcome == 0 { Ok(found) } else { Err(io::Error::last_os_error()) }
    }

    #[test]
    fn a_thread_stands_where_it_asked_to() -> io::Result<()> {
        for turn in [Turn::First, Turn::Soon, Turn::Spare, Turn::Later] {
            take(turn)?;
            let found = found()?;
            assert_eq!(found.sched_policy, turn.policy() as u32);
            // Among what others leave, the niceness of before stays, and is not heeded.
            assert!(found.sched_nice == turn.nice() || turn == Turn::Spare, "{turn:?}: {}", found.sched_nice);
            // Kernels before 6.12 tell of no slice; later ones of their own where none was asked for.
            let told = found.sched_runtime == 0 || turn.slice_ns() == 0 || found.sched_runtime == turn.slice_ns();
            assert!(told, "{turn:?}: {} ns", found.sched_runtime);
        }
        Ok(())
    }
}
