//! Who owns which field: `metadata.managedFields`, kept by every write, and server-side apply.
//!
//! As upstream does it, ownership is told right after decoding, before admission and before the kind prepares the
//! object: what the system fills in belongs to nobody.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use base::hash64;
use meta::apply::{Set, Writer, is_alike, keep_times, own_created, track_update};
use meta::object::controller_of;
use meta::{Resource, Status, Value};

use crate::Server;
use crate::codec;
use crate::verbs::Call;
use crate::verbs::update::Edited;

static NOTHING: LazyLock<Set> = LazyLock::new(Set::new);
static STATUS: LazyLock<Set> = LazyLock::new(|| Set::of_fields(&[&["status"]]));
static SPEC: LazyLock<Set> = LazyLock::new(|| Set::of_fields(&[&["spec"]]));

fn writer<'a>(call: &'a Call<'_>, api_version: &'a str) -> Writer<'a> {
    let subresource = call.auth.info.subresource.as_str();
    let reset = match subresource {
        "" if call.kind.subresource("status").is_some() => &STATUS,
        "status" => &SPEC,
        _ => &NOTHING,
    };
    Writer { manager: &call.options.manager, api_version, subresource, now: call.now, reset }
}

/// Records the change from `old` to `value` as the caller's.
pub fn track(call: &Call<'_>, old: &Value, value: &mut Value) {
    let api_version = call.kind.names.api_version();
    track_update(Some(old), value, call.kind.of(), &writer(call, &api_version));
}

/// Families of which the last creation is remembered; those that fall into one place take turns.
const FAMILIES: usize = 64;
/// Values in an object that is remembered.
const VALUES_MAX: usize = 2_000;
/// Bytes of the strings in an object that is remembered.
const STRINGS_MAX_BYTES: usize = 32 << 10;

/// A kind, and a number for who makes its objects and for whom. Whoever finds another with that number gains nothing: what
/// is taken over from the last creation is compared with it first.
type Family = (Option<Resource>, u64);

/// The last creation of each family: of one kind, by one manager, for one controller or in one namespace. Most objects of
/// a family differ in little: whoever makes one owns the fields that it owned of the last, and what is equal in both was
/// checked.
pub struct Creations([Mutex<Option<Arc<Creation>>>; FAMILIES]);

/// An object that was created.
struct Creation {
    family: Family,
    /// Before admission.
    asked: Value,
    /// What its creator owns, as `FieldsV1`.
    fields: Value,
    /// As it was made and checked.
    made: Value,
}

impl Default for Creations {
    fn default() -> Creations {
        Creations([const { Mutex::new(None) }; FAMILIES])
    }
}

impl Creations {
    fn slot(&self, (_, number): Family) -> MutexGuard<'_, Option<Arc<Creation>>> {
        self.0[usize::try_from(number).unwrap_or(0) % FAMILIES].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last(&self, family: Family) -> Option<Arc<Creation>> {
        self.slot(family).clone().filter(|last| last.family == family)
    }

    /// What was asked for last in the family of `value`, in its complete form; null when there is none.
    pub fn like(&self, call: &Call<'_>, value: &Value) -> Value {
        let api_version = call.kind.names.api_version();
        let last = self.last(family(call, &writer(call, &api_version), value));
        last.map_or(Value::Null, |last| last.asked.clone())
    }

    /// Records the creation of `value`, which is not through admission yet, as the caller's; returns what was created
    /// like it before.
    pub fn track(&self, call: &Call<'_>, value: &mut Value) -> Created {
        let (api_version, of) = (call.kind.names.api_version(), call.kind.of());
        let writer = writer(call, &api_version);
        let brings = !value["metadata"]["managedFields"].is_null();
        // What a definition says of its fields changes with it.
        if brings || of.schema.is_custom() {
            track_update(None, value, of, &writer);
            return Created::default();
        }
        let (family, asked) = (family(call, &writer, value), value.clone());
        let last = self.last(family);
        let alike = last.as_ref().filter(|last| is_alike(&last.asked, value, of));
        match alike {
            Some(last) => own_created(value, &last.fields, &writer),
            None => track_update(None, value, of, &writer),
        }
        let alike = alike.is_some();
        Created { family, asked, last, alike }
    }

    /// Remembers what was `created`, now `made` and checked, where the next of its family is more like this than like the
    /// last.
    pub fn note(&self, created: Created, made: &Value) {
        let Created { family, asked, last, alike } = created;
        let fields = &made["metadata"]["managedFields"][0]["fieldsV1"];
        let as_last = alike && last.is_some_and(|last| made["spec"].is_shared_with(&last.made["spec"]));
        let (mut values, mut bytes) = (VALUES_MAX, STRINGS_MAX_BYTES);
        if as_last || asked.is_null() || fields.is_null() || !is_small(made, &mut values, &mut bytes) {
            return;
        }
        let creation = Creation { family, asked, fields: fields.clone(), made: made.clone() };
        let before = self.slot(family).replace(Arc::new(creation));
        drop(before);
    }
}

/// A creation under way.
#[derive(Default)]
pub struct Created {
    family: Family,
    /// Null where it is not remembered.
    asked: Value,
    last: Option<Arc<Creation>>,
    /// The creator owns what it owned of the last.
    alike: bool,
}

