use super::*;
use crate::json;
use crate::schema::Schema;

const TABLE: &str = "package io.k8s.api.core.v1
Deployment /v1
 apiVersion - str o
 kind - str o
 metadata 1 Meta o
 spec 2 Spec o
 status 3 Status o
Meta
 annotations 5 {}str o
 labels 1 {}str o
 managedFields 2 []raw o
 name 3 str o
 finalizers 4 []str o l=set
Spec
 args 1 []str o
 containers 2 []Container r l=map:name
 replicas 3 *i32 o
 rolling 4 *Rolling o
 selector 5 {}str o a
 data 6 any o
Container
 image 1 str o
 name 2 str r
 ports 3 []Port o l=map:containerPort,protocol
Port
 containerPort 1 i32 r
 protocol 2 str o d=\"TCP\"
 hostPort 3 i32 o
Rolling
 surge 1 intstr o
Status
 replicas 1 i32 o
";

struct World {
    schema: Schema,
    object: Option<Value>,
    seconds: i64,
    status: Set,
}

impl World {
    fn new() -> World {
        World {
            schema: Schema::parse(TABLE).unwrap(),
            object: None,
            seconds: 1_000_000,
            status: Set::of_fields(&[&["status"]]),
        }
    }

    fn writer<'a>(&self, manager: &'a str, reset: &'a Set) -> Writer<'a> {
        Writer { manager, api_version: "v1", subresource: "", now: Time::from_seconds(self.seconds), reset }
    }

    fn of(&self) -> TypeRef<'_> {
        self.schema.kind("", "v1", "Deployment").unwrap()
    }

    fn update(&mut self, manager: &str, mut new: Value) {
        self.seconds += 10;
        crate::normalise::normalise(&mut new, self.of(), &mut Vec::new()).unwrap();
        let reset = self.status.clone();
        track_update(self.object.as_ref(), &mut new, self.of(), &self.writer(manager, &reset));
        self.object = Some(new);
    }

    fn apply(&mut self, manager: &str, config: Value, force: bool) -> Result<(), ApplyError> {
        self.seconds += 10;
        let reset = self.status.clone();
        let mut new = apply(self.object.as_ref(), &config, self.of(), &self.writer(manager, &reset), force)?;
        crate::normalise::normalise(&mut new, self.of(), &mut Vec::new()).unwrap();
        self.object = Some(new);
        Ok(())
    }

    /// `manager operation paths…` of each entry.
    fn owners(&self) -> Vec<String> {
        let entries = self.object.as_ref().map_or(&[][..], |object| object["metadata"]["managedFields"].items());
        let show = |entry: &Value| {
            let paths = Set::from_fields(&entry["fieldsV1"]).unwrap().paths();
            format!("{} {} {}", entry["manager"].text(), entry["operation"].text(), paths.join(" "))
        };
        entries.iter().map(show).collect()
    }

    fn spec(&self) -> &Value {
        &self.object.as_ref().unwrap()["spec"]
    }
}

fn one(image: &str) -> Value {
    json!({"containers": [{"name": "a", "image": image, "ports": [{"containerPort": 80}]}]})
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": spec})
}

#[test]
fn whoever_creates_owns_what_he_set() {
    let mut world = World::new();
    world.update(
        "m",
        object(json!({"containers": [{"name": "a", "image": "i"}], "replicas": 1, "selector": {"a": "b"},
        "rolling": {"surge": 1}, "data": {"x": [1]}})),
    );
    assert_eq!(
        world.owners(),
        ["m Update .spec.containers[name=\"a\"] .spec.containers[name=\"a\"].image \
          .spec.containers[name=\"a\"].name .spec.data .spec.data.x .spec.replicas .spec.rolling .spec.rolling.surge \
          .spec.selector"]
    );
}

#[test]
fn updates_move_ownership_and_keep_times() {
    let mut world = World::new();
    world.update("m1", object(one("i:1")));
    let before = world.object.clone().unwrap();
    world.update("m2", object(one("i:1")));
    assert_eq!(world.object.as_ref().unwrap(), &before, "a write without effect changes nothing");
    world.update("m2", object(one("i:2")));
    let key = ".spec.containers[name=\"a\"]";
    let owners = world.owners();
    assert!(!owners[0].contains(&format!("{key}.image")) && owners[0].starts_with("m1"));
    assert_eq!(owners[1], format!("m2 Update {key}.image"));
}

#[test]
fn untracked_objects_stay_so_and_a_reset_forgets() {
    let mut world = World::new();
    world.update("m1", object(one("i:1")));
    let mut reset = object(one("i:2"));
    reset.set(&["metadata", "managedFields"], Vec::<Value>::new());
    let of = world.schema.kind("", "v1", "Deployment").unwrap();
    crate::normalise::normalise(&mut reset, of, &mut Vec::new()).unwrap();
    track_update(world.object.as_ref(), &mut reset, of, &world.writer("m2", &Set::new()));
    assert!(reset["metadata"]["managedFields"].is_null());
    world.object = Some(reset);
    world.update("m2", object(one("i:3")));
    assert!(world.owners().is_empty());
}

