//! Where on a disk files are put.
//!
//! A file system puts what is in a directory close together, and so everything that a node makes for pods into one part of
//! the disk. An ext4 without a journal does not give the number of a file to another before a minute or more has passed
//! since it was freed, and looks at all of those in the part, one by one, for each new file: where a thousand pods came and
//! went, that took longer than all else of a pod's start.
//!
//! Not here: any promise. Another file system may do as it likes.

use std::path::Path;

use rustix::fs::{IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags};

/// Tells the file system that the directories in `dir` belong together no more than whole homes do, so that ext4 puts each,
/// and what is in it, into another part of the disk.
pub fn spread(dir: &Path) {
    let told = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|dir| ioctl_setflags(&dir, ioctl_getflags(&dir)? | IFlags::TOPDIR));
    if let Err(error) = told {
        tracing::debug!(%error, dir = %dir.display(), "the file system places files as it likes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ext4_is_told() {
        const EXT4_MAGIC: i64 = 0xef53;
        let dir = tempfile::tempdir().unwrap();
        spread(dir.path());
        spread(&dir.path().join("not-there"));
        let dir = std::fs::File::open(dir.path()).unwrap();
        if rustix::fs::fstatfs(&dir).unwrap().f_type == EXT4_MAGIC {
            assert!(ioctl_getflags(&dir).unwrap().contains(IFlags::TOPDIR));
        }
    }
}
