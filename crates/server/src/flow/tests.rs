use base::Revision;
use cache::{Cache, Change};
use meta::{Facts, Object, Value, json};

use super::*;

pub fn view(levels: &[Value], schemas: &[Value]) -> View {
    let mut cache = Cache::new([]);
    let all = levels.iter().map(|level| (LEVELS, level)).chain(schemas.iter().map(|schema| (SCHEMAS, schema)));
    for (at, (resource, value)) in all.enumerate() {
        let revision = Revision(at as u64 + 1);
        let object = Object::new(Facts::of(resource, value), value.to_json());
        cache.apply(revision, [Change { revision, old: None, new: Some(object) }]);
    }
    cache.view()
}

fn plan(levels: &[Value], schemas: &[Value]) -> Plan {
    Plan::of(&view(levels, schemas))
}

pub fn level(name: &str, shares: i64, response: Value) -> Value {
    json!({
        "metadata": {"name": name, "uid": (format!("uid-{name}"))},
        "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": shares, "limitResponse": response}},
    })
}

pub fn schema(name: &str, precedence: i64, level: &str, group: &str) -> Value {
    json!({
        "metadata": {"name": name, "uid": (format!("uid-{name}"))},
        "spec": {
            "matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": level},
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [{
                "subjects": [{"kind": "Group", "group": {"name": group}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["pods"], "namespaces": ["*"]}],
            }],
        },
    })
}

fn flows() -> Arc<Flows> {
    let queue = json!({"type": "Queue", "queuing": {"queues": 4, "handSize": 2, "queueLengthLimit": 2}});
    let levels =
        [level("small", 1, queue), level("strict", 2, json!({"type": "Reject"})), level("rest", 297, json!({}))];
    let schemas = [schema("b", 20, "small", "all"), schema("a", 10, "strict", "few")];
    let flows = Arc::new(Flows::default());
    flows.replace(plan(&levels, &schemas));
    flows
}

fn pods() -> RequestInfo {
    RequestInfo {
        verb: "get",
        is_resource: true,
        resource: "pods".into(),
        namespace: "ns".into(),
        ..RequestInfo::default()
    }
}

#[tokio::test]
async fn flows_take_turns_and_the_greedy_one_is_sent_away() {
    let flows = flows();
    let (greedy, modest) = (User::new("greedy", &["all"]), User::new("modest", &["all"]));
    // The level has two seats of its own; "rest" keeps all of its own.
    let first = flows.admit(&greedy, &pods(), 1).await.unwrap();
    assert!(first.schema_uid == "uid-b" && first.level_uid == "uid-small", "{:?}", first.level_uid);
    let second = flows.admit(&greedy, &pods(), 1).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for (name, user) in [("g1", &greedy), ("g2", &greedy), ("g3", &greedy), ("g4", &greedy), ("m1", &modest)] {
        let (flows, user, order) = (flows.clone(), user.clone(), order.clone());
        tasks.spawn(async move {
            let admission = flows.admit(&user, &pods(), 1).await.unwrap();
            order.lock().unwrap().push(name);
            drop(admission);
        });
        tokio::task::yield_now().await;
    }
    let refused = flows.admit(&greedy, &pods(), 1).await.err().unwrap();
    assert_eq!((refused.code(), refused.0.retry_after_seconds), (429, 1));
    drop(first);
    while tasks.join_next().await.is_some() {}
    assert_eq!(*order.lock().unwrap(), ["g1", "m1", "g2", "g3", "g4"]);
    let text = flows.text();
    let has =
        |row: &str| assert!(text.lines().any(|line| line == format!("apiserver_flowcontrol_{row}")), "{row} in {text}");
    has("dispatched_requests_total{priority_level=\"small\",flow_schema=\"b\"} 7");
    has("current_executing_requests{priority_level=\"small\",flow_schema=\"b\"} 1");
    has("current_inqueue_requests{priority_level=\"small\",flow_schema=\"b\"} 0");
    has("rejected_requests_total{priority_level=\"small\",flow_schema=\"b\",reason=\"queue-full\"} 1");
    has("nominal_limit_seats{priority_level=\"small\"} 2");
    has("request_wait_duration_seconds_count{priority_level=\"small\",flow_schema=\"b\",execute=\"true\"} 7");
    drop(second);
    assert_eq!(flows.state().used, 0);
    assert!(flows.text().contains("current_executing_seats{priority_level=\"small\",flow_schema=\"b\"} 0"));
}

#[tokio::test]
async fn the_first_schema_by_precedence_counts_and_some_levels_do_not_queue() {
    let flows = flows();
    let both = User::new("x", &["all", "few"]);
    let other = User::new("z", &["all", "few"]);
    let seats = [flows.admit(&both, &pods(), 3).await.unwrap(), flows.admit(&other, &pods(), 1).await.unwrap()];
    assert_eq!(seats[0].level_uid, "uid-strict");
    assert_eq!(flows.admit(&both, &pods(), 1).await.err().unwrap().code(), 429);
    let stranger = User::new("y", &[]);
    assert!(flows.admit(&stranger, &pods(), 1).await.unwrap().seat.is_none());
}

#[tokio::test]
async fn who_gives_up_leaves_no_seat_behind() {
    let flows = flows();
    let user = User::new("u", &["all"]);
    let seats = [flows.admit(&user, &pods(), 1).await.unwrap(), flows.admit(&user, &pods(), 1).await.unwrap()];
    let waiting = tokio::spawn({
        let (flows, user) = (flows.clone(), user.clone());
        async move { flows.admit(&user, &pods(), 1).await.map(|_| ()) }
    });
    tokio::task::yield_now().await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    drop(seats);
    let state = flows.state();
    assert_eq!((state.used, state.levels["small"].waiting), (0, 0));
}

#[tokio::test]
async fn a_flow_that_keeps_its_seats_leaves_some_to_others() {
    let levels = [level("small", 2, json!({"type": "Queue"})), level("rest", 298, json!({}))];
    let flows = Arc::new(Flows::default());
    flows.replace(plan(&levels, &[schema("b", 20, "small", "all")]));
    let (slow, quick) = (User::new("slow", &["all"]), User::new("quick", &["all"]));
    // Of four seats the slow one has three, and waits for more.
    let held = flows.admit(&slow, &pods(), 3).await.unwrap();
    let waiting = tokio::spawn({
        let (flows, slow) = (flows.clone(), slow.clone());
        async move { flows.admit(&slow, &pods(), 1).await.map(|_| ()) }
    });
    tokio::task::yield_now().await;
    for _ in 0..3 {
        flows.admit(&quick, &pods(), 1).await.unwrap();
    }
    assert!(!waiting.is_finished());
    drop(held);
    waiting.await.unwrap().unwrap();
    let state = flows.state();
    assert_eq!((state.used, state.levels["small"].used_by.len()), (0, 0));
}
