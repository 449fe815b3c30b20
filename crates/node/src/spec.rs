//! From a pod to what the runtime is told: sandbox and container specs. Pure but for the paths it is given.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use meta::{Quantity, Value};
use runtime::{
    ContainerSpec, LogSpec, Mount, NetworkNamespace, PidNamespace, Propagation, Resources, SandboxSpec, Seccomp,
    SecuritySpec,
};
use rustix::fs::OFlags;

use crate::env::expand;
use crate::volumes;

/// One log file's size, and how many are kept.
const LOG_MAX_BYTES: u64 = 10 << 20;
const LOG_MAX_FILES: u32 = 5;

/// Directories of one pod on the node.
#[derive(Clone, Debug)]
pub struct PodDirs {
    pub root: PathBuf,
    pub logs: PathBuf,
    /// For volumes that no disk may see.
    pub memory: PathBuf,
}

impl PodDirs {
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    pub fn etc(&self) -> PathBuf {
        self.root.join("etc")
    }

    pub fn termination(&self, container: &str, attempt: u32) -> PathBuf {
        self.root.join("termination").join(format!("{container}-{attempt}"))
    }

    pub fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs.join(container).join(format!("{attempt}.log"))
    }
}

fn quantity(resources: &Value, kind: &str, name: &str) -> Option<Quantity> {
    Quantity::given(&resources[kind][name])
}

/// Limits of one container (or of a whole pod) as the kernel takes them.
pub fn resources(resources: &Value) -> Resources {
    let cpu = quantity(resources, "requests", "cpu").or_else(|| quantity(resources, "limits", "cpu"));
    let shares = shares(cpu.map_or(0, |cpu| cpu.milli()));
    let quota = quantity(resources, "limits", "cpu").map(|cpu| (cpu.milli() * 100).max(1000));
    Resources {
        cpu_shares: Some(shares),
        cpu_quota_us: quota,
        cpu_period_us: quota.map(|_| 100_000),
        memory_limit_bytes: quantity(resources, "limits", "memory")
            .map(|memory| memory.value())
            .filter(|bytes| *bytes > 0),
        ..Resources::default()
    }
}

/// Limits of a pod as a whole: its share is what its containers ask for together, and bounds are those that the pod
/// itself names, as each container has its own.
fn of_pod(spec: &Value) -> Resources {
    let asked = api::usage::pod_total(spec, "requests").get("cpu").map_or(0, Quantity::milli);
    let whole = resources(&spec["resources"]);
    Resources { cpu_shares: Some(shares(asked)), ..whole }
}

/// Where a pod's cgroup lies below `cgroup`, and its limits.
pub fn pod_cgroup(pod: &Value, cgroup: &str) -> (String, Resources) {
    let (class, uid) = (qos(pod), pod.at(&["metadata", "uid"]).text());
    let path = if class == "guaranteed" { format!("{cgroup}/pod{uid}") } else { format!("{cgroup}/{class}/pod{uid}") };
    (path, of_pod(&pod["spec"]))
}

/// Of a processor's 1024 shares; nobody has fewer than two.
pub fn shares(cpu_milli: i64) -> u64 {
    (cpu_milli.max(0).unsigned_abs() * 1024 / 1000).max(2)
}

/// The same for a container that runs: what is not limited is set free, whatever held before.
pub fn resized(of: &Value) -> Resources {
    let mut wanted = resources(of);
    wanted.cpu_quota_us.get_or_insert(-1);
    wanted
}

/// `guaranteed`, `burstable` or `besteffort`.
pub fn qos(pod: &Value) -> &'static str {
    match pod.at(&["status", "qosClass"]).text() {
        "Guaranteed" => "guaranteed",
        "BestEffort" => "besteffort",
        _ => "burstable",
    }
}

/// Whom the kernel ends first when a node whose memory is `capacity_bytes` has none left: the higher, the sooner
/// (kubelet, `qos/policy.go`).
pub fn oom_score(pod: &Value, container: &Value, capacity_bytes: i64) -> i32 {
    const GUARANTEED: i32 = -997;
    const BEST_EFFORT: i32 = 1000;
    /// `system-node-critical`.
    const CRITICAL: i64 = 2_000_001_000;
    if pod.at(&["spec", "priority"]).as_int() >= Some(CRITICAL) {
        return GUARANTEED;
    }
    match qos(pod) {
        "guaranteed" => GUARANTEED,
        "besteffort" => BEST_EFFORT,
        _ => {
            let asked = quantity(&container["resources"], "requests", "memory").map_or(0, |asked| asked.value());
            let part = i128::from(asked) * 1000 / i128::from(capacity_bytes.max(1));
            let score = BEST_EFFORT - i32::try_from(part).unwrap_or(BEST_EFFORT);
            // Between the other two classes, whatever it asks for.
            score.clamp(BEST_EFFORT + GUARANTEED, BEST_EFFORT - 1)
        }
    }
}

