//! Which form an answer takes, from the `Accept` header; and which form a body has, from its `Content-Type`.

use meta::decode::Media;
use meta::{Reason, Status};

use crate::table::Form;

/// The `Content-Type` of answers in this form.
pub fn content_type(media: Media) -> &'static str {
    match media {
        Media::Json => "application/json",
        Media::Yaml => "application/yaml",
        Media::Protobuf => "application/vnd.kubernetes.protobuf",
    }
}

/// The `Content-Type` of a watch's frames.
pub fn stream_type(media: Media) -> &'static str {
    match media {
        Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        other => content_type(other),
    }
}

/// A protobuf watch frame; `object` is already in its envelope.
pub fn protobuf_frame(of_type: &str, object: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&meta::proto::watch_frame(of_type, object));
}

/// What stands in the answer in place of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Shape {
    #[default]
    Object,
    Table,
    PartialMetadata,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    pub media: Media,
    pub shape: Shape,
    /// Of tables and metadata: how they are written.
    pub form: Form,
    pub pretty: bool,
}

/// One alternative of an `Accept` header.
struct Clause<'a> {
    main: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = header
        .split(',')
        .filter_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let main = parts.next().filter(|main| !main.is_empty())?;
            let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let quality = parameters.iter().find(|(key, _)| *key == "q").and_then(|(_, q)| q.parse().ok());
            Some(Clause { main, parameters, quality: quality.unwrap_or(1.0) })
        })
        .collect();
    // A stable sort keeps the writer's order among equals.
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

/// Chooses among what the endpoint offers; `shapes` says whether Table and PartialObjectMetadata make sense here.
pub fn accept(header: Option<&str>, shapes: bool, watch: bool) -> Result<Accept, Status> {
    let header = header.map(str::trim).filter(|header| !header.is_empty()).unwrap_or("*/*");
    for clause in clauses(header) {
        let media = match clause.main {
            "application/json" | "*/*" | "application/*" => Media::Json,
            "application/yaml" => Media::Yaml,
            "application/vnd.kubernetes.protobuf" => Media::Protobuf,
            _ => continue,
        };
        let parameter = |name: &str| clause.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let mut form = Form::default();
        let shape = match parameter("as") {
            None => Shape::Object,
            Some(_) if !shapes => continue,
            Some(target) => {
                match parameter("v").and_then(Form::of) {
                    Some(found) if parameter("g") == Some("meta.k8s.io") => form = found,
                    _ => continue,
                }
                match target {
                    // Tables have no protobuf form.
                    "Table" if media != Media::Protobuf => Shape::Table,
                    "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::PartialMetadata,
                    _ => continue,
                }
            }
        };
        if watch && media == Media::Yaml {
            continue;
        }
        return Ok(Accept { media, shape, form, pretty: parameter("pretty") == Some("1") });
    }
    Err(Status::new(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json, application/yaml, \
         application/vnd.kubernetes.protobuf",
    ))
}

/// The form of a request's body.
pub fn content(header: Option<&str>) -> Result<Media, Status> {
    let main = header.unwrap_or("application/json").split(';').next().unwrap_or_default().trim();
    match main {
        "application/json" | "" => Ok(Media::Json),
        "application/yaml" => Ok(Media::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Media::Protobuf),
        other => Err(Status::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format {other:?} - accepted media types include: \
                 application/json, application/yaml, application/vnd.kubernetes.protobuf"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_fits_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(accept(Some(table), true, false).unwrap().shape, Shape::Table);
        assert_eq!(accept(Some(table), false, false).unwrap().shape, Shape::Object);
        let old = accept(Some("application/json;as=Table;v=v1beta1;g=meta.k8s.io"), true, false).unwrap();
        assert_eq!((old.shape, old.form.api_version), (Shape::Table, "meta.k8s.io/v1beta1"));
        assert!(accept(Some("application/json;as=Table;v=v1alpha1;g=meta.k8s.io"), true, false).is_err());
        let client = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accept(Some(client), true, false).unwrap().media, Media::Protobuf);
        assert_eq!(accept(Some("application/json;q=0.5,application/yaml"), true, false).unwrap().media, Media::Yaml);
        assert_eq!(accept(None, true, false).unwrap().media, Media::Json);
        assert_eq!(accept(Some("text/html"), true, false).unwrap_err().code(), 406);
        assert!(accept(Some("text/html,*/*"), true, false).is_ok());
        assert_eq!(content(Some("text/csv")).unwrap_err().code(), 415);
    }
}
