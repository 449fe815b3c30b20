//! A container's environment: variables of services, of sources, own values, references to fields and keys, and the
//! expansion of `$(NAME)`.

use cache::View;
use meta::{Quantity, Resource, Str, Value};

pub const CONFIG_MAPS: Resource = Resource("configmaps");
pub const SECRETS: Resource = Resource("secrets");
const SERVICES: Resource = Resource("services");

/// Where configuration comes from: an object by resource, namespace and name, or why it cannot be had.
pub type Fetch<'a> = &'a dyn Fn(Resource, &str) -> Result<Option<Value>, String>;

/// What a pod's fields can tell beside the object itself.
pub struct Place<'a> {
    pub host_addresses: &'a [Str],
    pub addresses: &'a [Str],
    /// What is left of the node for limits that are not set: cpu in millicores, memory in bytes.
    pub allocatable: (i64, i64),
}

/// The environment of `container`, in order. The error is a sentence for `CreateContainerConfigError`.
pub fn environment(
    pod: &Value,
    container: &Value,
    place: &Place<'_>,
    view: &View,
    fetch: Fetch<'_>,
) -> Result<Vec<(String, String)>, String> {
    let mut env: Vec<(String, String)> = Vec::new();
    let namespace = pod.at(&["metadata", "namespace"]).text();
    let links = pod.at(&["spec", "enableServiceLinks"]).as_bool() != Some(false);
    for (key, value) in service_variables(view, namespace, links) {
        set(&mut env, key, value);
    }
    for source in container["envFrom"].items() {
        let prefix = source["prefix"].text();
        for (key, value) in source_values(source, fetch)? {
            set(&mut env, format!("{prefix}{key}"), value);
        }
    }
    for variable in container["env"].items() {
        let name = variable["name"].text();
        let value = match variable.get("valueFrom") {
            None => Some(expand(variable["value"].text(), &env)),
            Some(source) => value_from(pod, container, source, place, fetch)?,
        };
        if let Some(value) = value {
            set(&mut env, name.to_owned(), value);
        }
    }
    Ok(env)
}

fn set(env: &mut Vec<(String, String)>, key: String, value: String) {
    env.retain(|(known, _)| *known != key);
    env.push((key, value));
}

/// Replaces `$(NAME)` by known variables; `$$` is a `$`, and what is not known stays as it is.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some(end) = rest.strip_prefix("$(").and_then(|inner| inner.find(')')) {
            let name = &rest[2..2 + end];
            match env.iter().find(|(key, _)| key == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&rest[..end + 3]),
            }
            rest = &rest[end + 3..];
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

fn service_variables(view: &View, namespace: &str, links: bool) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    let own = view.list(SERVICES, namespace).filter(|_| links);
    let master = view.one(SERVICES, "default", "kubernetes").filter(|_| !links || namespace != "default");
    for service in own.chain(master) {
        let value = service.value();
        let spec = &value["spec"];
        let address = spec["clusterIP"].text();
        let ports = spec["ports"].items();
        if matches!(address, "" | "None") || ports.is_empty() {
            continue;
        }
        let name = service.name().to_uppercase().replace('-', "_");
        let number = |port: &Value| port["port"].as_int().unwrap_or(0);
        variables.push((format!("{name}_SERVICE_HOST"), address.to_owned()));
        variables.push((format!("{name}_SERVICE_PORT"), number(&ports[0]).to_string()));
        for port in ports.iter().filter(|port| !port["name"].text().is_empty()) {
            let port_name = port["name"].text().to_uppercase().replace('-', "_");
            variables.push((format!("{name}_SERVICE_PORT_{port_name}"), number(port).to_string()));
        }
        for (at, port) in ports.iter().enumerate() {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            let url = format!("{}://{address}:{}", protocol.to_lowercase(), number(port));
            if at == 0 {
                variables.push((format!("{name}_PORT"), url.clone()));
            }
            let prefix = format!("{name}_PORT_{}_{protocol}", number(port));
            variables.push((prefix.clone(), url));
            variables.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
            variables.push((format!("{prefix}_PORT"), number(port).to_string()));
            variables.push((format!("{prefix}_ADDR"), address.to_owned()));
        }
    }
    variables
}

fn source_values(source: &Value, fetch: Fetch<'_>) -> Result<Vec<(String, String)>, String> {
    let (resource, reference, what) = match source.get("secretRef") {
        Some(reference) => (SECRETS, reference, "secret"),
        None => (CONFIG_MAPS, &source["configMapRef"], "configmap"),
    };
    let name = reference["name"].text();
    match fetch(resource, name)? {
        None if reference["optional"].is_true() => Ok(Vec::new()),
        None => Err(format!("{what} {name:?} not found")),
        Some(object) => {
            let entries = object["data"].entries();
            let keys: Vec<Str> = entries.keys().map(Str::from).collect();
            let readable =
                keys.into_iter().filter_map(|key| Some((key.to_string(), text_of(resource, &object, &key)?)));
            Ok(readable.collect())
        }
    }
}

