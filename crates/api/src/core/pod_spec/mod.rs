//! What a pod is made of, shared by pods and everything that holds a template of pods: defaults and checks.
//!
//! Not here: rules of pods as objects (status, updates, columns), which stand in `core::pod`.

pub mod affinity;
pub mod containers;
pub mod defaults;
pub mod disks;
pub mod env;
pub mod probes;
pub mod resources;
pub mod security;
pub mod volumes;

use std::collections::BTreeSet;

use meta::{At, Errors, Str, Value, names};

use super::leash;
use crate::check;

/// The lists of a pod's spec that hold containers.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// All containers of a pod's spec but the ephemeral ones.
pub fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    spec["initContainers"].items().iter().chain(spec["containers"].items())
}

/// What the checks of parts must know of the whole.
pub struct Context<'a> {
    pub spec: &'a Value,
    /// A pod itself, not a template of pods.
    pub is_pod: bool,
    pub host_network: bool,
    /// The name of the pod; `""` in templates.
    pub name: &'a str,
    /// A template whose pods are never made by it (none of ours).
    pub template_of_nothing: bool,
}

impl<'a> Context<'a> {
    pub fn pod(spec: &'a Value, name: &'a str) -> Context<'a> {
        Context { is_pod: true, name, ..Context::template(spec) }
    }

    pub fn template(spec: &'a Value) -> Context<'a> {
        Context {
            spec,
            is_pod: false,
            host_network: spec["hostNetwork"].is_true(),
            name: "",
            template_of_nothing: false,
        }
    }

    /// A volume of that name which has nothing wrong with it.
    fn volume(&self, name: &str) -> Option<&'a Value> {
        let named = |volume: &&Value| !name.is_empty() && volume["name"].text() == name;
        self.spec["volumes"].items().iter().find(named).filter(|volume| volumes::is_valid(volume, self))
    }
}

/// A template of pods: its labels, annotations and spec.
pub fn check_template(template: &At<'_>, errors: &mut Errors) {
    check_template_meta(template, errors);
    let spec = template.field("spec");
    check_spec(&spec, &Context::template(spec.value), errors);
    if !spec.field("ephemeralContainers").is_empty() {
        errors.forbidden(&spec.field("ephemeralContainers").path, "ephemeral containers not allowed in pod template");
    }
}

/// Labels and annotations of a template; their errors stand at the template itself.
pub fn check_template_meta(template: &At<'_>, errors: &mut Errors) {
    let meta = &template.value["metadata"];
    check::labels(&At { value: &meta["labels"], path: template.path.field("labels") }, errors);
    check::annotations(&At { value: &meta["annotations"], path: template.path.field("annotations") }, errors);
    leash::check(meta, &template.path, None, errors);
}

/// A pod's spec.
pub fn check_spec(spec: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    volumes::check(&spec.field("volumes"), cx, errors);
    containers::check_all(spec, cx, errors);
    check::word(&spec.field("restartPolicy"), &["Always", "Never", "OnFailure"], errors);
    check::word(&spec.field("dnsPolicy"), &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], errors);
    check::labels(&spec.field("nodeSelector"), errors);
    security::check_pod(spec, cx, errors);
    affinity::check(&spec.field("affinity"), errors);
    check_dns(spec, errors);
    for gate in spec.field("readinessGates").items() {
        check::label_name(&gate.field("conditionType"), errors);
    }
    affinity::check_spread(&spec.field("topologySpreadConstraints"), errors);
    check_gates(&spec.field("schedulingGates"), errors);
    check_claims(spec, errors);
    check::optional(&spec.field("serviceAccountName"), names::dns_subdomain, errors);
    check::optional(&spec.field("nodeName"), names::dns_subdomain, errors);
    check::within(&spec.field("activeDeadlineSeconds"), 1, i64::from(i32::MAX), errors);
    check::optional(&spec.field("hostname"), names::dns_label, errors);
    check::optional(&spec.field("subdomain"), names::dns_label, errors);
    affinity::check_tolerations(&spec.field("tolerations"), errors);
    for alias in spec.field("hostAliases").items() {
        check::address(&alias.field("ip"), errors);
        for name in alias.field("hostnames").items() {
            check::invalid(&name, names::dns_subdomain(name.text()), errors);
        }
    }
    check::optional(&spec.field("priorityClassName"), names::dns_subdomain, errors);
    check::optional(&spec.field("runtimeClassName"), names::dns_subdomain, errors);
    check::set_word(&spec.field("preemptionPolicy"), &["Never", "PreemptLowerPriority"], errors);
    for (name, amount) in spec.field("overhead").members() {
        resources::check_name(&amount, name, errors);
        resources::check_quantity(&amount, name, errors);
    }
    check_os(spec, errors);
    if spec.field("resources").is_set() {
        resources::check(&spec.field("resources"), cx, errors);
    }
    let name = spec.field("hostnameOverride");
    if name.is_set() {
        for other in ["setHostnameAsFQDN", "hostNetwork"] {
            if spec.field(other).value.is_true() {
                errors.forbidden(&name.path, format!("may not be specified when {other} is true"));
            }
        }
        if name.text().len() > HOST_NAME_MAX {
            errors.too_long(&name.path, HOST_NAME_MAX);
        }
        check::invalid(&name, names::dns_subdomain(name.text()), errors);
    }
}

