//! Pod security standards, by the labels of the namespace: `baseline` and `restricted` pods are refused or warned of.

use meta::{At, Errors, Resource, Status, Value};

use super::{Admission, Review};

const NAMESPACES: Resource = Resource("namespaces");
const PREFIX: &str = "pod-security.kubernetes.io";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn of(text: &str) -> Level {
        match text {
            "restricted" => Level::Restricted,
            "baseline" => Level::Baseline,
            _ => Level::Privileged,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

pub struct PodSecurity;

impl Admission for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn validate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.resource == NAMESPACES && review.operation != "DELETE" && review.subresource.is_empty() {
            return check_labels(review);
        }
        if review.operation == "DELETE" || review.namespace.is_empty() {
            return Ok(());
        }
        let is_pod = review.resource.0 == "pods" && matches!(review.subresource, "" | "ephemeralcontainers");
        let template = template_of(review);
        if !is_pod && template.is_none() {
            return Ok(());
        }
        // Only what an update may change is looked at again.
        if is_pod && review.old.is_some_and(|old| old["spec"] == review.object["spec"]) {
            return Ok(());
        }
        let Some(namespace) = review.view.one(NAMESPACES, "", review.namespace) else { return Ok(()) };
        let level = |mode: &str| Level::of(namespace.labels().get(&format!("{PREFIX}/{mode}")).unwrap_or_default());
        let spec = template.unwrap_or_else(|| review.object["spec"].clone());
        let enforce = level("enforce");
        if is_pod && enforce > Level::Privileged {
            let wrong = violations(&spec, enforce);
            if !wrong.is_empty() {
                let why = format!("violates PodSecurity \"{}:latest\": {}", enforce.name(), wrong.join(", "));
                return Err(review.forbidden(why));
            }
        }
        let warn = level("warn");
        let wrong = violations(&spec, warn);
        if warn > Level::Privileged && !wrong.is_empty() && (warn > enforce || !is_pod) {
            review.warnings.push(format!("would violate PodSecurity \"{}:latest\": {}", warn.name(), wrong.join(", ")));
        }
        Ok(())
    }
}

/// The labels of a namespace must say levels and versions that there are; what an update leaves alone may be wrong.
fn check_labels(review: &Review<'_>) -> Result<(), Status> {
    let labels = review.object.at(&["metadata", "labels"]);
    let before = review.old.map(|old| old.at(&["metadata", "labels"]));
    let mut errors = Errors::default();
    let at = At::root(&review.object);
    let at = at.field("metadata");
    let at = at.field("labels");
    for mode in ["enforce", "audit", "warn"] {
        let (level, version) = (format!("{PREFIX}/{mode}"), format!("{PREFIX}/{mode}-version"));
        if before.is_some_and(|before| before[level.as_str()] == labels[level.as_str()])
            && before.is_some_and(|before| before[version.as_str()] == labels[version.as_str()])
        {
            continue;
        }
        if let Some(text) = labels[level.as_str()].as_str()
            && !matches!(text, "privileged" | "baseline" | "restricted")
        {
            let detail = "must be one of privileged, baseline, restricted";
            errors.invalid_value(&at.path.key(&level), text, detail);
        }
        if let Some(text) = labels[version.as_str()].as_str()
            && !is_version(text)
        {
            errors.invalid_value(&at.path.key(&version), text, "must be \"latest\" or \"v1.x\"");
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid("", "Namespace", review.name(), &errors)),
    }
}

fn is_version(text: &str) -> bool {
    let number = |text: &str| text == "0" || (!text.starts_with('0') && text.parse::<u16>().is_ok());
    text == "latest" || text.strip_prefix("v1.").is_some_and(number)
}

/// The pod spec inside a workload's template.
fn template_of(review: &Review<'_>) -> Option<Value> {
    if !review.subresource.is_empty() {
        return None;
    }
    let path: &[&str] = match review.resource.0 {
        "cronjobs.batch" => &["spec", "jobTemplate", "spec", "template", "spec"],
        "podtemplates" => &["template", "spec"],
        "deployments.apps"
        | "replicasets.apps"
        | "daemonsets.apps"
        | "statefulsets.apps"
        | "jobs.batch"
        | "replicationcontrollers" => &["spec", "template", "spec"],
        _ => return None,
    };
    let spec = review.object.at(path);
    (!spec.is_null()).then(|| spec.clone())
}

const BASELINE_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const RESTRICTED_VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// What a pod spec does that the level forbids, one phrase each.
fn violations(spec: &Value, level: Level) -> Vec<String> {
    let mut wrong = Vec::new();
    if level >= Level::Baseline {
        baseline(spec, &mut wrong);
    }
    if level >= Level::Restricted {
        restricted(spec, &mut wrong);
    }
    wrong
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| spec[list].items())
}

fn named(spec: &Value, bad: impl Fn(&Value) -> bool) -> Vec<String> {
    containers(spec)
        .filter(|container| bad(container))
        .map(|container| format!("{:?}", container["name"].text()))
        .collect()
}

