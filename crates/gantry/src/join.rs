//! How a machine becomes a node: by a token that names the cluster's authority, and certificates that it asks for.
//!
//! The token is `gantry1.HASH.SECRET`. HASH is that of the authority's certificate: whoever answers the first, unproven
//! contact must show a certificate with this hash, and only then is SECRET told. With the secret the node asks for the
//! certificate of `system:node:NAME`; with that, for the certificate of its own endpoints, and for the next ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::Backoff;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::{Api, HttpApi, Identity as Proof, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use meta::{Resource, Value, json};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use server::ca::{Current, Identity, renew_after, time_left, write_private};

use crate::error::Error;

const REQUESTS: Resource = Resource("certificatesigningrequests.certificates.k8s.io");
const CONFIG_MAPS: Resource = Resource("configmaps");
/// What the server tells its agents.
pub const SETTINGS: (&str, &str) = ("kube-system", "gantry-agent");
const VERSION: &str = "gantry1";
const CONTACT_TIMEOUT: Duration = Duration::from_secs(10);
const AUTHORITY_MAX_BYTES: usize = 64 * 1024;
/// How long the controllers may take to approve and sign.
const SIGNING_TIMEOUT: Duration = Duration::from_secs(60);
/// Between looks whether a request is signed: soon at first, since a cluster that has nothing else to do signs at once.
const SIGNING_POLL: Backoff = Backoff::new(4, 500);
/// Between tries to renew a certificate.
const RETRY: Duration = Duration::from_secs(5);

/// What a machine joins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the authority's certificate, in hexadecimal digits.
    authority: String,
    secret: String,
}

impl Token {
    pub fn new(ca_pem: &str, secret: &str) -> Result<Token, Error> {
        Ok(Token { authority: hash_of(ca_pem)?, secret: secret.to_owned() })
    }

    pub fn parse(text: &str) -> Option<Token> {
        let mut parts = text.trim().splitn(3, '.');
        let (version, authority, secret) = (parts.next()?, parts.next()?, parts.next()?);
        let hash = authority.len() == 64 && authority.bytes().all(|byte| byte.is_ascii_hexdigit());
        let good =
            version == VERSION && hash && !secret.is_empty() && secret.bytes().all(|byte| byte.is_ascii_graphic());
        good.then(|| Token { authority: authority.to_ascii_lowercase(), secret: secret.to_owned() })
    }

    pub fn read(path: &Path) -> Result<Token, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::file("read the token", path))?;
        let why = "is no token to join with; take the file join-token from the server's data folder";
        Token::parse(&text).ok_or_else(|| Error::Machine(format!("{} {why}", path.display())))
    }

    fn names(&self, ca_pem: &str) -> Result<bool, Error> {
        Ok(hash_of(ca_pem)? == self.authority)
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{VERSION}.{}.{}", self.authority, self.secret)
    }
}

fn hash_of(ca_pem: &str) -> Result<String, Error> {
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|error| Error::doing("read the authority's certificate", error))?;
    let digest = ring::digest::digest(&ring::digest::SHA256, &der);
    Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The node that joins.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// `https://HOST:PORT`, or several, separated by commas.
    pub server: String,
    pub node: String,
    /// Names and addresses of its own endpoints.
    pub names: Vec<String>,
    /// Where keys and certificates are kept.
    pub keys: PathBuf,
}

/// A node's way to the server, and its certificates, which are kept fresh.
pub struct Member {
    pub ca_pem: String,
    pub http: Arc<HttpApi>,
    pub serving: Arc<Current>,
}

/// How a node that is renewing its certificates reaches the server.
struct Doors {
    http: Arc<HttpApi>,
    ca_pem: String,
    /// What it joined with, as long as that was told.
    token: Option<Token>,
}

/// Which of a node's two certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Client,
    Serving,
}

impl Part {
    fn file(self) -> &'static str {
        match self {
            Part::Client => "client",
            Part::Serving => "serving",
        }
    }
}

