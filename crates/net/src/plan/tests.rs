use super::*;
use base::{Revision, Rng};
use cache::{Cache, Change};
use meta::{Facts, json};
use std::collections::BTreeMap;

fn empty() -> Cache {
    let rows = api::INDEXES.iter().chain(INDEXES);
    let index = rows.map(|(resource, name, of)| cache::Index { resource: *resource, name, of: *of });
    Cache::new(index.collect::<Vec<_>>())
}

fn object((resource, value): (Resource, Value)) -> Object {
    let mut facts = Facts::of(resource, &value);
    if resource == PODS {
        facts.own = api::core::pod_facts::facts(&value);
    }
    Object::new(facts, value.to_json())
}

fn view(objects: Vec<(Resource, Value)>) -> View {
    let mut cache = empty();
    let new = |one| Change { revision: Revision(1), old: None, new: Some(object(one)) };
    cache.apply(Revision(1), objects.into_iter().map(new).collect::<Vec<_>>());
    cache.view()
}

fn node(name: &str, address: &str, cidr: &str) -> (Resource, Value) {
    let addresses = json!([{"type": "InternalIP", "address": address}]);
    (NODES, json!({"metadata": {"name": name}, "spec": {"podCIDR": cidr}, "status": {"addresses": addresses}}))
}

fn service(spec: Value) -> (Resource, Value) {
    (SERVICES, json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec}))
}

fn slice(endpoints: Value) -> (Resource, Value) {
    (
        SLICES,
        json!({"metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}),
    )
}

fn options(same_link: bool) -> PlanOptions {
    let cidr = |text: &str| vec![text.parse().unwrap()];
    PlanOptions {
        cluster_cidrs: cidr("10.244.0.0/16"),
        service_cidrs: cidr("10.96.0.0/16"),
        same_link,
        name_server: None,
    }
}

#[test]
fn a_node_net_is_what_the_cluster_says() {
    let endpoints = json!([
        {"addresses": ["10.244.1.5"], "nodeName": "a", "conditions": {"ready": true}},
        {"addresses": ["10.244.2.5"], "nodeName": "b", "conditions": {"ready": false}},
        {"addresses": ["10.244.2.6"], "nodeName": "b", "conditions": {"ready": true}}
    ]);
    let spec = json!({"clusterIP": "10.96.0.9", "type": "NodePort", "sessionAffinity": "ClientIP",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]});
    let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "status": {"podIP": "10.244.1.7"},
        "spec": {"nodeName": "a", "containers": [{"ports": [{"containerPort": 53, "hostPort": 5353, "protocol": "UDP"}]}]}});
    let view = view(vec![
        node("a", "172.20.0.11", "10.244.1.0/24"),
        node("b", "172.20.0.12", "10.244.2.0/24"),
        service(spec),
        slice(endpoints),
        (PODS, pod),
    ]);
    let text = node_net(&view, "a", &options(true)).to_string();
    let expected = "pods 10.244.1.0/24\ncluster 10.244.0.0/16\nservices 10.96.0.0/16\n\
        route 10.244.2.0/24 via 172.20.0.12\n\
        vip TCP 10.96.0.9 80 (ns/web:http) affinity 10800 s node port 30080 -> 10.244.1.5:8080* 10.244.2.6:8080\n\
        host port UDP * 5353 -> 10.244.1.7:53\n";
    assert_eq!(text, expected);
    assert!(node_net(&view, "a", &options(false)).vxlan.is_some());
}

