//! Checks of containers: names, images, ports, mounts, devices, the rules of init containers.

use std::collections::BTreeSet;

use meta::{At, Errors, Str, Value, names};

use super::{Context, env, probes, resources, security};
use crate::check;

/// The three kinds of containers have different rules.
#[derive(Clone, Copy, PartialEq)]
pub enum Role {
    Main,
    Init,
    Ephemeral,
}

const RESTART_POLICIES: &[&str] = &["Always", "Never", "OnFailure"];

pub fn check_all(spec: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let main = spec.field("containers");
    if main.is_empty() {
        errors.required(&main.path, "");
    }
    let mut seen: BTreeSet<Str> = BTreeSet::new();
    for container in main.items() {
        check_one(&container, Role::Main, cx, errors);
        unique_name(&container, &mut seen, errors);
    }
    let mut ports = BTreeSet::new();
    for container in main.items() {
        unique_host_ports(&container, &mut ports, errors);
    }
    for container in spec.field("initContainers").items() {
        check_one(&container, Role::Init, cx, errors);
        unique_name(&container, &mut seen, errors);
        unique_host_ports(&container, &mut BTreeSet::new(), errors);
    }
    for container in spec.field("ephemeralContainers").items() {
        check_one(&container, Role::Ephemeral, cx, errors);
        unique_name(&container, &mut seen, errors);
        check_ephemeral(&container, &main, spec, errors);
    }
}

fn unique_name(container: &At<'_>, seen: &mut BTreeSet<Str>, errors: &mut Errors) {
    let name = container.field("name");
    if !name.is_empty() && !seen.insert(name.text().into()) {
        errors.duplicate(&name);
    }
}

fn unique_host_ports(container: &At<'_>, seen: &mut BTreeSet<String>, errors: &mut Errors) {
    for port in container.field("ports").items() {
        let number = port.field("hostPort");
        if number.int().unwrap_or(0) == 0 {
            continue;
        }
        let key =
            format!("{}/{}/{}", port.field("protocol").text(), port.field("hostIP").text(), number.int().unwrap_or(0));
        if !seen.insert(key) {
            errors.duplicate(&number);
        }
    }
}

fn check_one(container: &At<'_>, role: Role, cx: &Context<'_>, errors: &mut Errors) {
    check::named(&container.field("name"), names::dns_label, errors);
    let image = container.field("image");
    if image.is_empty() {
        if !(cx.template_of_nothing && role == Role::Main) {
            errors.required(&image.path, "");
        }
    } else if cx.is_pod && image.text().trim() != image.text() {
        errors.invalid(&image, "must not have leading or trailing whitespace");
    }
    check::word(&container.field("terminationMessagePolicy"), &["FallbackToLogsOnError", "File"], errors);
    check::word(&container.field("imagePullPolicy"), &["Always", "IfNotPresent", "Never"], errors);
    check_ports(&container.field("ports"), cx, role, errors);
    env::check(container, errors);
    check_mounts(container, cx, errors);
    check_devices(container, cx, errors);
    resources::check(&container.field("resources"), cx, errors);
    check_resize_policy(container, cx, errors);
    security::check_container(&container.field("securityContext"), cx, errors);
    if role == Role::Ephemeral {
        return;
    }
    check_restart_policy(container, errors);
    let sidecar = container.field("restartPolicy").text() == "Always";
    if role == Role::Init && !sidecar {
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            let field = container.field(key);
            if field.is_set() {
                errors.forbidden(&field.path, "may not be set for init containers without restartPolicy=Always");
            }
        }
        return;
    }
    probes::check_lifecycle(&container.field("lifecycle"), cx, errors);
    probes::check_container(container, errors);
}

fn check_restart_policy(container: &At<'_>, errors: &mut Errors) {
    let policy = container.field("restartPolicy");
    check::set_word(&policy, RESTART_POLICIES, errors);
    let rules = container.field("restartPolicyRules");
    if rules.is_empty() {
        return;
    }
    if !policy.is_set() {
        errors.required(&policy.path, "must specify restartPolicy when restart rules are used");
    }
    for rule in rules.items() {
        let action = rule.field("action");
        check::word(&action, &["Restart", "RestartAllContainers"], errors);
        let codes = rule.field("exitCodes");
        if !codes.is_set() {
            errors.required(&codes.path, "must be specified");
            continue;
        }
        check::word(&codes.field("operator"), &["In", "NotIn"], errors);
        if codes.field("values").is_empty() {
            errors.invalid(&codes.field("values"), "must contain at least one value");
        }
    }
}

fn check_ephemeral(container: &At<'_>, main: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    for key in [
        "ports",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
    ] {
        let field = container.field(key);
        if !field.is_empty() {
            errors.forbidden(&field.path, "cannot be set for an Ephemeral Container");
        }
    }
    let resources = container.field("resources");
    if !resources.is_empty() {
        errors.forbidden(&resources.path, "cannot be set for an Ephemeral Container");
    }
    for mount in container.field("volumeMounts").items() {
        for key in ["subPath", "subPathExpr"] {
            if !mount.field(key).is_empty() {
                errors.forbidden(&mount.field(key).path, "cannot be set for an Ephemeral Container");
            }
        }
    }
    let target = container.field("targetContainerName");
    let has = |list: &[Value]| list.iter().any(|other| other["name"] == *target.value);
    if !target.is_empty() && !has(main.value.items()) && !has(spec.field("initContainers").value.items()) {
        errors.not_found(&target);
    }
}

