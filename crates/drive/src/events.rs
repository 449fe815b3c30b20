//! Events for users, from records: repeated ones are counted on one object, similar ones are combined into one, and who
//! says too much about one object is not heard for a while.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use base::{Clock, Time};
use client::{Api, PatchType, Request};
use meta::{Resource, Str, json};
use reconcile::EventRecord;

const EVENTS: Resource = Resource("events");
/// Of series, and of what was said about objects, at least as many as this are remembered, and at most twice as many.
const REMEMBERED_MIN: usize = 4096;
/// From this many different messages of one kind about one object within the window on, they become one event.
const SIMILAR_MAX: usize = 10;
const SIMILAR_WINDOW_MS: u64 = 600_000;
/// Events about one object from one source: this many at once, and one more each time the pause has passed.
const BURST_MAX: u64 = 25;
const BURST_PAUSE_MS: u64 = 300_000;

/// Different messages that were told of one thing lately.
struct Similar {
    messages: BTreeSet<String>,
    last: Time,
}

/// What one source may still say about one object.
struct Budget {
    left: u64,
    counted: Time,
}

/// What was used lately; the rest is forgotten a generation at a time.
struct Recent<T> {
    young: HashMap<String, T>,
    old: HashMap<String, T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Recent<T> {
        Recent { young: HashMap::new(), old: HashMap::new() }
    }
}

impl<T> Recent<T> {
    fn get_mut(&mut self, key: &str) -> Option<&mut T> {
        if let Some((key, value)) = self.old.remove_entry(key) {
            self.insert(key, value);
        }
        self.young.get_mut(key)
    }

    fn insert(&mut self, key: String, value: T) {
        if self.young.len() >= REMEMBERED_MIN {
            // Who filled one generation fills the next.
            self.old = std::mem::replace(&mut self.young, HashMap::with_capacity(REMEMBERED_MIN));
        }
        self.young.insert(key, value);
    }

    fn get_or_insert(&mut self, key: &str, make: impl Fn() -> T) -> &mut T {
        if !self.young.contains_key(key) {
            let value = self.old.remove(key).unwrap_or_else(&make);
            self.insert(key.to_owned(), value);
        }
        self.young.entry(key.to_owned()).or_insert_with(make)
    }
}

#[derive(Default)]
struct Correlator {
    similar: Recent<Similar>,
    budgets: Recent<Budget>,
}

impl Correlator {
    /// What the record's event is known by, and its message; `None` when there was too much already.
    fn correlate(&mut self, record: &EventRecord, now: Time) -> Option<(String, String)> {
        let mut source = String::with_capacity(256);
        for (name, value) in record.about.entries().iter().filter(|(name, _)| *name != "resourceVersion") {
            source.extend([name, "=", value.text(), "|"]);
        }
        source.extend([&record.reporter, "|", record.host.as_str()]);
        let kind = format!("{source}|{}|{}", record.of_type, record.reason);
        let similar = self.similar.get_or_insert(&kind, || Similar { messages: BTreeSet::new(), last: now });
        if now.ms_since(similar.last) > SIMILAR_WINDOW_MS {
            similar.messages.clear();
        }
        similar.last = now;
        similar.messages.insert(record.message.clone());
        let combined = similar.messages.len() >= SIMILAR_MAX;
        if combined {
            similar.messages.pop_last();
        }
        let budget = self.budgets.get_or_insert(&source, || Budget { left: BURST_MAX, counted: now });
        let earned = now.ms_since(budget.counted) / BURST_PAUSE_MS;
        budget.left = (budget.left + earned).min(BURST_MAX);
        budget.counted = budget.counted.plus_ms(earned * BURST_PAUSE_MS);
        budget.left = budget.left.checked_sub(1)?;
        Some(match combined {
            true => (kind, format!("(combined from similar events): {}", record.message)),
            false => (format!("{kind}|{}", record.message), record.message.clone()),
        })
    }
}

struct Series {
    namespace: Str,
    name: Str,
    count: i64,
}

/// Stores records as events through the API.
#[derive(Clone)]
pub struct Recorder {
    api: Arc<dyn Api>,
    clock: Arc<dyn Clock>,
    series: Arc<Mutex<Recent<Series>>>,
    correlator: Arc<Mutex<Correlator>>,
}

impl Recorder {
    pub fn new(api: Arc<dyn Api>, clock: Arc<dyn Clock>) -> Recorder {
        Recorder { api, clock, series: Arc::default(), correlator: Arc::default() }
    }

    /// Stores a record. A failure is no one's to wait for: events are best effort.
    pub async fn record(&self, record: EventRecord) {
        let now = self.clock.now();
        let about = &record.about;
        let correlated = self.correlator.lock().unwrap_or_else(PoisonError::into_inner).correlate(&record, now);
        let Some((identity, message)) = correlated else { return };
        let known = {
            let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
            series.get_mut(&identity).map(|series| {
                series.count += 1;
                (series.namespace.clone(), series.name.clone(), series.count)
            })
        };
        if let Some((namespace, name, count)) = known {
            let patch = json!({"count": count, "lastTimestamp": (now.rfc3339()), "message": (&message)});
            let request = Request::patch(EVENTS, &namespace, &name, PatchType::Merge, patch);
            if self.api.call(request).await.is_ok() {
                return;
            }
        }
        let namespace = match about["namespace"].text() {
            "" => "default",
            namespace => namespace,
        };
        let name = format!("{}.{:016x}", about["name"].text(), base::hash64(format!("{identity}{}", now.0).as_bytes()));
        let mut source = json!({"component": (&record.reporter)});
        if !record.host.is_empty() {
            source.set(&["host"], &record.host);
        }
        let event = json!({
            "metadata": {"name": (&name), "namespace": namespace},
            "involvedObject": (about.clone()), "reason": (&record.reason), "message": (&message),
            "type": (record.of_type), "source": source, "count": 1i64,
            "firstTimestamp": (now.rfc3339()), "lastTimestamp": (now.rfc3339()),
            "reportingComponent": (&record.reporter), "reportingInstance": (&record.host),
        });
        if let Err(status) = self.api.call(Request::create(EVENTS, event)).await {
            tracing::debug!("an event was not stored: {status}");
            return;
        }
        let made = Series { namespace: namespace.into(), name: name.into(), count: 1 };
        self.series.lock().unwrap_or_else(PoisonError::into_inner).insert(identity, made);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_too_much_is_not_heard_again_because_others_speak() {
        let mut correlator = Correlator::default();
        let mut heard = |name: &str, number: u64| {
            let about = json!({"kind": "ReplicaSet", "namespace": "n", "name": name});
            let record = EventRecord {
                about,
                of_type: "Normal",
                reason: "SuccessfulCreate".into(),
                message: format!("Created pod: p{number}"),
                reporter: "replicaset-controller".into(),
                host: Str::default(),
                related: meta::Value::Null,
                action: Str::default(),
            };
            usize::from(correlator.correlate(&record, Time::from_seconds(1_800_000_000)).is_some())
        };
        let (mut loud, mut others) = (0, 0);
        for number in 0..20_000 {
            loud += heard("loud", number);
            others += heard(&format!("other-{number}"), number);
        }
        assert_eq!((loud, others), (BURST_MAX as usize, 20_000));
        assert!(correlator.budgets.young.len() + correlator.budgets.old.len() <= 2 * REMEMBERED_MIN);
    }
}
