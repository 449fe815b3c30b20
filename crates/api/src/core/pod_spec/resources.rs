//! Checks of requests and limits.

use std::collections::BTreeSet;

use meta::{At, Errors, Quantity, Str, names};

use super::Context;
use crate::check;

/// Resources that containers have without a domain.
const CONTAINER_RESOURCES: &[&str] = &["cpu", "memory", "ephemeral-storage"];
/// Words without a domain that quotas know.
const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
    "requests.storage",
    "storage",
];

/// Whether a resource belongs to Kubernetes itself.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether more may be limited than is requested.
pub fn may_overcommit(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

pub fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether only whole numbers make sense.
pub fn is_whole(name: &str) -> bool {
    const COUNTED: &[&str] = &[
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
    ];
    COUNTED.contains(&name) || is_extended(name)
}

/// A word that quotas, limits and containers may use.
pub fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
        || name.starts_with("count/")
}

/// A resource's name: qualified, or a word that is known.
pub fn check_name(at: &At<'_>, name: &str, errors: &mut Errors) -> bool {
    let wrong = names::qualified_name(name);
    let right = wrong.is_empty();
    for why in wrong {
        errors.invalid_value(&at.path, name, why);
    }
    if right && !name.contains('/') && !is_standard(name) {
        errors.invalid_value(&at.path, name, "must be a standard resource type or fully qualified");
        return false;
    }
    right
}

fn check_container_name(at: &At<'_>, name: &str, errors: &mut Errors) {
    check_name(at, name, errors);
    if !name.contains('/') {
        if !CONTAINER_RESOURCES.contains(&name) && !name.starts_with("hugepages-") {
            errors.invalid_value(&at.path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid_value(&at.path, name, "doesn't follow extended resource name standard");
    }
}

/// A quantity that is not negative and, of things that are counted, whole.
pub fn check_quantity(at: &At<'_>, name: &str, errors: &mut Errors) {
    check::quantity(at, errors);
    if is_whole(name) && Quantity::of(at.value).is_ok_and(|quantity| !quantity.has_whole_milli()) {
        errors.invalid(at, "must be an integer");
    }
}

/// `resources` of a container.
pub fn check(resources: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let (limits, requests) = (resources.field("limits"), resources.field("requests"));
    let (mut huge, mut base) = (false, false);
    let mut note = |name: &str| {
        huge |= name.starts_with("hugepages-");
        base |= matches!(name, "cpu" | "memory");
    };
    for (name, limit) in limits.members() {
        check_container_name(&limit, name, errors);
        check_quantity(&limit, name, errors);
        note(name);
    }
    for (name, request) in requests.members() {
        check_container_name(&request, name, errors);
        check_quantity(&request, name, errors);
        note(name);
        let limit = limits.field(name);
        if !limit.is_set() {
            if !may_overcommit(name) {
                errors.required(&limits.path, "Limit must be set for non overcommitable resources");
            }
            continue;
        }
        let (Ok(wanted), Ok(most)) = (Quantity::of(request.value), Quantity::of(limit.value)) else { continue };
        if !may_overcommit(name) && wanted.compare(&most).is_ne() {
            let detail = format!("must be equal to {name} limit of {most}");
            errors.invalid_value(&requests.path, request.text(), detail);
        } else if wanted.compare(&most).is_gt() {
            let detail = format!("must be less than or equal to {name} limit of {most}");
            errors.invalid_value(&requests.path, request.text(), detail);
        }
    }
    if huge && !base {
        errors.forbidden(&resources.path, "HugePages require cpu or memory");
    }
    check_claims(&resources.field("claims"), cx, errors);
}

fn check_claims(claims: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let mut seen: BTreeSet<(Str, Str)> = BTreeSet::new();
    for claim in claims.items() {
        let (name, request) = (claim.field("name"), claim.field("request"));
        if name.is_empty() {
            errors.required(&name.path, "");
            continue;
        }
        if !seen.insert((name.text().into(), request.text().into())) {
            errors.duplicate(&claim);
        }
        if !cx.spec["resourceClaims"].items().iter().any(|known| known["name"] == *name.value) {
            errors.not_found(&name);
        }
    }
}