impl Newcomer {
    /// Joins, or comes back with the certificates of an earlier time. `token` is needed when there are none that hold.
    pub async fn join(self, token: Option<&Token>) -> Result<Member, Error> {
        std::fs::create_dir_all(&self.keys).map_err(Error::file("create the folder", &self.keys))?;
        let ca_pem = self.authority(token).await?;
        let client = match self.kept(Part::Client)? {
            Some(identity) => identity,
            None => {
                let Some(token) = token else {
                    let why = "this node has no certificate that holds; give the server's join-token with --token-file";
                    return Err(Error::Machine(why.to_owned()));
                };
                self.ask(&self.as_newcomer(&ca_pem, token)?, Part::Client).await?
            }
        };
        let current = Arc::new(Current::new(&client)?);
        let proof = Proof::Renewed(current.clone());
        let http = Arc::new(HttpApi::new(&self.server, &ca_pem, proof, crate::agent::paths())?);
        let serving = match self.kept(Part::Serving)? {
            Some(identity) => identity,
            None => self.ask(&http, Part::Serving).await?,
        };
        let serving_current = Arc::new(Current::new(&serving)?);
        let this = Arc::new(self);
        for (part, identity, current) in
            [(Part::Client, client, current), (Part::Serving, serving, serving_current.clone())]
        {
            let doors = Doors { http: http.clone(), ca_pem: ca_pem.clone(), token: token.cloned() };
            tokio::spawn(this.clone().renew(doors, part, identity, current));
        }
        Ok(Member { ca_pem, http, serving: serving_current })
    }

    /// The way to the server with the token.
    fn as_newcomer(&self, ca_pem: &str, token: &Token) -> Result<HttpApi, Error> {
        let proof = Proof::Token(token.secret.clone());
        Ok(HttpApi::new(&self.server, ca_pem, proof, crate::agent::paths())?)
    }

    /// The authority's certificate: the kept one, or the one that the token names.
    async fn authority(&self, token: Option<&Token>) -> Result<String, Error> {
        let path = self.keys.join("ca.crt");
        if let Ok(kept) = std::fs::read_to_string(&path)
            && token.is_none_or(|token| token.names(&kept).unwrap_or(false))
        {
            return Ok(kept);
        }
        let Some(token) = token else {
            let why = "this node has not joined yet; give the server's join-token with --token-file";
            return Err(Error::Machine(why.to_owned()));
        };
        let shown = contact(&self.server).await?;
        if !token.names(&shown)? {
            let why = "is not the server that the token is of: its authority is another one";
            return Err(Error::Machine(format!("{} {why}", self.server)));
        }
        // Certificates of another authority are of no use any more.
        for part in [Part::Client, Part::Serving] {
            let _ = std::fs::remove_file(self.path(part, "crt"));
        }
        write_private(&path, shown.as_bytes())?;
        Ok(shown)
    }

    fn path(&self, part: Part, extension: &str) -> PathBuf {
        self.keys.join(format!("{}.{extension}", part.file()))
    }

    /// A certificate of an earlier time, if it still holds, and for the names of now.
    fn kept(&self, part: Part) -> Result<Option<Identity>, Error> {
        let read = |extension| std::fs::read_to_string(self.path(part, extension)).ok();
        let (Some(cert_pem), Some(key_pem)) = (read("crt"), read("key")) else { return Ok(None) };
        let fits = match part {
            Part::Client => true,
            Part::Serving => read("names").is_some_and(|names| names == self.names.join("\n")),
        };
        let holds = !time_left(&cert_pem)?.is_zero();
        Ok((fits && holds).then_some(Identity { cert_pem, key_pem }))
    }

    /// Asks for a certificate, waits for it, and keeps it.
    async fn ask(&self, http: &HttpApi, part: Part) -> Result<Identity, Error> {
        let identity = request(http, &self.node, &self.names, part).await?;
        write_private(&self.path(part, "key"), identity.key_pem.as_bytes())?;
        if part == Part::Serving {
            write_private(&self.path(part, "names"), self.names.join("\n").as_bytes())?;
        }
        write_private(&self.path(part, "crt"), identity.cert_pem.as_bytes())?;
        Ok(identity)
    }

    /// Asks with what proves this node now. Who stood still until its certificate had ended is a newcomer again.
    async fn ask_for_next(&self, doors: &Doors, part: Part, identity: &Identity) -> Result<Identity, Error> {
        let ended = part == Part::Client && time_left(&identity.cert_pem)?.is_zero();
        match &doors.token {
            Some(token) if ended => self.ask(&self.as_newcomer(&doors.ca_pem, token)?, part).await,
            _ => self.ask(&doors.http, part).await,
        }
    }

