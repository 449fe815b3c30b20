//! HorizontalPodAutoscalers: how many pods, by what is measured.

use base::Time;
use meta::{At, Change, Column, Errors, Prepare, Rules, Status, Value, json, names};

use super::old_form;
use crate::check;
use crate::columns::{age, columns};

pub struct HorizontalPodAutoscaler {
    /// Served as `autoscaling/v1`, which knows one measure only.
    old: bool,
    columns: Vec<Column>,
}

impl HorizontalPodAutoscaler {
    pub fn new(old: bool) -> HorizontalPodAutoscaler {
        let names = ["Reference", "Targets", "MinPods", "MaxPods", "Replicas", "Age"];
        HorizontalPodAutoscaler { old, columns: columns(&names.map(|name| (name, "string", 0))) }
    }
}

/// The use of cpu that is aimed at without any other measure, in percent.
const CPU_PERCENT: i64 = 80;
const WINDOW_SECONDS_MAX: i64 = 3600;
const PERIOD_SECONDS_MAX: i64 = 1800;

fn cpu(percent: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": (percent)}}})
}

fn is_cpu(metric: &Value) -> bool {
    let resource = &metric["resource"];
    resource["name"].text() == "cpu" && !resource["target"]["averageUtilization"].is_null()
}

impl Rules for HorizontalPodAutoscaler {
    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        spec.default("minReplicas", 1i64);
        if self.old {
            if !old_form::has_metrics(object) {
                object.make(&["spec"]).default("targetCPUUtilizationPercentage", CPU_PERCENT);
            }
            return;
        }
        if spec["metrics"].items().is_empty() {
            spec.set(&["metrics"], vec![cpu(CPU_PERCENT)]);
        }
        let Some(behavior) = spec.get_mut("behavior").filter(|behavior| !behavior.is_null()) else { return };
        let policy = |of_type: &str, value: i64| json!({"type": (of_type), "value": (value), "periodSeconds": 15});
        let up = behavior.make(&["scaleUp"]);
        up.default("selectPolicy", "Max");
        up.default("stabilizationWindowSeconds", 0i64);
        up.default("policies", vec![policy("Pods", 4), policy("Percent", 100)]);
        let down = behavior.make(&["scaleDown"]);
        down.default("selectPolicy", "Max");
        down.default("policies", vec![policy("Percent", 100)]);
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        if cx.change.is_create() {
            let status = if self.old {
                json!({"currentReplicas": 0, "desiredReplicas": 0})
            } else {
                json!({"currentMetrics": (Value::Null), "desiredReplicas": 0})
            };
            object.set(&["status"], status);
        }
        Ok(())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return;
        }
        let spec = at.field("spec");
        let (least, most) = (spec.field("minReplicas"), spec.field("maxReplicas"));
        if least.int().is_some_and(|least| least < 1) {
            errors.invalid(&least, "must be greater than or equal to 1");
        }
        let number = most.int().unwrap_or(0);
        match number {
            0 => errors.required(&most.path, "must be set and greater than 0"),
            ..0 => errors.invalid(&most, "must be greater than 0"),
            _ => {}
        }
        if least.int().is_some_and(|least| number < least) {
            errors.invalid(&most, "must be greater than or equal to `minReplicas`");
        }
        let from_zero = |metric: &Value| matches!(metric["type"].text(), "Object" | "External");
        if least.int() == Some(0) && !spec.field("metrics").value.items().iter().any(from_zero) {
            let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
            errors.forbidden(&spec.field("metrics").path, detail);
        }
        let target = spec.field("scaleTargetRef");
        for key in ["kind", "name"] {
            check::named(&target.field(key), names::path_segment, errors);
        }
        let version = target.field("apiVersion");
        if !version.text().contains('/') && version.text() != "v1" {
            errors.invalid(&version, "apiVersion must specify API group");
        }
        let percent = spec.field("targetCPUUtilizationPercentage");
        if percent.int().is_some_and(|percent| percent < 1) {
            let path = spec.path.field("metrics");
            let path = path.index(0);
            let path = path.field("resource");
            let path = path.field("target");
            errors.invalid_value(&path.field("averageUtilization"), percent.value.clone(), "must be greater than 0");
        }
        for metric in spec.field("metrics").items() {
            check_metric(&metric, errors);
        }
        let behavior = spec.field("behavior");
        for direction in ["scaleUp", "scaleDown"] {
            check_rules(&behavior.field(direction), errors);
        }
    }

    fn to_stored(&self, object: &mut Value) {
        if !self.old {
            return;
        }
        object.set(&["apiVersion"], "autoscaling/v2");
        if let Some(percent) = object.take(&["spec", "targetCPUUtilizationPercentage"]).and_then(|value| value.as_int())
        {
            object.set(&["spec", "metrics"], vec![cpu(percent)]);
        }
        if let Some(now) = object.take(&["status", "currentCPUUtilizationPercentage"]).and_then(|value| value.as_int())
        {
            let current =
                json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": (now)}}});
            object.set(&["status", "currentMetrics"], vec![current]);
        }
        old_form::from_annotations(object);
    }

    fn present(&self, object: &mut Value) {
        if !self.old {
            return;
        }
        object.set(&["apiVersion"], "autoscaling/v1");
        old_form::to_annotations(object, |metric| {
            let resource = &metric["resource"];
            is_cpu(metric) || resource["name"].text() == "cpu" && !resource["current"]["averageUtilization"].is_null()
        });
        let spec = object.make(&["spec"]);
        let metrics = spec.take(&["metrics"]).unwrap_or_default();
        if let Some(metric) = metrics.items().iter().find(|metric| is_cpu(metric)) {
            let percent = metric.at(&["resource", "target", "averageUtilization"]).clone();
            spec.set(&["targetCPUUtilizationPercentage"], percent);
        }
        let current = object.take(&["status", "currentMetrics"]).unwrap_or_default();
        let percent = |metric: &Value| metric.at(&["resource", "current", "averageUtilization"]).as_int();
        let cpu = current.items().iter().filter(|metric| metric["resource"]["name"].text() == "cpu");
        if let Some(percent) = cpu.filter_map(percent).next() {
            object.set(&["status", "currentCPUUtilizationPercentage"], percent);
        }
        object.make(&["status"]).default("currentReplicas", 0i64);
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let mut stored = object.clone();
        self.to_stored(&mut stored);
        let (spec, status) = (&stored["spec"], &stored["status"]);
        let target = &spec["scaleTargetRef"];
        let least = spec["minReplicas"].as_int().map_or_else(|| "<unset>".to_owned(), |least| least.to_string());
        vec![
            format!("{}/{}", target["kind"].text(), target["name"].text()).into(),
            targets(spec, status).into(),
            least.into(),
            Value::Int(spec["maxReplicas"].as_int().unwrap_or(0)),
            Value::Int(status["currentReplicas"].as_int().unwrap_or(0)),
            age(object, now),
        ]
    }
}

