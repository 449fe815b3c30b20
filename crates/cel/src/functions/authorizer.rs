//! Questions of authorization, for admission policies: who evaluates gives the authorizer.

use std::fmt;
use std::sync::Arc;

use super::{Row, no_such};
use crate::value::{Fail, Val};

/// Answers whether the user of the request (or a service account) may do something.
pub trait Authorizer: Send + Sync {
    /// Whether it is allowed, and why.
    fn check(&self, ask: &Ask, verb: &str) -> Result<(bool, String), String>;
}

/// A question on its way, or its answer.
#[derive(Clone)]
pub struct Ask {
    pub authorizer: Arc<dyn Authorizer>,
    /// Namespace and name, where it is not the user of the request.
    pub service_account: Option<(String, String)>,
    pub about: About,
}

#[derive(Clone, Debug, PartialEq)]
pub enum About {
    Nothing,
    Path(String),
    Group(String),
    Resource {
        group: String,
        resource: String,
        subresource: String,
        namespace: String,
        name: String,
        field_selector: String,
        label_selector: String,
    },
    Answer(Result<(bool, String), String>),
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.about.fmt(f)
    }
}

impl Ask {
    /// A first question.
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Ask {
        Ask { authorizer, service_account: None, about: About::Nothing }
    }

    /// The word that signatures have for what has been said so far.
    pub fn kind(&self) -> &'static str {
        match self.about {
            About::Nothing => "authorizer",
            About::Path(_) => "pathCheck",
            About::Group(_) => "groupCheck",
            About::Resource { .. } => "resourceCheck",
            About::Answer(_) => "decision",
        }
    }
}

fn step<'a>(args: &[Val<'a>], next: impl Fn(&Ask, &str) -> Option<About>) -> Result<Val<'a>, Fail> {
    let (ask, text) = match args {
        [Val::Ask(ask)] => (ask, ""),
        [Val::Ask(ask), Val::Text(text)] => (ask, &**text),
        _ => return no_such(),
    };
    match next(ask, text) {
        Some(about) => Ok(Val::Ask(Arc::new(Ask { about, ..(**ask).clone() }))),
        None => no_such(),
    }
}

/// Changes one part of a question about a resource.
fn narrow<'a>(args: &[Val<'a>], change: fn(&mut About, String)) -> Result<Val<'a>, Fail> {
    step(args, |ask, text| {
        let mut about = ask.about.clone();
        change(&mut about, text.to_owned());
        Some(about)
    })
}

fn check<'a>(args: &[Val<'a>]) -> Result<Val<'a>, Fail> {
    step(args, |ask, verb| Some(About::Answer(ask.authorizer.check(ask, verb))))
}

fn answer<'a>(args: &[Val<'a>], of: fn(&Result<(bool, String), String>) -> Val<'static>) -> Result<Val<'a>, Fail> {
    match args {
        [Val::Ask(ask)] => match &ask.about {
            About::Answer(answer) => Ok(of(answer)),
            _ => no_such(),
        },
        _ => no_such(),
    }
}

pub const ROWS: &[Row] = &[
    Row("authorizer#path(string) pathCheck", |args| step(args, |_, path| Some(About::Path(path.to_owned())))),
    Row("authorizer#group(string) groupCheck", |args| step(args, |_, group| Some(About::Group(group.to_owned())))),
    Row("authorizer#serviceAccount(string,string) authorizer", |args| match args {
        [Val::Ask(ask), Val::Text(namespace), Val::Text(name)] => Ok(Val::Ask(Arc::new(Ask {
            service_account: Some((namespace.to_string(), name.to_string())),
            ..(**ask).clone()
        }))),
        _ => no_such(),
    }),
    Row("groupCheck#resource(string) resourceCheck", |args| {
        step(args, |ask, resource| match &ask.about {
            About::Group(group) => Some(About::Resource {
                group: group.clone(),
                resource: resource.to_owned(),
                subresource: String::new(),
                namespace: String::new(),
                name: String::new(),
                field_selector: String::new(),
                label_selector: String::new(),
            }),
            _ => None,
        })
    }),
    Row("resourceCheck#subresource(string) resourceCheck", |args| {
        narrow(args, |about, text| {
            if let About::Resource { subresource, .. } = about {
                *subresource = text;
            }
        })
    }),
    Row("resourceCheck#namespace(string) resourceCheck", |args| {
        narrow(args, |about, text| {
            if let About::Resource { namespace, .. } = about {
                *namespace = text;
            }
        })
    }),
    Row("resourceCheck#name(string) resourceCheck", |args| {
        narrow(args, |about, text| {
            if let About::Resource { name, .. } = about {
                *name = text;
            }
        })
    }),
    Row("resourceCheck#fieldSelector(string) resourceCheck", |args| {
        narrow(args, |about, text| {
            if let About::Resource { field_selector, .. } = about {
                *field_selector = text;
            }
        })
    }),
    Row("resourceCheck#labelSelector(string) resourceCheck", |args| {
        narrow(args, |about, text| {
            if let About::Resource { label_selector, .. } = about {
                *label_selector = text;
            }
        })
    }),
    Row("pathCheck#check(string) decision", check),
    Row("resourceCheck#check(string) decision", check),
    Row("decision#allowed() bool", |args| answer(args, |answer| Val::Bool(matches!(answer, Ok((true, _)))))),
    Row("decision#reason() string", |args| {
        answer(args, |answer| Val::text(answer.as_ref().map_or("", |(_, reason)| reason.as_str())))
    }),
    Row("decision#errored() bool", |args| answer(args, |answer| Val::Bool(answer.is_err()))),
    Row("decision#error() string", |args| {
        answer(args, |answer| Val::text(answer.as_ref().err().map_or("", String::as_str)))
    }),
];
