//! Links between namespaces: pods to their node, nodes to each other and to the machine.

pub(crate) mod lan;
pub(crate) mod pods;

use crate::error::Error;

/// Lets the calling thread's network namespace forward between its links, and answer node ports on 127.0.0.1.
pub(crate) fn forwarding() -> Result<(), Error> {
    // Forwarding first: switching it resets others.
    set("ipv4/ip_forward", "1")?;
    set("ipv4/conf/all/route_localnet", "1")?;
    // A kernel without IPv6 has no such folder.
    if std::path::Path::new("/proc/sys/net/ipv6/conf/all").exists() {
        set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Writes only what is different: where `/proc/sys` is read-only, what is right already stays so.
fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/{name}");
    if std::fs::read_to_string(&path).is_ok_and(|found| found.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(Error::io(format!("write {value} to {path}")))
}
