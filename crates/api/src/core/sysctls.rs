//! Settings of the kernel that a pod may make without being trusted: what is its own, and costs its neighbours nothing.

/// What the baseline of pod security lets pass (pod-security-admission, `policy/check_sysctls.go`).
const OF_BASELINE: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What nodes let pass beside that (kubelet, `sysctl/safe_sysctls.go`).
const OF_NODES: &[&str] = &["net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_notsent_lowat"];

/// Whether the baseline of pod security lets a pod set it.
pub fn is_baseline(name: &str) -> bool {
    OF_BASELINE.contains(&name)
}

/// Whether a node lets a pod set it; slashes are another way to write dots.
pub fn is_safe(name: &str) -> bool {
    let name = name.replace('/', ".");
    is_baseline(&name) || OF_NODES.contains(&name.as_str())
}
