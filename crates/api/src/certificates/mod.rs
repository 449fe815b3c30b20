//! The group `certificates.k8s.io`: one file per kind, and what they share: names of signers, PEM.

use meta::{At, Errors, names};

pub mod certificate_signing_request;
pub mod cluster_trust_bundle;
pub mod pem;
pub mod pod_certificate_request;

/// What is wrong with the name of a signer: `domain/path`, the domain with a dot.
pub fn check_signer_name(at: &At<'_>, errors: &mut Errors) {
    /// A full domain name.
    const DOMAIN_MAX_BYTES: usize = 253;
    /// A namespace, a dot, and a name.
    const PATH_MAX_BYTES: usize = 317;
    if at.is_empty() {
        return errors.required(&at.path, "");
    }
    let Some((domain, path)) = at.text().split_once('/').filter(|(_, path)| !path.contains('/')) else {
        return errors.invalid(at, "must be a fully qualified domain and path of the form 'example.com/signer-name'");
    };
    if domain.len() > DOMAIN_MAX_BYTES {
        errors.too_long(&at.path, DOMAIN_MAX_BYTES);
    }
    let bad_label = domain.split('.').find_map(|label| names::dns_label(label).pop().map(|why| (label, why)));
    if let Some((label, why)) = bad_label {
        errors.invalid_value(&at.path, domain, format!("validating label {label:?}: {why}"));
    }
    if !domain.contains('.') {
        errors.invalid_value(&at.path, domain, "should be a domain with at least two segments separated by dots");
    }
    let bad_part = path.split('.').find_map(|part| names::dns_subdomain(part).pop().map(|why| (part, why)));
    if let Some((part, why)) = bad_part {
        errors.invalid_value(&at.path, path, format!("validating label {part:?}: {why}"));
    }
    if path.len() > PATH_MAX_BYTES {
        errors.too_long(&at.path, PATH_MAX_BYTES);
    }
}

/// Whether a signer's name is one of those that Kubernetes keeps for itself.
pub fn is_kubernetes_signer(name: &str) -> bool {
    let domain = name.split('/').next().unwrap_or_default();
    domain == "kubernetes.io" || domain.ends_with(".kubernetes.io")
}

/// How long a certificate of a pod may be asked for, in seconds: at least, and at most of that signer.
pub fn pod_certificate_seconds(signer: &str) -> (i64, i64) {
    const MIN: i64 = 3_600;
    const MAX: i64 = 91 * 86_400;
    const OF_KUBERNETES_MAX: i64 = 86_400;
    (MIN, if is_kubernetes_signer(signer) { OF_KUBERNETES_MAX } else { MAX })
}

/// The keys of annotations that a pod hands on to a signer: each with a domain.
pub fn check_user_annotations(at: &At<'_>, errors: &mut Errors) {
    const MAX_BYTES: usize = 256 << 10;
    let mut total = 0;
    for (key, value) in at.members() {
        let lower = key.to_lowercase();
        if !lower.contains('/') {
            errors.invalid_value(&at.path, key, "must be a domain-prefixed key (such as \"acme.io/foo\")");
        }
        for why in names::qualified_name(&lower) {
            errors.invalid_value(&at.path, key, why);
        }
        total += key.len() + value.text().len();
    }
    if total > MAX_BYTES {
        errors.too_long(&at.path, MAX_BYTES);
    }
}
