//! Certificates that hold for seconds only: all are renewed while everything runs, and who comes with one that has ended
//! is told so.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::{Value, json};
use tokio::io::AsyncReadExt;

use super::cluster::{Torture, eventually};
use crate::door::{Ask, Door};
use crate::error::Error;

const LIFETIME: Duration = Duration::from_secs(15);
/// How soon the server says what is wrong with a certificate.
const ALERT: Duration = Duration::from_secs(1);
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const REQUEST: &str = "passing";
const USER: &str = "passing-user";
/// What the user of the passing certificate asks for: it is known, and may not.
const ASKED: &str = "/api/v1/namespaces/default/configmaps";
/// The port of a node's own endpoints.
const KUBELET_PORT: u16 = 10250;

impl Torture {
    /// The cluster goes on with certificates that soon end, until every one of them was renewed.
    pub async fn rotate_certificates(&mut self) -> Result<(), Error> {
        // Nodes ask for certificates at once: those that they have hold for long.
        let keys = self.node_folders("keys");
        self.words = vec!["--certificate-lifetime".into(), format!("{}s", LIFETIME.as_secs())];
        self.end(true)?;
        for file in keys.iter().flat_map(|folder| ["client.crt", "serving.crt"].map(|name| folder.join(name))) {
            std::fs::remove_file(file).map_err(Error::while_doing("forget a node's certificate"))?;
        }
        self.start().await?;
        self.nodes_ready().await?;
        let server = self.server()?.door.clone();
        let mut doors = vec![("the server", server.clone())];
        for node in self.items("/api/v1/nodes").await? {
            let address = node.at(&["status", "addresses"]).items()[0]["address"].text().to_owned();
            doors.push(("a node", server.to(&format!("{address}:{KUBELET_PORT}"))?));
        }
        let (mut first, mut line) = (Vec::new(), server.two().await?);
        for (_, door) in &doors {
            first.push(eventually("see a certificate", async || Ok(door.shown().await.ok())).await?);
        }
        self.outlive_a_certificate(&server).await?;
        for ((whose, door), first) in doors.iter().zip(&first) {
            let what = format!("see the certificate of {whose} renewed");
            let renewed = async || Ok(door.shown().await.ok().filter(|shown| shown != first));
            eventually(&what, renewed).await?;
        }
        // Nobody who was connected noticed, and nodes still have the server's ear.
        line.ask(&Ask::get(ASKED)).await?;
        self.nodes_ready().await?;
        self.words.clear();
        self.kill_server(false).await
    }

    /// A client whose certificate ends while it is connected.
    async fn outlive_a_certificate(&self, server: &Door) -> Result<(), Error> {
        let failed = |error: rcgen::Error| Error::doing("make a certificate request", error);
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, USER);
        let pem = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
        let request = json!({
            "metadata": {"name": REQUEST},
            "spec": {
                "request": (STANDARD.encode(pem)), "signerName": "kubernetes.io/kube-apiserver-client",
                "usages": ["digital signature", "client auth"],
            },
        });
        let mut line = server.two().await?;
        let made = line.ask(&Ask::post(REQUESTS, &request)).await?;
        let mut made = Value::parse(&made).map_err(Error::while_doing("read a request"))?;
        made.set(&["status", "conditions"], vec![json!({"type": "Approved", "status": "True", "reason": "Torture"})]);
        line.ask(&Ask::put(&format!("{REQUESTS}/{REQUEST}/approval"), &made)).await?;
        let signed = async || {
            let request = server.get(&format!("{REQUESTS}/{REQUEST}")).await?;
            let request = Value::parse(&request).map_err(Error::while_doing("read a request"))?;
            let certificate = STANDARD.decode(request["status"]["certificate"].text()).unwrap_or_default();
            Ok((!certificate.is_empty()).then_some(certificate))
        };
        let certificate = eventually("have a request signed", signed).await?;
        line.ask(&Ask::delete(&format!("{REQUESTS}/{REQUEST}"))).await?;
        let passing = server.with_certificate(&certificate, key.serialize_pem().as_bytes())?;
        let mut line = passing.two().await?;
        let mut known = false;
        let refused = async || match line.exchange(&Ask::get(ASKED)).await? {
            Err(status) if status.code() == 403 && status.message().contains(USER) => {
                known = true;
                Ok(None)
            }
            Err(status) if status.code() == 401 => Ok(Some(status.message().to_owned())),
            other => Err(Error::doing("be refused", format!("{other:?}"))),
        };
        let said = eventually("be refused when the own certificate has ended", refused).await?;
        if !known || !said.contains("certificate") {
            return Err(Error::doing("be told that the own certificate has ended", format!("known: {known}; {said}")));
        }
        // Dates of certificates are whole seconds, so the last one may still be good for a connection.
        let alert = async || {
            let mut stream = passing.stream().await?;
            match tokio::time::timeout(ALERT, stream.read(&mut [0])).await {
                Ok(Err(error)) if error.to_string().to_lowercase().contains("expired") => Ok(Some(())),
                other => Err(Error::doing("be refused with an alert", format!("{other:?}"))),
            }
        };
        eventually("be told by an alert that the own certificate has ended", alert).await
    }
}
