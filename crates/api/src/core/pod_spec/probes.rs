//! Checks of probes and hooks.

use meta::{At, Errors};

use super::Context;
use crate::check;

pub fn check_container(container: &At<'_>, errors: &mut Errors) {
    for key in ["livenessProbe", "startupProbe"] {
        let probe = container.field(key);
        check_probe(&probe, errors);
        let threshold = probe.field("successThreshold");
        if probe.is_set() && threshold.int() != Some(1) {
            errors.invalid(&threshold, "must be 1");
        }
    }
    let readiness = container.field("readinessProbe");
    check_probe(&readiness, errors);
    let grace = readiness.field("terminationGracePeriodSeconds");
    if grace.is_set() {
        errors.invalid(&grace, "must not be set for readinessProbes");
    }
}

fn check_probe(probe: &At<'_>, errors: &mut Errors) {
    if !probe.is_set() {
        return;
    }
    check_handler(probe, None, errors);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        check::non_negative(&probe.field(key), errors);
    }
    check::positive(&probe.field("terminationGracePeriodSeconds"), errors);
}

pub fn check_lifecycle(lifecycle: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let grace = cx.spec["terminationGracePeriodSeconds"].as_int();
    for key in ["postStart", "preStop"] {
        let handler = lifecycle.field(key);
        if handler.is_set() {
            check_handler(&handler, grace, errors);
        }
    }
    let signal = lifecycle.field("stopSignal");
    if signal.is_set() && cx.spec["os"]["name"].text().is_empty() {
        errors.forbidden(&signal.path, "may not be set for containers with empty `spec.os.name`");
    }
}

fn check_handler(handler: &At<'_>, grace: Option<i64>, errors: &mut Errors) {
    let mut found = 0;
    for key in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let action = handler.field(key);
        if !action.is_set() {
            continue;
        }
        found += 1;
        if found > 1 {
            errors.forbidden(&action.path, "may not specify more than 1 handler type");
            continue;
        }
        match key {
            "exec" => check::required(&action.field("command"), errors),
            "httpGet" => check_http(&action, errors),
            "sleep" => {
                let seconds = action.field("seconds").int().unwrap_or(0);
                if seconds < 0 || grace.is_some_and(|grace| seconds > grace) {
                    let detail = "must be non-negative and no more than the pod's terminationGracePeriodSeconds";
                    errors.invalid_value(&action.path, seconds, detail);
                }
            }
            "tcpSocket" => check::port_or_name(&action.field("port"), errors),
            _ => check::port(&action.field("port"), errors),
        }
    }
    if found == 0 {
        errors.required(&handler.path, "must specify a handler type");
    }
}

fn check_http(get: &At<'_>, errors: &mut Errors) {
    check::required(&get.field("path"), errors);
    check::port_or_name(&get.field("port"), errors);
    check::supported(&get.field("scheme"), &["HTTP", "HTTPS"], errors);
    let headers = get.field("httpHeaders");
    for header in headers.items() {
        let name = header.field("name");
        if !check::header_name(name.text()) {
            errors.invalid_value(&headers.path, name.text(), "must be a valid name of an HTTP header");
        }
    }
}