/// Measures that a cell shows.
const SHOWN: usize = 2;

fn targets(spec: &Value, status: &Value) -> String {
    let text = |(at, metric): (usize, &Value)| -> String {
        let (key, label) = match metric["type"].text() {
            "Resource" => ("resource", format!("{}: ", metric["resource"]["name"].text())),
            "ContainerResource" => ("containerResource", format!("{}: ", metric["containerResource"]["name"].text())),
            "Pods" => ("pods", String::new()),
            "Object" => ("object", String::new()),
            _ => ("external", String::new()),
        };
        let target = &metric[key]["target"];
        let current = &status["currentMetrics"][at][key]["current"];
        let shown = |value: &Value| match value {
            Value::Null => "<unknown>".to_owned(),
            Value::Int(number) => number.to_string(),
            other => other.text().to_owned(),
        };
        if let Some(percent) = target["averageUtilization"].as_int() {
            let now =
                current["averageUtilization"].as_int().map_or_else(|| "<unknown>".to_owned(), |now| format!("{now}%"));
            return format!("{label}{now}/{percent}%");
        }
        if !target["averageValue"].is_null() {
            let suffix = if matches!(key, "external" | "object") { " (avg)" } else { "" };
            return format!("{label}{}/{}{suffix}", shown(&current["averageValue"]), shown(&target["averageValue"]));
        }
        format!("{label}{}/{}", shown(&current["value"]), shown(&target["value"]))
    };
    let all: Vec<String> = spec["metrics"].items().iter().enumerate().map(text).collect();
    match all.len() {
        0 => "<none>".to_owned(),
        count if count > SHOWN => format!("{} + {} more...", all[..SHOWN].join(", "), count - SHOWN),
        _ => all.join(", "),
    }
}

