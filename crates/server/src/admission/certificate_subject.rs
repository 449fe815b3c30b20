//! Nobody asks for a certificate that makes its holder the cluster's master.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::Status;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::{Admission, Review};
use crate::identity::MASTERS;

const SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub struct CertificateSubjectRestriction;

impl Admission for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn validate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        let spec = &review.object["spec"];
        if review.operation != "CREATE"
            || !review.is("certificatesigningrequests.certificates.k8s.io", "")
            || spec["signerName"].text() != SIGNER
        {
            return Ok(());
        }
        let text = STANDARD.decode(spec["request"].text()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let block = api::certificates::pem::blocks(&text).next();
        let request = block.as_ref().and_then(|block| X509CertificationRequest::from_der(&block.bytes).ok());
        let Some((_, request)) = request else {
            return Err(review.forbidden("failed to parse CSR: it is no PKCS#10 request in PEM"));
        };
        let mut groups = request.certification_request_info.subject.iter_organization();
        if groups.any(|group| group.as_str() == Ok(MASTERS)) {
            return Err(review.forbidden(format!("use of {SIGNER} signer with {MASTERS} group is not allowed")));
        }
        Ok(())
    }
}
