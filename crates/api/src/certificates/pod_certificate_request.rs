//! PodCertificateRequests: what a node wants a signer to certify for one of its pods, and what came of it. The request
//! never changes, and its answer is given once.

use base::Time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::{At, Change, Column, Errors, Rules, Str, Value, names};
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};
use x509_parser::public_key::PublicKey;

use super::{check_signer_name, check_user_annotations, pem, pod_certificate_seconds};
use crate::check;
use crate::columns::{columns, or_none};

const REQUEST_MAX_BYTES: usize = 10 << 10;
const CHAIN_MAX_BYTES: usize = 100 << 10;
const UID_MAX_BYTES: usize = 128;
/// What a request may come to.
const ISSUED: &str = "Issued";
const ENDS: &[&str] = &["Denied", "Failed", ISSUED];
/// How far the beginning of a certificate may be from now.
const NEAR_MS: u64 = 300_000;
/// What must be left of a certificate's time before and after its refresh begins.
const REFRESH_MARGIN_MS: u64 = 600_000;
const LIFE_MIN_SECONDS: i64 = 3_600;

pub struct PodCertificateRequest {
    columns: Vec<Column>,
}

impl PodCertificateRequest {
    pub fn new() -> PodCertificateRequest {
        let names = ["PodName", "ServiceAccountName", "NodeName", "SignerName", "State", "UnverifiedUserAnnotations"];
        PodCertificateRequest { columns: columns(&names.map(|name| (name, "string", 0))) }
    }
}

impl Default for PodCertificateRequest {
    fn default() -> PodCertificateRequest {
        PodCertificateRequest::new()
    }
}

impl Rules for PodCertificateRequest {
    fn defaults(&self, object: &mut Value) {
        const SECONDS: i64 = 86_400;
        if let Some(spec) = object.at_mut(&["spec"]) {
            spec.default("maxExpirationSeconds", SECONDS);
        }
    }

    fn first_status(&self) -> Option<Value> {
        Some(Value::map())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        match change.old {
            None => check_request(&at.field("spec"), errors),
            Some(old) if change.is_status() => check_answer(old, at, change.now, errors),
            Some(old) => check::immutable(&at.field("spec"), &old["spec"], errors),
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, _: Time) -> Vec<Value> {
        let spec = &object["spec"];
        let keys = ["podName", "serviceAccountName", "nodeName", "signerName"];
        let mut cells: Vec<Value> = keys.iter().map(|key| spec[*key].text().into()).collect();
        cells.push(end_of(object).unwrap_or("Pending").into());
        let annotations = spec["unverifiedUserAnnotations"].entries();
        let shown: Vec<String> = annotations.iter().map(|(key, value)| format!("{key}={}", value.text())).collect();
        cells.push(or_none(&shown.join(",")));
        cells
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        let key = field.strip_prefix("spec.")?;
        matches!(key, "signerName" | "podName" | "nodeName").then(|| object["spec"][key].text().into())
    }
}

/// What a request has come to, if anything.
pub fn end_of(object: &Value) -> Option<&'static str> {
    let conditions = object.at(&["status", "conditions"]).items();
    let holds = |end: &str| {
        conditions.iter().any(|condition| condition["type"].text() == end && condition["status"].text() == "True")
    };
    ENDS.iter().copied().find(|end| holds(end))
}

