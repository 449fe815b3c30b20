//! The table of targets: every place where bytes or texts come in from outside.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use base::{Rng, Time};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use meta::apply::{Set, Writer};
use meta::decode::{FieldValidation, Media, decode};
use meta::schema::TypeRef;
use meta::{At, Change, Errors, Kind, Quantity, Value};
use server::request::{Query, RequestInfo};
use server::tokens::{Grant, Tokens};
use store::Disk;

use crate::{connections, objects, pipeline};

/// What a caller of the fuzzer can name.
pub struct Target {
    pub name: &'static str,
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub run: fn(&[u8]),
}

pub const TARGETS: &[Target] = &[
    Target { name: "json", seeds: bodies, run: |input| body(input, Media::Json) },
    Target { name: "yaml", seeds: yaml_bodies, run: |input| body(input, Media::Yaml) },
    Target { name: "protobuf", seeds: protobuf_bodies, run: |input| body(input, Media::Protobuf) },
    Target { name: "kinds", seeds: || numbers(64), run: kinds },
    Target { name: "patches", seeds: patches, run: patch },
    Target { name: "apply", seeds: || numbers(16), run: apply },
    Target { name: "managed-fields", seeds: managed, run: managed_fields },
    Target { name: "definitions", seeds: definitions, run: definition },
    Target { name: "expressions", seeds: expressions, run: expression },
    Target { name: "selectors", seeds: selectors, run: selector },
    Target { name: "quantities", seeds: quantities, run: quantity },
    Target { name: "requests", seeds: requests, run: request },
    Target { name: "remote-discovery", seeds: remote_discoveries, run: remote_discovery },
    Target { name: "continue-tokens", seeds: continue_tokens, run: continue_token },
    Target { name: "tokens", seeds: tokens, run: token },
    Target { name: "certificates", seeds: certificates, run: certificate },
    Target { name: "pem", seeds: pem_texts, run: pem },
    Target { name: "spdy", seeds: spdy_bytes, run: spdy },
    Target { name: "websocket", seeds: node::fuzzing::conversations, run: websocket },
    Target { name: "packed-values", seeds: packed_values, run: packed_value },
    Target { name: "signs-of-life", seeds: signs_of_life, run: hear },
    Target { name: "dns", seeds: dns_bytes, run: dns },
    Target { name: "etcd", seeds: etcd::fuzzing::answers, run: etcd::fuzzing::read_answers },
    Target { name: "connections", seeds: connections::conversations, run: connections::throw },
    Target { name: "netlink", seeds: net::fuzzing::replies, run: net::fuzzing::read_replies },
    Target {
        name: "image-names",
        seeds: || texts(&["a", "localhost:1/a/b:c", "a.b/c@sha256:00", "[::1]:5000/a"]),
        run: image_name,
    },
    Target { name: "image-manifests", seeds: runtime::fuzzing::manifests, run: runtime::fuzzing::read_manifest },
    Target { name: "image-layers", seeds: runtime::fuzzing::layers, run: runtime::fuzzing::unpack_layer },
    Target {
        name: "registry-challenges",
        seeds: || texts(&["Bearer realm=\"https://a/t\",service=\"s\",scope=\"r:a:pull\"", "Basic realm=x"]),
        run: runtime::fuzzing::read_challenge,
    },
    Target { name: "pipeline", seeds: || numbers(4), run: pipeline::throw },
    Target { name: "store-files", seeds: || numbers(4), run: store_files },
];

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// What an aggregated server says of itself.
fn remote_discoveries() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"items":[{"metadata":{"name":"a.b"},"versions":[{"version":"v1","resources":[{"resource":"cats","subresources":[{"subresource":"status"}]}]}]}]}"#,
        r#"{"groupVersion":"a.b/v1","resources":[{"name":"cats","namespaced":true,"kind":"Cat","verbs":["get"]},{"name":"cats/status"},{"name":"dogs/bark"}]}"#,
        r#"{"paths":{"apis/a.b/v1":{"serverRelativeURL":"/openapi/v3/apis/a.b/v1?hash=AB12"}}}"#,
    ])
}