    /// Asks for the next certificate in time, for as long as the process lives.
    async fn renew(self: Arc<Self>, doors: Doors, part: Part, mut identity: Identity, current: Arc<Current>) {
        loop {
            let left = time_left(&identity.cert_pem).unwrap_or_default();
            tokio::time::sleep(renew_after(left)).await;
            match self
                .ask_for_next(&doors, part, &identity)
                .await
                .and_then(|next| current.replace(&next).map(|()| next).map_err(Error::from))
            {
                Ok(next) => {
                    tracing::info!("the node's {} certificate is renewed", part.file());
                    identity = next;
                }
                Err(error) => {
                    tracing::warn!("the node's {} certificate is not renewed yet: {error}", part.file());
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// A new key, a request for its certificate, and the certificate when the cluster has signed it.
async fn request(http: &HttpApi, node: &str, names: &[String], part: Part) -> Result<Identity, Error> {
    let failed = |error: rcgen::Error| Error::doing("make a certificate request", error);
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let names = if part == Part::Serving { names.to_vec() } else { Vec::new() };
    let mut params = rcgen::CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    let pem = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
    let (signer, usage) = match part {
        Part::Client => ("kubernetes.io/kube-apiserver-client-kubelet", "client auth"),
        Part::Serving => ("kubernetes.io/kubelet-serving", "server auth"),
    };
    let object = json!({
        "metadata": {"generateName": "node-csr-"},
        "spec": {"request": (STANDARD.encode(pem)), "signerName": signer, "usages": ["digital signature", usage]},
    });
    let made = http.call(Request::create(REQUESTS, object)).await?;
    let name = made.object.name().to_owned();
    let signed = async {
        let mut looks = 0;
        loop {
            let value = http.call(Request::get(REQUESTS, "", &name)).await?.object.value();
            if let Some(cert_pem) = answer(&value)? {
                return Ok(Identity { cert_pem, key_pem: key.serialize_pem() });
            }
            looks += 1;
            tokio::time::sleep(Duration::from_millis(SIGNING_POLL.delay_ms(looks))).await;
        }
    };
    let late =
        |_| Error::Machine(format!("the request {name} for a certificate was not signed; kubectl get csr tells why"));
    tokio::time::timeout(SIGNING_TIMEOUT, signed).await.map_err(late)?
}

/// The certificate of a request, `None` while it waits.
fn answer(request: &Value) -> Result<Option<String>, Error> {
    let status = &request["status"];
    for condition in status["conditions"].items() {
        if matches!(condition["type"].text(), "Denied" | "Failed") {
            let why = format!("{}: {}", condition["reason"].text(), condition["message"].text());
            return Err(Error::doing("get a certificate", why));
        }
    }
    let text = status["certificate"].text();
    if text.is_empty() {
        return Ok(None);
    }
    let bytes = STANDARD.decode(text).map_err(|error| Error::doing("read the certificate", error))?;
    String::from_utf8(bytes).map(Some).map_err(|error| Error::doing("read the certificate", error))
}

/// What the server told its agents: pod and service ranges, the domain of names.
pub async fn settings(http: &HttpApi) -> Result<Value, Error> {
    Ok(http.call(Request::get(CONFIG_MAPS, SETTINGS.0, SETTINGS.1)).await?.object.value()["data"].clone())
}

/// Reads `/join/ca` without knowing yet whom to trust; nothing is told in doing so.
async fn contact(servers: &str) -> Result<String, Error> {
    let mut refusal = Error::Unreachable("there is no server to ask".to_owned());
    for server in servers.split(',') {
        match contact_one(server).await {
            Err(error) => refusal = error,
            told => return told,
        }
    }
    Err(refusal)
}

async fn contact_one(server: &str) -> Result<String, Error> {
    let authority = server.trim_start_matches("https://").trim_end_matches('/');
    let unreachable =
        |why: &dyn std::fmt::Display| Error::Unreachable(format!("cannot reach the server {server}: {why}"));
    let parsed: http::uri::Authority = authority.parse().map_err(|error| unreachable(&error))?;
    let host = parsed.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = parsed.port_u16().unwrap_or(443);
    let asked = async {
        let socket =
            tokio::net::TcpStream::connect((host.as_str(), port)).await.map_err(|error| unreachable(&error))?;
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| unreachable(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(server::unjudged::Unjudged))
            .with_no_client_auth();
        let name = ServerName::try_from(host.clone()).map_err(|error| unreachable(&error))?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await;
        let stream = TokioIo::new(stream.map_err(|error| unreachable(&error))?);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.map_err(|error| unreachable(&error))?;
        tokio::spawn(connection);
        let request = http::Request::get("/join/ca").header(http::header::HOST, authority);
        let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| unreachable(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
        if !answer.status().is_success() {
            return Err(unreachable(&format!("it does not tell its authority ({})", answer.status())));
        }
        let body = Limited::new(answer.into_body(), AUTHORITY_MAX_BYTES).collect().await;
        let bytes = body.map_err(|error| unreachable(&error))?.to_bytes();
        String::from_utf8(bytes.to_vec()).map_err(|error| unreachable(&error))
    };
    tokio::time::timeout(CONTACT_TIMEOUT, asked).await.unwrap_or_else(|_| Err(unreachable(&"no answer within 10 s")))
}

/// The objects that let newcomers in, as kubeadm makes them: who may ask for a certificate, who may read the authority,
/// and what agents are told.
pub fn objects(settings: &[(&str, String)]) -> Vec<(Resource, Value)> {
    let rbac = "rbac.authorization.k8s.io";
    let binding = |name: &str, role: &str, groups: &[&str]| {
        let subjects: Vec<Value> =
            groups.iter().map(|group| json!({"kind": "Group", "name": (*group), "apiGroup": rbac})).collect();
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role}, "subjects": subjects,
        })
    };
    let (namespace, name) = SETTINGS;
    let mut data = Value::map();
    for (key, value) in settings {
        data.set(&[key], value);
    }
    let nodes = [json!({"kind": "Group", "name": "system:nodes", "apiGroup": rbac})];
    let bindings = Resource("clusterrolebindings.rbac.authorization.k8s.io");
    let requests = "system:certificates.k8s.io:certificatesigningrequests";
    vec![
        (bindings, binding("gantry:node-bootstrap", "system:node-bootstrapper", &["system:bootstrappers:gantry:join"])),
        (
            bindings,
            binding("gantry:node-approval", &format!("{requests}:nodeclient"), &["system:bootstrappers:gantry:join"]),
        ),
        (bindings, binding("gantry:node-renewal", &format!("{requests}:selfnodeclient"), &["system:nodes"])),
        (
            Resource("clusterroles.rbac.authorization.k8s.io"),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": "gantry:authority-reader"},
                "rules": [{"nonResourceURLs": ["/join/ca"], "verbs": ["get"]}],
            }),
        ),
        (
            bindings,
            binding(
                "gantry:authority-reader",
                "gantry:authority-reader",
                &["system:unauthenticated", "system:authenticated"],
            ),
        ),
        (
            Resource("roles.rbac.authorization.k8s.io"),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
                "metadata": {"name": "gantry:agent-settings", "namespace": namespace},
                "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [name], "verbs": ["get"]}],
            }),
        ),
        (
            Resource("rolebindings.rbac.authorization.k8s.io"),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": "gantry:agent-settings", "namespace": namespace},
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "gantry:agent-settings"},
                "subjects": (nodes.to_vec()),
            }),
        ),
        (
            CONFIG_MAPS,
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "data": data,
                "metadata": {"name": name, "namespace": namespace},
            }),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let ca = server::ca::Ca::open(dir.path()).unwrap();
        let token = Token::new(ca.pem(), "se.cret").unwrap();
        let text = token.to_string();
        assert_eq!(Token::parse(&format!("{text}\n")), Some(token.clone()));
        assert!(token.names(ca.pem()).unwrap());
        let other = server::ca::Ca::open(tempfile::tempdir().unwrap().path()).unwrap();
        assert!(!token.names(other.pem()).unwrap());
        for bad in
            ["", "se.cret", "gantry1.00.x", "gantry2.se.cret", &text.replace("se.cret", ""), &text.replace('.', "")]
        {
            assert_eq!(Token::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn answers_of_the_cluster_are_read() {
        assert!(answer(&json!({"status": {}})).unwrap().is_none());
        let denied = json!({"status": {"conditions": [{"type": "Denied", "reason": "No", "message": "never"}]}});
        assert_eq!(answer(&denied).unwrap_err().to_string(), "cannot get a certificate: No: never");
        let signed = json!({"status": {"certificate": (STANDARD.encode("PEM"))}});
        assert_eq!(answer(&signed).unwrap().as_deref(), Some("PEM"));
    }
}
