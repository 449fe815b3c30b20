//! LimitRanges: how small and how large things of a namespace may be. Not here: holding anyone to it (admission).

use std::collections::BTreeSet;

use meta::{At, Change, Errors, Prepare, Quantity, Rules, Status, Str, Value, names};

use super::pod_spec::resources;

pub struct LimitRange;

const PARTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

impl Rules for LimitRange {
    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        // A range of limits needs no name; it then has that of its identity.
        if cx.change.is_create() && object.at(&["metadata", "name"]).text().is_empty() {
            let uid = object.at(&["metadata", "uid"]).clone();
            object.set(&["metadata", "name"], uid);
        }
        Ok(())
    }

    fn defaults(&self, object: &mut Value) {
        let Some(limits) = object.at_mut(&["spec", "limits"]) else { return };
        for limit in limits.items_mut() {
            if limit["type"].text() != "Container" {
                continue;
            }
            for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
                for (name, amount) in limit[from].clone().entries().iter() {
                    limit.make(&[to]).default(name, amount.clone());
                }
            }
        }
    }

    fn check(&self, _: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        let mut seen: BTreeSet<Str> = BTreeSet::new();
        for limit in spec.field("limits").items() {
            let of_type = limit.field("type");
            let wrong = names::qualified_name(of_type.text());
            let known = matches!(of_type.text(), "Container" | "Pod" | "PersistentVolumeClaim");
            if wrong.is_empty() && !of_type.text().contains('/') && !known {
                errors.invalid(&of_type, "must be a standard limit type or fully qualified");
            }
            crate::check::invalid(&of_type, wrong, errors);
            if !seen.insert(of_type.text().into()) {
                errors.duplicate(&of_type);
            }
            check_limit(&limit, of_type.text(), errors);
        }
    }
}

fn check_limit(limit: &At<'_>, of_type: &str, errors: &mut Errors) {
    let mut all: BTreeSet<Str> = BTreeSet::new();
    for part in PARTS {
        let amounts = limit.field(part);
        if of_type == "Pod" && part.starts_with("default") && !amounts.is_empty() {
            errors.forbidden(&amounts.path, "may not be specified when `type` is 'Pod'");
            continue;
        }
        for (name, amount) in amounts.members() {
            all.insert(name.into());
            resources::check_name(&amount, name, errors);
            let plain = matches!(of_type, "Pod" | "Container") && !name.contains('/');
            if plain && !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with("hugepages-") {
                errors.invalid_value(&amount.path, name, "must be a standard resource for containers");
            }
        }
    }
    if of_type == "PersistentVolumeClaim"
        && limit.value["min"]["storage"].is_null()
        && limit.value["max"]["storage"].is_null()
    {
        errors.required(
            &limit.path.field("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
    let pairs = [
        ("min", "min", "max"),
        ("default", "min", "default"),
        ("defaultRequest", "min", "defaultRequest"),
        ("default", "default", "max"),
        ("defaultRequest", "defaultRequest", "default"),
        ("defaultRequest", "defaultRequest", "max"),
    ];
    for name in &all {
        // What is not said bounds nothing.
        let amount = |part: &str| {
            let found = &limit.value[part][name.as_str()];
            Quantity::given(found)
        };
        for (blamed, small, large) in pairs {
            if let (Some(small_amount), Some(large_amount)) = (amount(small), amount(large))
                && small_amount.compare(&large_amount).is_gt()
            {
                let part = limit.path.field(blamed);
                let detail = format!("{small} {small_amount} is greater than {large} {large_amount}");
                errors.invalid_value(&part.key(name), limit.value[blamed][name.as_str()].clone(), detail);
            }
        }
        if amount("maxLimitRequestRatio").is_some_and(|ratio| ratio.compare(&Quantity::from_int(1)).is_lt()) {
            let part = limit.path.field("maxLimitRequestRatio");
            let value = limit.value["maxLimitRequestRatio"][name.as_str()].clone();
            errors.invalid_value(&part.key(name), value, "ratio is less than 1");
        }
    }
}
