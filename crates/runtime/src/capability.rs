//! Linux capabilities: names, the default set, and what a container gets of what this process has.

use crate::Error;
use crate::plan::Capabilities;
use crate::seam::SecuritySpec;

/// In the kernel's order.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What every container gets unless it says otherwise, as all runtimes agree.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// `NET_ADMIN` or `CAP_NET_ADMIN`, in any case.
pub(crate) fn number(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|n| *n == name).map(|n| n as u32)
}

fn mask<'a>(names: impl IntoIterator<Item = &'a str>) -> u64 {
    names.into_iter().filter_map(number).fold(0, |all, n| all | 1 << n)
}

/// The sets of a container's processes. `bounding` is what this process may give at most: a container never gets more
/// than the machine lets us have, which is no error (a warning is logged).
pub(crate) fn choose(spec: &SecuritySpec, bounding: u64) -> Result<Capabilities, Error> {
    for name in spec.add_capabilities.iter().chain(&spec.drop_capabilities) {
        if number(name).is_none() && !name.eq_ignore_ascii_case("ALL") {
            return Err(Error::Unsupported { what: format!("the capability {name:?}") });
        }
    }
    let list = |names: &[String]| match names.iter().any(|n| n.eq_ignore_ascii_case("ALL")) {
        true => u64::MAX,
        false => mask(names.iter().map(String::as_str)),
    };
    let all = mask(NAMES);
    let (add, drop) = (list(&spec.add_capabilities), list(&spec.drop_capabilities));
    let wanted = if spec.privileged {
        all
    } else if add == u64::MAX {
        all & !drop
    } else {
        // What is added by name wins over a dropped ALL.
        (if drop == u64::MAX { 0 } else { mask(DEFAULT) & !drop }) | add & all
    };
    let given = wanted & bounding;
    if given != wanted && !spec.privileged && add & all & !bounding != 0 && add != u64::MAX {
        tracing::warn!(missing = format!("{:#x}", wanted & !bounding), "capabilities this machine does not have");
    }
    Ok(Capabilities { bounding: given, permitted: given, effective: given, inheritable: 0, ambient: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(add: &[&str], drop: &[&str], privileged: bool, expected: u64) {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let spec = SecuritySpec {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            privileged,
            ..SecuritySpec::default()
        };
        let without_resource = !(1 << number("SYS_RESOURCE").unwrap());
        assert_eq!(choose(&spec, without_resource).unwrap().bounding, expected, "{add:?} {drop:?}");
    }

    #[test]
    fn sets_follow_the_lists_and_the_machine() {
        let (all, default) = (mask(NAMES) & !mask(["SYS_RESOURCE"]), mask(DEFAULT));
        assert_eq!(default, 0xa804_25fb, "the set every runtime gives");
        check(&[], &[], false, default);
        check(&["NET_ADMIN"], &["CAP_CHOWN"], false, (default | mask(["NET_ADMIN"])) & !1);
        check(&["net_admin"], &["ALL"], false, mask(["NET_ADMIN"]));
        check(&["ALL"], &["SYS_ADMIN"], false, all & !mask(["SYS_ADMIN"]));
        check(&["SYS_RESOURCE"], &["all"], false, 0);
        check(&[], &["ALL"], true, all);
        let spec = SecuritySpec { add_capabilities: vec!["NOPE".into()], ..SecuritySpec::default() };
        assert!(choose(&spec, u64::MAX).is_err());
    }
}