fn remote_discovery(input: &[u8]) {
    use server::aggregation::documents::{entry, of_plain, tag_of};
    let Ok(said) = Value::parse(input) else { return };
    for made in entry(&said, "a.b", "v1").into_iter().chain([of_plain(&said, "v1")]) {
        assert_eq!(made["version"].text(), "v1", "only what was registered is taken");
    }
    if let Some(tag) = tag_of(&said, "/apis/a.b/v1") {
        assert!(tag.bytes().all(|byte| byte.is_ascii_alphanumeric()), "a tag is part of an address: {tag}");
    }
}

fn numbers(count: u64) -> Vec<Vec<u8>> {
    (0..count).map(|number| number.to_le_bytes().to_vec()).collect()
}

/// All built-in kinds that have a schema.
static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| api::kinds::kinds().into_iter().collect());

fn kind_of(group: &str, name: &str) -> &'static Kind {
    KINDS
        .iter()
        .find(|kind| kind.names.group == group && kind.names.kind == name)
        .expect("the seeds name kinds that are served")
}

/// The type that `input` picks among a few with every sort of field.
fn some_type(input: &[u8]) -> TypeRef<'static> {
    const CHOICE: &[(&str, &str)] = &[
        ("", "Pod"),
        ("apps", "Deployment"),
        ("", "Secret"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
        ("", "Service"),
        ("batch", "CronJob"),
        ("events.k8s.io", "Event"),
    ];
    let (group, name) = CHOICE[input.len() % CHOICE.len()];
    kind_of(group, name).of()
}

