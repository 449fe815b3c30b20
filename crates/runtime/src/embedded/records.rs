//! What an agent leaves for its successor below the folder of state: records of pods and containers, and their version.
//!
//! An agent reads the records of all versions up to its own; those of a newer one it leaves alone and does not start,
//! since it would take what it cannot read for nothing, and end what runs. A version is raised when older agents would
//! misread the records, not when they may ignore a field; [`VERSION`] has the test that newer agents read older records.

use std::io::ErrorKind;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::Error;

/// Of the records that this agent writes. A folder without a version has the first.
const VERSION: u32 = 1;
const VERSION_FILE: &str = "version";

/// Makes sure that this agent reads what is in the folder, and says of which version its own records are.
///
/// # Errors
/// [`Error::Record`] when a newer agent was here.
pub(super) fn claim(state: &Path) -> Result<(), Error> {
    let path = state.join(VERSION_FILE);
    let doing = || format!("write {}", path.display());
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return std::fs::write(&path, format!("{VERSION}\n")).map_err(Error::io(doing()));
        }
        Err(error) => return Err(Error::io(format!("read {}", path.display()))(error)),
    };
    match text.trim().parse::<u32>() {
        Ok(version) if version <= VERSION => Ok(()),
        Ok(version) => {
            let why = format!("the records have version {version}, and this agent reads up to {VERSION}");
            Err(Error::Record { path, why })
        }
        // Written by whoever was interrupted at his first start.
        Err(_) if text.is_empty() => std::fs::write(&path, format!("{VERSION}\n")).map_err(Error::io(doing())),
        Err(_) => Err(Error::Record { path, why: "it is no version".to_owned() }),
    }
}

/// A record; none where there is no file, or an empty one, as a machine that lost its power leaves.
///
/// # Errors
/// [`Error::Record`] when it is none that this agent reads.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("read {}", path.display()))(error)),
    };
    if text.is_empty() {
        return Ok(None);
    }
    let record = serde_json::from_slice(&text);
    record.map(Some).map_err(|error| Error::Record { path: path.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::model::{ContainerRecord, PodRecord};
    use crate::plan::Record;

    const POD_1: &str = include_str!("records/sandbox.1.json");
    const CONTAINER_1: &str = include_str!("records/container.1.json");
    const EXIT_1: &str = include_str!("records/exit.1.json");

    #[test]
    fn records_of_the_first_version_are_adopted() {
        let pod: PodRecord = serde_json::from_str(POD_1).unwrap();
        assert_eq!((pod.spec.name.as_str(), pod.spec.cgroup_parent.as_str()), ("web", "/kubepods/burstable/pod1"));
        let container: ContainerRecord = serde_json::from_str(CONTAINER_1).unwrap();
        assert_eq!((container.spec.name.as_str(), container.layers.len()), ("main", 2));
        let exit: Record = serde_json::from_str(EXIT_1).unwrap();
        assert_eq!((exit.exit_code, exit.oom), (137, true));
    }

    #[test]
    fn an_older_agent_leaves_newer_records_alone() {
        let dir = tempfile::tempdir().unwrap();
        claim(dir.path()).unwrap();
        claim(dir.path()).unwrap();
        let file = dir.path().join(VERSION_FILE);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "1\n");
        std::fs::write(&file, "2\n").unwrap();
        let refused = claim(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("have version 2, and this agent reads up to 1"), "{refused}");
        std::fs::write(&file, "x").unwrap();
        assert!(claim(dir.path()).is_err());
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sandbox.json");
        let look = |text: &str| {
            std::fs::write(&file, text).unwrap();
            read::<PodRecord>(&file).map(|record| record.is_some())
        };
        assert!(read::<PodRecord>(&file).unwrap().is_none());
        assert!(!look("").unwrap() && look(POD_1).unwrap());
        let refused = look("{\"spec\":{}}").unwrap_err().to_string();
        assert!(refused.contains("sandbox.json cannot be read (missing field"), "{refused}");
    }
}