fn check_request(spec: &At<'_>, errors: &mut Errors) {
    check_signer_name(&spec.field("signerName"), errors);
    check_user_annotations(&spec.field("unverifiedUserAnnotations"), errors);
    for name in ["podName", "serviceAccountName", "nodeName"] {
        let name = spec.field(name);
        check::invalid(&name, names::dns_subdomain(name.text()), errors);
    }
    for uid in ["podUID", "serviceAccountUID", "nodeUID"] {
        let uid = spec.field(uid);
        if uid.text().is_empty() {
            errors.invalid_value(&uid.path, "", "must not be empty");
        } else if uid.text().len() > UID_MAX_BYTES {
            errors.too_long(&uid.path, UID_MAX_BYTES);
        }
    }
    let seconds = spec.field("maxExpirationSeconds");
    let Some(asked) = seconds.int() else { return errors.required(&seconds.path, "must be set") };
    let (least, most) = pod_certificate_seconds(spec.field("signerName").text());
    if !(least..=most).contains(&asked) {
        errors.invalid(&seconds, format!("must be in the range [{least}, {most}]"));
    }
    let request = spec.field("stubPKCS10Request");
    if request.text().is_empty() {
        return errors.invalid_value(&spec.path, Value::Null, "stubPKCS10Request must be set");
    }
    let bytes = bytes_of(request.value);
    if bytes.len() > REQUEST_MAX_BYTES {
        return errors.too_long(&request.path, REQUEST_MAX_BYTES);
    }
    if let Some(why) = stub_fault(&bytes) {
        errors.invalid_value(&request.path, Value::Null, why);
    }
}

fn bytes_of(base64: &Value) -> Vec<u8> {
    STANDARD.decode(base64.text()).unwrap_or_default()
}

fn stub_fault(bytes: &[u8]) -> Option<&'static str> {
    let parsed = X509CertificationRequest::from_der(bytes).ok().filter(|(rest, _)| rest.is_empty());
    let Some((_, stub)) = parsed else { return Some("must be a valid PKCS#10 CSR") };
    let info = &stub.certification_request_info.subject_pki;
    match info.parsed() {
        Ok(PublicKey::EC(point)) if !matches!(point.key_size(), 256 | 384 | 521) => {
            return Some("elliptic public keys must use curve P256, P384, or P521");
        }
        Ok(PublicKey::RSA(key)) if !matches!(key.key_size(), 3072 | 4096) => {
            return Some("RSA keys must have modulus size 3072 or 4096");
        }
        Ok(PublicKey::EC(_) | PublicKey::RSA(_)) => {}
        _ if info.algorithm.algorithm == x509_parser::oid_registry::OID_SIG_ED25519 => {}
        _ => return Some("unknown public key type; supported types are Ed25519, ECDSA, and RSA"),
    }
    stub.verify_signature().is_err().then_some("invalid signature")
}

