//! PriorityLevelConfiguration: how many requests of a level run at once, and what happens to the rest.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use crate::check;
use crate::columns::{age, columns};

const QUEUES_MAX: i64 = 10_000_000;
/// Bits of a hash that shuffle-sharding may use up.
const ENTROPY_BITS_MAX: f64 = 60.0;

pub struct PriorityLevel {
    columns: Vec<Column>,
}

impl PriorityLevel {
    pub fn new() -> PriorityLevel {
        let shown = ["Type", "NominalConcurrencyShares", "Queues", "HandSize", "QueueLengthLimit", "Age"];
        PriorityLevel { columns: columns(&shown.map(|name| (name, "string", 0))) }
    }
}

impl Default for PriorityLevel {
    fn default() -> PriorityLevel {
        PriorityLevel::new()
    }
}

impl Rules for PriorityLevel {
    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        if let Some(exempt) = spec.get_mut("exempt").filter(|exempt| !exempt.is_null()) {
            exempt.default("nominalConcurrencyShares", 0i64);
            exempt.default("lendablePercent", 0i64);
        }
        let Some(limited) = spec.get_mut("limited").filter(|limited| !limited.is_null()) else { return };
        limited.default("nominalConcurrencyShares", 30i64);
        limited.default("lendablePercent", 0i64);
        if let Some(queuing) = limited.at_mut(&["limitResponse", "queuing"]).filter(|queuing| !queuing.is_null()) {
            for (key, number) in [("handSize", 8i64), ("queues", 64), ("queueLengthLimit", 50)] {
                if queuing[key].as_int().unwrap_or(0) == 0 {
                    queuing.set(&[key], number);
                }
            }
        }
    }

    fn first_status(&self) -> Option<Value> {
        Some(Value::map())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return;
        }
        let spec = at.field("spec");
        let (of_type, limited, exempt) = (spec.field("type"), spec.field("limited"), spec.field("exempt"));
        let is_exempt = at.value.at(&["metadata", "name"]).text() == "exempt";
        if is_exempt != (of_type.text() == "Exempt") && matches!(of_type.text(), "Exempt" | "Limited") {
            errors.invalid(&of_type, "type must be 'Exempt' if and only if name is 'exempt'");
        }
        match of_type.text() {
            "Exempt" if limited.is_set() => {
                errors.forbidden(&limited.path, "must be nil if the type is not Limited");
            }
            "Exempt" => {
                check::non_negative(&exempt.field("nominalConcurrencyShares"), errors);
                check::within(&exempt.field("lendablePercent"), 0, 100, errors);
            }
            "Limited" => {
                if exempt.is_set() {
                    errors.forbidden(&exempt.path, "must be nil if the type is Limited");
                }
                match limited.is_set() {
                    true => check_limited(&limited, errors),
                    false => errors.required(&limited.path, "must not be empty when type is Limited"),
                }
            }
            _ => errors.not_supported(&of_type, &["Exempt", "Limited"]),
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let spec = &object["spec"];
        let or_none = |value: &Value| if value.is_null() { "<none>".into() } else { value.clone() };
        let part = if spec["type"].text() == "Exempt" { "exempt" } else { "limited" };
        let queuing = spec.at(&["limited", "limitResponse", "queuing"]);
        vec![
            spec["type"].text().into(),
            or_none(&spec[part]["nominalConcurrencyShares"]),
            or_none(&queuing["queues"]),
            or_none(&queuing["handSize"]),
            or_none(&queuing["queueLengthLimit"]),
            age(object, now),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_limited(limited: &At<'_>, errors: &mut Errors) {
    check::non_negative(&limited.field("nominalConcurrencyShares"), errors);
    check::within(&limited.field("lendablePercent"), 0, 100, errors);
    check::non_negative(&limited.field("borrowingLimitPercent"), errors);
    let response = limited.field("limitResponse");
    let queuing = response.field("queuing");
    match response.field("type").text() {
        "Reject" if queuing.is_set() => {
            errors.forbidden(&queuing.path, "must be nil if limited.limitResponse.type is not Limited")
        }
        "Reject" => {}
        "Queue" if queuing.is_set() => check_queuing(&queuing, errors),
        "Queue" => errors.required(&queuing.path, "must not be empty if limited.limitResponse.type is Limited"),
        _ => errors.not_supported(&response.field("type"), &["Queue", "Reject"]),
    }
}

fn check_queuing(queuing: &At<'_>, errors: &mut Errors) {
    check::positive(&queuing.field("queueLengthLimit"), errors);
    let (queues, hand) = (queuing.field("queues"), queuing.field("handSize"));
    let (count, size) = (queues.int().unwrap_or(0), hand.int().unwrap_or(0));
    check::positive(&queues, errors);
    if count > QUEUES_MAX {
        errors.invalid(&queues, format!("must not be greater than {QUEUES_MAX}"));
    }
    check::positive(&hand, errors);
    if count <= 0 || size <= 0 {
        return;
    }
    if size > count {
        errors.invalid(&hand, format!("should not be greater than queues ({count})"));
    } else if entropy_bits(count, size) > ENTROPY_BITS_MAX {
        errors.invalid(
            &hand,
            format!("required entropy bits of deckSize {count} and handSize {size} should not be greater than 60"),
        );
    }
}

/// The bits that dealing `hand` cards from a deck of `deck` takes; stops where it is too many anyway.
fn entropy_bits(deck: i64, hand: i64) -> f64 {
    let mut bits = 0.0;
    for dealt in 0..hand {
        bits += ((deck - dealt) as f64).log2();
        if bits > ENTROPY_BITS_MAX {
            break;
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_must_not_be_too_large() {
        assert!(entropy_bits(64, 8) < ENTROPY_BITS_MAX);
        assert!(entropy_bits(1024, 7) > ENTROPY_BITS_MAX);
        assert!(entropy_bits(QUEUES_MAX, i64::MAX) > ENTROPY_BITS_MAX);
    }
}
