//! Events for users, from records: repeated ones are counted on one object, not stored again and again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base::Clock;
use client::{Api, PatchType, Request};
use meta::{Resource, Str, json};
use reconcile::EventRecord;

const EVENTS: Resource = Resource("events");
/// Series that are remembered.
const SERIES_MAX: usize = 4096;

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
}

impl Recorder {
    pub fn new(api: Arc<dyn Api>, clock: Arc<dyn Clock>) -> Recorder {
        Recorder { api, clock, series: Arc::default() }
    }

    /// Stores a record. A failure is no one's to wait for: events are best effort.
    pub async fn record(&self, record: EventRecord) {
        let now = self.clock.now();
        let about = &record.about;
        let identity = format!(
            "{}|{}|{}|{}|{}",
            String::from_utf8_lossy(&about.to_json()),
            record.of_type,
            record.reason,
            record.message,
            record.reporter
        );
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
            let patch = json!({"count": count, "lastTimestamp": (now.rfc3339())});
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
            "involvedObject": (about.clone()), "reason": (&record.reason), "message": (&record.message),
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
