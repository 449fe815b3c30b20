//! Manifests, indexes and configurations of images, OCI's and docker's. All of it is outside input.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::name::is_digest;
use crate::seam::ImageConfig;
use crate::{Error, ImageName};

/// Largest manifest, index or configuration.
pub(crate) const DOCUMENT_MAX_BYTES: u64 = 8 << 20;
/// Most layers of one image; overlayfs stacks 500, one kernel page of options holds about as many short names.
pub(crate) const LAYERS_MAX: usize = 256;
/// Largest compressed layer.
pub(crate) const LAYER_MAX_BYTES: u64 = 64 << 30;

/// What we ask registries for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// What a reference leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

fn invalid(what: &str, why: impl Into<String>) -> Error {
    Error::ImageInvalid { what: what.to_owned(), why: why.into() }
}

/// Reads a manifest or an index; `what` names it in errors.
pub(crate) fn parse(what: &str, text: &[u8]) -> Result<Document, Error> {
    let raw: Raw = serde_json::from_slice(text).map_err(|e| invalid(what, e.to_string()))?;
    if raw.schema_version == Some(1) {
        return Err(invalid(what, "it has the old schema version 1"));
    }
    let good = |d: &Descriptor| match is_digest(&d.digest) && d.size <= LAYER_MAX_BYTES {
        true => Ok(()),
        false => Err(invalid(what, format!("it refers to {:?} with {} bytes", d.digest, d.size))),
    };
    match (raw.manifests, raw.config, raw.layers) {
        (Some(list), None, None) => {
            list.iter().try_for_each(good)?;
            Ok(Document::Index(list))
        }
        (None, Some(config), Some(layers)) => {
            layers.iter().chain([&config]).try_for_each(good)?;
            if layers.len() > LAYERS_MAX {
                return Err(Error::TooLarge {
                    what: format!("the number of layers of {what}"),
                    limit: LAYERS_MAX as u64,
                });
            }
            if let Some(layer) = layers.iter().find(|l| l.media_type.contains("foreign")) {
                return Err(invalid(what, format!("layer {} must be fetched elsewhere", layer.digest)));
            }
            Ok(Document::Manifest(Manifest { config, layers }))
        }
        _ => Err(invalid(what, "it is neither a manifest nor an index")),
    }
}

/// This machine as images name it.
pub(crate) fn machine() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
}

/// The entry of an index for this machine. An entry without a platform is taken when it is the only one.
pub(crate) fn choose<'a>(name: &str, list: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor, Error> {
    let fits = |d: &&Descriptor| {
        d.platform.as_ref().is_some_and(|p| {
            p.os == wanted.os
                && p.architecture == wanted.architecture
                && matches!(p.variant.as_deref(), None | Some("" | "v8" | "v1"))
        })
    };
    let only = || match list {
        [one] if one.platform.is_none() => Some(one),
        _ => None,
    };
    list.iter().find(fits).or_else(only).ok_or_else(|| {
        let offered: Vec<String> = list
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .take(20)
            .map(|p| format!("{}/{}", p.os.escape_default(), p.architecture.escape_default()))
            .collect();
        Error::ImagePlatform {
            name: name.to_owned(),
            wanted: format!("{}/{}", wanted.os, wanted.architecture),
            offered: if offered.is_empty() { "nothing".to_owned() } else { offered.join(", ") },
        }
    })
}

/// What the configuration blob says: how to run the image, and the digests of its unpacked layers.
#[derive(Debug)]
pub(crate) struct Config {
    pub config: ImageConfig,
    pub diff_ids: Vec<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<RawSettings>,
    rootfs: RawRoot,
}

