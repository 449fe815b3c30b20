//! Giving back memory that a process with little to do holds for nothing.
//!
//! Around every instruction that runs for the first time the kernel maps 64 KiB of the program's file, so a process
//! that did much once, at its start, keeps most of a large program resident. What is taken away here is mapped again, out
//! of the kernel's cache of the file, when it is needed; and from then on page by page, where the kernel can be told to
//! (6.7 and later): of the 64 KiB an idle process runs about a tenth.
//!
//! Invariant: only pages that nobody can have written to are touched: code, and constants at the beginning of a file.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use crate::{Error, sys};

/// What keeps the kernel from mapping more than the page that is needed; `None` where it cannot be told to.
static PAGE_BY_PAGE: OnceLock<Option<OwnedFd>> = OnceLock::new();

/// Takes away the mappings of this process' code and constants.
///
/// # Errors
/// When the list of mappings cannot be read.
pub fn release_code() -> Result<(), Error> {
    let text = std::fs::read_to_string("/proc/self/maps").map_err(Error::io("read /proc/self/maps"))?;
    let page_by_page = PAGE_BY_PAGE.get_or_init(|| sys::fault_watch().ok());
    for (start, end) in text.lines().filter_map(code) {
        if let Some(watch) = page_by_page {
            // A mapping that cannot be watched is one whose neighbourhood comes along.
            let _ = sys::watch_faults(watch, start, end - start);
        }
        sys::forget_pages(start, end - start);
    }
    Ok(())
}

/// Where a line of `/proc/self/maps` is about code or constants of a file.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, rights, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let path = fields.nth(2)?;
    let fits = rights == "r-xp" || rights == "r--p" && offset.bytes().all(|digit| digit == b'0');
    if !fits || !path.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?)).filter(|(start, end)| start < end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// What one test takes away another must not count.
    fn alone() -> MutexGuard<'static, ()> {
        static ONE: Mutex<()> = Mutex::new(());
        ONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[test]
    fn only_code_and_constants_are_meant() {
        let of = |rest: &str| code(&format!("1000-3000 {rest}"));
        assert_eq!(of("r-xp 00876000 fe:00 99 /bin/x"), Some((0x1000, 0x3000)));
        assert_eq!(of("r--p 00000000 fe:00 99 /bin/x"), Some((0x1000, 0x3000)));
        for other in
            ["r--p 02108000 fe:00 99 /bin/x", "rw-p 0 fe:00 99 /bin/x", "r-xp 0 00:00 0 [vdso]", "r--p 0 00:00 0", "x"]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }

    /// A constant in the middle of a stretch of constants that nothing else reads.
    #[test]
    fn what_comes_back_comes_page_by_page() {
        use std::os::unix::fs::FileExt;
        static CONSTANTS: [u8; 256 << 10] = [1; 256 << 10];
        const PAGES: usize = 9;
        let _alone = alone();
        release_code().unwrap();
        if !matches!(PAGE_BY_PAGE.get(), Some(Some(_))) {
            // Before 6.7 the kernel refuses, and nothing is promised.
            return;
        }
        let middle = &raw const CONSTANTS[128 << 10];
        // SAFETY: the call takes a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let from = (middle.addr() / page - PAGES / 2) * page;
        let map = std::fs::File::open("/proc/self/pagemap").unwrap();
        let mapped = || {
            let mut entries = [0; PAGES * 8];
            map.read_exact_at(&mut entries, (from / page * 8) as u64).unwrap();
            entries.chunks(8).filter(|entry| entry[7] & 0x80 != 0).count()
        };
        sys::forget_pages(from, PAGES * page);
        assert_eq!(mapped(), 0);
        // SAFETY: it points into a constant.
        assert_eq!(unsafe { middle.read_volatile() }, 1);
        assert_eq!(mapped(), 1);
    }

    #[test]
    fn less_is_resident_afterwards_and_all_works() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let _alone = alone();
        let before = resident();
        release_code().unwrap();
        let after = resident();
        assert!(after < before, "{before} KiB before, {after} KiB after");
    }
}
