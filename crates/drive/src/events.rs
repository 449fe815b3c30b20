//! Events for users, from records: repeated ones are counted on one object, similar ones are combined into one, and who
//! says too much about one object is not heard for a while.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use base::{Clock, Time};
use client::{Api, PatchType, Request};
use meta::{Resource, Str, json};
use reconcile::EventRecord;

const EVENTS: Resource = Resource("events");
/// Series that are remembered.
const SERIES_MAX: usize = 4096;
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

#[derive(Default)]
struct Correlator {
    similar: HashMap<String, Similar>,
    budgets: HashMap<String, Budget>,
}

impl Correlator {
    /// What the record's event is known by, and its message; `None` when there was too much already.
    fn correlate(&mut self, record: &EventRecord, now: Time) -> Option<(String, String)> {
        if self.similar.len() > SERIES_MAX || self.budgets.len() > SERIES_MAX {
            *self = Correlator::default();
        }
        let mut about = record.about.clone();
        about.take(&["resourceVersion"]);
        let source = format!("{}|{}|{}", String::from_utf8_lossy(&about.to_json()), record.reporter, record.host);
        let kind = format!("{source}|{}|{}", record.of_type, record.reason);
        let similar = self.similar.entry(kind.clone()).or_insert(Similar { messages: BTreeSet::new(), last: now });
        if now.ms_since(similar.last) > SIMILAR_WINDOW_MS {
            similar.messages.clear();
        }
        similar.last = now;
        similar.messages.insert(record.message.clone());
        let combined = similar.messages.len() >= SIMILAR_MAX;
        if combined {
            similar.messages.pop_last();
        }
        let budget = self.budgets.entry(source).or_insert(Budget { left: BURST_MAX, counted: now });
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
    series: Arc<Mutex<HashMap<String, Series>>>,
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
            if series.len() > SERIES_MAX {
                series.clear();
            }
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