fn bodies() -> Vec<Vec<u8>> {
    let mut all = texts(&[
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i","resources":{"limits":{"cpu":"1"}}}]}}"#,
        r#"{"metadata":{"creationTimestamp":"1970-01-01T00:00:00Z","finalizers":["a/b"]},"data":{"k":"dg=="},"a":[1,2.5,-3e7,null,true,"\u00fc\ud83d\ude00"]}"#,
    ]);
    all.push(b"[".repeat(2000));
    all.push(br#"{"a":"#.repeat(2000));
    all
}

fn yaml_bodies() -> Vec<Vec<u8>> {
    let mut all = bodies();
    all.extend(texts(&[
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: c\n    args: [a, 'b', \"c\\n\"]\n    command: |\n      x\n      y\n",
        "a: &a [1]\nb: *a\n<<: {c: d}\n? x\n: y\n--- \n...\n",
        "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: [*c,*c,*c,*c]\n",
    ]));
    all
}

fn protobuf_bodies() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for number in 0..40u64 {
        let kind = &KINDS[number as usize % KINDS.len()];
        let mut value = objects::make(&kind.schema, kind.of().node, &number.to_le_bytes());
        if meta::normalise::normalise(&mut value, kind.of(), &mut Vec::new()).is_ok()
            && let Ok(bytes) = meta::proto::encode(&value, kind.of())
        {
            all.push(bytes);
        }
    }
    all
}

fn body(input: &[u8], media: Media) {
    let of = some_type(input);
    if let Ok((value, _)) = decode(input, media, of, FieldValidation::Warn) {
        let text = value.to_json();
        let again = Value::parse(&text).expect("what was written can be read");
        let words = String::from_utf8_lossy(&text);
        assert_eq!(String::from_utf8_lossy(&again.to_json()), words, "equal values have equal text");
    }
}

/// Everything that a kind does with an object that a client sends.
fn kinds(input: &[u8]) {
    let kind = &KINDS[base::hash64(input) as usize % KINDS.len()];
    let mut value = objects::make(&kind.schema, kind.of().node, input);
    if meta::normalise::normalise(&mut value, kind.of(), &mut Vec::new()).is_err() {
        return;
    }
    kind.rules.defaults(&mut value);
    let once = value.to_json();
    kind.rules.defaults(&mut value);
    assert_eq!(
        String::from_utf8_lossy(&value.to_json()),
        String::from_utf8_lossy(&once),
        "defaults are filled in once"
    );
    let now = Time::from_seconds(1_800_000_000);
    let mut rng = Rng::new(base::hash64(input)).fork("old");
    let old = objects::make(&kind.schema, kind.of().node, &rng.next_u64().to_le_bytes());
    for old in [None, Some(&value), Some(&old)] {
        for subresource in ["", "status"] {
            let change = Change {
                old,
                sibling: None,
                subresource,
                now,
                user: "system:node:a",
                groups: &[],
                uid: "",
                extra: &[],
            };
            let mut errors = Errors::default();
            kind.rules.check(&change, &At::root(&value), &mut errors);
            kind.rules.warnings(&change, &value);
        }
    }
    kind.rules.cells(&value, now);
    kind.rules.selectable(&value, "metadata.name");
    kind.rules.facts(&value);
    kind.rules.grace_seconds(&value, Some(3));
    kind.rules.released(&value);
    meta::Facts::of(kind.resource, &value);
    protobuf_round_trip(kind, &value);
}

fn protobuf_round_trip(kind: &Kind, value: &Value) {
    if !meta::proto::has_form(kind.of()) {
        return;
    }
    let Ok(bytes) = meta::proto::encode(value, kind.of()) else { return };
    let Ok(again) = meta::proto::decode(&bytes, kind.of()) else {
        panic!("{} does not read what it wrote", kind.names.kind);
    };
    let once_more = meta::proto::encode(&again, kind.of()).expect("what was read can be written");
    assert_eq!(once_more, bytes, "{} in protobuf", kind.names.kind);
}

fn patches() -> Vec<Vec<u8>> {
    texts(&[
        r#"[{"op":"add","path":"/spec/a","value":1},{"op":"move","from":"/metadata","path":"/x"},{"op":"test","path":"/a~1b","value":null},{"op":"copy","from":"","path":"/spec/containers/-"}]"#,
        r#"{"spec":{"containers":[{"name":"c","$patch":"delete"},{"name":"d","image":null}],"$setElementOrder/containers":[{"name":"d"}],"$retainKeys":["containers"]}}"#,
        r#"{"metadata":{"labels":{"a":null},"$deleteFromPrimitiveList/finalizers":["a"]},"spec":{"$patch":"replace"}}"#,
    ])
}

fn patch(input: &[u8]) {
    let Ok(patch) = Value::parse(input) else { return };
    let pod = kind_of("", "Pod");
    let live = Value::parse(
        br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","finalizers":["x/y"],"labels":{"a":"b"}},
            "spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":1,"protocol":"TCP"}]},{"name":"d"}],"tolerations":[{"key":"a"}]}}"#,
    )
    .expect("the object is JSON");
    let _ = meta::patch::json_patch(&live, &patch);
    let _ = meta::patch::strategic(&live, &patch, pod.of());
    let mut merged = live.clone();
    meta::patch::merge_patch(&mut merged, &patch);
    let once = merged.to_json();
    meta::patch::merge_patch(&mut merged, &patch);
    assert_eq!(merged.to_json(), once, "a merge patch is idempotent");
}