#[test]
fn terminating_endpoints_serve_when_nothing_else_is_left() {
    let endpoints = json!([
        {"addresses": ["10.244.1.5"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.244.1.6"], "conditions": {"ready": false, "serving": false, "terminating": true}}
    ]);
    let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
    let net = node_net(&view(vec![service(spec), slice(endpoints)]), "a", &options(true));
    let vip = net.vips.values().next().unwrap();
    assert_eq!(vip.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>(), ["10.244.1.5"]);
}

#[test]
fn pods_that_end_here_stand_in_for_ready_ones_elsewhere_where_only_local_ones_count() {
    let endpoints = json!([
        {"addresses": ["10.244.1.5"], "nodeName": "a",
            "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.244.2.6"], "nodeName": "b", "conditions": {"ready": true, "serving": true}}
    ]);
    for (policy, node, expected) in [("Local", "a", 1), ("Local", "b", 0), ("Cluster", "a", 0)] {
        let spec = json!({
            "clusterIP": "10.96.0.9", "internalTrafficPolicy": policy,
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        });
        let net = node_net(&view(vec![service(spec), slice(endpoints.clone())]), node, &options(true));
        let vip = net.vips.values().next().unwrap();
        assert_eq!((vip.endpoints.len(), vip.draining.len()), (1, expected), "{policy} {node}");
    }
}

#[test]
fn hints_prefer_endpoints_of_the_node_then_of_its_zone() {
    let endpoint = |address: &str, node: &str, zone: &str, hints: &[&str]| {
        let mut made = json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}});
        if hints.contains(&"node") {
            made.set(&["hints", "forNodes"], json!([{"name": node}]));
        }
        if hints.contains(&"zone") {
            made.set(&["hints", "forZones"], json!([{"name": zone}]));
        }
        made
    };
    let in_zone = |name: &str, zone: &str| {
        let (resource, mut node) = node(name, "172.20.0.11", "10.244.1.0/24");
        node.set(&["metadata", "labels"], json!({"topology.kubernetes.io/zone": zone}));
        (resource, node)
    };
    let used = |name: &str, zone: &str, hints: [&[&str]; 3]| {
        let endpoints = Value::from(vec![
            endpoint("10.244.1.1", "a", "one", hints[0]),
            endpoint("10.244.1.2", "b", "one", hints[1]),
            endpoint("10.244.1.3", "e", "two", hints[2]),
        ]);
        let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
        let net = node_net(&view(vec![service(spec), slice(endpoints), in_zone(name, zone)]), name, &options(true));
        let last = |one: &Endpoint| one.address.to_string().rsplit('.').next().map(str::to_owned);
        net.vips.values().flat_map(|vip| vip.endpoints.iter().filter_map(last)).collect::<Vec<_>>()
    };
    let both: &[&str] = &["node", "zone"];
    assert_eq!(used("a", "one", [both; 3]), ["1"], "its own");
    assert_eq!(used("c", "one", [both; 3]), ["1", "2"], "those of its zone");
    assert_eq!(used("d", "three", [both; 3]), ["1", "2", "3"], "none is near");
    assert_eq!(used("d", "", [both; 3]), ["1", "2", "3"], "nobody knows what is near");
    assert_eq!(used("a", "one", [&["zone"]; 3]), ["1", "2"], "only zones are preferred");
    assert_eq!(used("a", "one", [both, both, &[]]), ["1", "2", "3"], "one does not say");
}

#[test]
fn labels_take_services_and_slices_out() {
    let endpoints = json!([{"addresses": ["10.244.1.5"], "nodeName": "a", "conditions": {"ready": true}}]);
    let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
    let marked = |(resource, mut value): (Resource, Value), label: &str| {
        value.make(&["metadata", "labels"]).set(&[label], "");
        (resource, value)
    };
    let count = |objects: Vec<(Resource, Value)>| {
        let net = node_net(&view(objects), "a", &options(true));
        net.vips.values().map(|vip| vip.endpoints.len()).collect::<Vec<_>>()
    };
    let (service, slice) = (|| service(spec.clone()), || slice(endpoints.clone()));
    assert_eq!(count(vec![service(), slice()]), [1]);
    assert_eq!(count(vec![service(), marked(slice(), "service.kubernetes.io/headless")]), [0]);
    assert_eq!(count(vec![marked(service(), "service.kubernetes.io/service-proxy-name"), slice()]), [0; 0]);
}

#[test]
fn names_of_headless_and_external_services() {
    let endpoints = json!([{"addresses": ["10.244.1.5"], "hostname": "web-0", "conditions": {"ready": true}}]);
    let headless = json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]});
    let names = service_names(&view(vec![service(headless), slice(endpoints)]), "ns", "web").unwrap();
    assert_eq!((names.addresses.len(), names.endpoints[0].hostname.as_deref()), (0, Some("web-0")));
    let external =
        service_names(&view(vec![service(json!({"type": "ExternalName", "externalName": "x.y"}))]), "ns", "web");
    assert_eq!(external.unwrap().external.as_deref(), Some("x.y"));
    assert!(service_names(&view(vec![]), "ns", "web").is_none());
}

