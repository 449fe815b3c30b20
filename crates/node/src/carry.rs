//! Carries out what the pod machine decided: images, sandboxes, containers, hooks, volumes, addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::core::volume_binding::{self, CLAIMS, VOLUMES};
use base::Time;
use meta::{Resource, Str, Value};
use net::{PodLink, PodLinks};
use runtime::{Credentials, ImageStatus, no_progress};

use crate::agent::{ADDRESS, Agent};
use crate::env::{self, CONFIG_MAPS, Place, SECRETS};
use crate::pod::worker::{self, FAILED_MOUNT, FAILED_SANDBOX};
use crate::pod::{Command, Outcome, StartFailure};
use crate::spec::{self, PodDirs};
use crate::{certificates, probe, volumes};

/// Tokens of pods that are still good: by pod, audience and seconds.
pub type TokenKey = (Str, Str, i64);

#[derive(Default)]
pub struct Tokens(Mutex<BTreeMap<TokenKey, (String, Time, Time)>>);

impl Tokens {
    /// A token with at least a fifth of its life before it.
    fn get(&self, key: &TokenKey, now: Time) -> Option<String> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, made, expires) = tokens.get(key)?;
        let life = expires.ms_since(*made);
        (expires.ms_since(now) > life / 5).then(|| token.clone())
    }

    fn put(&self, key: TokenKey, token: String, made: Time, expires: Time) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, (_, _, expires)| *expires > made);
        tokens.insert(key, (token, made, expires));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub async fn out(agent: &Agent, pod: &Value, command: &Command) -> Outcome {
    match command {
        Command::Prepare => Outcome::Started(prepare(agent, pod).await),
        Command::Start { container, attempt } => Outcome::Started(start(agent, pod, container, *attempt).await),
        Command::Stop { container, id, grace_ms } => Outcome::Done(stop(agent, pod, container, id, *grace_ms).await),
        Command::Resize { container, id } => Outcome::Done(resize(agent, pod, container, id).await),
        Command::Probe { container, id, kind } => {
            let (good, message) = probe::ask(agent, pod, container, id, *kind).await;
            Outcome::Probed(good, message)
        }
        Command::End => Outcome::Done(end(agent, pod).await),
        Command::Remove => Outcome::Done(remove(agent, pod).await),
        Command::Delete => Outcome::Done(delete(agent, pod).await),
    }
}