/// Three parties' objects of a kind are applied in turn, each three times: the third time changes nothing. (The second
/// may: taking away all members of an owned struct leaves nothing where an empty one was asked for, as upstream does.)
fn apply(input: &[u8]) {
    let kind = &KINDS[base::hash64(input) as usize % KINDS.len()];
    let reset = Set::default();
    let now = Time::from_seconds(1_800_000_000);
    let writer = |manager| Writer { manager, api_version: "v1", subresource: "", now, reset: &reset };
    let mut rng = Rng::new(base::hash64(input));
    let mut live: Option<Value> = None;
    for manager in ["a", "b", "a"] {
        let mut applied = objects::make(&kind.schema, kind.of().node, &rng.next_u64().to_le_bytes());
        applied.take(&["metadata", "managedFields"]);
        let _ = meta::normalise::normalise(&mut applied, kind.of(), &mut Vec::new());
        let mut before = String::new();
        for round in 0..3 {
            let merged = meta::apply::apply(live.as_ref(), &applied, kind.of(), &writer(manager), true);
            let mut merged = match merged {
                Ok(merged) => merged,
                Err(_) if round == 0 => break,
                Err(error) => panic!("{}: {error:?} when {applied:?} is applied again to {live:?}", kind.names.kind),
            };
            if meta::normalise::normalise(&mut merged, kind.of(), &mut Vec::new()).is_err() {
                break;
            }
            let after = String::from_utf8_lossy(&merged.to_json()).into_owned();
            if round == 2 {
                assert_eq!(after, before, "{}: {:?} applied again", kind.names.kind, applied);
            }
            (live, before) = (Some(merged), after);
        }
    }
}

fn managed() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"f:spec":{".":{},"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}}},"f:finalizers":{"v:\"a\"":{}},"i:3":{}}}"#,
    ])
}

fn managed_fields(input: &[u8]) {
    let Ok(fields) = Value::parse(input) else { return };
    if let Ok(set) = Set::from_fields(&fields) {
        let text = set.to_fields();
        let again = Set::from_fields(&text).expect("what was written can be read");
        assert_eq!(again.to_fields().to_json(), text.to_json());
    }
}

fn definitions() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"type":"object","properties":{"spec":{"type":"object","required":["a"],"properties":{"a":{"type":"string","pattern":"^a+$","maxLength":3,"default":"a"},"l":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["k"],"items":{"type":"object","properties":{"k":{"type":"integer","minimum":1}}}},"x":{"x-kubernetes-int-or-string":true},"p":{"type":"object","x-kubernetes-preserve-unknown-fields":true},"m":{"type":"object","additionalProperties":{"type":"number"}}},"x-kubernetes-validations":[{"rule":"self.a != 'b'"}]}}}"#,
        r#"{"type":"object","properties":{"spec":{"type":"object","nullable":true,"anyOf":[{"required":["a"]}],"not":{"required":["b"]}}}}"#,
    ])
}

