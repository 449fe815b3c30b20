//! How an autoscaler looks in `autoscaling/v1`: one measure is a field; what the old version has no field for stands as
//! JSON in annotations, so that nothing is lost when an old client writes back what it read.

use meta::{Str, Value};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// One kind of measure: its type, its member, and where each of its parts stands in the new form and in the old one.
struct Form(&'static str, &'static str, &'static [(&'static [&'static str], &'static str)]);

/// What is aimed at.
const AIMS: &[Form] = &[
    Form(
        "Resource",
        "resource",
        &[
            (&["name"], "name"),
            (&["target", "averageUtilization"], "targetAverageUtilization"),
            (&["target", "averageValue"], "targetAverageValue"),
        ],
    ),
    Form(
        "ContainerResource",
        "containerResource",
        &[
            (&["name"], "name"),
            (&["container"], "container"),
            (&["target", "averageUtilization"], "targetAverageUtilization"),
            (&["target", "averageValue"], "targetAverageValue"),
        ],
    ),
    Form(
        "Pods",
        "pods",
        &[
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "selector"),
            (&["target", "averageValue"], "targetAverageValue"),
        ],
    ),
    Form(
        "Object",
        "object",
        &[
            (&["describedObject"], "target"),
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "selector"),
            (&["target", "value"], "targetValue"),
            (&["target", "averageValue"], "averageValue"),
        ],
    ),
    Form(
        "External",
        "external",
        &[
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "metricSelector"),
            (&["target", "value"], "targetValue"),
            (&["target", "averageValue"], "targetAverageValue"),
        ],
    ),
];

/// What was measured.
const MEASURED: &[Form] = &[
    Form(
        "Resource",
        "resource",
        &[
            (&["name"], "name"),
            (&["current", "averageUtilization"], "currentAverageUtilization"),
            (&["current", "averageValue"], "currentAverageValue"),
        ],
    ),
    Form(
        "ContainerResource",
        "containerResource",
        &[
            (&["name"], "name"),
            (&["container"], "container"),
            (&["current", "averageUtilization"], "currentAverageUtilization"),
            (&["current", "averageValue"], "currentAverageValue"),
        ],
    ),
    Form(
        "Pods",
        "pods",
        &[
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "selector"),
            (&["current", "averageValue"], "currentAverageValue"),
        ],
    ),
    Form(
        "Object",
        "object",
        &[
            (&["describedObject"], "target"),
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "selector"),
            (&["current", "value"], "currentValue"),
            (&["current", "averageValue"], "averageValue"),
        ],
    ),
    Form(
        "External",
        "external",
        &[
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "metricSelector"),
            (&["current", "value"], "currentValue"),
            (&["current", "averageValue"], "currentAverageValue"),
        ],
    ),
];

fn older(metric: &Value, forms: &[Form]) -> Value {
    let mut out = Value::map();
    out.set(&["type"], metric["type"].clone());
    if let Some(Form(_, key, parts)) = forms.iter().find(|form| form.0 == metric["type"].text()) {
        out.set(&[key], Value::map());
        for (path, name) in *parts {
            let found = metric[*key].at(path);
            if !found.is_null() {
                out.set(&[key, name], found.clone());
            }
        }
    }
    out
}

fn newer(metric: &Value, forms: &[Form]) -> Value {
    let mut out = Value::map();
    out.set(&["type"], metric["type"].clone());
    let Some(Form(_, key, parts)) = forms.iter().find(|form| form.0 == metric["type"].text()) else { return out };
    for (path, name) in *parts {
        let found = &metric[*key][*name];
        if !found.is_null() {
            let full: Vec<&str> = std::iter::once(*key).chain(path.iter().copied()).collect();
            out.set(&full, found.clone());
        }
    }
    let target = &out[*key]["target"];
    let kind = ["averageUtilization", "averageValue", "value"].into_iter().find(|part| !target[*part].is_null());
    let word = match kind {
        Some("averageUtilization") => "Utilization",
        Some("averageValue") => "AverageValue",
        Some(_) => "Value",
        None => return out,
    };
    out.set(&[key, "target", "type"], word);
    out
}

