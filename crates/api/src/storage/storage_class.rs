//! StorageClasses: how volumes are made.

use std::collections::{BTreeMap, BTreeSet};

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Str, Value, names};

use crate::check;
use crate::columns::{age, column, columns};
use crate::networking::ingress_class::name_with_default;

pub struct StorageClass {
    columns: Vec<Column>,
}

impl StorageClass {
    pub fn new() -> StorageClass {
        let mut all = vec![Column { format: "name".into(), ..column("Name", "string", 0) }];
        let names = ["Provisioner", "ReclaimPolicy", "VolumeBindingMode", "AllowVolumeExpansion", "Age"];
        all.extend(columns(&names.map(|name| (name, "string", 0))));
        StorageClass { columns: all }
    }
}

impl Default for StorageClass {
    fn default() -> StorageClass {
        StorageClass::new()
    }
}

impl Rules for StorageClass {
    fn defaults(&self, object: &mut Value) {
        object.default("reclaimPolicy", "Delete");
        object.default("volumeBindingMode", "Immediate");
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let provisioner = at.field("provisioner");
        match provisioner.text() {
            "" => errors.required(&provisioner.path, ""),
            text => check::invalid(&provisioner, names::qualified_name(&text.to_lowercase()), errors),
        }
        let (reclaim, binding) = (at.field("reclaimPolicy"), at.field("volumeBindingMode"));
        if !reclaim.is_empty() {
            check::supported(&reclaim, &["Delete", "Retain"], errors);
        }
        check::supported(&binding, &["Immediate", "WaitForFirstConsumer"], errors);
        for (key, value) in at.field("parameters").members() {
            if key.is_empty() {
                errors.invalid(&value, "parameter keys must not be empty");
            }
        }
        let mut terms: Vec<BTreeMap<Str, BTreeSet<Str>>> = Vec::new();
        for term in at.field("allowedTopologies").items() {
            let pairs = term.value["matchLabelExpressions"].items().iter().map(|expression| {
                let values = expression["values"].items().iter().map(|value| value.text().into());
                (Str::from(expression["key"].text()), values.collect())
            });
            let pairs: BTreeMap<Str, BTreeSet<Str>> = pairs.collect();
            // A term that says nothing counts as one said before, as upstream finds.
            if pairs.is_empty() || terms.contains(&pairs) {
                errors.duplicate_value(&term.field("matchLabelExpressions").path, "");
            }
            terms.push(pairs);
            let mut keys: BTreeSet<Str> = BTreeSet::new();
            for expression in term.field("matchLabelExpressions").items() {
                let (key, values) = (expression.field("key"), expression.field("values"));
                check::label_name(&key, errors);
                if !keys.insert(key.text().into()) {
                    errors.duplicate(&key);
                }
                check::required(&values, errors);
                for (index, value) in values.items().enumerate() {
                    if values.value.items()[..index].contains(value.value) {
                        errors.duplicate(&value);
                    }
                }
            }
        }
        if let Some(old) = change.old {
            for (field, key) in [
                (&at.field("parameters"), "parameters"),
                (&provisioner, "provisioner"),
                (&reclaim, "reclaimPolicy"),
                (&binding, "volumeBindingMode"),
            ] {
                if *field.value != old[key]
                    && !(field.is_empty() && old[key].entries().is_empty() && key == "parameters")
                {
                    match key {
                        "provisioner" | "reclaimPolicy" => errors.forbidden(&field.path, "may not be changed"),
                        _ => errors.invalid(field, "field is immutable"),
                    }
                }
            }
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![
            name_with_default(object, "storageclass.kubernetes.io/is-default-class"),
            object["provisioner"].text().into(),
            object["reclaimPolicy"].text().into(),
            object["volumeBindingMode"].text().into(),
            object["allowVolumeExpansion"].is_true().into(),
            age(object, now),
        ]
    }
}