impl Created {
    /// The last creation of the family as it was made and checked.
    pub fn sibling(&self) -> Option<&Value> {
        self.last.as_ref().map(|last| &last.made)
    }
}

fn family(call: &Call<'_>, writer: &Writer<'_>, value: &Value) -> Family {
    let alike = controller_of(value).map_or(call.namespace(), |owner| owner["uid"].text());
    let parts = [writer.api_version, writer.subresource, writer.manager, alike];
    let resource = call.kind.resource;
    (
        Some(resource),
        parts.iter().fold(hash64(resource.0.as_bytes()), |hash, part| hash64(part.as_bytes()) ^ hash.rotate_left(17)),
    )
}

/// Whether no more is in `value` than what is left of both.
fn is_small(value: &Value, values: &mut usize, bytes: &mut usize) -> bool {
    let text = value.text().len();
    if *values == 0 || text > *bytes {
        return false;
    }
    (*values, *bytes) = (*values - 1, *bytes - text);
    let members = value.entries().iter().map(|(_, member)| member);
    members.chain(value.items()).all(|inner| is_small(inner, values, bytes))
}

/// Where nothing changed but the times of ownership, they are put back, so that a write without effect stays one.
pub fn settle(old: &Value, value: &mut Value) {
    keep_times(old, value);
}

/// Applies `patch` as the caller's whole intent on `live` (none: a creation).
pub fn apply(_: &Server, call: &Call<'_>, live: Option<&Value>, patch: &Value) -> Result<Edited, Status> {
    let api_version = call.kind.names.api_version();
    let mut patch = patch.clone();
    codec::check_applied(call, &mut patch)?;
    let merged = meta::apply::apply(live, &patch, call.kind.of(), &writer(call, &api_version), call.options.force);
    let old = live.unwrap_or(&Value::Null);
    let (value, _) = codec::complete(call, old, merged.map_err(|error| error.status())?)?;
    Ok(Edited { value, warnings: Vec::new(), owned: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Rng, Time};
    use meta::json;

    /// Changes something somewhere.
    fn vary(value: &mut Value, rng: &mut Rng) {
        const SCALARS: &[&str] = &["\"\"", "\"a\"", "\"b\"", "0", "1", "2", "null", "true", "false", "{}", "[]"];
        let scalar = |rng: &mut Rng| {
            let text = SCALARS[usize::try_from(rng.below(SCALARS.len() as u64)).unwrap()];
            Value::parse(text.as_bytes()).unwrap()
        };
        let some = |count: usize, rng: &mut Rng| usize::try_from(rng.below(count.max(1) as u64)).unwrap();
        match value {
            Value::Map(map) if !map.is_empty() && rng.chance(850) => {
                let at = some(map.len(), rng);
                let key = meta::Str::from(map.nth(at).unwrap().0);
                match rng.below(10) {
                    0 => drop(map.remove(&key)),
                    1 => drop(map.insert(format!("{key}x"), scalar(rng))),
                    _ => vary(map.get_mut(&key).unwrap(), rng),
                }
            }
            Value::List(items) if !items.is_empty() && rng.chance(850) => {
                let at = some(items.len(), rng);
                match rng.below(10) {
                    0 => drop(items.remove(at)),
                    1 => items.push(items[at].clone()),
                    _ => vary(&mut items.make_mut()[at], rng),
                }
            }
            other => *other = scalar(rng),
        }
    }

    #[test]
    fn what_is_alike_is_owned_alike() {
        let of = api::schema::kind("", "v1", "Pod").unwrap();
        let container = |name: &str| {
            json!({
                "name": name, "image": "x", "args": ["a", "b"], "env": [{"name": "A", "value": "1"}, {"name": "B"}],
                "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {"limits": {"cpu": "1"}},
                "securityContext": {}, "stdin": false,
            })
        };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "labels": {"a": "b", "c": ""}, "finalizers": ["x/y"], "generateName": ""},
            "spec": {
                "containers": [(container("a")), (container("b"))], "nodeSelector": {"a": "b"}, "hostNetwork": false,
                "tolerations": [{"key": "a"}], "topologySpreadConstraints": [{"topologyKey": "a", "whenUnsatisfiable": "b"}],
                "terminationGracePeriodSeconds": 0,
            },
            "status": {"phase": "Running"},
        });
        let writer =
            Writer { manager: "m", api_version: "v1", subresource: "", now: Time::from_seconds(7), reset: &STATUS };
        let (mut rng, mut alike) = (Rng::new(5), 0);
        for _ in 0..20_000 {
            let mut one = pod.clone();
            (0..rng.below(3)).for_each(|_| vary(&mut one, &mut rng));
            let mut other = one.clone();
            (0..1 + rng.below(2)).for_each(|_| vary(&mut other, &mut rng));
            if !is_alike(&one, &other, of) {
                continue;
            }
            alike += 1;
            let mut told = other.clone();
            track_update(None, &mut one, of, &writer);
            track_update(None, &mut other, of, &writer);
            let fields = &one["metadata"]["managedFields"][0]["fieldsV1"];
            if fields.is_null() {
                assert!(other["metadata"]["managedFields"].is_null());
                continue;
            }
            own_created(&mut told, fields, &writer);
            assert_eq!(told, other);
        }
        assert!(alike > 2_000, "{alike} were alike");
    }
}