/// The sandbox of a pod of the cluster `domain`, its cgroup below `cgroup`; `netns` is where its network namespace is kept, `None` for the node's own.
pub fn sandbox(pod: &Value, netns: Option<PathBuf>, attempt: u32, cgroup: &str, domain: &str) -> SandboxSpec {
    let (meta, spec) = (&pod["metadata"], &pod["spec"]);
    let uid = meta["uid"].text();
    let mut sandbox = SandboxSpec::new(meta["namespace"].text(), meta["name"].text(), uid);
    sandbox.attempt = attempt;
    sandbox.network = match netns {
        Some(path) => NetworkNamespace::Path(path),
        None => NetworkNamespace::Host,
    };
    sandbox.hostname = (!spec["hostNetwork"].is_true()).then(|| own_name(pod, domain));
    sandbox.host_ipc = spec["hostIPC"].is_true();
    sandbox.share_processes = spec["shareProcessNamespace"].is_true();
    for sysctl in spec.at(&["securityContext", "sysctls"]).items() {
        sandbox.sysctls.insert(sysctl["name"].text().to_owned(), sysctl["value"].text().to_owned());
    }
    (sandbox.cgroup_parent, sandbox.resources) = pod_cgroup(pod, cgroup);
    sandbox
}

/// The name that the pod itself sees: with its domain, where it asks for that.
pub fn own_name(pod: &Value, domain: &str) -> String {
    let (host, subdomain) = (hostname(pod), subdomain(pod));
    match pod.at(&["spec", "setHostnameAsFQDN"]).is_true() && !subdomain.is_empty() {
        true => format!("{host}.{subdomain}.{}.svc.{domain}", pod.at(&["metadata", "namespace"]).text()),
        false => host,
    }
}

/// The part of a pod's domain that it names; a name that overrides all others has none.
pub fn subdomain(pod: &Value) -> &str {
    match pod.at(&["spec", "hostnameOverride"]).text() {
        "" => pod.at(&["spec", "subdomain"]).text(),
        _ => "",
    }
}

