use super::*;
use base::Revision;
use cache::{Cache, Change};
use meta::{Facts, json};

fn view(objects: Vec<(Resource, Value)>) -> View {
    let index = api::INDEXES.iter().map(|(resource, name, of)| cache::Index { resource: *resource, name, of: *of });
    let mut cache = Cache::new(index.collect::<Vec<_>>());
    let changes = objects.into_iter().map(|(resource, value)| {
        let mut facts = Facts::of(resource, &value);
        if resource == PODS {
            facts.own = api::core::pod_facts::facts(&value);
        }
        Change { revision: Revision(1), old: None, new: Some(Object::new(facts, value.to_json().into())) }
    });
    cache.apply(Revision(1), changes.collect::<Vec<_>>());
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
    PlanOptions { cluster_cidrs: cidr("10.244.0.0/16"), service_cidrs: cidr("10.96.0.0/16"), same_link }
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