fn check_os(spec: &At<'_>, errors: &mut Errors) {
    let os = spec.field("os");
    if !os.is_set() {
        return;
    }
    let name = os.field("name");
    match name.text() {
        "" => errors.required(&name.path, "cannot be empty"),
        "linux" => {
            let windows = [spec.field("securityContext")];
            for context in &windows {
                if context.field("windowsOptions").is_set() {
                    let path = context.field("windowsOptions");
                    errors.forbidden(&path.path, "windows options cannot be set for a linux pod");
                }
            }
        }
        "windows" => check_windows(spec, errors),
        _ => errors.not_supported(&At { value: name.value, path: os.path }, &["linux", "windows"]),
    }
}

fn check_windows(spec: &At<'_>, errors: &mut Errors) {
    for key in ["hostPID", "hostIPC"] {
        if spec.field(key).value.is_true() {
            errors.forbidden(&spec.field("securityContext").field(key).path, "cannot be set for a windows pod");
        }
    }
    let context = spec.field("securityContext");
    for key in ["seLinuxOptions", "seccompProfile", "fsGroup", "fsGroupChangePolicy", "runAsUser", "runAsGroup"] {
        if context.field(key).is_set() {
            errors.forbidden(&context.field(key).path, "cannot be set for a windows pod");
        }
    }
}

fn check_gates(gates: &At<'_>, errors: &mut Errors) {
    let mut seen: BTreeSet<Str> = BTreeSet::new();
    for gate in gates.items() {
        let name = gate.value["name"].text();
        for why in names::qualified_name(name) {
            errors.invalid_value(&gate.path, name, why);
        }
        if !seen.insert(name.into()) {
            errors.duplicate_value(&gate.path, name);
        }
    }
}

fn check_claims(spec: &At<'_>, errors: &mut Errors) {
    let mut seen: BTreeSet<Str> = BTreeSet::new();
    for claim in spec.field("resourceClaims").items() {
        let name = claim.field("name");
        check::named(&name, names::dns_label, errors);
        if !name.is_empty() && !seen.insert(name.text().into()) {
            errors.duplicate(&name);
        }
        let sources = [claim.field("resourceClaimName"), claim.field("resourceClaimTemplateName")];
        let set = sources.iter().filter(|source| source.is_set()).count();
        if set != 1 {
            errors.invalid(&claim, "must specify exactly one of: `resourceClaimName`, `resourceClaimTemplateName`");
        }
        for source in sources.iter().filter(|source| source.is_set()) {
            check::invalid(source, names::dns_subdomain(source.text()), errors);
        }
    }
}

const NAMESERVERS_MAX: usize = 3;
/// What Linux takes for the name of a machine, in bytes.
const HOST_NAME_MAX: usize = 64;
const SEARCHES_MAX: usize = 32;
const SEARCH_LEN_MAX: usize = 2048;

fn check_dns(spec: &At<'_>, errors: &mut Errors) {
    let config = spec.field("dnsConfig");
    let servers = config.field("nameservers");
    if spec.field("dnsPolicy").text() == "None" && servers.is_empty() {
        errors.required(&servers.path, "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    if !config.is_set() {
        return;
    }
    if servers.value.items().len() > NAMESERVERS_MAX {
        errors.invalid(&servers, format!("must not have more than {NAMESERVERS_MAX} nameservers"));
    }
    for server in servers.items() {
        check::address(&server, errors);
    }
    let searches = config.field("searches");
    let total: usize = searches.value.items().iter().map(|search| search.text().len() + 1).sum();
    if searches.value.items().len() > SEARCHES_MAX || total > SEARCH_LEN_MAX + 1 {
        errors.invalid(&searches, format!("must not have more than {SEARCHES_MAX} search paths"));
    }
    for search in searches.items() {
        let text = search.text().strip_suffix('.').unwrap_or(search.text());
        if search.text() != "." {
            // Underscores may stand anywhere here, as in service records.
            check::invalid(&search, names::dns_subdomain(&text.replace('_', "a")), errors);
        }
    }
    for option in config.field("options").items() {
        if option.field("name").is_empty() {
            errors.required(&option.path, "must not be empty");
        }
    }
}