/// A definition with this schema is checked, and its kinds take some objects.
fn definition(input: &[u8]) {
    let Ok(schema) = Value::parse(input) else { return };
    let mut definition = meta::json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "as.b.c"},
        "spec": {
            "group": "b.c", "scope": "Namespaced", "names": {"plural": "as", "kind": "A", "singular": "a", "listKind": "AList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    });
    let kind = kind_of("apiextensions.k8s.io", "CustomResourceDefinition");
    if meta::normalise::normalise(&mut definition, kind.of(), &mut Vec::new()).is_err() {
        return;
    }
    kind.rules.defaults(&mut definition);
    let change = Change {
        old: None,
        sibling: None,
        subresource: "",
        now: Time::ZERO,
        user: "",
        groups: &[],
        uid: "",
        extra: &[],
    };
    let mut errors = Errors::default();
    kind.rules.check(&change, &At::root(&definition), &mut errors);
    if !errors.is_empty() {
        return;
    }
    for custom in api::custom::kinds(&definition) {
        for number in 0..4u64 {
            let mut value = objects::make(&custom.schema, custom.of().node, &number.to_le_bytes());
            let _ = meta::normalise::normalise(&mut value, custom.of(), &mut Vec::new());
            custom.rules.defaults(&mut value);
            custom.rules.check(&change, &At::root(&value), &mut Errors::default());
            custom.rules.cells(&value, Time::ZERO);
        }
    }
}

fn expressions() -> Vec<Vec<u8>> {
    texts(&[
        "1 + 2 * 3 - 4 / 5 % 6 == 7 && !false || 'a' in ['a', \"b\"]",
        "[1,2,3].map(x, x > 1, x * 2).exists_one(y, y == 4) ? {'a': 1u}.a : dyn(2)",
        "duration('1h') > duration('30m') && timestamp('1970-01-01T00:00:00Z').getFullYear() == 1970",
        "'abc'.matches('^a.*') && 'a,b'.split(',').size() == 2 && quantity('1Gi').isGreaterThan(quantity('1M'))",
        "url('https://a.b/c?d=e').getHost() == 'a.b' && ip('::1').isLoopback() && cidr('10.0.0.0/8').containsIP('10.1.1.1')",
        "((((((((((((((((((((((((((((((((1))))))))))))))))))))))))))))))))",
    ])
}

fn expression(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(program) = cel::Program::compile(text, &cel::Env::new()) else { return };
    let mut budget = 100_000;
    let _ = program.evaluate(&[], &mut budget);
}

fn selectors() -> Vec<Vec<u8>> {
    texts(&["a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2", "metadata.name=a,spec.nodeName!=b\\,c", "x.y/z==w"])
}

fn selector(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(selector) = meta::Selector::parse(&text) {
        selector.matches(&meta::Labels::of(&meta::json!({"a": "b", "c": "1"})));
    }
    let _ = meta::FieldSelector::parse(&text);
}

fn quantities() -> Vec<Vec<u8>> {
    texts(&["1", "-1.5Gi", "100m", "1e3", "1E-9", ".5", "0.000000001n", "12345678901234567890Ei"])
}

fn quantity(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(quantity) = Quantity::parse(&text) {
        let written = quantity.to_string();
        let again = Quantity::parse(&written).expect("what was written can be read");
        assert_eq!(again.to_string(), written, "{text}");
    }
    for check in [meta::names::qualified_name, meta::names::dns_subdomain, meta::names::label_value] {
        check(&text);
    }
    meta::normalise::duration_nanos(&text);
    Time::parse(&text);
}

fn requests() -> Vec<Vec<u8>> {
    texts(&[
        "/api/v1/namespaces/a/pods/b/log?container=c&follow=true&tailLines=-1",
        "/apis/apps/v1/namespaces/a/deployments?labelSelector=a%3Db&limit=10&continue=x&resourceVersion=0&watch=1",
        "/api/v1/namespaces/a/pods/b:80/proxy/x/y?z",
        "/apis/g/v/watch/namespaces/a/things/b?resourceVersionMatch=Exact&sendInitialEvents=true&timeoutSeconds=1",
        "/openapi/v3?timeout=1s",
        "//..//%2e%2e/%zz?%=%&&=&a=%ff",
    ])
}

fn request(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (path, query) = text.split_once('?').unwrap_or((&text, ""));
    let query = Query::parse(query);
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        RequestInfo::of(method, path, &query);
    }
    let pod = kind_of("", "Pod");
    let _ = server::verbs::list::Filter::of(&query, pod);
    let _ = server::verbs::list::Wanted::of(&query);
    let _ = server::verbs::options::WriteOptions::of(&query, "CreateOptions", &text, false);
    let _ = server::verbs::options::DeleteOptions::of(&query, None);
    let _ = server::http::negotiate::accept(Some(&text), true, true);
    let _ = server::http::negotiate::content(Some(&text));
}

fn continue_tokens() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"v":"meta.k8s.io/v1","rv":5,"start":"default/a\u0000"}"#,
        r#"{"v":"meta.k8s.io/v1","rv":-1,"start":"\u0000"}"#,
    ])
}

/// The text itself, and what stands for it where a token is expected.
fn continue_token(input: &[u8]) {
    let _ = server::verbs::list::check_token(&String::from_utf8_lossy(input));
    let _ = server::verbs::list::check_token(&URL_SAFE_NO_PAD.encode(input));
}

