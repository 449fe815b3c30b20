//! A thread's turn at the processor: sooner, not longer.
//!
//! A thread that wakes often for a few microseconds waits, on a machine whose processors are all busy, until another has
//! used up its slice of about 3 ms, and does so at each waking: what comes meanwhile no longer fits into the socket. From
//! 6.12 on, the kernel lets a thread that asks for shorter slices than the running one go before it; its share does not
//! grow. An older kernel heeds the niceness alone.

use std::io;

/// The kernel takes no shorter one.
const SLICE_NS: u64 = 100_000;
/// About three times the weight of others, where names are asked for by more than one thread can answer.
const NICE: i32 = -5;

/// Lets the calling thread run soon after it wakes.
///
/// # Errors
/// The caller may not raise its priority.
pub fn soon() -> io::Result<()> {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: NICE,
        sched_priority: 0,
        // For threads of this policy, the slice they ask for.
        sched_runtime: SLICE_NS,
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

    #[test]
    fn a_thread_gets_the_slice_that_it_asks_for() -> io::Result<()> {
        soon()?;
        let size = size_of::<libc::sched_attr>() as u32;
        // SAFETY: attributes are numbers, for which zeros are values.
        let mut found: libc::sched_attr = unsafe { std::mem::zeroed() };
        let (this_thread, no_flags) = (0, 0);
        // SAFETY: the pointer is to attributes that outlive the call, with their true size beside it.
        let outcome = unsafe { libc::syscall(libc::SYS_sched_getattr, this_thread, &raw mut found, size, no_flags) };
        assert_eq!(outcome, 0, "{}", io::Error::last_os_error());
        assert_eq!(found.sched_nice, NICE);
        // Kernels before 6.12 tell of no slice.
        assert!([0, SLICE_NS].contains(&found.sched_runtime), "{}", found.sched_runtime);
        Ok(())
    }
}
