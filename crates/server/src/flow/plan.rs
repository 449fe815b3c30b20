//! Which request belongs to which flow, read from flow schemas and priority levels.

use std::sync::Arc;

use cache::View;
use http::HeaderValue;
use meta::{Object, Resource, Str, Value};

use super::counts::Counts;
use crate::identity::User;
use crate::request::RequestInfo;

pub const SCHEMAS: Resource = Resource("flowschemas.flowcontrol.apiserver.k8s.io");
pub const LEVELS: Resource = Resource("prioritylevelconfigurations.flowcontrol.apiserver.k8s.io");

/// Seats of all levels together: requests that run at once (upstream's 400 and 200).
pub const SEATS: u32 = 600;

/// How the requests of a schema are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Debug)]
enum Subject {
    User(Str),
    Group(Str),
    /// Namespace and name.
    Account(Str, Str),
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Vec<Str>,
    groups: Vec<Str>,
    resources: Vec<Str>,
    cluster_scope: bool,
    namespaces: Vec<Str>,
}

#[derive(Debug)]
struct PathRule {
    verbs: Vec<Str>,
    paths: Vec<Str>,
}

#[derive(Debug)]
struct Schema {
    name: Str,
    uid: HeaderValue,
    level: usize,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
    counts: Arc<Counts>,
}

/// How many may wait in a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queueing {
    /// Of one flow: as many as fit into its hand of queues.
    pub flow_max: usize,
    pub all_max: usize,
}

/// One priority level.
#[derive(Debug)]
pub struct Level {
    pub name: Str,
    pub uid: HeaderValue,
    /// Never waits.
    pub exempt: bool,
    /// Seats that are its own.
    pub nominal: u32,
    /// Seats of its own that it does not lend.
    pub kept: u32,
    /// `None`: what finds no seat is refused.
    pub queueing: Option<Queueing>,
}

/// All schemas and levels of one moment.
#[derive(Debug, Default)]
pub struct Plan {
    schemas: Vec<Schema>,
    pub levels: Vec<Level>,
}

/// Where a request belongs.
#[derive(Clone, Copy, Debug)]
pub struct Class<'a> {
    pub schema_uid: &'a HeaderValue,
    pub level: usize,
    schema: &'a Schema,
}

impl Class<'_> {
    /// Where the request is counted.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.schema.counts
    }

    /// The name of the request's flow.
    pub fn flow(&self, user: &User, info: &RequestInfo) -> String {
        let distinguished: &str = match self.schema.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &user.name,
            Distinguisher::Namespace => &info.namespace,
        };
        format!("{}/{distinguished}", self.schema.name)
    }
}

fn texts(list: &Value) -> Vec<Str> {
    list.items().iter().map(|item| item.text().into()).collect()
}

fn number(value: &Value, default: u32) -> u32 {
    value.as_int().and_then(|number| u32::try_from(number).ok()).unwrap_or(default)
}

impl Rule {
    fn of(rule: &Value) -> Rule {
        let subject = |subject: &Value| {
            Some(match subject["kind"].text() {
                "User" => Subject::User(subject["user"]["name"].text().into()),
                "Group" => Subject::Group(subject["group"]["name"].text().into()),
                "ServiceAccount" => {
                    let account = &subject["serviceAccount"];
                    Subject::Account(account["namespace"].text().into(), account["name"].text().into())
                }
                _ => return None,
            })
        };
        let resource = |rule: &Value| ResourceRule {
            verbs: texts(&rule["verbs"]),
            groups: texts(&rule["apiGroups"]),
            resources: texts(&rule["resources"]),
            cluster_scope: rule["clusterScope"].is_true(),
            namespaces: texts(&rule["namespaces"]),
        };
        let path = |rule: &Value| PathRule { verbs: texts(&rule["verbs"]), paths: texts(&rule["nonResourceURLs"]) };
        Rule {
            subjects: rule["subjects"].items().iter().filter_map(subject).collect(),
            resources: rule["resourceRules"].items().iter().map(resource).collect(),
            paths: rule["nonResourceRules"].items().iter().map(path).collect(),
        }
    }

    fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        self.subjects.iter().any(|subject| subject.is(user))
            && match info.is_resource {
                true => self.resources.iter().any(|rule| rule.matches(info)),
                false => self.paths.iter().any(|rule| rule.matches(info)),
            }
    }
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.name,
            Subject::Group(name) => name == "*" || user.in_group(name),
            Subject::Account(namespace, name) => user
                .service_account()
                .is_some_and(|(of, account)| of == namespace.as_str() && (name == "*" || account == name.as_str())),
        }
    }
}

