//! Giving back memory that a process with little to do holds for nothing.
//!
//! Around every instruction that runs for the first time the kernel maps 64 KiB of the program's file, so a process
//! that did much once, at its start, keeps most of a large program resident. What is taken away here is mapped again, out
//! of the kernel's cache of the file, when it is needed.
//!
//! Invariant: only pages that nobody can have written to are touched: code, and constants at the beginning of a file.

use crate::Error;

/// Takes away the mappings of this process' code and constants.
///
/// # Errors
/// When the list of mappings cannot be read.
pub fn release_code() -> Result<(), Error> {
    let text = std::fs::read_to_string("/proc/self/maps").map_err(Error::io("read /proc/self/maps"))?;
    for (start, end) in text.lines().filter_map(code) {
        crate::sys::forget_pages(start, end - start);
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

    #[test]
    fn less_is_resident_afterwards_and_all_works() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident();
        release_code().unwrap();
        let after = resident();
        assert!(after < before, "{before} KiB before, {after} KiB after");
    }
}