/// Something of a small cluster in which names, addresses and networks meet.
fn anything(rng: &mut Rng) -> (Resource, Value) {
    let of = |rng: &mut Rng, list: &[&str]| list[rng.below(list.len() as u64) as usize].to_owned();
    let (namespace, name) = (of(rng, &["a", "b"]), of(rng, &["x", "y", "z"]));
    let address = format!("10.96.0.{}", rng.below(4));
    match rng.below(4) {
        0 => {
            let port =
                json!({"name": (of(rng, &["http", "dns"])), "port": (80 + rng.below(2) as i64), "protocol": "TCP"});
            let spec =
                json!({"clusterIP": (if rng.chance(150) { "None".to_owned() } else { address }), "ports": [port]});
            (SERVICES, json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec}))
        }
        1 => {
            let hint = of(rng, &["one", "two"]);
            let endpoint = |n: u64| {
                json!({"addresses": [(format!("10.244.1.{n}"))], "nodeName": "a", "conditions": {"ready": (n != 1)},
                "hints": {"forZones": [{"name": (if n == 0 { "one" } else { hint.as_str() })}]}})
            };
            let endpoints = Value::from((0..rng.below(3)).map(endpoint).collect::<Vec<_>>());
            // The label moves from service to service, and goes.
            let labels = if rng.chance(900) {
                json!({"kubernetes.io/service-name": (of(rng, &["x", "y", "z"]))})
            } else {
                json!({})
            };
            let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
            let meta = json!({"name": name, "namespace": namespace, "labels": labels});
            (SLICES, json!({"metadata": meta, "addressType": "IPv4", "ports": ports, "endpoints": endpoints}))
        }
        2 => {
            let (resource, mut node) =
                node(&of(rng, &["a", "b", "c"]), "172.20.0.11", &format!("10.244.{}.0/24", rng.below(2)));
            node.set(&["metadata", "labels"], json!({"topology.kubernetes.io/zone": (of(rng, &["one", "two"]))}));
            (resource, node)
        }
        _ => {
            let ports = json!([{"containerPort": 53, "hostPort": (5353 + rng.below(2) as i64), "protocol": "UDP"}]);
            let spec = json!({"nodeName": (of(rng, &["a", "b"])), "containers": [{"ports": ports}]});
            let status = json!({"podIP": "10.244.1.7", "phase": (of(rng, &["Running", "Failed"]))});
            (PODS, json!({"metadata": {"name": name, "namespace": namespace}, "status": status, "spec": spec}))
        }
    }
}

#[test]
fn a_plan_that_is_kept_current_is_the_whole_plan() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let (mut cache, options) = (empty(), options(seed % 2 == 0));
        let mut planner = Planner::new("a", options.clone());
        let (mut last, mut vips) = (planner.net(), BTreeMap::new());
        for revision in 1..60 {
            let mut touched = if rng.chance(20) { Touched::All } else { Touched::nothing() };
            let changes = (0..=rng.below(3)).map(|_| {
                let (resource, one) = (anything(&mut rng), rng.chance(700));
                let object = object(resource);
                let old = (!one).then(|| object.clone());
                Change { revision: Revision(revision), old, new: one.then_some(object) }
            });
            let since = cache.view().at();
            cache.apply(Revision(revision), changes.collect::<Vec<_>>());
            for resource in [SERVICES, SLICES, NODES, PODS] {
                for event in cache.since(resource, since, usize::MAX).unwrap() {
                    event.old.iter().chain(&event.new).for_each(|object| touched.note(resource, object));
                }
            }
            let changed = planner.update(&cache.view(), &touched);
            let net = planner.net();
            assert_eq!(net, node_net(&cache.view(), "a", &options), "seed {seed}, revision {revision}");
            for (key, vip) in changed.vips {
                match vip {
                    Some(vip) => vips.insert(key, vip),
                    None => vips.remove(&key),
                };
            }
            assert_eq!(net.vips, vips, "seed {seed}, revision {revision}: what changed leads there, too");
            let rest = |net: &NodeNet| NodeNet { vips: BTreeMap::new(), ..net.clone() };
            assert!(changed.rest || rest(&net) == rest(&last), "seed {seed}, revision {revision}");
            assert!(planner.update(&cache.view(), &Touched::All).nothing(), "seed {seed}, revision {revision}");
            last = net;
        }
    }
}