fn has(list: &[Str], text: &str) -> bool {
    list.iter().any(|item| item == "*" || item == text)
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = || match info.subresource.as_str() {
            "" => has(&self.resources, &info.resource),
            subresource => has(&self.resources, &format!("{}/{subresource}", info.resource)),
        };
        let place = match info.namespace.as_str() {
            "" => self.cluster_scope,
            namespace => has(&self.namespaces, namespace),
        };
        place && has(&self.verbs, info.verb) && has(&self.groups, &info.group) && resource()
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let fits = |path: &Str| match path.strip_suffix('*') {
            Some(start) => info.path.starts_with(start),
            None => info.path == path.as_str(),
        };
        has(&self.verbs, info.verb) && self.paths.iter().any(fits)
    }
}

impl Plan {
    /// Reads the objects. Schemas that name no level there is are left out.
    pub fn of(view: &View) -> Plan {
        let mut shares: Vec<u32> = Vec::new();
        let mut levels: Vec<Level> = Vec::new();
        for object in view.list(LEVELS, "") {
            let value = object.value();
            let spec = &value["spec"];
            let exempt = spec["type"].text() == "Exempt";
            let part = &spec[if exempt { "exempt" } else { "limited" }];
            let queuing = &part.at(&["limitResponse", "queuing"]);
            let length = number(&queuing["queueLengthLimit"], 50) as usize;
            let queueing = (part.at(&["limitResponse", "type"]).text() == "Queue").then(|| Queueing {
                flow_max: number(&queuing["handSize"], 8) as usize * length,
                all_max: number(&queuing["queues"], 64) as usize * length,
            });
            shares.push(number(&part["nominalConcurrencyShares"], if exempt { 0 } else { 30 }));
            // The percentage waits here until the seats are known.
            let lendable = number(&part["lendablePercent"], 0).min(100);
            let (name, uid) = (object.name().into(), header_of(object.uid()));
            levels.push(Level { name, uid, exempt, nominal: 0, kept: lendable, queueing });
        }
        let total = u64::from(shares.iter().sum::<u32>().max(1));
        for (level, share) in levels.iter_mut().zip(shares) {
            let nominal = (u64::from(SEATS) * u64::from(share)).div_ceil(total);
            level.nominal = u32::try_from(nominal).unwrap_or(SEATS);
            level.kept = level.nominal - level.nominal * level.kept / 100;
        }
        let mut schemas: Vec<(i64, Schema)> =
            view.list(SCHEMAS, "").filter_map(|object| schema_of(object, &levels)).collect();
        schemas.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.name.cmp(&b.1.name)));
        Plan { schemas: schemas.into_iter().map(|(_, schema)| schema).collect(), levels }
    }

    /// Goes on with what was counted under the plan before.
    pub fn counting_on(mut self, before: &Plan) -> Plan {
        for schema in &mut self.schemas {
            let level = &self.levels[schema.level].name;
            let same =
                before.schemas.iter().find(|old| old.name == schema.name && before.levels[old.level].name == *level);
            if let Some(same) = same {
                schema.counts = same.counts.clone();
            }
        }
        self
    }

    /// What is counted, with the labels of level and schema.
    pub fn counts(&self) -> impl Iterator<Item = (String, &Counts)> {
        self.schemas.iter().map(|schema| {
            let level = &self.levels[schema.level].name;
            (format!("priority_level=\"{level}\",flow_schema=\"{}\"", schema.name), &*schema.counts)
        })
    }

    /// The first schema that matches; `None` when none does, as before the first objects are there.
    pub fn classify(&self, user: &User, info: &RequestInfo) -> Option<Class<'_>> {
        let schema = self.schemas.iter().find(|schema| schema.rules.iter().any(|rule| rule.matches(user, info)))?;
        Some(Class { schema_uid: &schema.uid, level: schema.level, schema })
    }
}

/// As answers tell it.
fn header_of(uid: &str) -> HeaderValue {
    HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""))
}

fn schema_of(object: &Object, levels: &[Level]) -> Option<(i64, Schema)> {
    let value = object.value();
    let spec = &value["spec"];
    let name = spec["priorityLevelConfiguration"]["name"].text();
    let schema = Schema {
        name: object.name().into(),
        uid: header_of(object.uid()),
        level: levels.iter().position(|level| level.name == name)?,
        distinguisher: match spec["distinguisherMethod"]["type"].text() {
            "ByUser" => Distinguisher::User,
            "ByNamespace" => Distinguisher::Namespace,
            _ => Distinguisher::None,
        },
        rules: spec["rules"].items().iter().map(Rule::of).collect(),
        counts: Arc::default(),
    };
    Some((spec["matchingPrecedence"].as_int().unwrap_or(1_000), schema))
}
