//! Checks of security contexts.

use std::collections::BTreeSet;

use meta::{At, Errors, Str};

use super::Context;
use crate::check;

pub fn check_pod(spec: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let context = spec.field("securityContext");
    if !context.is_set() {
        return;
    }
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        check::id(&context.field(key), errors);
    }
    let groups = context.field("supplementalGroups");
    for group in groups.items() {
        check::id(&group, errors);
    }
    if spec.field("shareProcessNamespace").value.is_true() && spec.field("hostPID").value.is_true() {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid_value(&context.field("shareProcessNamespace").path, true, detail);
    }
    check_sysctls(&context.field("sysctls"), cx, errors);
    check::set_word(&context.field("fsGroupChangePolicy"), &["Always", "OnRootMismatch"], errors);
    check::set_word(&context.field("supplementalGroupsPolicy"), &["Merge", "Strict"], errors);
    check::set_word(&context.field("seLinuxChangePolicy"), &["MountOption", "Recursive"], errors);
    check_profile(&context.field("seccompProfile"), errors);
    check_profile(&context.field("appArmorProfile"), errors);
    if spec.field("hostUsers").value.as_bool() == Some(false) {
        for key in ["hostPID", "hostIPC"] {
            if spec.field(key).value.is_true() {
                errors.forbidden(&spec.field(key).path, "when `hostUsers` is false");
            }
        }
    }
}

fn check_sysctls(sysctls: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let mut seen: BTreeSet<Str> = BTreeSet::new();
    for sysctl in sysctls.items() {
        let name = sysctl.field("name");
        let text = name.text();
        let part = |part: &str| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            !part.is_empty()
                && part.bytes().all(|byte| inner(byte) || byte == b'-' || byte == b'_')
                && part.bytes().next().is_some_and(inner)
                && part.bytes().last().is_some_and(inner)
        };
        if text.is_empty() {
            errors.required(&name.path, "");
        } else if text.len() > 253 || !text.split(['.', '/']).all(part) {
            errors.invalid(&name, "must have at most 253 characters and be parts joined by '.' or '/'");
        } else if !seen.insert(text.into()) {
            errors.duplicate(&name);
        }
        if cx.host_network && (text.starts_with("net.") || text.starts_with("net/")) {
            errors.invalid(&name, "may not be specified when 'hostNetwork' is true");
        }
        let ipc = text.starts_with("kernel.shm") || text.starts_with("kernel.msg") || text.starts_with("fs.mqueue.");
        if cx.spec["hostIPC"].is_true() && (ipc || text == "kernel.sem") {
            errors.invalid(&name, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn check_profile(profile: &At<'_>, errors: &mut Errors) {
    if !profile.is_set() {
        return;
    }
    let (of_type, local) = (profile.field("type"), profile.field("localhostProfile"));
    match of_type.text() {
        "Localhost" if !local.is_set() => {
            errors.required(&local.path, "must be set when type is Localhost");
        }
        "Localhost" => check::descending_path(&local, errors),
        text => {
            if local.is_set() {
                errors.invalid(&local, "can only be set when type is Localhost");
            }
            match text {
                "" => errors.required(&of_type.path, "type is required"),
                "RuntimeDefault" | "Unconfined" => {}
                _ => errors.not_supported(&of_type, &["Localhost", "RuntimeDefault", "Unconfined"]),
            }
        }
    }
}

pub fn check_container(context: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    if !context.is_set() {
        return;
    }
    let mounts = context.field("procMount");
    if mounts.is_set() {
        check::supported(&mounts, &["Default", "Unmasked"], errors);
        if mounts.text() == "Unmasked" && cx.spec["hostUsers"].as_bool() != Some(false) {
            errors.invalid(&mounts, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    for key in ["runAsUser", "runAsGroup"] {
        check::id(&context.field(key), errors);
    }
    check_profile(&context.field("seccompProfile"), errors);
    check_profile(&context.field("appArmorProfile"), errors);
    if context.field("allowPrivilegeEscalation").value.as_bool() == Some(false) {
        if context.field("privileged").value.is_true() {
            errors.invalid(context, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        let added =
            context.field("capabilities").field("add").value.items().iter().any(|name| name.text() == "CAP_SYS_ADMIN");
        if added {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(context, detail);
        }
    }
}
