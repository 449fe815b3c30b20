//! The descriptions of built-in types and fields, for OpenAPI and `explain`. Unpacked when first asked for.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::LazyLock;

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.z"));

static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = String::new();
    flate2::read::ZlibDecoder::new(PACKED).read_to_string(&mut text).expect("the build script packed it");
    text
});

static INDEX: LazyLock<BTreeMap<(&str, &str), &str>> = LazyLock::new(|| {
    let entry = |line: &'static str| {
        let (name, rest) = line.split_once('\t')?;
        let (field, words) = rest.split_once('\t')?;
        Some(((name, field), words))
    };
    TEXT.lines().filter_map(entry).collect()
});

/// The description of a field (`""`: of the type itself); `None` where there is none.
pub fn description(type_name: &str, field: &str) -> Option<String> {
    let words = INDEX.get(&(type_name, field))?;
    let mut text = String::with_capacity(words.len());
    let mut chars = words.chars();
    while let Some(char) = chars.next() {
        match (char, char == '\\') {
            (_, true) => match chars.next() {
                Some('n') => text.push('\n'),
                other => text.extend(other),
            },
            (char, _) => text.push(char),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_described() {
        for (name, field) in [
            ("io.k8s.api.core.v1.Pod", ""),
            ("io.k8s.api.core.v1.PodSpec", "containers"),
            ("io.k8s.api.core.v1.PodSpec", "affinity"),
            ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "labels"),
        ] {
            assert!(description(name, field).is_some_and(|text| text.len() > 10), "{name} {field}");
        }
        assert_eq!(description("io.k8s.api.core.v1.PodSpec", "nonsense"), None);
    }
}
