//! What the CEL expressions of admission and of devices may speak of, and the check that they compile.
//!
//! Not here: evaluation (admission's is in the server); rules of custom resources (`apiextensions::validations`).

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use cel::{Env, FieldType, ObjectType, Program, Type};
use meta::{At, Errors, Str};

fn strings() -> Type {
    Type::list(Type::STRING)
}

fn labels() -> Type {
    Type::map(Type::STRING, Type::STRING)
}

/// `request`: what is asked, by whom.
pub static REQUEST: LazyLock<Type> = LazyLock::new(|| {
    let named = |last: &'static str| {
        Type::object(last, [("group", Type::STRING), ("version", Type::STRING), (last, Type::STRING)])
    };
    let user = Type::object(
        "kubernetes.UserInfo",
        [
            ("username", Type::STRING),
            ("uid", Type::STRING),
            ("groups", strings()),
            ("extra", Type::map(Type::STRING, strings())),
        ],
    );
    Type::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", named("kind")),
            ("resource", named("resource")),
            ("subResource", Type::STRING),
            ("requestKind", named("kind")),
            ("requestResource", named("resource")),
            ("requestSubResource", Type::STRING),
            ("name", Type::STRING),
            ("namespace", Type::STRING),
            ("operation", Type::STRING),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
});

/// `namespaceObject`: the namespace of what is written.
pub static NAMESPACE: LazyLock<Type> = LazyLock::new(|| {
    let metadata = Type::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", Type::STRING),
            ("generateName", Type::STRING),
            ("namespace", Type::STRING),
            ("labels", labels()),
            ("annotations", labels()),
            ("UID", Type::STRING),
            ("creationTimestamp", Type::Timestamp),
            ("deletionGracePeriodSeconds", Type::Int),
            ("deletionTimestamp", Type::Timestamp),
            ("generation", Type::Int),
            ("resourceVersion", Type::STRING),
            ("finalizers", strings()),
        ],
    );
    let spec = Type::object("kubernetes.NamespaceSpec", [("finalizers", strings())]);
    let status = Type::object("kubernetes.NamespaceStatus", [("phase", Type::STRING)]);
    Type::object("kubernetes.Namespace", [("metadata", metadata), ("spec", spec), ("status", status)])
});

/// What expressions of admission see: the objects, the request, the authorizer; `params` where there are some.
pub fn admission(params: bool) -> Env {
    let env = Env::new()
        .with("object", Type::Dyn)
        .with("oldObject", Type::Dyn)
        .with("request", REQUEST.clone())
        .with("namespaceObject", NAMESPACE.clone())
        .with("authorizer", Type::Opaque("authorizer"))
        .with("authorizer.requestResource", Type::Opaque("resourceCheck"));
    if params { env.with("params", Type::Dyn) } else { env }
}

/// What selectors of devices see: `device`.
pub fn device() -> Env {
    let device = Type::object(
        "DRADevice",
        [
            ("driver", Type::STRING),
            ("allowMultipleAllocations", Type::Bool),
            ("attributes", Type::map(Type::STRING, Type::map(Type::STRING, Type::Dyn))),
            ("capacity", Type::map(Type::STRING, Type::map(Type::STRING, Type::Opaque("quantity")))),
        ],
    );
    Env::new().with("device", device)
}

/// The expression must compile to one of `results` (none given: to anything). Gives its type, if it compiles.
pub fn check(at: &At<'_>, env: &Env, results: &[Type], errors: &mut Errors) -> Option<Type> {
    compile(at, env, results, errors).map(|program| program.result().clone())
}

fn compile(at: &At<'_>, env: &Env, results: &[Type], errors: &mut Errors) -> Option<Program> {
    match Program::compile(at.text(), env) {
        Err(error) => {
            errors.invalid(at, format!("compilation failed: {error}"));
            None
        }
        Ok(program) => {
            if !results.is_empty() && !results.contains(program.result()) {
                let names: Vec<String> = results.iter().map(ToString::to_string).collect();
                errors.invalid(at, format!("must evaluate to {}", names.join(" or ")));
            }
            Some(program)
        }
    }
}

/// Checks `matchConditions` whose expressions are there.
pub fn check_conditions(conditions: &At<'_>, env: &Env, errors: &mut Errors) {
    for condition in conditions.items() {
        let expression = condition.field("expression");
        if !expression.text().trim().is_empty() {
            check(&expression, env, &[Type::Bool], errors);
        }
    }
}

/// Checks `variables`, each of which sees those before it, and gives the environment that has them all.
pub fn with_variables(variables: &At<'_>, env: &Env, errors: &mut Errors) -> Env {
    variables_of(variables, env, errors).0
}

/// The same, with the variables' programs in their order.
pub fn variables_of(variables: &At<'_>, env: &Env, errors: &mut Errors) -> (Env, Vec<(Str, Program)>) {
    let mut known: BTreeMap<Str, Type> = BTreeMap::new();
    let mut programs = Vec::new();
    let declared = |known: &BTreeMap<Str, Type>| {
        let fields = known.iter().map(|(name, of)| (name.clone(), FieldType { name: name.clone(), of: of.clone() }));
        Type::Object(Arc::new(ObjectType { name: "variables".to_owned(), fields: fields.collect(), open: false }))
    };
    for variable in variables.items() {
        let (name, expression) = (variable.field("name"), variable.field("expression"));
        if expression.text().trim().is_empty() {
            continue;
        }
        let env = env.clone().with("variables", declared(&known));
        let program = compile(&expression, &env, &[], errors);
        if name.is_empty() {
            continue;
        }
        // What does not compile is told once, where it stands.
        let found = program.as_ref().map_or(Type::Dyn, |program| program.result().clone());
        known.insert(name.text().into(), found);
        programs.extend(program.map(|program| (name.text().into(), program)));
    }
    (env.clone().with("variables", declared(&known)), programs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn variables_see_those_before_them() {
        let list = json!([
            {"name": "a", "expression": "object.spec.replicas"},
            {"name": "b", "expression": "variables.a + 1"},
            {"name": "c", "expression": "variables.d"},
            {"name": "d", "expression": "1"},
        ]);
        let mut errors = Errors::default();
        let env = with_variables(&At::root(&list), &admission(false), &mut errors);
        let fields: Vec<&str> = errors.0.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["[2].expression"]);
        for (text, good) in [
            ("variables.d == 1", true),
            ("variables.d == 'a'", false),
            ("variables.e", false),
            ("request.userInfo.username == namespaceObject.metadata.name", true),
            ("authorizer.group('').resource('pods').namespace('x').check('get').allowed()", true),
            ("authorizer.requestResource.check('update').allowed()", true),
            ("params.x == 1", false),
        ] {
            assert_eq!(Program::compile(text, &env).is_ok(), good, "{text}");
        }
        assert!(
            Program::compile(
                "device.attributes['a'].b == 1 && device.capacity['a'].c.isLessThan(quantity('1Gi'))",
                &device()
            )
            .is_ok()
        );
    }
}