fn check_answer(old: &Value, at: &At<'_>, now: Time, errors: &mut Errors) {
    let status = at.field("status");
    let conditions = status.field("conditions");
    for (index, condition) in conditions.items().enumerate() {
        let (of_type, value) = (condition.field("type"), condition.field("status"));
        check::supported(&of_type, ENDS, errors);
        if index > 0 && ENDS.contains(&of_type.text()) {
            let why = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errors.invalid(&of_type, why);
        }
        check::supported(&value, &["True"], errors);
    }
    check::conditions(&conditions, errors);
    if !errors.is_empty() {
        return;
    }
    let same = |what: &Value| what.entries().is_empty() || what.is_null();
    let changed = *status.value != old["status"] && !(same(status.value) && same(&old["status"]));
    let mut unchanging = |why: &str| errors.invalid_value(&status.path, Value::Null, why);
    match (end_of(old), end_of(at.value)) {
        (Some(_), _) if changed => unchanging("immutable after PodCertificateRequest is issued, denied, or failed"),
        (Some(_), _) => {}
        (None, Some(ISSUED)) => check_issued(old, &status, now, errors),
        (None, Some(_)) if status.map().keys().any(|key| key != "conditions") => {
            unchanging("non-condition status fields must be empty when denying or failing the PodCertificateRequest")
        }
        (None, None) if changed => {
            unchanging("status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"");
        }
        (None, _) => {}
    }
}

fn check_issued(old: &Value, status: &At<'_>, now: Time, errors: &mut Errors) {
    let chain = status.field("certificateChain");
    if chain.text().len() > CHAIN_MAX_BYTES {
        return errors.too_long(&chain.path, CHAIN_MAX_BYTES);
    }
    let blocks: Vec<pem::Block> = pem::blocks(chain.text()).collect();
    let Some(leaf) = blocks.first() else {
        return errors.invalid(&chain, "issued certificate chain must contain at least one certificate");
    };
    if blocks.iter().any(|block| block.label != "CERTIFICATE") {
        return errors.invalid(&chain, "issued certificate chain must consist entirely of CERTIFICATE PEM blocks");
    }
    let parsed =
        |block: &pem::Block<'_>| X509Certificate::from_der(&block.bytes).is_ok_and(|(rest, _)| rest.is_empty());
    let leaf = match X509Certificate::from_der(&leaf.bytes) {
        Ok(([], leaf)) => leaf,
        _ => return errors.invalid(&chain, "leaf certificate does not parse as valid X.509"),
    };
    check_names(&leaf, &chain, errors);
    let request = bytes_of(&old["spec"]["stubPKCS10Request"]);
    let asked_for = X509CertificationRequest::from_der(&request);
    let is_own = asked_for.is_ok_and(|(_, request)| {
        request.certification_request_info.subject_pki.subject_public_key.data
            == leaf.public_key().subject_public_key.data
    });
    if !is_own {
        return errors.invalid(&chain, "leaf certificate was not issued to the requested public key");
    }
    check_times(old, status, &leaf, now, errors);
    if blocks.iter().skip(1).any(|block| !parsed(block)) {
        errors.invalid(&chain, "intermediate certificate does not parse as valid X.509");
    }
}

fn check_names(leaf: &X509Certificate<'_>, chain: &At<'_>, errors: &mut Errors) {
    use x509_parser::extensions::GeneralName;
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return };
    for name in &names.value.general_names {
        match name {
            GeneralName::DNSName("") => {
                errors.invalid_value(&chain.path, "", "leaf certificate should not contain empty DNSName");
            }
            GeneralName::DNSName(name) if name.contains("..") => {
                errors.invalid_value(&chain.path, *name, "leaf certificate's DNSName should not contain '..'");
            }
            GeneralName::DNSName(name) if name.starts_with('.') || name.ends_with('.') => {
                errors.invalid_value(&chain.path, *name, "leaf certificate's DNSName should not start or end with '.'");
            }
            GeneralName::RFC822Name(address) if address.split('@').filter(|part| !part.is_empty()).count() != 2 => {
                errors.invalid_value(&chain.path, *address, "leaf certificate should not contain invalid EmailAddress");
            }
            _ => {}
        }
    }
}

fn check_times(old: &Value, status: &At<'_>, leaf: &X509Certificate<'_>, now: Time, errors: &mut Errors) {
    let (from, until) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    let fields = ["notBefore", "notAfter", "beginRefreshAt"].map(|name| status.field(name));
    let [before, after, refresh] = &fields;
    let times = fields.each_ref().map(|field| Time::parse(field.text()));
    for (field, time) in fields.iter().zip(times) {
        if time.is_none() {
            errors.required(&field.path, "must be present and consistent with the issued certificate");
        }
    }
    let [Some(begin), Some(end), Some(refresh_at)] = times else { return };
    if begin.seconds() != from {
        return errors.invalid(before, "must be set to the NotBefore time encoded in the leaf certificate");
    }
    if begin.ms_since(now) >= NEAR_MS || now.ms_since(begin) >= NEAR_MS {
        return errors.invalid(before, "must be set to within 5 minutes of kube-apiserver's current time");
    }
    if end.seconds() != until {
        return errors.invalid(after, "must be set to the NotAfter time encoded in the leaf certificate");
    }
    let chain = status.field("certificateChain");
    let life = until - from;
    let most = old.at(&["spec", "maxExpirationSeconds"]).as_int().unwrap_or(0);
    if life < LIFE_MIN_SECONDS {
        return errors.invalid_value(&chain.path, life, "leaf certificate lifetime must be >= 1 hour");
    }
    if life > most {
        let why = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})");
        return errors.invalid_value(&chain.path, life, why);
    }
    if refresh_at < begin.plus_ms(REFRESH_MARGIN_MS) {
        errors.invalid(refresh, "must be at least 10 minutes after status.notBefore");
    } else if refresh_at.plus_ms(REFRESH_MARGIN_MS) > end {
        errors.invalid(refresh, "must be at least 10 minutes before status.notAfter");
    }
}