/// Whether the annotations of an old object say what is aimed at.
pub fn has_metrics(object: &Value) -> bool {
    object["metadata"]["annotations"].get(METRICS).is_some()
}

fn annotate(object: &mut Value, name: &str, value: &Value) {
    let text = String::from_utf8_lossy(&value.to_json()).into_owned();
    object.set(&["metadata", "annotations", name], text);
}

/// Moves what the old version has no field for into annotations; `is_field` are the measures that it has one for.
pub fn to_annotations(object: &mut Value, is_field: fn(&Value) -> bool) {
    let mut field = false;
    let mut rest = |metrics: Value, forms: &[Form]| -> Vec<Value> {
        field = false;
        let others = metrics.items().iter().filter(|metric| {
            let is = !field && is_field(metric);
            field |= is;
            !is
        });
        others.map(|metric| older(metric, forms)).collect()
    };
    let aims = rest(object["spec"]["metrics"].clone(), AIMS);
    let measured = rest(object["status"]["currentMetrics"].clone(), MEASURED);
    if !aims.is_empty() {
        annotate(object, METRICS, &Value::from(aims));
    }
    if !measured.is_empty() {
        annotate(object, CURRENT, &Value::from(measured));
    }
    for (path, name) in [(["spec", "behavior"], BEHAVIOR), (["status", "conditions"], CONDITIONS)] {
        if let Some(found) = object.take(&path).filter(|found| !found.is_null()) {
            annotate(object, name, &found);
        }
    }
}

/// Takes back what [`to_annotations`] moved; the measures are added to those that are there. Annotations that are no
/// JSON are left alone.
pub fn from_annotations(object: &mut Value) {
    for (name, path, forms) in [
        (METRICS, ["spec", "metrics"], Some(AIMS)),
        (CURRENT, ["status", "currentMetrics"], Some(MEASURED)),
        (CONDITIONS, ["status", "conditions"], None),
        (BEHAVIOR, ["spec", "behavior"], None),
    ] {
        let text = Str::from(object["metadata"]["annotations"][name].text());
        let Ok(found) = Value::parse(text.as_bytes()) else { continue };
        object.take(&["metadata", "annotations", name]);
        match forms {
            Some(forms) => {
                let more = found.items().iter().map(|metric| newer(metric, forms)).collect::<Vec<_>>();
                object.make(&path).make_list().extend(more);
            }
            None => object.set(&path, found),
        }
    }
    if object["metadata"]["annotations"].entries().is_empty() {
        object.take(&["metadata", "annotations"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn nothing_is_lost_on_the_way_through_the_old_version() {
        let new = json!({
            "metadata": {"name": "a"},
            "spec": {
                "behavior": {"scaleDown": {"selectPolicy": "Max"}},
                "metrics": [
                    {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 60}}},
                    {"type": "External", "external": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}},
                        "target": {"type": "Value", "value": "30"}}},
                ],
            },
            "status": {"conditions": [{"type": "AbleToScale", "status": "True"}]},
        });
        let mut object = new.clone();
        to_annotations(&mut object, |_| false);
        object.take(&["spec", "metrics"]);
        let text = object["metadata"]["annotations"][METRICS].text().to_owned();
        assert!(
            text.contains(r#"{"resource":{"name":"memory","targetAverageUtilization":60},"type":"Resource"}"#),
            "{text}"
        );
        from_annotations(&mut object);
        assert_eq!(object, new);
    }

    #[test]
    fn broken_annotations_stay() {
        let mut object = json!({"metadata": {"annotations": {"autoscaling.alpha.kubernetes.io/metrics": "{"}}});
        let before = object.clone();
        from_annotations(&mut object);
        assert_eq!(object, before);
    }
}