static AUTHORITY: LazyLock<server::ca::Ca> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("gantry-fuzz-{}", std::process::id()));
    let made = std::fs::create_dir_all(&dir).map_err(|error| error.to_string());
    let opened = made.and_then(|()| server::ca::Ca::open(&dir).map_err(|error| error.to_string()));
    let removed = std::fs::remove_dir_all(&dir);
    opened.and_then(|ca| removed.map(|()| ca).map_err(|error| error.to_string())).expect("a folder takes keys")
});

/// A certificate as it comes over TLS, and requests for one as text and as bytes.
static TOKENS: LazyLock<Tokens> = LazyLock::new(|| Tokens::make().expect("this machine has randomness").0);
/// When the tokens to begin with are signed, and looked at.
const SIGNED_AT: Time = Time(1_800_000_000_000_000);

fn tokens() -> Vec<Vec<u8>> {
    let bound = Some(("pods", "web", "1"));
    let (namespace, account, account_uid, node, audiences) =
        ("default", "a", "2", Some(("node-1", "3")), &["x".into()]);
    let grant = Grant { namespace, account, account_uid, bound, node, audiences, seconds: 600 };
    let (signed, _) = TOKENS.sign(&grant, SIGNED_AT).expect("the key signs");
    let mut all = texts(&["a.b.c", "..", "eyJhbGciOiJub25lIn0.e30.", "{\"iss\":\"x\",\"exp\":1e99}"]);
    all.push(signed.into_bytes());
    all
}

/// The text as a token, and as what a token says under a signature that is not ours. What we did not sign never holds.
fn token(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"ES256"}"#);
    let forged = format!("{header}.{}.{}", URL_SAFE_NO_PAD.encode(input), URL_SAFE_NO_PAD.encode([1; 64]));
    assert!(TOKENS.verify(&forged, SIGNED_AT).is_err(), "a forged token holds");
    if let Ok(claims) = TOKENS.verify(&text, SIGNED_AT) {
        assert_eq!((&*claims.namespace, &*claims.account, &*claims.account_uid), ("default", "a", "2"));
    }
}

fn certificates() -> Vec<Vec<u8>> {
    let lifetime = std::time::Duration::from_secs(600);
    let issued = AUTHORITY.issue_for("a", &["b", "c"], &["d".to_owned()], server::ca::Usage::Both, lifetime);
    let issued = issued.expect("the authority issues certificates");
    let key = rcgen::KeyPair::generate().expect("this machine has randomness");
    let params = rcgen::CertificateParams::new(vec!["a.b".to_owned(), "10.0.0.1".to_owned()]).expect("these are names");
    let request = params.serialize_request(&key).expect("a request is made");
    let text = request.pem().expect("a request has a text");
    let chain = issued.rustls().expect("what was issued can be read").0;
    vec![chain[0].to_vec(), text.into_bytes(), request.der().to_vec()]
}

/// Bytes as PEM.
fn enveloped(what: &str, bytes: &[u8]) -> String {
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", STANDARD.encode(bytes))
}

fn certificate(input: &[u8]) {
    let _ = server::authn::user_of_certificate(input);
    let _ = AUTHORITY.sign(&String::from_utf8_lossy(input), server::ca::Usage::Client, 600);
    // The same bytes as a request in its envelope, so that what is inside is reached, too.
    let _ = AUTHORITY.sign(&enveloped("CERTIFICATE REQUEST", input), server::ca::Usage::Server, 600);
    let _ = server::ca::time_left(&enveloped("CERTIFICATE", input));
    check_certificate_kinds(&enveloped("CERTIFICATE", input), input);
}