#[derive(Deserialize)]
struct RawRoot {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawSettings {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
}

pub(crate) fn parse_config(name: &str, text: &[u8], layers: usize) -> Result<Config, Error> {
    let what = format!("the configuration of {name}");
    let raw: RawConfig = serde_json::from_slice(text).map_err(|e| invalid(&what, e.to_string()))?;
    let wanted = machine();
    let named = !raw.os.is_empty() && !raw.architecture.is_empty();
    if named && (raw.os != wanted.os || raw.architecture != wanted.architecture) {
        return Err(Error::ImagePlatform {
            name: name.to_owned(),
            wanted: format!("{}/{}", wanted.os, wanted.architecture),
            offered: format!("{}/{}", raw.os, raw.architecture),
        });
    }
    if raw.rootfs.diff_ids.len() != layers || !raw.rootfs.diff_ids.iter().all(|d| is_digest(d)) {
        return Err(invalid(&what, format!("it lists {} layers, not {layers}", raw.rootfs.diff_ids.len())));
    }
    let raw_settings = raw.config.unwrap_or_default();
    Ok(Config {
        config: ImageConfig {
            env: raw_settings.env.unwrap_or_default(),
            entrypoint: raw_settings.entrypoint.unwrap_or_default(),
            cmd: raw_settings.cmd.unwrap_or_default(),
            working_dir: raw_settings.working_dir.unwrap_or_default(),
            user: raw_settings.user.unwrap_or_default(),
            stop_signal: raw_settings.stop_signal.as_deref().and_then(signal),
            labels: raw_settings.labels.unwrap_or_default(),
            volumes: raw_settings.volumes.unwrap_or_default().into_keys().collect(),
        },
        diff_ids: raw.rootfs.diff_ids,
    })
}

/// `SIGTERM`, `TERM` or `15`.
pub fn signal(text: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    const REALTIME_FIRST: i32 = 34;
    const REALTIME_LAST: i32 = 64;
    if let Ok(number) = text.parse::<i32>() {
        return (1..=REALTIME_LAST).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = NAMES.iter().position(|n| *n == name) {
        return Some(at as i32 + 1);
    }
    let number = match name.split_at_checked(5)? {
        ("RTMIN", "") => REALTIME_FIRST,
        ("RTMIN", plus) => REALTIME_FIRST.checked_add(plus.strip_prefix('+')?.parse().ok()?)?,
        ("RTMAX", "") => REALTIME_LAST,
        ("RTMAX", minus) => REALTIME_LAST.checked_sub(minus.strip_prefix('-')?.parse().ok()?)?,
        _ => return None,
    };
    (REALTIME_FIRST..=REALTIME_LAST).contains(&number).then_some(number)
}

/// The names under which the entry of a layout's index is known.
pub(crate) fn names_of(descriptor: &Descriptor) -> Vec<ImageName> {
    let get = |key: &str| descriptor.annotations.as_ref().and_then(|a| a.get(key));
    let full = get("io.containerd.image.name").or_else(|| get("org.opencontainers.image.ref.name"));
    // A bare tag (`latest`) says nothing about the image.
    full.filter(|n| n.contains(['/', ':'])).and_then(|n| ImageName::parse(n).ok()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("0", None),
            ("65", None),
            ("SIGNOPE", None),
            ("", None),
            ("RTMIN+99", None),
            ("SIGSYS", Some(31)),
        ] {
            assert_eq!(signal(text), expected, "{text}");
        }
    }

    #[test]
    fn damaged_documents_are_errors() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let good = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{digest}","size":1}},
            "layers":[{{"mediaType":"l","digest":"{digest}","size":2}}]}}"#
        );
        assert!(matches!(parse("x", good.as_bytes()), Ok(Document::Manifest(m)) if m.layers.len() == 1));
        let mut rng = base::Rng::new(11);
        for _ in 0..20_000 {
            let mut bytes = good.clone().into_bytes();
            for _ in 0..1 + rng.below(4) {
                if bytes.is_empty() {
                    break;
                }
                let at = rng.below(bytes.len() as u64) as usize;
                match rng.below(3) {
                    0 => bytes[at] = rng.below(256) as u8,
                    1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            if let Ok(Document::Manifest(m)) = parse("x", &bytes) {
                assert!(m.layers.iter().all(|l| is_digest(&l.digest)));
            }
            let _ = parse_config("x", &bytes, 1);
        }
    }

    #[test]
    fn an_index_answers_for_the_machine() {
        let entry = |os: &str, architecture: &str, digit: &str| Descriptor {
            media_type: String::new(),
            digest: format!("sha256:{}", digit.repeat(64)),
            size: 1,
            platform: Some(Platform { os: os.into(), architecture: architecture.into(), variant: None }),
            annotations: None,
        };
        let list = [entry("linux", "arm64", "1"), entry("linux", "amd64", "2"), entry("windows", "amd64", "3")];
        let wanted = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        assert_eq!(choose("x", &list, &wanted).unwrap().digest, list[1].digest);
        let error = choose("x", &list[..1], &wanted).unwrap_err().to_string();
        assert_eq!(error, r#"image "x" has no variant for linux/amd64; it offers linux/arm64"#);
    }
}