async fn resize(agent: &Agent, pod: &Value, container: &str, id: &str) -> Result<(), String> {
    let container = find(pod, container).ok_or("the container is not in the pod any more")?;
    let (path, whole) = spec::pod_cgroup(pod, &agent.options.cgroup);
    // A pod that grows does so before its containers, one that shrinks after them.
    let grown = agent.runtime.set_cgroup(&path, whole.clone()).await;
    let updated = agent.runtime.update(id, spec::resized(&container["resources"])).await;
    updated.map_err(|error| error.to_string())?;
    if grown.is_err() {
        agent.runtime.set_cgroup(&path, whole).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn uid(pod: &Value) -> &str {
    pod.at(&["metadata", "uid"]).text()
}

/// Objects that volumes or an environment refer to, read before anything is made.
type Fetched = BTreeMap<(Resource, Str), Result<Option<Value>, String>>;

/// The objects that a pod's volumes refer to.
fn of_volumes(pod: &Value) -> Vec<(Resource, &str)> {
    let mut names = Vec::new();
    for volume in pod.at(&["spec", "volumes"]).items() {
        names.push((CONFIG_MAPS, volume["configMap"]["name"].text()));
        names.push((SECRETS, volume["secret"]["secretName"].text()));
        for source in volume.at(&["projected", "sources"]).items() {
            names.push((CONFIG_MAPS, source["configMap"]["name"].text()));
            names.push((SECRETS, source["secret"]["name"].text()));
        }
    }
    names
}

/// The objects that a container's environment refers to.
fn of_environment(container: &Value) -> Vec<(Resource, &str)> {
    let mut names = Vec::new();
    for source in container["envFrom"].items() {
        names.push((CONFIG_MAPS, source["configMapRef"]["name"].text()));
        names.push((SECRETS, source["secretRef"]["name"].text()));
    }
    for variable in container["env"].items() {
        names.push((CONFIG_MAPS, variable["valueFrom"]["configMapKeyRef"]["name"].text()));
        names.push((SECRETS, variable["valueFrom"]["secretKeyRef"]["name"].text()));
    }
    names
}

/// Reads objects of the pod's namespace, all at once.
async fn fetch_all(agent: &Agent, pod: &Value, names: Vec<(Resource, &str)>) -> Fetched {
    let namespace = pod.at(&["metadata", "namespace"]).text();
    let wanted: BTreeSet<(Resource, Str)> = names
        .into_iter()
        .filter(|(_, name)| !name.is_empty())
        .map(|(resource, name)| (resource, name.into()))
        .collect();
    let reads = wanted.into_iter().map(|(resource, name)| async move {
        let found = agent.fetch(resource, namespace, &name).await;
        ((resource, name), found)
    });
    futures_util::future::join_all(reads).await.into_iter().collect()
}

/// The claims that a pod's volumes stand for, and the volumes that those are bound to.
async fn fetch_claims(agent: &Agent, pod: &Value) -> Fetched {
    let claims = volume_binding::claims_of(pod.at(&["metadata", "name"]).text(), pod);
    let mut fetched = fetch_all(agent, pod, claims.iter().map(|name| (CLAIMS, name.as_str())).collect()).await;
    let claims = fetched.values().filter_map(|found| found.as_ref().ok()?.as_ref());
    let bound: BTreeSet<Str> = claims.map(|claim| claim["spec"]["volumeName"].text().into()).collect();
    for name in bound.into_iter().filter(|name: &Str| !name.is_empty()) {
        let found = agent.fetch(VOLUMES, "", &name).await;
        fetched.insert((VOLUMES, name), found);
    }
    fetched
}

fn from<'a>(fetched: &'a Fetched) -> impl Fn(Resource, &str) -> Result<Option<Value>, String> + 'a {
    move |resource, name| fetched.get(&(resource, name.into())).cloned().unwrap_or(Ok(None))
}

/// Tokens for all projected token sources of the pod.
async fn tokens(agent: &Agent, pod: &Value) -> BTreeMap<(Str, i64), Result<String, String>> {
    let mut tokens = BTreeMap::new();
    for volume in pod.at(&["spec", "volumes"]).items() {
        for source in volume.at(&["projected", "sources"]).items() {
            let Some(source) = source.get("serviceAccountToken") else { continue };
            let (audience, seconds) =
                (Str::from(source["audience"].text()), source["expirationSeconds"].as_int().unwrap_or(3600));
            let key: TokenKey = (uid(pod).into(), audience.clone(), seconds);
            let now = agent.now();
            let token = match agent.tokens.get(&key, now) {
                Some(token) => Ok(token),
                None => match agent.token(pod, &audience, seconds).await {
                    Ok((token, expires)) => {
                        agent.tokens.put(key, token.clone(), now, expires);
                        Ok(token)
                    }
                    Err(status) => Err(status.message().to_owned()),
                },
            };
            tokens.insert((audience, seconds), token);
        }
    }
    tokens
}

fn place<'a>(agent: &Agent, host: &'a [Str], addresses: &'a [Str]) -> Place<'a> {
    Place { host_addresses: host, addresses, allocatable: (agent.options.cpu_milli, agent.options.memory_bytes) }
}

/// Makes or updates the pod's volumes.
pub async fn refresh(agent: &Agent, pod: &Value) -> Result<(), String> {
    let (mut fetched, claimed, tokens, anchors, credentials) = tokio::join!(
        fetch_all(agent, pod, of_volumes(pod)),
        fetch_claims(agent, pod),
        tokens(agent, pod),
        certificates::anchors(agent, pod),
        certificates::credentials(agent, pod)
    );
    fetched.extend(claimed);
    let addresses = agent.observe(uid(pod)).await.map(|(observed, _)| observed.addresses).unwrap_or_default();
    let host = agent.host_addresses();
    let sources = volumes::Sources {
        fetch: &from(&fetched),
        token: &|audience, seconds| {
            tokens.get(&(audience.into(), seconds)).cloned().unwrap_or_else(|| Err("no token".to_owned()))
        },
        anchors: &anchors,
        credentials: &credentials,
        place: place(agent, &host, &addresses),
    };
    volumes::make(pod, &agent.dirs(uid(pod)), &sources)
}