/// The kinds that hold certificates read them when they are made and when they are answered.
fn check_certificate_kinds(pem: &str, bytes: &[u8]) {
    use api::certificates::{cluster_trust_bundle::ClusterTrustBundle, pod_certificate_request::PodCertificateRequest};
    let bundle = meta::json!({"metadata": {"name": "a"}, "spec": {"trustBundle": pem}});
    check_alone(&ClusterTrustBundle::new(), None, &bundle);
    let stub = STANDARD.encode(bytes);
    let spec = meta::json!({"signerName": "a.b/c", "maxExpirationSeconds": 3600i64, "stubPKCS10Request": stub});
    let asked = meta::json!({"metadata": {"name": "a"}, "spec": spec});
    check_alone(&PodCertificateRequest::new(), None, &asked);
    let mut answered = asked.clone();
    let condition = meta::json!({
        "type": "Issued", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2030-01-01T00:00:00Z",
    });
    answered.set(&["status"], meta::json!({"certificateChain": pem, "conditions": [condition]}));
    check_alone(&PodCertificateRequest::new(), Some(&asked), &answered);
}

fn check_alone(rules: &dyn meta::Rules, old: Option<&Value>, object: &Value) {
    let subresource = if old.is_some() { "status" } else { "" };
    let (user, uid, now) = ("", "", Time::from_seconds(1_800_000_000));
    let change = Change { old, sibling: None, subresource, now, user, groups: &[], uid, extra: &[] };
    rules.check(&change, &At::root(object), &mut Errors::default());
    rules.cells(object, now);
}

fn pem_texts() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = certificates().iter().map(|one| enveloped("CERTIFICATE", one).into_bytes()).collect();
    all.extend(texts(&["-----BEGIN A-----\nB: c\n\nb25l\n-----END A-----", "x\n-----BEGIN A-----\n-----END A-----\n"]));
    all
}

fn pem(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for block in api::certificates::pem::blocks(&text) {
        let written = api::certificates::pem::write(block.label, &block.bytes);
        let again = api::certificates::pem::blocks(&written).next().map(|block| block.bytes);
        assert_eq!(again, Some(block.bytes), "what was read and is written reads the same");
    }
    check_certificate_kinds(&text, input);
}

fn spdy_bytes() -> Vec<Vec<u8>> {
    use node::spdy::frame::{Encoder, Frame, Headers};
    let mut out = Vec::new();
    let mut encoder = Encoder::default();
    let headers: Headers = vec![("streamtype".to_owned(), "stdin".to_owned()), ("port".to_owned(), "80".to_owned())];
    for frame in [
        Frame::SynStream { stream: 1, fin: false, headers: headers.clone() },
        Frame::Data { stream: 1, fin: true, bytes: bytes::Bytes::from_static(b"abc") },
        Frame::Ping(7),
    ] {
        encoder.encode(&frame, &mut out);
    }
    vec![out, b"\x80\x03\x00\x01\x01\x00\x00\x0a".to_vec()]
}

fn spdy(input: &[u8]) {
    let mut decoder = node::spdy::frame::Decoder::default();
    decoder.buffer().extend_from_slice(input);
    while let Ok(Some(_)) = decoder.next_frame() {}
}

fn websocket(input: &[u8]) {
    static TOKIO: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
        built.expect("this machine has an event queue")
    });
    TOKIO.block_on(node::fuzzing::read_conversation(input));
}

fn packed_values() -> Vec<Vec<u8>> {
    let packed = server::pack::pack(&b"{\"data\":{}}".repeat(400)).expect("what repeats itself packs well");
    let mut bomb = server::pack::pack(&[b' '; 1 << 20]).expect("blanks pack well").to_vec();
    bomb[4..8].copy_from_slice(&400u32.to_le_bytes());
    vec![packed.to_vec(), bomb, b"gp1:\x04\0\0\0".to_vec(), b"{}".to_vec()]
}