pub fn hostname(pod: &Value) -> String {
    let overriding = pod.at(&["spec", "hostnameOverride"]).text();
    if !overriding.is_empty() {
        return overriding.to_owned();
    }
    let name = match pod.at(&["spec", "hostname"]).text() {
        "" => pod.at(&["metadata", "name"]).text(),
        name => name,
    };
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// One container. `env` is its whole environment; `image` the image's id.
pub fn container(
    pod: &Value,
    container: &Value,
    sandbox: &str,
    attempt: u32,
    image: &str,
    env: Vec<(String, String)>,
    dirs: &PodDirs,
) -> Result<ContainerSpec, String> {
    let name = container["name"].text();
    let mut spec = ContainerSpec::new(sandbox, name, image);
    let words =
        |key: &str| -> Vec<String> { container[key].items().iter().map(|word| expand(word.text(), &env)).collect() };
    (spec.command, spec.args) = (words("command"), words("args"));
    spec.attempt = attempt;
    spec.working_dir = container["workingDir"].as_str().filter(|dir| !dir.is_empty()).map(str::to_owned);
    spec.mounts = mounts(pod, container, &env, dirs)?;
    let termination = match container["terminationMessagePath"].text() {
        "" => "/dev/termination-log",
        path => path,
    };
    spec.mounts.push(Mount::new(dirs.termination(name, attempt), termination));
    if container["terminationMessagePolicy"].text() == "FallbackToLogsOnError" {
        spec.annotations.insert(crate::termination::FALLBACK.to_owned(), String::new());
    }
    spec.security = security(&pod["spec"], container)?;
    spec.pid = if pod.at(&["spec", "hostPID"]).is_true() {
        PidNamespace::Host
    } else if pod.at(&["spec", "shareProcessNamespace"]).is_true() {
        PidNamespace::Pod
    } else {
        PidNamespace::Container
    };
    spec.resources = resources(&container["resources"]);
    spec.log = Some(LogSpec { path: dirs.log(name, attempt), max_bytes: LOG_MAX_BYTES, max_files: LOG_MAX_FILES });
    (spec.tty, spec.stdin) = (container["tty"].is_true(), container["stdin"].is_true());
    spec.stdin_once = container["stdinOnce"].is_true();
    spec.stop_signal = runtime::signal(container.at(&["lifecycle", "stopSignal"]).text());
    spec.labels.insert("io.kubernetes.container.name".to_owned(), name.to_owned());
    spec.env = env;
    Ok(spec)
}

fn mounts(pod: &Value, container: &Value, env: &[(String, String)], dirs: &PodDirs) -> Result<Vec<Mount>, String> {
    let volumes = pod.at(&["spec", "volumes"]).items();
    let mut mounts = Vec::new();
    for wanted in container["volumeMounts"].items() {
        let name = wanted["name"].text();
        let volume = volumes.iter().find(|volume| volume["name"].text() == name);
        let volume = volume.ok_or_else(|| format!("volume {name:?} is not one of the pod"))?;
        let base = volumes::path_of(volume, dirs);
        let sub = match wanted["subPathExpr"].text() {
            "" => wanted["subPath"].text().to_owned(),
            expression => expand(expression, env),
        };
        let host = if sub.is_empty() { base } else { sub_path(&base, &sub)? };
        let mut mount = Mount::new(host, wanted["mountPath"].text());
        // Who writes into the volume could put a link there meanwhile.
        mount.no_links = !sub.is_empty();
        mount.read_only = wanted["readOnly"].is_true() || read_only_by_nature(volume);
        mount.recursive_read_only = matches!(wanted["recursiveReadOnly"].text(), "Enabled" | "IfPossible");
        mount.propagation = match wanted["mountPropagation"].text() {
            "HostToContainer" => Propagation::HostToContainer,
            "Bidirectional" => Propagation::Bidirectional,
            _ => Propagation::Private,
        };
        mounts.push(mount);
    }
    let taken = |path: &str, mounts: &[Mount]| mounts.iter().any(|mount| mount.container_path == Path::new(path));
    for (file, path) in [("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")] {
        let host = dirs.etc().join(file);
        if host.exists() && !taken(path, &mounts) {
            mounts.push(Mount::new(host, path));
        }
    }
    Ok(mounts)
}

fn read_only_by_nature(volume: &Value) -> bool {
    volume.at(&["persistentVolumeClaim", "readOnly"]).is_true()
        || ["configMap", "secret", "downwardAPI", "projected"].iter().any(|key| volume.get(key).is_some())
}

/// A path below a volume that leads nowhere else; directories are made where nothing is, with the rights that the volume
/// has, and never outside of it, whatever links whoever writes there has laid.
fn sub_path(base: &Path, sub: &str) -> Result<PathBuf, String> {
    let inside = Path::new(sub).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !inside {
        return Err(format!("subPath {sub:?} must stay inside its volume"));
    }
    make_below(base, Path::new(sub)).map_err(|error| format!("cannot make subPath {sub:?}: {error}"))?;
    let (real, root) = (base.join(sub).canonicalize(), base.canonicalize());
    match (real, root) {
        (Ok(real), Ok(root)) if real.starts_with(&root) => Ok(real),
        _ => Err(format!("subPath {sub:?} leads out of its volume")),
    }
}

fn make_below(base: &Path, sub: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let root = runtime::Rooted::open(base)?;
    let mode = std::fs::metadata(base)?.permissions().mode() & 0o7777;
    let mut prefix = PathBuf::new();
    for part in sub.components() {
        prefix.push(part);
        if root.get(&prefix, OFlags::PATH).is_ok() {
            continue;
        }
        let made = root.make_dir(&prefix)?;
        // By what was made, not by its name: that may be another's by now.
        let made = format!("/proc/self/fd/{}", made.as_raw_fd());
        std::fs::set_permissions(made, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn security(pod: &Value, container: &Value) -> Result<SecuritySpec, String> {
    let (shared, own) = (&pod["securityContext"], &container["securityContext"]);
    let either = |key: &str| own.get(key).or_else(|| shared.get(key)).cloned().unwrap_or_default();
    let number = |value: &Value| value.as_int().and_then(|number| u32::try_from(number).ok());
    let words = |value: &Value| -> Vec<String> { value.items().iter().map(|word| word.text().to_owned()).collect() };
    let mut groups: Vec<u32> = shared["supplementalGroups"].items().iter().filter_map(number).collect();
    groups.extend(number(&shared["fsGroup"]));
    let privileged = own["privileged"].is_true();
    let profile = either("seccompProfile");
    let seccomp = match profile["type"].text() {
        "Unconfined" => Seccomp::Unconfined,
        "Localhost" => Seccomp::Localhost(PathBuf::from(profile["localhostProfile"].text())),
        _ if privileged => Seccomp::Unconfined,
        // The runtime's own profile is on unless it is turned off by name.
        _ => Seccomp::RuntimeDefault,
    };
    Ok(SecuritySpec {
        user: number(&either("runAsUser")).map(|user| user.to_string()),
        group: number(&either("runAsGroup")),
        supplemental_groups: groups,
        ignore_image_groups: shared["supplementalGroupsPolicy"].text() == "Strict",
        add_capabilities: words(own.at(&["capabilities", "add"])),
        drop_capabilities: words(own.at(&["capabilities", "drop"])),
        privileged,
        no_new_privileges: own["allowPrivilegeEscalation"].as_bool() == Some(false),
        read_only_root: own["readOnlyRootFilesystem"].is_true(),
        seccomp,
        unmasked_proc: own["procMount"].text() == "Unmasked",
        oom_score_adj: None,
    })
}

/// Whether the container may run as the user that it would get; the error is what upstream says.
pub fn check_user(pod: &Value, container: &Value, image: &runtime::ImageConfig) -> Result<(), String> {
    let (shared, own) = (&pod["spec"]["securityContext"], &container["securityContext"]);
    let either = |key: &str| own.get(key).or_else(|| shared.get(key)).cloned().unwrap_or_default();
    if !either("runAsNonRoot").is_true() {
        return Ok(());
    }
    match either("runAsUser").as_int() {
        Some(0) => Err("container's runAsUser breaks non-root policy".to_owned()),
        Some(_) => Ok(()),
        None => match image.uid() {
            Some(0) => Err("container has runAsNonRoot and image will run as root".to_owned()),
            Some(_) => Ok(()),
            None => Err(format!(
                "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root",
                image.user
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn who_asks_for_more_memory_is_ended_later() {
        let score = |class: &str, memory: &str| {
            let pod = json!({"status": {"qosClass": class}});
            oom_score(&pod, &json!({"resources": {"requests": {"memory": memory}}}), 1000)
        };
        assert_eq!((score("Guaranteed", "1"), score("BestEffort", "0")), (-997, 1000));
        assert_eq!([score("Burstable", "0"), score("Burstable", "400"), score("Burstable", "999")], [999, 600, 3]);
    }

    #[test]
    fn a_pod_has_the_shares_of_its_containers_and_its_own_bounds() {
        let container = json!({"resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}}});
        let plain = of_pod(&json!({"containers": [(container.clone()), (container.clone())]}));
        assert_eq!((plain.cpu_shares, plain.cpu_quota_us), (Some(1024), None));
        let bound = of_pod(&json!({"containers": [container], "resources": {"limits": {"cpu": "2", "memory": "1Mi"}}}));
        assert_eq!((bound.cpu_shares, bound.cpu_quota_us), (Some(512), Some(200_000)));
        assert_eq!(bound.memory_limit_bytes, Some(1 << 20));
    }

    #[test]
    fn a_pod_sees_the_name_that_it_asks_for() {
        let name = |spec: Value| own_name(&json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}), "c.l");
        assert_eq!(name(json!({})), "p");
        assert_eq!(name(json!({"hostname": "h", "subdomain": "s"})), "h");
        assert_eq!(name(json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true})), "h.s.n.svc.c.l");
        assert_eq!(name(json!({"hostname": "h", "subdomain": "s", "hostnameOverride": "o.x"})), "o.x");
    }

    #[test]
    fn what_is_not_limited_has_no_limit() {
        let free = resources(&json!({"requests": {"cpu": "500m"}}));
        assert_eq!((free.cpu_shares, free.cpu_quota_us, free.memory_limit_bytes), (Some(512), None, None));
        let bound = resources(&json!({"limits": {"cpu": "500m", "memory": "1Mi"}}));
        assert_eq!((bound.cpu_shares, bound.cpu_quota_us), (Some(512), Some(50_000)));
        assert_eq!(bound.memory_limit_bytes, Some(1 << 20));
    }

    #[test]
    fn directories_of_volumes_are_made_in_them_only_and_as_they_are() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (base, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        for folder in [&base, &outside] {
            std::fs::create_dir(folder).unwrap();
        }
        std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o777)).unwrap();
        let made = sub_path(&base, "a/b").unwrap();
        for path in [made.as_path(), made.parent().unwrap()] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o777, "{path:?}");
        }
        assert!(sub_path(&base, "../outside").is_err());
        std::os::unix::fs::symlink(&outside, base.join("link")).unwrap();
        std::os::unix::fs::symlink("../outside", base.join("up")).unwrap();
        for sub in ["link", "link/new", "up/new"] {
            assert!(sub_path(&base, sub).is_err(), "{sub}");
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
}