/// One key of a config map or secret, as text.
pub fn text_of(resource: Resource, object: &Value, key: &str) -> Option<String> {
    String::from_utf8(bytes_of(resource, object, key)?).ok()
}

/// One key of a config map or secret, as bytes.
pub fn bytes_of(resource: Resource, object: &Value, key: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    if resource == SECRETS {
        return STANDARD.decode(object["data"].get(key)?.text()).ok();
    }
    match object["data"].get(key) {
        Some(value) => Some(value.text().as_bytes().to_vec()),
        None => STANDARD.decode(object["binaryData"].get(key)?.text()).ok(),
    }
}

fn value_from(
    pod: &Value,
    container: &Value,
    source: &Value,
    place: &Place<'_>,
    fetch: Fetch<'_>,
) -> Result<Option<String>, String> {
    if let Some(field) = source.get("fieldRef") {
        return field_value(pod, field["fieldPath"].text(), place).map(Some);
    }
    if let Some(resource) = source.get("resourceFieldRef") {
        return resource_value(pod, container, resource, place).map(Some);
    }
    let (resource, reference, what) = match source.get("secretKeyRef") {
        Some(reference) => (SECRETS, reference, "secret"),
        None => (CONFIG_MAPS, &source["configMapKeyRef"], "configmap"),
    };
    let (name, key) = (reference["name"].text(), reference["key"].text());
    let optional = reference["optional"].is_true();
    match fetch(resource, name)? {
        None if optional => Ok(None),
        None => Err(format!("{what} {name:?} not found")),
        Some(object) => match text_of(resource, &object, key) {
            Some(text) => Ok(Some(text)),
            None if optional => Ok(None),
            None => {
                Err(format!("couldn't find key {key} in {what} {}/{name}", pod.at(&["metadata", "namespace"]).text()))
            }
        },
    }
}

/// A field of the pod, by its downward-API path.
pub fn field_value(pod: &Value, path: &str, place: &Place<'_>) -> Result<String, String> {
    let list = |addresses: &[Str]| addresses.join(",");
    let meta = &pod["metadata"];
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = map.strip_prefix("metadata.").unwrap_or(map);
        return Ok(meta[map][key].text().to_owned());
    }
    Ok(match path {
        "metadata.labels" | "metadata.annotations" => {
            let map = meta[&path["metadata.".len()..]].entries();
            map.iter().map(|(key, value)| format!("{key}={:?}", value.text())).collect::<Vec<_>>().join("\n")
        }
        "status.hostIP" => place.host_addresses.first().map(ToString::to_string).unwrap_or_default(),
        "status.hostIPs" => list(place.host_addresses),
        "status.podIP" => place.addresses.first().map(ToString::to_string).unwrap_or_default(),
        "status.podIPs" => list(place.addresses),
        path => {
            let keys: Vec<&str> = path.split('.').collect();
            let value = pod.at(&keys);
            match value.as_str() {
                Some(text) => text.to_owned(),
                None => return Err(format!("unsupported fieldPath: {path}")),
            }
        }
    })
}

/// A request or limit of a container, divided and rounded up.
pub fn resource_value(pod: &Value, container: &Value, reference: &Value, place: &Place<'_>) -> Result<String, String> {
    let named = reference["containerName"].text();
    let container = match named {
        "" => container,
        name => {
            let lists = ["containers", "initContainers"].iter().flat_map(|list| pod["spec"][*list].items());
            lists
                .into_iter()
                .find(|one| one["name"].text() == name)
                .ok_or_else(|| format!("container {name} not found"))?
        }
    };
    let path = reference["resource"].text();
    let (kind, resource) = path.split_once('.').ok_or_else(|| format!("unsupported resource {path}"))?;
    let set = Quantity::of(&container["resources"][kind][resource]).ok().filter(|quantity| !quantity.is_zero());
    let quantity = set.unwrap_or_else(|| match (kind, resource) {
        ("limits", "cpu") => Quantity::from_milli(place.allocatable.0),
        ("limits", "memory") => Quantity::from_int(place.allocatable.1),
        _ => Quantity::default(),
    });
    let divisor = Quantity::of(&reference["divisor"]).ok().filter(|divisor| !divisor.is_zero());
    let divisor = divisor.unwrap_or_else(|| Quantity::from_int(1));
    let result = if resource == "cpu" {
        (quantity.milli() as f64 / divisor.milli().max(1) as f64).ceil() as i64
    } else {
        (quantity.value() as f64 / divisor.value().max(1) as f64).ceil() as i64
    };
    Ok(result.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_expand_once() {
        let env = vec![("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$(C)", "$(C)"),
            ("$(B)", "$(A)"),
            ("$", "$"),
            ("$(A", "$(A"),
        ] {
            assert_eq!(expand(text, &env), expected);
        }
    }
}