fn packed_value(input: &[u8]) {
    let value = bytes::Bytes::copy_from_slice(input);
    if let Ok(plain) = server::pack::unpack(&value, server::pack::NEWEST) {
        assert!(plain.len() <= server::pack::PLAIN_MAX_BYTES);
        if let Some(again) = server::pack::pack(&plain) {
            assert_eq!(server::pack::unpack(&again, server::pack::NEWEST), Ok(plain), "what was packed is unpacked");
        }
    }
    assert!(server::pack::unpack(&value, store::Format::FIRST).map_or(true, |plain| plain == value));
}

fn dns_bytes() -> Vec<Vec<u8>> {
    let question = |name: &[&str], of_type: u8| {
        let mut bytes = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        for label in name {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.extend_from_slice(&[0, 0, of_type, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        bytes
    };
    vec![
        question(&["kubernetes", "default", "svc", "cluster", "local"], 1),
        question(&["_https", "_tcp", "kubernetes", "default", "svc", "cluster", "local"], 33),
        question(&["1", "0", "96", "10", "in-addr", "arpa"], 12),
        vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c, 0, 1, 0, 1],
    ]
}

fn dns(input: &[u8]) {
    static ZONE: LazyLock<Arc<net::dns::Zone>> = LazyLock::new(|| {
        let server = [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2))];
        let mut zone = net::dns::Zone::new("cluster.local", &server, &[]).expect("the domain is a name");
        zone.set_namespace("default", true);
        Arc::new(zone)
    });
    for transport in [net::dns::Transport::Udp, net::dns::Transport::Tcp] {
        let mut out = Vec::new();
        net::dns::answer(&ZONE, input, transport, 1, &mut out);
    }
}

fn image_name(input: &[u8]) {
    if let Ok(name) = runtime::ImageName::parse(&String::from_utf8_lossy(input)) {
        let again = runtime::ImageName::parse(&name.to_string()).expect("what was written can be read");
        assert_eq!(again, name);
    }
}

/// A store's files with bytes changed: found out, or as they were; never a panic.
fn store_files(input: &[u8]) {
    static FILES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
        let disk = store::SimDisk::new();
        let keys = (0..200u32).map(|number| store::Dumped {
            key: format!("/registry/a/{number}").into_bytes().into(),
            value: vec![number as u8; 50].into(),
            create_revision: base::Revision(u64::from(number) + 1),
            mod_revision: base::Revision(u64::from(number) + 1),
            lease: None,
        });
        store::restore_on(&disk, base::Revision(300), &[], keys, 7).expect("an empty disk takes a dump");
        let names = disk.list().expect("a simulated disk has a list");
        names.into_iter().map(|name| (name.clone(), disk.contents(&name).unwrap_or_default())).collect()
    });
    let mut rng = Rng::new(base::hash64(input));
    let disk = store::SimDisk::new();
    for (name, contents) in FILES.iter() {
        let mut contents = contents.clone();
        for _ in 0..rng.below(4) {
            match rng.below(4) {
                0 => contents.truncate(rng.below(contents.len() as u64 + 1) as usize),
                1 => contents.extend_from_slice(input),
                _ if contents.is_empty() => {}
                _ => {
                    let at = rng.below(contents.len() as u64) as usize;
                    contents[at] = rng.next_u64() as u8;
                }
            }
        }
        let mut file = disk.create(name, 0).expect("a simulated disk has room");
        file.write_at(0, &contents).expect("a simulated disk has room");
        file.sync().expect("a simulated disk syncs");
    }
    let _ = store::check_on(&disk);
    let _ = store::dump_on(&disk, None, true);
    let _ = store::dump_on(&disk, None, false);
}

fn signs_of_life() -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    beat::Signer::new(&beat::Keys::new(b"secret").of("node-1")).write("node-1", 1, &mut bytes);
    vec![bytes]
}

fn hear(input: &[u8]) {
    let mut listener = beat::Listener::new(beat::Keys::new(b"secret"));
    let known = signs_of_life().iter().any(|sign| sign == input);
    assert_eq!(listener.hear(input, 0), known, "only what the node signed is a sign of its life");
}
