//! ClusterTrustBundles: certificates that a signer, or whoever made the bundle, says to be trusted.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Str, Value, names};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{check_signer_name, pem};
use crate::check;
use crate::columns::{columns, or_none};

/// Most that a bundle may hold.
const BUNDLE_MAX_BYTES: usize = 1 << 20;

pub struct ClusterTrustBundle {
    columns: Vec<Column>,
}

impl ClusterTrustBundle {
    pub fn new() -> ClusterTrustBundle {
        ClusterTrustBundle { columns: columns(&[("SignerName", "string", 0)]) }
    }
}

impl Default for ClusterTrustBundle {
    fn default() -> ClusterTrustBundle {
        ClusterTrustBundle::new()
    }
}

impl Rules for ClusterTrustBundle {
    /// What a name must be depends on the signer ([`name_faults`]).
    fn check_name(&self, _: &str) -> Vec<String> {
        Vec::new()
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let (metadata, spec) = (at.field("metadata"), at.field("spec"));
        let (name, signer, bundle) = (metadata.field("name"), spec.field("signerName"), spec.field("trustBundle"));
        check::invalid(&name, name_faults(signer.text(), name.text()), errors);
        if !signer.is_empty() {
            check_signer_name(&signer, errors);
        }
        if change.old.is_none_or(|old| old.at(&["spec", "trustBundle"]) != bundle.value) {
            check_bundle(&bundle, errors);
        }
        if let Some(old) = change.old
            && old.at(&["spec", "signerName"]).text() != signer.text()
        {
            errors.invalid(&signer, "field is immutable");
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, _: Time) -> Vec<Value> {
        vec![or_none(object.at(&["spec", "signerName"]).text())]
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        (field == "spec.signerName").then(|| object.at(&["spec", "signerName"]).text().into())
    }
}

/// What is wrong with the name of a bundle: those of a signer begin with its name, the others must not look like that.
pub fn name_faults(signer: &str, name: &str) -> Vec<String> {
    if signer.is_empty() {
        return match name.contains(':') {
            true => vec!["ClusterTrustBundle without signer name must not have \":\" in its name".to_owned()],
            false => names::dns_subdomain(name),
        };
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        Some(rest) => names::dns_subdomain(rest),
        None => vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}")],
    }
}

/// The same of a name alone, which says itself whose bundle it is.
pub fn reference_faults(name: &str) -> Vec<String> {
    let signer = name.rsplit_once(':').map(|(signer, _)| signer.replace(':', "/"));
    name_faults(signer.as_deref().unwrap_or_default(), name)
}

fn check_bundle(bundle: &At<'_>, errors: &mut Errors) {
    if bundle.text().len() > BUNDLE_MAX_BYTES {
        return errors.too_long(&bundle.path, BUNDLE_MAX_BYTES);
    }
    let mut wrong = |why: String| errors.invalid_value(&bundle.path, "<value omitted>", why);
    let mut anchors: Vec<Vec<u8>> = Vec::new();
    let mut is_sound = true;
    for (index, block) in pem::blocks(bundle.text()).enumerate() {
        match anchor_fault(&block) {
            Some(why) => {
                wrong(format!("entry {index} {why}"));
                is_sound = false;
            }
            None => anchors.push(block.bytes),
        }
    }
    if !is_sound {
        return;
    }
    if anchors.is_empty() {
        wrong("at least one trust anchor must be provided".to_owned());
    }
    let mut indices: std::collections::BTreeMap<&[u8], Vec<usize>> = std::collections::BTreeMap::new();
    for (index, anchor) in anchors.iter().enumerate() {
        indices.entry(anchor).or_default().push(index);
    }
    for places in indices.values().filter(|places| places.len() > 1) {
        wrong(format!("duplicate trust anchor (indices {places:?})"));
    }
}

fn anchor_fault(block: &pem::Block<'_>) -> Option<String> {
    if block.label != "CERTIFICATE" {
        return Some(format!("has bad block type: {}", block.label));
    }
    if block.has_headers {
        return Some("has PEM block headers".to_owned());
    }
    let Some((_, certificate)) = X509Certificate::from_der(&block.bytes).ok().filter(|(rest, _)| rest.is_empty())
    else {
        return Some("does not parse as X.509".to_owned());
    };
    match certificate.basic_constraints() {
        Ok(Some(constraints)) if constraints.value.ca => None,
        Ok(_) => Some("does not have the CA bit set".to_owned()),
        Err(_) => Some("has invalid basic constraints".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_whose_bundle_it_is() {
        let good = |name: &str| reference_faults(name).is_empty();
        assert!(good("mine") && good("example.com:signer:v1") && good("example.com:a:b.c"));
        assert!(!good("Mine") && !good("example.com:signer:") && !good(":x:"));
        assert!(name_faults("example.com/signer", "example.com:signer:v1").is_empty());
        for (signer, name) in [("example.com/signer", "v1"), ("", "a:b"), ("a.b/c", "a.b:d:v1"), ("a.b/c", "a.b:c:X")] {
            assert!(!name_faults(signer, name).is_empty(), "{signer} {name}");
        }
    }
}
