//! Who may speak for a signer: approve and sign requests in its name, and attest bundles of trust to it.
//!
//! A signer is no object: the permission is a verb (`approve`, `sign`, `attest`) on the resource `signers` with the
//! signer's name, or with all of a domain (`example.com/*`).

use meta::{Errors, FieldSelector, Path, Status, Value};

use super::{Admission, Review};
use crate::authz::{Attributes, decide};

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests.certificates.k8s.io";
const POD_REQUESTS: &str = "podcertificaterequests.certificates.k8s.io";
const BUNDLES: &str = "clustertrustbundles.certificates.k8s.io";

pub struct CertificateSigners;

impl Admission for CertificateSigners {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn validate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        match (review.resource.0, review.subresource, review.old) {
            (REQUESTS, "approval", Some(old)) => {
                let signer = signer_of(old);
                if may(review, "approve", signer) {
                    return Ok(());
                }
                Err(review.forbidden(format!("user not permitted to approve requests with signerName {signer:?}")))
            }
            (REQUESTS, "status", Some(old)) => {
                let same = |key: &str| old["status"][key] == review.object["status"][key];
                let signer = signer_of(old);
                if (same("certificate") && same("conditions")) || may(review, "sign", signer) {
                    return Ok(());
                }
                Err(review.forbidden(format!("user not permitted to sign requests with signerName {signer:?}")))
            }
            (POD_REQUESTS, "status", Some(old)) => {
                let signer = signer_of(old);
                if old["status"] == review.object["status"] || may(review, "sign", signer) {
                    return Ok(());
                }
                let mut errors = Errors::default();
                let (root, why) = (Path::ROOT, not_permitted(review, signer));
                let spec = root.field("spec");
                errors.forbidden(&spec.field("signerName"), why);
                Err(Status::invalid(review.group, &review.kind.names.kind, review.name(), &errors))
            }
            (BUNDLES, "", _) if !review.object.is_null() => {
                let signer = signer_of(&review.object);
                let same = |old: &Value| old["spec"] == review.object["spec"] && labels(old) == labels(&review.object);
                if signer.is_empty() || review.old.is_some_and(same) || may(review, "attest", signer) {
                    return Ok(());
                }
                Err(review.forbidden(format!("user not permitted to attest for signerName {signer:?}")))
            }
            _ => Ok(()),
        }
    }
}

fn signer_of(object: &Value) -> &str {
    object.at(&["spec", "signerName"]).text()
}

fn labels(object: &Value) -> &Value {
    object.at(&["metadata", "labels"])
}

fn not_permitted(review: &Review<'_>, signer: &str) -> String {
    format!("User {:?} is not permitted to \"sign\" for signer {signer:?}", review.user.name)
}

fn may(review: &Review<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    let fields = FieldSelector::default();
    [signer, &format!("{domain}/*")].into_iter().any(|name| {
        let attributes = Attributes {
            user: review.user,
            verb,
            is_resource: true,
            group: GROUP,
            resource: "signers",
            subresource: "",
            namespace: "",
            name,
            path: "",
            fields: &fields,
        };
        decide(&attributes, review.view).is_allowed()
    })
}
