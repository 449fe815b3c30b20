//! DeviceTaintRule: a taint that is put on devices from outside of their driver.

use base::Time;
use meta::kind::Prepare;
use meta::{At, Change, Column, Errors, Rules, Status, Value, names};

use super::resource_slice::check_pool_name;
use crate::check;
use crate::columns::{age, columns, since};
use crate::storage::csi_driver::check_driver_name;

const CONDITIONS_MAX: usize = 8;
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

pub struct DeviceTaintRule {
    columns: Vec<Column>,
}

impl DeviceTaintRule {
    pub fn new() -> DeviceTaintRule {
        let shown = ["Key", "Value", "Effect", "TimeAdded", "Age"];
        DeviceTaintRule { columns: columns(&shown.map(|name| (name, "string", 0))) }
    }
}

impl Default for DeviceTaintRule {
    fn default() -> DeviceTaintRule {
        DeviceTaintRule::new()
    }
}

impl Rules for DeviceTaintRule {
    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        if !cx.change.is_status() {
            date(cx.change.old, object, cx.change.now);
        }
        Ok(())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            let status = at.field("status");
            let conditions = status.field("conditions");
            check::conditions(&conditions, errors);
            let count = conditions.value.items().len();
            if count > CONDITIONS_MAX {
                errors.too_many(&conditions.path, count, CONDITIONS_MAX);
            }
            return;
        }
        let known = change.old.map_or(&Value::Null, |old| old.at(&["spec", "taint", "effect"]));
        check_spec(&at.field("spec"), known, errors);
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let taint = object.at(&["spec", "taint"]);
        let [key, value, effect] = ["key", "value", "effect"].map(|key| taint[key].text().into());
        vec![key, value, effect, since(&taint["timeAdded"], now), age(object, now)]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// `known` is the effect that the taint had before.
fn check_spec(spec: &At<'_>, known: &Value, errors: &mut Errors) {
    let (selector, taint) = (spec.field("deviceSelector"), spec.field("taint"));
    let (driver, pool, device) = (selector.field("driver"), selector.field("pool"), selector.field("device"));
    if driver.is_set() {
        check_driver_name(&driver, errors);
    }
    if pool.is_set() {
        check_pool_name(&pool, errors);
    }
    if device.is_set() {
        check::invalid(&device, names::dns_label(device.text()), errors);
    }
    check::label_name(&taint.field("key"), errors);
    check::optional(&taint.field("value"), names::label_value, errors);
    let effect = taint.field("effect");
    match effect.text() {
        "" => errors.required(&effect.path, ""),
        // An effect of days to come stays where it is.
        _ if known == effect.value => {}
        _ => check::word(&effect, EFFECTS, errors),
    }
}

/// A taint has its effect from when it was given that one, unless somebody says otherwise.
fn date(old: Option<&Value>, object: &mut Value, now: Time) {
    let taint = object.make(&["spec", "taint"]);
    let is_moved = old.is_some_and(|old| {
        let known = old.at(&["spec", "taint"]);
        known["effect"] != taint["effect"] && known["timeAdded"] == taint["timeAdded"]
    });
    if taint["timeAdded"].is_null() || is_moved {
        taint.set(&["timeAdded"], now.rfc3339());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    fn dated(old: Option<&Value>, effect: &str, said: &str) -> String {
        let mut object = json!({"spec": {"taint": {"effect": effect}}});
        if !said.is_empty() {
            object.set(&["spec", "taint", "timeAdded"], said);
        }
        date(old, &mut object, Time::from_seconds(60));
        object.at(&["spec", "taint", "timeAdded"]).text().to_owned()
    }

    #[test]
    fn a_taint_is_dated_when_its_effect_changes() {
        let (long_ago, now, later) = ("1970-01-01T00:00:00Z", "1970-01-01T00:01:00Z", "2000-01-01T00:00:00Z");
        assert_eq!(dated(None, "None", ""), now);
        assert_eq!(dated(None, "None", long_ago), long_ago);
        let old = json!({"spec": {"taint": {"effect": "None", "timeAdded": long_ago}}});
        for (effect, said, expected) in
            [("None", long_ago, long_ago), ("NoExecute", long_ago, now), ("NoExecute", later, later)]
        {
            assert_eq!(dated(Some(&old), effect, said), expected, "{effect} {said}");
        }
    }

    #[test]
    fn what_a_rule_names_wrongly_is_told() {
        let spec = json!({
            "deviceSelector": {"driver": "a b", "pool": "A", "device": "a.b"},
            "taint": {"key": "", "value": "a b", "effect": "Never"},
        });
        let mut errors = Errors::default();
        check_spec(&At::root(&spec), &Value::Null, &mut errors);
        let mut found: Vec<&str> = errors.0.iter().map(|error| error.field.as_str()).collect();
        found.dedup();
        let selected = ["deviceSelector.driver", "deviceSelector.pool", "deviceSelector.device"];
        assert_eq!(found, [&selected[..], &["taint.key", "taint.value", "taint.effect"]].concat());
        // An effect of days to come stays where it is.
        let spec = json!({"taint": {"key": "a", "effect": "Later"}});
        let mut errors = Errors::default();
        check_spec(&At::root(&spec), &spec["taint"]["effect"], &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
    }
}