fn check_metric(metric: &At<'_>, errors: &mut Errors) {
    const TYPES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];
    let of_type = metric.field("type");
    let key = match of_type.text() {
        "" => {
            errors.required(&of_type.path, "must specify a metric source type");
            errors.not_supported(&of_type, TYPES);
            "none"
        }
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => {
            errors.not_supported(&of_type, TYPES);
            "none"
        }
    };
    for other in ["resource", "containerResource", "pods", "object", "external"] {
        let source = metric.field(other);
        if other == key {
            if source.is_set() {
                check_source(key, &source, errors);
            } else {
                errors.required(&source.path, "must populate information for the given metric source");
            }
        } else if source.is_set() && key != "none" {
            errors.forbidden(&source.path, "must populate the given metric source only");
        }
    }
}

fn check_source(key: &str, source: &At<'_>, errors: &mut Errors) {
    let target = source.field("target");
    let of_type = target.field("type");
    if of_type.is_empty() {
        errors.required(&of_type.path, "must specify a metric target type");
    }
    if !matches!(of_type.text(), "Utilization" | "Value" | "AverageValue") {
        errors.invalid(&of_type, "must be either Utilization, Value, or AverageValue");
    }
    let (used, average, value) =
        (target.field("averageUtilization"), target.field("averageValue"), target.field("value"));
    if used.int().is_some_and(|used| used < 1) {
        errors.invalid(&used, "must be greater than 0");
    }
    for amount in [&average, &value] {
        if amount.is_set() && meta::Quantity::of(amount.value).is_ok_and(|amount| amount.sign() <= 0) {
            errors.invalid(amount, "must be positive");
        }
    }
    match key {
        "resource" | "containerResource" => {
            if source.field("name").is_empty() {
                errors.required(&source.field("name").path, "must specify a resource name");
            }
            if key == "containerResource" && source.field("container").is_empty() {
                errors.required(&source.field("container").path, "must specify a container");
            }
            match (used.is_set(), average.is_set()) {
                (false, false) => {
                    errors.required(&used.path, "must set either a target raw value or a target utilization");
                }
                (true, true) => {
                    errors.forbidden(&average.path, "may not set both a target raw value and a target utilization")
                }
                _ => {}
            }
        }
        _ => {
            let metric = source.field("metric");
            if metric.field("name").is_empty() {
                errors.required(&metric.field("name").path, "must specify a metric name");
            }
            check::label_selector(&metric.field("selector"), errors);
            if key == "pods" && !average.is_set() {
                errors.required(&average.path, "must specify a positive target averageValue");
            } else if key != "pods" && !average.is_set() && !value.is_set() {
                errors.required(&average.path, "must set either a target value for metric or a per-pod target");
            }
            if key == "object" {
                let about = source.field("describedObject");
                for part in ["kind", "name"] {
                    check::named(&about.field(part), names::path_segment, errors);
                }
            }
        }
    }
}

fn check_rules(rules: &At<'_>, errors: &mut Errors) {
    if !rules.is_set() {
        return;
    }
    check::within(&rules.field("stabilizationWindowSeconds"), 0, WINDOW_SECONDS_MAX, errors);
    check::set_word(&rules.field("selectPolicy"), &["Disabled", "Max", "Min"], errors);
    check::quantity(&rules.field("tolerance"), errors);
    let policies = rules.field("policies");
    if policies.is_empty() {
        errors.required(&policies.path, "must specify at least one Policy");
    }
    for policy in policies.items() {
        check::supported(&policy.field("type"), &["Percent", "Pods"], errors);
        for key in ["value", "periodSeconds"] {
            let number = policy.field(key);
            if number.int().unwrap_or(0) <= 0 {
                errors.invalid(&number, "must be greater than zero");
            }
        }
        let period = policy.field("periodSeconds");
        if period.int().is_some_and(|seconds| seconds > PERIOD_SECONDS_MAX) {
            errors.invalid(&period, format!("must be less than or equal to {PERIOD_SECONDS_MAX}"));
        }
    }
}
