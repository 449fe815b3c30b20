//! PodTemplates: a template of pods that stands alone.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use super::pod_cells::containers_and_images;
use super::pod_spec;
use crate::apps::{labels_text, template_defaults};
use crate::columns::column;

pub struct PodTemplate {
    columns: Vec<Column>,
}

impl PodTemplate {
    pub fn new() -> PodTemplate {
        let columns = ["Containers", "Images", "Pod Labels"].into_iter().map(|name| column(name, "string", 0));
        PodTemplate { columns: columns.collect() }
    }
}

impl Default for PodTemplate {
    fn default() -> PodTemplate {
        PodTemplate::new()
    }
}

impl Rules for PodTemplate {
    fn defaults(&self, object: &mut Value) {
        template_defaults(object.make(&["template"]));
    }

    fn check(&self, _: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        pod_spec::check_template(&at.field("template"), errors);
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, _: Time) -> Vec<Value> {
        let template = &object["template"];
        let [names, images] = containers_and_images(&template["spec"]);
        vec![names, images, labels_text(&template["metadata"]["labels"])]
    }

    fn has_generation(&self) -> bool {
        true
    }
}
