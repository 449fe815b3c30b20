//! The revisions of a template (ControllerRevision) that StatefulSets and DaemonSets keep.

use meta::{Object, Value, json};
use reconcile::{Context, Effect};

use crate::common::*;

/// A revision, stored or about to be.
#[derive(Clone, Debug)]
pub struct Revision {
    pub name: String,
    pub hash: String,
    pub number: i64,
    /// The template, as it was given.
    pub template: Value,
    /// `None`: made in this pass.
    pub object: Option<Object>,
}

/// What a set's revisions are made with.
pub struct Keeper<'a> {
    pub of: Gvk,
    pub owner: &'a Object,
    pub value: &'a Value,
    pub hash_label: &'static str,
}

impl Keeper<'_> {
    /// The revision of the present template, made or put last where needed, and the older ones, oldest first. `None`
    /// when its name is taken: the owner's status then counts one collision more, which makes another name.
    pub fn sync(&self, found: Vec<Object>, cx: &mut Context) -> Option<(Revision, Vec<Revision>)> {
        let template = &self.value["spec"]["template"];
        let mut all: Vec<Revision> = found.iter().map(|object| self.read(object)).collect();
        all.sort_by(|a, b| (a.number, &a.name).cmp(&(b.number, &b.name)));
        let wanted = essence(template);
        let last = all.last().map_or(0, |revision| revision.number);
        if let Some(at) = all.iter().rposition(|revision| essence(&revision.template) == wanted) {
            let mut same = all.remove(at);
            if same.number < last
                && let Some(object) = &same.object
            {
                same.number = last + 1;
                let mut value = object.value();
                value.set(&["revision"], same.number);
                cx.push(Effect::Update { resource: REVISIONS, object: value });
            }
            return Some((same, all));
        }
        let collisions = self.value["status"]["collisionCount"].as_int().unwrap_or(0);
        let mut data = template.clone();
        data.set(&["$patch"], "replace");
        let data = json!({"spec": {"template": data}});
        let hash = revision_hash(&data, collisions);
        let name = format!("{}-{hash}", self.owner.name());
        if found.iter().any(|object| object.name() == name) {
            let mut status = self.value["status"].clone();
            status.set(&["collisionCount"], collisions + 1);
            write_status(cx, self.owner, self.value, status);
            return None;
        }
        let mut labels = template["metadata"]["labels"].clone();
        labels.set(&[self.hash_label], &hash);
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision",
            "metadata": {
                "name": (&name), "namespace": (self.owner.namespace()), "labels": labels,
                "ownerReferences": [(reference(self.of, self.owner))],
            },
            "data": data, "revision": (last + 1),
        });
        let mut annotations = self.value["metadata"]["annotations"].clone();
        annotations.make_map().retain(|key, _| key != "kubectl.kubernetes.io/last-applied-configuration");
        if !annotations.entries().is_empty() {
            object.set(&["metadata", "annotations"], annotations);
        }
        cx.push(Effect::Create { resource: REVISIONS, object });
        Some((Revision { name, hash, number: last + 1, template: template.clone(), object: None }, all))
    }

    fn read(&self, object: &Object) -> Revision {
        let value = object.value();
        let mut template = value.at(&["data", "spec", "template"]).clone();
        template.take(&["$patch"]);
        Revision {
            name: object.name().to_owned(),
            hash: object.labels().get(self.hash_label).unwrap_or_default().to_owned(),
            number: value["revision"].as_int().unwrap_or(0),
            template,
            object: Some(object.clone()),
        }
    }

    /// Removes the oldest revisions that nothing uses beyond the history limit.
    pub fn truncate(&self, old: &[Revision], is_used: impl Fn(&Revision) -> bool, cx: &mut Context) {
        let limit = self.value["spec"]["revisionHistoryLimit"].as_int().unwrap_or(10);
        let limit = usize::try_from(limit).unwrap_or(0);
        let idle: Vec<&Revision> = old.iter().filter(|revision| !is_used(revision)).collect();
        for revision in idle.iter().take(idle.len().saturating_sub(limit)) {
            if let Some(object) = revision.object.as_ref().filter(|object| !is_deleting(object)) {
                delete(cx, object, "");
            }
        }
    }
}