async fn prepare(agent: &Agent, pod: &Value) -> Result<(), StartFailure> {
    let dirs = agent.dirs(uid(pod));
    make_volumes(agent, pod, &dirs).await.map_err(|why| failure(FAILED_MOUNT, why))?;
    sandbox(agent, pod, &dirs).await.map_err(|why| failure(FAILED_SANDBOX, why))
}

async fn make_volumes(agent: &Agent, pod: &Value, dirs: &PodDirs) -> Result<(), String> {
    for dir in [&dirs.root, &dirs.logs, &dirs.root.join("termination")] {
        std::fs::create_dir_all(dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    }
    refresh(agent, pod).await
}

async fn sandbox(agent: &Agent, pod: &Value, dirs: &PodDirs) -> Result<(), String> {
    let old = agent.runtime.of_pod(uid(pod)).await.map_err(|error| error.to_string())?.sandboxes;
    let attempt = old.iter().map(|one| one.spec.attempt + 1).max().unwrap_or(0);
    let host_network = pod.at(&["spec", "hostNetwork"]).is_true();
    let address = if host_network { None } else { Some(attach(agent, pod).await?) };
    let own: Vec<IpAddr> = match address {
        Some(address) => vec![address],
        None => agent.options.addresses.clone(),
    };
    write_etc(agent, pod, dirs, &own).map_err(|error| format!("cannot write the pod's files: {error}"))?;
    let netns = (!host_network).then(|| netns_of(agent, pod));
    let mut spec = spec::sandbox(pod, netns, attempt, &agent.options.cgroup, &agent.options.cluster_domain);
    spec.held_until_ms = agent.standing.borrow().holds(pod)?;
    if let Some(address) = address {
        spec.annotations.insert(ADDRESS.to_owned(), address.to_string());
    }
    agent.runtime.run_sandbox(spec).await.map(|_| ()).map_err(|error| format!("Failed to create pod sandbox: {error}"))
}

fn netns_of(agent: &Agent, pod: &Value) -> std::path::PathBuf {
    agent.options.netns.join(uid(pod))
}

fn link_of(agent: &Agent, pod: &Value, address: IpAddr) -> PodLink {
    PodLink { netns: netns_of(agent, pod), name: net::PodLinks::name_of(uid(pod)), addresses: vec![address], mtu: None }
}

/// Gives the pod an address and a link; one it has already is kept.
async fn attach(agent: &Agent, pod: &Value) -> Result<IpAddr, String> {
    let kept = agent.dirs(uid(pod)).root.join("address");
    let known = std::fs::read_to_string(&kept).ok().and_then(|text| text.trim().parse::<IpAddr>().ok());
    if let Some(address) = known
        && netns_of(agent, pod).exists()
    {
        return Ok(address);
    }
    let address = agent.give_address()?;
    std::fs::create_dir_all(&agent.options.netns).map_err(|error| error.to_string())?;
    let link = link_of(agent, pod, address);
    let made = on_links(agent, move |links| links.attach(&link).map(drop)).await;
    match made.map_err(|why| format!("cannot connect the pod: {why}")) {
        Ok(()) => {
            std::fs::write(&kept, address.to_string()).map_err(|error| error.to_string())?;
            Ok(address)
        }
        Err(why) => {
            if let Some(addresses) = lock(&agent.addresses).as_mut() {
                addresses.free(address);
            }
            Err(why)
        }
    }
}

/// Works on the links of pods where nobody else is held up: the kernel takes milliseconds, one pod after the other.
async fn on_links<T: Send + 'static>(
    agent: &Agent,
    work: impl FnOnce(&mut PodLinks) -> Result<T, net::Error> + Send + 'static,
) -> Result<T, String> {
    let links = agent.links.clone();
    let done = tokio::task::spawn_blocking(move || work(&mut lock(&links))).await;
    done.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

async fn detach(agent: &Agent, pod: &Value) -> Result<(), String> {
    let kept = agent.dirs(uid(pod)).root.join("address");
    let Some(address) = std::fs::read_to_string(&kept).ok().and_then(|text| text.trim().parse::<IpAddr>().ok()) else {
        return Ok(());
    };
    let link = link_of(agent, pod, address);
    on_links(agent, move |links| links.detach(&link)).await?;
    if let Some(addresses) = lock(&agent.addresses).as_mut() {
        addresses.free(address);
    }
    std::fs::remove_file(&kept).map_err(|error| error.to_string())
}

/// `/etc/hosts` (worded as by the kubelet, `kubelet_pods.go`), `/etc/resolv.conf` and `/etc/hostname` of the pod.
fn write_etc(agent: &Agent, pod: &Value, dirs: &PodDirs, addresses: &[IpAddr]) -> std::io::Result<()> {
    let (meta, spec) = (&pod["metadata"], &pod["spec"]);
    std::fs::create_dir_all(dirs.etc())?;
    let domain = &agent.options.cluster_domain;
    let hostname = spec::hostname(pod);
    let mut hosts;
    if spec["hostNetwork"].is_true() {
        hosts = String::from("# Kubernetes-managed hosts file (host network).\n");
        // A node without the file has nothing to add.
        hosts.push_str(&std::fs::read_to_string("/etc/hosts").unwrap_or_default());
    } else {
        hosts = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let subdomain = spec::subdomain(pod);
        for address in addresses {
            if subdomain.is_empty() {
                hosts.push_str(&format!("{address}\t{hostname}\n"));
            } else {
                let full = format!("{hostname}.{subdomain}.{}.svc.{domain}", meta["namespace"].text());
                hosts.push_str(&format!("{address}\t{full}\t{hostname}\n"));
            }
        }
    }
    let aliases = spec["hostAliases"].items();
    if !aliases.is_empty() {
        hosts.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names: Vec<&str> = alias["hostnames"].items().iter().map(Value::text).collect();
        hosts.push_str(&format!("{}\t{}\n", alias["ip"].text(), names.join("\t")));
    }
    std::fs::write(dirs.etc().join("hosts"), hosts)?;
    std::fs::write(dirs.etc().join("hostname"), format!("{}\n", spec::own_name(pod, domain)))?;
    if let Some(text) = resolv_conf(agent, pod) {
        std::fs::write(dirs.etc().join("resolv.conf"), text)?;
    }
    Ok(())
}

/// The pod's resolver settings; `None` to take the node's own file as it is.
fn resolv_conf(agent: &Agent, pod: &Value) -> Option<String> {
    let spec = &pod["spec"];
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let policy = spec["dnsPolicy"].text();
    let cluster = match policy {
        "Default" | "None" => None,
        "ClusterFirstWithHostNet" => agent.options.dns,
        _ if spec["hostNetwork"].is_true() => None,
        _ => agent.options.dns,
    };
    let namespace = pod.at(&["metadata", "namespace"]).text();
    let domain = &agent.options.cluster_domain;
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    let host_lines = |word: &str| -> Vec<String> {
        let lines = own.lines().filter_map(|line| line.strip_prefix(word));
        lines.flat_map(|rest| rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    match cluster {
        Some(dns) => {
            servers.push(dns.to_string());
            searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            searches.extend(host_lines("search "));
            options.push("ndots:5".to_owned());
        }
        None if policy == "None" => {}
        None => {
            servers = host_lines("nameserver ");
            searches = host_lines("search ");
            options = host_lines("options ");
        }
    }
    let config = &spec["dnsConfig"];
    servers.extend(config["nameservers"].items().iter().map(|server| server.text().to_owned()));
    searches.extend(config["searches"].items().iter().map(|search| search.text().to_owned()));
    for option in config["options"].items() {
        let name = option["name"].text();
        options.retain(|known| known.split(':').next() != Some(name));
        options.push(match option["value"].text() {
            "" => name.to_owned(),
            value => format!("{name}:{value}"),
        });
    }
    let mut text = String::new();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    servers.dedup();
    servers.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n")));
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    Some(text)
}

fn failure(reason: &str, message: impl Into<String>) -> StartFailure {
    StartFailure { reason: reason.into(), message: message.into() }
}

fn find<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    crate::pod::decide::all_containers(pod).find(|container| container["name"].text() == name)
}

async fn start(agent: &Agent, pod: &Value, name: &str, attempt: u32) -> Result<(), StartFailure> {
    let container =
        find(pod, name).ok_or_else(|| failure("CreateContainerError", "the container is not in the pod"))?;
    let config = |why: String| {
        agent.event(pod, name, "Warning", "Failed", format!("Error: {why}"));
        failure("CreateContainerConfigError", why)
    };
    let image = image(agent, pod, container, name).await?;
    spec::check_user(pod, container, &image.config).map_err(&config)?;
    let (observed, sandbox) =
        agent.observe(uid(pod)).await.map_err(|error| failure("CreateContainerError", error.to_string()))?;
    let sandbox = sandbox.ok_or_else(|| failure("CreateContainerError", "the sandbox is gone"))?;
    let fetched = fetch_all(agent, pod, of_environment(container)).await;
    let host = agent.host_addresses();
    let addresses = if pod.at(&["spec", "hostNetwork"]).is_true() { host.clone() } else { observed.addresses };
    let view = agent.mirror.view();
    let env =
        env::environment(pod, container, &place(agent, &host, &addresses), &view, &from(&fetched)).map_err(&config)?;
    let dirs = agent.dirs(uid(pod));
    let message_file = dirs.termination(name, attempt);
    let log_dir = dirs.log(name, attempt);
    let made = message_file
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&message_file, b""))
        .and_then(|()| log_dir.parent().map_or(Ok(()), std::fs::create_dir_all));
    made.map_err(|error| failure("CreateContainerError", error.to_string()))?;
    // Whoever runs in the container writes it.
    let _ = std::fs::set_permissions(&message_file, std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut spec = spec::container(pod, container, &sandbox, attempt, &image.id, env, &dirs).map_err(&config)?;
    spec.security.oom_score_adj = Some(spec::oom_score(pod, container, agent.options.memory_bytes));
    let id = agent.runtime.create(spec).await.map_err(|error| {
        agent.event(pod, name, "Warning", "Failed", format!("Error: {error}"));
        failure("CreateContainerError", error.to_string())
    })?;
    agent.event(pod, name, "Normal", "Created", format!("Container created: {name}"));
    agent.runtime.start(&id).await.map_err(|error| {
        agent.event(pod, name, "Warning", "Failed", format!("Error: {error}"));
        failure("RunContainerError", error.to_string())
    })?;
    agent.event(pod, name, "Normal", "Started", format!("Container started: {name}"));
    let hook = container.at(&["lifecycle", "postStart"]);
    if !hook.is_null()
        && let Err(why) = run_hook(agent, pod, container, &id, hook, u64::MAX).await
    {
        agent.event(pod, name, "Warning", "FailedPostStartHook", why.clone());
        // A container whose hook failed is stopped and tried again.
        let _ = agent.runtime.stop(&id, 1_000).await;
        return Err(failure("PostStartHookError", why));
    }
    Ok(())
}

/// The container's image, fetched as its policy says.
async fn image(agent: &Agent, pod: &Value, container: &Value, name: &str) -> Result<ImageStatus, StartFailure> {
    let reference = container["image"].text();
    let error = |why: runtime::Error| failure("ErrImagePull", why.to_string());
    let found = agent.runtime.image(reference).await.map_err(|why| failure(why.image_reason(), why.to_string()))?;
    match (container["imagePullPolicy"].text(), found) {
        ("IfNotPresent" | "Never" | "", Some(image)) => {
            agent.event(
                pod,
                name,
                "Normal",
                "Pulled",
                format!("Container image {reference:?} already present on machine"),
            );
            return Ok(image);
        }
        ("Never", None) => {
            let why = format!("Container image {reference:?} is not present with pull policy of Never");
            agent.event(pod, name, "Warning", "ErrImageNeverPull", why.clone());
            return Err(failure("ErrImageNeverPull", why));
        }
        _ => {}
    }
    agent.event(pod, name, "Normal", "Pulling", format!("Pulling image {reference:?}"));
    let began = agent.now();
    let mut last = None;
    for credentials in credentials(agent, pod, reference).await {
        match agent.runtime.pull(reference, credentials, no_progress()).await {
            Ok(image) => {
                let took = agent.now().ms_since(began);
                let message = format!(
                    "Successfully pulled image {reference:?} in {took}ms. Image size: {} bytes.",
                    image.size_bytes
                );
                agent.event(pod, name, "Normal", "Pulled", message);
                return Ok(image);
            }
            Err(why) => last = Some(why),
        }
    }
    let why = match last {
        Some(why) => StartFailure { reason: why.image_reason().into(), ..error(why) },
        None => failure("ErrImagePull", "nothing was tried"),
    };
    agent.event(pod, name, "Warning", "Failed", format!("Failed to pull image {reference:?}: {}", why.message));
    Err(why)
}

/// The pull secrets that fit the image's registry, and at last none.
async fn credentials(agent: &Agent, pod: &Value, reference: &str) -> Vec<Option<Credentials>> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let registry = reference.split('/').next().unwrap_or_default();
    let namespace = pod.at(&["metadata", "namespace"]).text();
    let mut all = Vec::new();
    for secret in pod.at(&["spec", "imagePullSecrets"]).items() {
        let Ok(Some(secret)) = agent.fetch(SECRETS, namespace, secret["name"].text()).await else { continue };
        let config =
            env::text_of(SECRETS, &secret, ".dockerconfigjson").and_then(|text| Value::parse(text.as_bytes()).ok());
        let old = env::text_of(SECRETS, &secret, ".dockercfg").and_then(|text| Value::parse(text.as_bytes()).ok());
        let entries = config.map(|config| config["auths"].clone()).or(old).unwrap_or_default();
        for (server, entry) in entries.entries().iter() {
            let host = server.trim_start_matches("https://").trim_start_matches("http://");
            if host.split('/').next() != Some(registry) {
                continue;
            }
            let decoded = STANDARD.decode(entry["auth"].text()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
            let (user, password) = pair.unwrap_or((entry["username"].text(), entry["password"].text()));
            all.push(Some(Credentials::Basic { user: user.to_owned(), password: password.to_owned() }));
        }
    }
    all.push(None);
    all
}

async fn stop(agent: &Agent, pod: &Value, name: &str, id: &str, grace_ms: u64) -> Result<(), String> {
    let began = tokio::time::Instant::now();
    if let Some(container) = find(pod, name) {
        let hook = container.at(&["lifecycle", "preStop"]);
        if !hook.is_null()
            && let Err(why) = run_hook(agent, pod, container, id, hook, grace_ms).await
        {
            agent.event(pod, name, "Warning", "FailedPreStopHook", why);
        }
    }
    agent.event(pod, name, "Normal", "Killing", format!("Stopping container {name}"));
    let used = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    /// What a container has at least, whatever its hook took.
    const LEAST_MS: u64 = 2_000;
    let left = grace_ms.saturating_sub(used).max(LEAST_MS.min(grace_ms));
    agent.runtime.stop(id, left).await.map_err(|error| error.to_string())
}

async fn run_hook(
    agent: &Agent,
    pod: &Value,
    container: &Value,
    id: &str,
    hook: &Value,
    limit_ms: u64,
) -> Result<(), String> {
    let work = async {
        if let Some(exec) = hook.get("exec") {
            let argv = exec["command"].items().iter().map(|word| word.text().to_owned()).collect();
            let output =
                agent.runtime.exec_sync(id, argv, limit_ms.min(3_600_000)).await.map_err(|error| error.to_string())?;
            return match output.code {
                0 => Ok(()),
                code => Err(format!("the hook ended with {code}: {}", String::from_utf8_lossy(&output.stderr).trim())),
            };
        }
        if let Some(http) = hook.get("httpGet") {
            let (good, message) = probe::http(agent, pod, container, http, 30_000).await;
            return if good { Ok(()) } else { Err(message) };
        }
        if let Some(sleep) = hook.get("sleep") {
            let seconds = sleep["seconds"].as_int().and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
        Ok(())
    };
    match tokio::time::timeout(Duration::from_millis(limit_ms.min(86_400_000)), work).await {
        Ok(result) => result,
        Err(_) => Err("the hook took longer than the grace period".to_owned()),
    }
}

async fn end(agent: &Agent, pod: &Value) -> Result<(), String> {
    for sandbox in agent.runtime.of_pod(uid(pod)).await.map_err(|error| error.to_string())?.sandboxes {
        agent.runtime.stop_sandbox(&sandbox.id).await.map_err(|error| error.to_string())?;
    }
    detach(agent, pod).await
}

async fn remove(agent: &Agent, pod: &Value) -> Result<(), String> {
    // Without a name of its own its folders would be everybody's.
    if uid(pod).is_empty() {
        return Err("the pod has no uid".to_owned());
    }
    for sandbox in agent.runtime.of_pod(uid(pod)).await.map_err(|error| error.to_string())?.sandboxes {
        agent.runtime.remove_sandbox(&sandbox.id).await.map_err(|error| error.to_string())?;
    }
    detach(agent, pod).await?;
    agent.credentials.forget(uid(pod));
    clear(agent.dirs(uid(pod))).await
}

/// A busy disk may take long to be told of what it gets back, so other pods do not wait in the same thread.
async fn clear(dirs: PodDirs) -> Result<(), String> {
    let work = move || {
        volumes::remove(&dirs.volumes()).map_err(|error| error.to_string())?;
        for dir in [&dirs.memory, &dirs.root, &dirs.logs] {
            remove_dir(dir).map_err(|error| format!("cannot remove {}: {error}", dir.display()))?;
        }
        Ok(())
    };
    let cleared = tokio::task::spawn_blocking(work).await;
    cleared.unwrap_or_else(|error| Err(format!("the removal of the pod's files broke off: {error}")))
}

fn remove_dir(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The last word: the object may go.
async fn delete(agent: &Agent, pod: &Value) -> Result<(), String> {
    match agent.api.call(worker::farewell(pod)).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason() == meta::Reason::NotFound => Ok(()),
        Err(status) => Err(status.message().to_owned()),
    }
}

/// Removes what runs for a pod that is not bound here any more.
pub async fn discard(agent: &Agent, uid: &str, sandbox: &str) {
    let mut pod = Value::map();
    pod.set(&["metadata", "uid"], uid);
    let result = match agent.runtime.remove_sandbox(sandbox).await {
        Ok(()) => match detach(agent, &pod).await {
            Ok(()) => clear(agent.dirs(uid)).await,
            failed => failed,
        },
        Err(error) => Err(error.to_string()),
    };
    if let Err(why) = result {
        tracing::warn!("what is left of pod {uid} could not be removed: {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn what_a_pod_refers_to_is_read_where_it_is_needed() {
        let pod = json!({"spec": {
            "volumes": [
                {"configMap": {"name": "a"}}, {"secret": {"secretName": "b"}}, {"emptyDir": {}},
                {"projected": {"sources": [{"configMap": {"name": "c"}}, {"secret": {"name": "d"}}]}},
            ],
            "containers": [{
                "envFrom": [{"configMapRef": {"name": "e"}}, {"secretRef": {"name": "f"}}],
                "env": [
                    {"name": "X", "value": "x"},
                    {"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "g", "key": "k"}}},
                    {"name": "Z", "valueFrom": {"secretKeyRef": {"name": "h", "key": "k"}}},
                ],
            }],
        }});
        let named = |list: Vec<(Resource, &str)>| -> Vec<String> {
            let named = list.into_iter().filter(|(_, name)| !name.is_empty());
            named.map(|(resource, name)| format!("{}/{name}", resource.0)).collect()
        };
        let volumes = named(of_volumes(&pod));
        assert_eq!(volumes, ["configmaps/a", "secrets/b", "configmaps/c", "secrets/d"]);
        let environment = named(of_environment(&pod["spec"]["containers"][0]));
        assert_eq!(environment, ["configmaps/e", "secrets/f", "configmaps/g", "secrets/h"]);
    }
}
