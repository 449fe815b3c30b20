//! Checks of volumes.

use std::collections::BTreeSet;

use meta::{At, Errors, Quantity, Str, Value, names};

use super::{Context, disks, env};
use crate::certificates::{self, cluster_trust_bundle};
use crate::check;

/// Shortest life of a projected token.
const TOKEN_SECONDS_MIN: i64 = 600;
/// Where the parts of a pod's credentials are written to.
const CREDENTIAL_PATHS: [&str; 3] = ["credentialBundlePath", "keyPath", "certificateChainPath"];

pub fn check(volumes: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let mut seen: BTreeSet<Str> = BTreeSet::new();
    for volume in volumes.items() {
        let name = volume.field("name");
        check_source(&volume, cx, errors);
        check::named(&name, names::dns_label, errors);
        if !name.is_empty() && !seen.insert(name.text().into()) {
            errors.duplicate(&name);
        }
    }
}

/// Whether nothing is wrong with a volume; mounts of wrong ones find nothing.
pub fn is_valid(volume: &Value, cx: &Context<'_>) -> bool {
    let mut errors = Errors::default();
    check_source(&At::root(volume), cx, &mut errors);
    errors.is_empty() && names::dns_label(volume["name"].text()).is_empty()
}

fn check_source(volume: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let mut found = 0;
    for (kind, value) in volume.map().iter() {
        if kind == "name" || value.is_null() {
            continue;
        }
        found += 1;
        let source = volume.field(kind);
        if found > 1 {
            errors.forbidden(&source.path, "may not specify more than 1 volume type");
            continue;
        }
        match kind {
            "emptyDir" => {
                let limit = source.field("sizeLimit");
                if Quantity::of(limit.value).is_ok_and(|limit| limit.sign() < 0) {
                    errors.forbidden(&limit.path, "SizeLimit field must be a valid resource quantity");
                }
            }
            "secret" => {
                check::required(&source.field("secretName"), errors);
                check_files(&source, errors);
            }
            "configMap" => {
                check::required(&source.field("name"), errors);
                check_files(&source, errors);
            }
            "downwardAPI" => {
                check::file_mode(&source.field("defaultMode"), errors);
                check_downward(&source, errors);
            }
            "projected" => check_projected(&source, errors),
            "persistentVolumeClaim" => check::required(&source.field("claimName"), errors),
            "ephemeral" => check_ephemeral(&source, volume, cx, errors),
            "csi" => {
                check::named(&source.field("driver"), names::dns_subdomain, errors);
                let secret = source.field("nodePublishSecretRef");
                if secret.is_set() {
                    check::required(&secret.field("name"), errors);
                }
            }
            "image" => {
                if cx.is_pod {
                    check::required(&source.field("reference"), errors);
                }
                check::word(&source.field("pullPolicy"), &["Always", "IfNotPresent", "Never"], errors);
            }
            "gitRepo" => {
                check::required(&source.field("repository"), errors);
                check::descending_path(&source.field("directory"), errors);
            }
            kind => {
                disks::check(kind, &source, errors);
            }
        }
    }
    if found == 0 {
        errors.required(&volume.path, "must specify a volume type");
    }
}

fn check_ephemeral(source: &At<'_>, volume: &At<'_>, cx: &Context<'_>, errors: &mut Errors) {
    let template = source.field("volumeClaimTemplate");
    if !template.is_set() {
        errors.required(&template.path, "");
        return;
    }
    crate::core::claim::check_spec(&template.field("spec"), errors);
    let name = volume.field("name");
    if cx.is_pod && !cx.name.is_empty() {
        for why in names::dns_subdomain(&format!("{}-{}", cx.name, name.text())) {
            errors.invalid(&name, format!("the claim's name: {why}"));
        }
    }
}

/// `defaultMode` and `items` of files that come out of keys.
fn check_files(source: &At<'_>, errors: &mut Errors) {
    check::file_mode(&source.field("defaultMode"), errors);
    check_items(&source.field("items"), errors);
}

fn check_items(items: &At<'_>, errors: &mut Errors) {
    for item in items.items() {
        check::required(&item.field("key"), errors);
        let path = item.field("path");
        check::required(&path, errors);
        check::unreserved_path(&path, errors);
        check::file_mode(&item.field("mode"), errors);
    }
}