fn baseline(spec: &Value, wrong: &mut Vec<String>) {
    let security = |container: &Value| container["securityContext"].clone();
    let shared: Vec<&str> =
        ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|key| spec[*key].is_true()).collect();
    if !shared.is_empty() {
        wrong.push(format!("host namespaces ({})", shared.join(", ")));
    }
    let privileged = named(spec, |container| security(container)["privileged"].is_true());
    if !privileged.is_empty() {
        wrong.push(format!(
            "privileged (containers {} must not set securityContext.privileged=true)",
            privileged.join(", ")
        ));
    }
    let capable = named(spec, |container| {
        let added = security(container);
        added.at(&["capabilities", "add"]).items().iter().any(|name| !BASELINE_CAPABILITIES.contains(&name.text()))
    });
    if !capable.is_empty() {
        wrong.push(format!("non-default capabilities (containers {})", capable.join(", ")));
    }
    if spec["volumes"].items().iter().any(|volume| volume.get("hostPath").is_some()) {
        wrong.push("hostPath volumes".to_owned());
    }
    let ports = named(spec, |container| {
        container["ports"].items().iter().any(|port| port["hostPort"].as_int().unwrap_or(0) != 0)
    });
    if !ports.is_empty() {
        wrong.push(format!("hostPort (containers {} use host ports)", ports.join(", ")));
    }
    let unconfined = |context: &Value| context.at(&["seccompProfile", "type"]).text() == "Unconfined";
    if unconfined(&spec["securityContext"])
        || containers(spec).any(|container| unconfined(&container["securityContext"]))
    {
        wrong.push("seccompProfile (must not be Unconfined)".to_owned());
    }
    let unmasked = named(spec, |container| !matches!(security(container)["procMount"].text(), "" | "Default"));
    if !unmasked.is_empty() {
        wrong.push(format!("procMount (containers {})", unmasked.join(", ")));
    }
    let sysctls = spec.at(&["securityContext", "sysctls"]).items();
    if sysctls.iter().any(|sysctl| !api::core::sysctls::is_baseline(sysctl["name"].text())) {
        wrong.push("forbidden sysctls".to_owned());
    }
    let armor = |context: &Value| context.at(&["appArmorProfile", "type"]).text() == "Unconfined";
    if armor(&spec["securityContext"]) || containers(spec).any(|container| armor(&container["securityContext"])) {
        wrong.push("forbidden AppArmor profile".to_owned());
    }
}

fn restricted(spec: &Value, wrong: &mut Vec<String>) {
    let pod = &spec["securityContext"];
    let escalating = named(spec, |container| {
        container.at(&["securityContext", "allowPrivilegeEscalation"]).as_bool() != Some(false)
    });
    if !escalating.is_empty() {
        let list = escalating.join(", ");
        wrong.push(format!("allowPrivilegeEscalation != false (containers {list} must set securityContext.allowPrivilegeEscalation=false)"));
    }
    let capable = named(spec, |container| {
        let capabilities = container.at(&["securityContext", "capabilities"]);
        !capabilities["drop"].items().iter().any(|name| name.text() == "ALL")
            || capabilities["add"].items().iter().any(|name| name.text() != "NET_BIND_SERVICE")
    });
    if !capable.is_empty() {
        wrong.push(format!(
            "unrestricted capabilities (containers {} must set securityContext.capabilities.drop=[\"ALL\"])",
            capable.join(", ")
        ));
    }
    let rooted = named(spec, |container| match container.at(&["securityContext", "runAsNonRoot"]).as_bool() {
        Some(value) => !value,
        None => !pod["runAsNonRoot"].is_true(),
    });
    if !rooted.is_empty() {
        wrong.push(format!(
            "runAsNonRoot != true (containers {} must set securityContext.runAsNonRoot=true)",
            rooted.join(", ")
        ));
    }
    let is_root = |context: &Value| context["runAsUser"].as_int() == Some(0);
    if is_root(pod) || containers(spec).any(|container| is_root(&container["securityContext"])) {
        wrong.push("runAsUser=0".to_owned());
    }
    let confined =
        |context: &Value| matches!(context.at(&["seccompProfile", "type"]).text(), "RuntimeDefault" | "Localhost");
    let free = named(spec, |container| {
        let own = container.at(&["securityContext", "seccompProfile"]);
        if own.is_null() { !confined(pod) } else { !confined(&container["securityContext"]) }
    });
    if !free.is_empty() {
        wrong.push(format!("seccompProfile (containers {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")", free.join(", ")));
    }
    let bad_volume = |volume: &Value| {
        let mut keys = volume.entries().keys().filter(|key| *key != "name");
        keys.any(|key| !RESTRICTED_VOLUMES.contains(&key) && key != "hostPath")
    };
    if spec["volumes"].items().iter().any(bad_volume) {
        wrong.push("restricted volume types".to_owned());
    }
}
