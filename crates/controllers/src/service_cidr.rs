//! ServiceCIDRs: says of each range that services can have addresses of it, and keeps one that is being deleted for as long
//! as addresses are in use that no other range has.

use api::address::Cidr;
use base::Time;
use cache::{Event, View};
use meta::{Object, Resource, Str, Value, json};
use reconcile::{Context, Effect, Lists, Outcome, Reconciler};

use crate::common::{condition, is_deleting, key_of, sides};

const RANGES: Resource = Resource("servicecidrs.networking.k8s.io");
const ADDRESSES: Resource = Resource("ipaddresses.networking.k8s.io");
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const READY: &str = "Ready";
/// How long a range that may go stays, for those who still take addresses of it.
const GRACE_MS: u64 = 10_000;

pub struct ServiceCidrs;

impl Reconciler for ServiceCidrs {
    fn name(&self) -> &'static str {
        "service-cidrs-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[RANGES]
    }

    fn lives(&self) -> &[Resource] {
        &[ADDRESSES]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        if resource == RANGES {
            out.extend(sides(event).map(key_of));
        }
        // An address or a range that came or went may free a range that is being deleted.
        if event.old.is_none() || event.new.is_none() {
            out.extend(view.list(RANGES, "").filter(|range| is_deleting(range)).map(key_of));
        }
        out.sort();
        out.dedup();
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let Some(range) = view.one(RANGES, "", key) else { return Outcome::Settled };
        let held = range.facts().finalizers.iter().any(|finalizer| finalizer == FINALIZER);
        let mut value = range.value();
        if !is_deleting(range) {
            if !held {
                value.make(&["metadata", "finalizers"]).make_list().push(FINALIZER.into());
                cx.push(Effect::Update { resource: RANGES, object: value });
                return Outcome::Again(cx.now);
            }
            tell(range, &value, ("True", "", "Kubernetes Service CIDR is ready"), cx);
            return Outcome::Settled;
        }
        if !held {
            return Outcome::Settled;
        }
        if is_needed(range, view) {
            let why = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            tell(range, &value, ("False", "Terminating", why), cx);
            return Outcome::Settled;
        }
        let ripe = range.facts().deleting.unwrap_or(Time::ZERO).plus_ms(GRACE_MS);
        if cx.now < ripe {
            return Outcome::Again(ripe);
        }
        value.make(&["metadata", "finalizers"]).make_list().retain(|finalizer| finalizer.text() != FINALIZER);
        cx.push(Effect::Update { resource: RANGES, object: value });
        Outcome::Settled
    }
}

fn cidrs(range: &Object) -> Vec<Cidr> {
    range.value().at(&["spec", "cidrs"]).items().iter().filter_map(|cidr| Cidr::parse(cidr.text())).collect()
}

/// Whether a range has addresses in use that no other range has.
fn is_needed(range: &Object, view: &View) -> bool {
    let own = cidrs(range);
    let others = view.list(RANGES, "").filter(|other| other.uid() != range.uid());
    let others: Vec<Cidr> = others.flat_map(cidrs).collect();
    let addresses = view.list(ADDRESSES, "").filter_map(|address| address.name().parse().ok());
    addresses
        .filter(|address| own.iter().any(|cidr| cidr.contains(*address)))
        .any(|address| !others.iter().any(|cidr| cidr.contains(address)))
}

fn tell(range: &Object, value: &Value, (status, reason, message): (&str, &str, &str), cx: &mut Context) {
    let told = condition(&value["status"], READY);
    if (told["status"].text(), told["reason"].text(), told["message"].text()) == (status, reason, message) {
        return;
    }
    let condition = json!({
        "type": READY, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": (cx.now.rfc3339()),
    });
    cx.push(Effect::Patch {
        resource: RANGES,
        subresource: "status",
        namespace: Str::default(),
        name: range.name().into(),
        uid: range.uid().into(),
        patch: json!({"status": {"conditions": [condition]}}),
        lists: Lists::Merged,
    });
}
