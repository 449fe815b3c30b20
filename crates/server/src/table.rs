//! The `Table` form of objects, which kubectl prints, and the metadata-only form.

use base::Time;
use meta::{Column, Kind, Status, Value, json};

/// What of each object goes with its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    /// Reads the parameter `includeObject`.
    pub fn parse(text: &str) -> Result<Include, Status> {
        match text {
            "" | "Metadata" => Ok(Include::Metadata),
            "None" => Ok(Include::None),
            "Object" => Ok(Include::Object),
            other => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be \
                 'Metadata', 'Object', 'None', or empty"
            ))),
        }
    }
}

/// How tables and metadata were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub include: Include,
    /// `meta.k8s.io/v1`, or `meta.k8s.io/v1beta1`, which older programs ask for and which says the same.
    pub api_version: &'static str,
}

impl Form {
    const VERSIONS: &[(&str, &str)] = &[("v1", "meta.k8s.io/v1"), ("v1beta1", "meta.k8s.io/v1beta1")];

    /// The form in a version of `meta.k8s.io`; `None` where that is not served.
    pub fn of(version: &str) -> Option<Form> {
        let (_, api_version) = Form::VERSIONS.iter().find(|(known, _)| *known == version)?;
        Some(Form { include: Include::default(), api_version })
    }
}

impl Default for Form {
    fn default() -> Form {
        Form { include: Include::default(), api_version: Form::VERSIONS[0].1 }
    }
}

/// Whether a kind shows the name among its own columns (events do, and late).
fn has_name(kind: &Kind) -> bool {
    kind.rules.columns().iter().any(|column| column.name == "Name")
}

/// The definitions of all columns: the name, then the kind's own.
pub fn columns(kind: &Kind) -> Vec<Column> {
    let column = |name: &str, of_type: &str, format: &str, description: &str| Column {
        name: name.into(),
        of_type: of_type.into(),
        format: format.into(),
        description: description.into(),
        priority: 0,
    };
    let mut columns = vec![column("Name", "string", "name", "The name of the object, unique in its namespace.")];
    if has_name(kind) {
        columns = kind.rules.columns().to_vec();
    } else if kind.rules.columns().is_empty() {
        columns.push(column("Created At", "date", "", "When the object was created."));
    } else {
        columns.extend(kind.rules.columns().iter().cloned());
    }
    columns
}

/// A `Table` of `objects`. `list_meta` is the metadata of a list, empty for one object.
pub fn table<'a>(
    kind: &Kind,
    objects: impl Iterator<Item = &'a Value>,
    now: Time,
    with_columns: bool,
    list_meta: &Value,
    form: Form,
) -> Value {
    let mut list_meta = list_meta.clone();
    let rows: Vec<Value> = objects
        .map(|object| {
            if list_meta.entries().is_empty() {
                list_meta.set(&["resourceVersion"], object.at(&["metadata", "resourceVersion"]).clone());
            }
            row(kind, object, now, form)
        })
        .collect();
    let mut table = json!({"apiVersion": (form.api_version), "kind": "Table", "metadata": list_meta, "rows": rows});
    if with_columns {
        let definitions: Vec<Value> = columns(kind)
            .into_iter()
            .map(|column| {
                json!({
                    "name": (column.name), "type": (column.of_type), "format": (column.format),
                    "description": (column.description), "priority": (column.priority),
                })
            })
            .collect();
        table.set(&["columnDefinitions"], definitions);
    } else {
        table.set(&["columnDefinitions"], Value::Null);
    }
    table
}

fn row(kind: &Kind, object: &Value, now: Time, form: Form) -> Value {
    let mut cells = vec![object.at(&["metadata", "name"]).clone()];
    if has_name(kind) {
        cells = kind.rules.cells(object, now);
    } else if kind.rules.columns().is_empty() {
        cells.push(object.at(&["metadata", "creationTimestamp"]).clone());
    } else {
        cells.extend(kind.rules.cells(object, now));
    }
    let mut row = json!({"cells": cells});
    match form.include {
        Include::None => {}
        Include::Metadata => row.set(&["object"], partial(object, form)),
        Include::Object => row.set(&["object"], object.clone()),
    }
    row
}

/// The object's metadata alone.
pub fn partial(object: &Value, form: Form) -> Value {
    json!({
        "apiVersion": (form.api_version), "kind": "PartialObjectMetadata", "metadata": (object["metadata"].clone()),
    })
}