#[test]
fn old_managers_are_merged() {
    let mut world = World::new();
    world.update("m", object(one("i")));
    for at in 0..14 {
        let mut labelled = world.object.clone().unwrap();
        labelled.set(&["metadata", "labels", &format!("l{at}")], "x");
        world.update(&format!("m{at}"), labelled);
    }
    assert_eq!(world.owners().len(), 10);
    assert!(world.owners()[0].starts_with("ancient-changes Update"));
}

#[test]
fn applying_merges_conflicts_and_prunes() {
    let mut world = World::new();
    world.apply("m1", object(json!({"containers": [{"name": "a", "image": "i:1"}], "replicas": 2})), false).unwrap();
    let key = ".spec.containers[name=\"a\"]";
    assert_eq!(world.owners(), [format!("m1 Apply {key} {key}.image {key}.name .spec.replicas")]);
    // Another's new container merges; the same image with another value conflicts.
    let second = object(json!({"containers": [{"name": "b", "image": "j"}]}));
    world.apply("m2", second, false).unwrap();
    assert_eq!(world.spec()["containers"].items().len(), 2);
    let other = object(json!({"containers": [{"name": "a", "image": "i:9"}]}));
    let Err(ApplyError::Conflicts(conflicts)) = world.apply("m2", other.clone(), false) else { panic!() };
    assert_eq!(conflicts, [Conflict { manager: "\"m1\"".into(), path: format!("{key}.image") }]);
    assert_eq!(
        ApplyError::Conflicts(conflicts).status().message(),
        format!("Apply failed with 1 conflict: conflict with \"m1\": {key}.image")
    );
    // By force he gets it, and loses what he no longer mentions.
    world.apply("m2", other, true).unwrap();
    assert_eq!(world.spec()["containers"].items().len(), 1);
    assert_eq!(world.spec()["containers"][0]["image"].text(), "i:9");
    // Without his replicas they go: nobody else owns them.
    world.apply("m1", object(json!({"containers": [{"name": "a"}]})), false).unwrap();
    assert!(world.spec()["replicas"].is_null());
    assert_eq!(world.spec()["containers"][0]["image"].text(), "i:9");
}

#[test]
fn keys_have_defaults_and_order_is_kept() {
    let mut world = World::new();
    let ports = |ports: Value| object(json!({"containers": [{"name": "a", "ports": ports}]}));
    world.apply("m1", ports(json!([{"containerPort": 1}, {"containerPort": 2, "protocol": "UDP"}])), false).unwrap();
    world
        .apply(
            "m2",
            ports(json!([{"containerPort": 3}, {"containerPort": 1, "protocol": "TCP", "hostPort": 5}])),
            false,
        )
        .unwrap();
    let numbers: Vec<i64> = world.spec()["containers"][0]["ports"]
        .items()
        .iter()
        .map(|port| port["containerPort"].as_int().unwrap())
        .collect();
    assert_eq!(numbers, [3, 1, 2]);
    assert_eq!(world.spec()["containers"][0]["ports"][1]["hostPort"].as_int(), Some(5));
}

#[test]
fn configurations_must_fit() {
    let mut world = World::new();
    for (spec, told) in [
        (json!({"nonsense": 1}), ".spec.nonsense: field not declared in schema"),
        (json!({"replicas": "x"}), ".spec.replicas: expected numeric (int or float), got string"),
        (
            json!({"containers": [{"name": "a"}, {"name": "a"}]}),
            ".spec.containers: duplicate entries for key [name=\"a\"]",
        ),
        (json!({"containers": {}}), ".spec.containers: expected list, got map"),
    ] {
        let Err(ApplyError::Typed(what)) = world.apply("m", object(spec), false) else { panic!() };
        assert_eq!(what, format!("failed to create typed patch object (/x; v1, Kind=Deployment): {told}"));
    }
    let mut with_owners = object(one("i"));
    with_owners.set(&["metadata", "managedFields"], vec![Value::map()]);
    assert!(matches!(world.apply("m", with_owners, false), Err(ApplyError::BadRequest(_))));
}

#[test]
fn what_an_updater_set_conflicts_with_an_applier() {
    let mut world = World::new();
    world.apply("m1", object(json!({"containers": [], "replicas": 1})), false).unwrap();
    world.update("hand", {
        let mut object = world.object.clone().unwrap();
        object.set(&["spec", "replicas"], 5);
        object
    });
    let config = object(json!({"containers": [], "replicas": 1}));
    let Err(ApplyError::Conflicts(conflicts)) = world.apply("m1", config.clone(), false) else { panic!() };
    assert_eq!(conflicts[0].manager, "\"hand\" using v1");
    world.apply("m1", config, true).unwrap();
    assert_eq!(world.spec()["replicas"].as_int(), Some(1));
    assert_eq!(world.owners().len(), 1);
}

#[test]
fn kubectls_annotation_follows_what_it_applies() {
    let mut world = World::new();
    let path = ["metadata", "annotations", "kubectl.kubernetes.io/last-applied-configuration"];
    let mut old = object(one("i:1"));
    old.set(&path, "old");
    world.update("kubectl-client-side-apply", old);
    world.apply("kubectl", object(one("i:1")), true).unwrap();
    let text = world.object.as_ref().unwrap().at(&path).text().to_owned();
    assert_eq!(Value::parse(text.as_bytes()).unwrap(), object(one("i:1")));
}