/// Errors of the files stand at the source, without a place in its list.
fn check_downward(source: &At<'_>, errors: &mut Errors) {
    for item in source.field("items").items() {
        let item = At { value: item.value, path: source.path };
        let path = item.field("path");
        check::required(&path, errors);
        check::unreserved_path(&path, errors);
        let (field, resource) = (item.field("fieldRef"), item.field("resourceFieldRef"));
        if field.is_set() {
            env::field_ref(&field, true, errors);
            if resource.is_set() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.invalid_value(&item.path, "resource", detail);
            }
        } else if resource.is_set() {
            env::resource_ref(&resource, true, errors);
        } else {
            errors.required(&item.path, "one of fieldRef and resourceFieldRef is required");
        }
        check::file_mode(&item.field("mode"), errors);
    }
}

fn check_projected(source: &At<'_>, errors: &mut Errors) {
    check::file_mode(&source.field("defaultMode"), errors);
    let mut paths: BTreeSet<Str> = BTreeSet::new();
    for part in source.field("sources").items() {
        let mut found = 0;
        for (kind, value) in part.map().iter() {
            if value.is_null() {
                continue;
            }
            found += 1;
            let inner = part.field(kind);
            if found > 1 {
                errors.forbidden(&inner.path, "may not specify more than 1 volume type per source");
                continue;
            }
            match kind {
                "secret" | "configMap" => {
                    check::required(&inner.field("name"), errors);
                    check_items(&inner.field("items"), errors);
                }
                "downwardAPI" => check_downward(&inner, errors),
                "serviceAccountToken" => {
                    let (seconds, path) = (inner.field("expirationSeconds"), inner.field("path"));
                    if seconds.int().is_some_and(|seconds| seconds < TOKEN_SECONDS_MIN) {
                        errors.invalid(&seconds, "may not specify a duration less than 10 minutes");
                    } else if seconds.int().is_some_and(|seconds| seconds > 1 << 32) {
                        errors.invalid(&seconds, "may not specify a duration larger than 2^32 seconds");
                    }
                    check::required(&path, errors);
                    check::unreserved_path(&path, errors);
                }
                "clusterTrustBundle" => check_trust_bundle(&inner, errors),
                "podCertificate" => check_pod_certificate(&inner, errors),
                _ => {}
            }
            check_conflicts(&inner, source, &mut paths, errors);
        }
    }
}

fn check_trust_bundle(source: &At<'_>, errors: &mut Errors) {
    let (name, signer, labels) = (source.field("name"), source.field("signerName"), source.field("labelSelector"));
    match (name.is_set(), signer.is_set()) {
        (true, true) => errors.invalid(source, "only one of name and signerName may be used"),
        (true, false) => {
            if name.text().is_empty() {
                errors.required(&name.path, "must be a valid object name");
            }
            for why in cluster_trust_bundle::reference_faults(name.text()) {
                errors.invalid(&name, format!("not a valid clustertrustbundlename: {why}"));
            }
            if labels.is_set() {
                errors.invalid(&labels, "labelSelector must be unset if name is specified");
            }
        }
        (false, true) => {
            certificates::check_signer_name(&signer, errors);
            check::label_selector(&labels, errors);
        }
        (false, false) => errors.required(&source.path, "either name or signerName must be specified"),
    }
    check::required(&source.field("path"), errors);
    check::unreserved_path(&source.field("path"), errors);
}

fn check_pod_certificate(source: &At<'_>, errors: &mut Errors) {
    let (signer, seconds) = (source.field("signerName"), source.field("maxExpirationSeconds"));
    certificates::check_signer_name(&signer, errors);
    certificates::check_user_annotations(&source.field("userAnnotations"), errors);
    let key_types = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    check::supported(&source.field("keyType"), &key_types, errors);
    let (least, most) = certificates::pod_certificate_seconds(signer.text());
    match seconds.int() {
        Some(asked) if asked < least => {
            errors.invalid(&seconds, format!("if provided, maxExpirationSeconds must be >= {least}"));
        }
        Some(asked) if asked > most => {
            errors.invalid(&seconds, format!("if provided, maxExpirationSeconds must be <= {most}"));
        }
        _ => {}
    }
    let mut is_written = false;
    for key in CREDENTIAL_PATHS {
        let path = source.field(key);
        if !path.text().is_empty() {
            is_written = true;
            check::unreserved_path(&path, errors);
        }
    }
    if !is_written {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.required(&source.path, why);
    }
}

/// Two sources may not write one file.
fn check_conflicts(inner: &At<'_>, source: &At<'_>, paths: &mut BTreeSet<Str>, errors: &mut Errors) {
    let own = ["path"].iter().chain(&CREDENTIAL_PATHS).map(|key| inner.value[*key].text());
    let items = inner.value["items"].items().iter().map(|item| item["path"].text());
    for path in own.chain(items).filter(|path| !path.is_empty()) {
        if !paths.insert(path.into()) {
            errors.invalid_value(&source.path, path, "conflicting duplicate paths");
        }
    }
}