fn check_ports(ports: &At<'_>, cx: &Context<'_>, role: Role, errors: &mut Errors) {
    let mut seen: BTreeSet<Str> = BTreeSet::new();
    for port in ports.items() {
        let name = port.field("name");
        if !name.is_empty() {
            let wrong = names::port_name(name.text());
            if wrong.is_empty() && !seen.insert(name.text().into()) {
                errors.duplicate(&name);
            }
            check::invalid(&name, wrong, errors);
        }
        let number = port.field("containerPort");
        match number.int().unwrap_or(0) {
            0 => errors.required(&number.path, ""),
            _ => check::port(&number, errors),
        }
        let host = port.field("hostPort");
        if host.int().unwrap_or(0) != 0 {
            check::port(&host, errors);
        }
        check::word(&port.field("protocol"), &["SCTP", "TCP", "UDP"], errors);
        if cx.host_network && role == Role::Main && host.int().unwrap_or(0) != number.int().unwrap_or(0) {
            errors.invalid(&host, "must match `containerPort` when `hostNetwork` is true");
        }
    }
}

fn check_mounts(container: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let devices = container.field("volumeDevices");
    let mut paths: BTreeSet<Str> = BTreeSet::new();
    for mount in container.field("volumeMounts").items() {
        let (name, path) = (mount.field("name"), mount.field("mountPath"));
        check::required(&name, errors);
        if cx.volume(name.text()).is_none() {
            errors.not_found(&name);
        }
        check::required(&path, errors);
        if !paths.insert(path.text().into()) {
            errors.invalid(&path, "must be unique");
        }
        if devices.items().any(|device| device.field("name").text() == name.text()) {
            errors.invalid(&name, "must not already exist in volumeDevices");
        }
        if devices.items().any(|device| device.field("devicePath").text() == path.text()) {
            errors.invalid(&path, "must not already exist as a path in volumeDevices");
        }
        let (sub, expression) = (mount.field("subPath"), mount.field("subPathExpr"));
        if !sub.is_empty() {
            check::descending_path(&sub, errors);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                errors.invalid(&expression, "subPathExpr and subPath are mutually exclusive");
            }
            check::descending_path(&expression, errors);
        }
        check_propagation(&mount, container, errors);
    }
}

fn check_propagation(mount: &At<'_>, container: &At<'_>, errors: &mut Errors) {
    let propagation = mount.field("mountPropagation");
    if propagation.is_set() {
        let privileged = container.field("securityContext").field("privileged").value.is_true();
        if propagation.text() == "Bidirectional" && !privileged {
            errors.forbidden(
                &propagation.path,
                "Bidirectional mount propagation is available only to privileged containers",
            );
        }
        check::supported(&propagation, &["Bidirectional", "HostToContainer", "None"], errors);
    }
    let recursive = mount.field("recursiveReadOnly");
    match recursive.text() {
        "" if !recursive.is_set() => {}
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !mount.field("readOnly").value.is_true() {
                errors.forbidden(&recursive.path, "may only be specified when readOnly is true");
            }
            if !matches!(propagation.text(), "" | "None") {
                errors
                    .forbidden(&recursive.path, "may only be specified when mountPropagation is None or not specified");
            }
        }
        _ => errors.not_supported(&recursive, &["Disabled", "IfPossible", "Enabled"]),
    }
}

fn check_devices(container: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let mounts = container.field("volumeMounts");
    let (mut seen, mut paths): (BTreeSet<Str>, BTreeSet<Str>) = Default::default();
    for device in container.field("volumeDevices").items() {
        let (name, path) = (device.field("name"), device.field("devicePath"));
        check::required(&name, errors);
        if !seen.insert(name.text().into()) {
            errors.invalid(&name, "must be unique");
        }
        match cx.volume(name.text()) {
            None => errors.not_found(&name),
            Some(volume) if volume["persistentVolumeClaim"].is_null() && volume["ephemeral"].is_null() => {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&name, detail);
            }
            Some(_) => {}
        }
        check::required(&path, errors);
        if !paths.insert(path.text().into()) {
            errors.invalid(&path, "must be unique");
        }
        if !path.is_empty() {
            check::no_backsteps(&path, errors);
        }
        if mounts.items().any(|mount| mount.field("name").text() == name.text()) {
            errors.invalid(&name, "must not already exist in volumeMounts");
        }
        if mounts.items().any(|mount| mount.field("mountPath").text() == path.text()) {
            errors.invalid(&path, "must not already exist as a path in volumeMounts");
        }
    }
}

fn check_resize_policy(container: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let policies = container.field("resizePolicy");
    let mut seen: BTreeSet<Str> = BTreeSet::new();
    for policy in policies.items() {
        let (resource, restart) = (policy.field("resourceName"), policy.field("restartPolicy"));
        let place = |value| At { value, path: policies.path };
        match resource.text() {
            "" => errors.required(&policies.path, ""),
            "cpu" | "memory" => {}
            _ => errors.not_supported(&place(resource.value), &["cpu", "memory"]),
        }
        if !seen.insert(resource.text().into()) {
            errors.duplicate_value(&policies.path, resource.text());
        }
        match restart.text() {
            "" => errors.required(&policies.path, ""),
            "NotRequired" => {}
            "RestartContainer" => {
                if cx.spec["restartPolicy"].text() == "Never" {
                    let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
                    errors.invalid(&place(restart.value), detail);
                }
            }
            _ => errors.not_supported(&place(restart.value), &["NotRequired", "RestartContainer"]),
        }
    }
}
