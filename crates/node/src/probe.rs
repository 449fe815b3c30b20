//! Asks containers how they are: by a command, a connection, an HTTP or a gRPC request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use meta::Value;
use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::pod::probes::timeout_ms;
use crate::pod::{ProbeKind, decide};

/// Bytes of an answer that are shown.
const SHOWN_MAX: usize = 1024;
/// How often a probe is sent on to another path of its host.
const REDIRECTS_MAX: usize = 10;
/// What an answer begins with that sends to another host: the kubelet's words.
const SENT_AWAY: &str = "Probe terminated redirects, Response body: ";

/// Whether the container answers well, and what it said.
pub async fn ask(agent: &Agent, pod: &Value, name: &str, id: &str, kind: ProbeKind) -> (bool, String) {
    let Some(container) = decide::all_containers(pod).find(|container| container["name"].text() == name) else {
        return (true, String::new());
    };
    let probe = &container[kind.key()];
    let limit = timeout_ms(probe);
    if let Some(exec) = probe.get("exec") {
        let argv = exec["command"].items().iter().map(|word| word.text().to_owned()).collect();
        return match agent.runtime.exec_sync(id, argv, limit).await {
            Ok(output) => (output.code == 0, shown(&[&output.stdout[..], &output.stderr[..]].concat())),
            Err(error) => (false, error.to_string()),
        };
    }
    if let Some(get) = probe.get("httpGet") {
        let (good, said) = http(agent, pod, container, get, limit).await;
        if let Some(elsewhere) = said.strip_prefix(SENT_AWAY).filter(|_| good) {
            let message = format!("{kind:?} probe warning: {SENT_AWAY}{elsewhere}");
            agent.event(pod, name, "Warning", "ProbeWarning", message);
        }
        return (good, said);
    }
    if let Some(socket) = probe.get("tcpSocket") {
        let (host, port) = match target(agent, pod, container, socket).await {
            Ok(target) => target,
            Err(why) => return (false, why),
        };
        return match tokio::time::timeout(Duration::from_millis(limit), TcpStream::connect((host.as_str(), port))).await
        {
            Ok(Ok(_)) => (true, String::new()),
            Ok(Err(error)) => (false, format!("dial tcp {host}:{port}: {error}")),
            Err(_) => (false, format!("dial tcp {host}:{port}: i/o timeout")),
        };
    }
    if let Some(grpc) = probe.get("grpc") {
        let asked = grpc_check(agent, pod, container, grpc);
        return match tokio::time::timeout(Duration::from_millis(limit), asked).await {
            Ok(Ok(good)) => (good, if good { String::new() } else { "service unhealthy".to_owned() }),
            Ok(Err(why)) => (false, why),
            Err(_) => (false, "timeout: health rpc did not complete in time".to_owned()),
        };
    }
    (true, String::new())
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_MAX)]).trim().to_owned()
}

/// Host and port of an action; a named port is looked up in the container.
async fn target(agent: &Agent, pod: &Value, container: &Value, action: &Value) -> Result<(String, u16), String> {
    let host = match action["host"].text() {
        "" => {
            let uid = pod.at(&["metadata", "uid"]).text();
            let observed = agent.observe(uid).await.map_err(|error| error.to_string())?.0;
            let own =
                if pod.at(&["spec", "hostNetwork"]).is_true() { agent.host_addresses() } else { observed.addresses };
            own.first().map(ToString::to_string).ok_or("the pod has no address")?
        }
        host => host.to_owned(),
    };
    let port = match &action["port"] {
        Value::Str(name) => match name.parse() {
            Ok(port) => Some(port),
            Err(_) => {
                let ports = container["ports"].items();
                let named = ports.iter().find(|port| port["name"].text() == name.as_str());
                named.and_then(|port| port["containerPort"].as_int()).and_then(|port| u16::try_from(port).ok())
            }
        },
        port => port.as_int().and_then(|port| u16::try_from(port).ok()),
    };
    port.map(|port| (host, port)).ok_or_else(|| "the port is unknown".to_owned())
}

/// `httpGet`: good from 200 to 399. It follows where it is sent to on its own host.
pub async fn http(agent: &Agent, pod: &Value, container: &Value, get: &Value, limit_ms: u64) -> (bool, String) {
    let asked = async {
        let (host, port) = target(agent, pod, container, get).await?;
        let path = get["path"].text();
        let path = if path.is_empty() { "/" } else { path }.to_owned();
        let place = Place { is_secure: get["scheme"].text() == "HTTPS", host, port, path };
        answered(place, get["httpHeaders"].items()).await
    };
    match tokio::time::timeout(Duration::from_millis(limit_ms), asked).await {
        Ok(Ok((code, body))) if (200..400).contains(&code) => (true, body),
        Ok(Ok((code, _))) => (false, format!("HTTP probe failed with statuscode: {code}")),
        Ok(Err(why)) => (false, why),
        Err(_) => (false, "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned()),
    }
}

/// The code of the last answer, and what it said.
async fn answered(mut place: Place, headers: &[Value]) -> Result<(u16, String), String> {
    for _ in 0..=REDIRECTS_MAX {
        let (code, location, body) = ask_at(&place, headers).await?;
        match location.filter(|_| matches!(code, 301 | 302 | 303 | 307 | 308)).map(|location| place.next(&location)) {
            Some(Some(next)) => place = next,
            // Whoever is sent to another host was answered: that one is not what is asked about.
            Some(None) => return Ok((code, format!("{SENT_AWAY}{body}"))),
            None => return Ok((code, body)),
        }
    }
    Err(format!("stopped after {REDIRECTS_MAX} redirects"))
}

/// Where a probe asks.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    is_secure: bool,
    host: String,
    port: u16,
    path: String,
}

impl Place {
    /// Where `location` leads from here; `None` to another host.
    fn next(&self, location: &str) -> Option<Place> {
        let mut next = self.clone();
        let path = match location.split_once("://") {
            Some(_) => {
                let to: http::Uri = location.parse().ok()?;
                if to.host()?.trim_matches(['[', ']']) != self.host {
                    return None;
                }
                next.is_secure = to.scheme_str() == Some("https");
                next.port = to.port_u16().unwrap_or(if next.is_secure { 443 } else { 80 });
                to.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned()
            }
            None if location.starts_with("//") => return None,
            None => location.to_owned(),
        };
        next.path = match path.starts_with('/') {
            true => path,
            false => format!("{}/{path}", self.path.rsplit_once('/').map_or("", |(folder, _)| folder)),
        };
        Some(next)
    }
}

/// The answer's code, where it sends to, and what it says.
type Answered = (u16, Option<String>, String);

async fn ask_at(place: &Place, headers: &[Value]) -> Result<Answered, String> {
    let Place { is_secure, host, port, path } = place;
    let socket =
        TcpStream::connect((host.as_str(), *port)).await.map_err(|error| format!("dial tcp {host}:{port}: {error}"))?;
    let mut request = http::Request::get(path);
    if !headers.iter().any(|header| header["name"].text().eq_ignore_ascii_case("host")) {
        request = request.header("Host", format!("{host}:{port}"));
    }
    for header in headers {
        request = request.header(header["name"].text(), header["value"].text());
    }
    let request = request
        .header("User-Agent", "kube-probe/1.37")
        .header("Accept", "*/*")
        .header("Connection", "close")
        .body(Full::new(Bytes::new()))
        .map_err(|error| error.to_string())?;
    if *is_secure {
        let name = rustls_pki_types::ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
        let tls = tokio_rustls::TlsConnector::from(blind_tls()?);
        let stream = tls.connect(name, socket).await.map_err(|error| error.to_string())?;
        return send(TokioIo::new(stream), request).await;
    }
    send(TokioIo::new(socket), request).await
}

async fn send<I>(io: I, request: http::Request<Full<Bytes>>) -> Result<Answered, String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let code = answer.status().as_u16();
    let location = answer.headers().get(http::header::LOCATION).and_then(|to| to.to_str().ok()).map(str::to_owned);
    let body = http_body_util::Limited::new(answer.into_body(), 10 * SHOWN_MAX).collect().await;
    Ok((code, location, body.map(|body| shown(&body.to_bytes())).unwrap_or_default()))
}

/// TLS that takes any certificate: a probe asks whether something answers, not who.
fn blind_tls() -> Result<Arc<rustls::ClientConfig>, String> {
    #[derive(Debug)]
    struct Blind(rustls::crypto::CryptoProvider);
    impl rustls::client::danger::ServerCertVerifier for Blind {
        fn verify_server_cert(
            &self,
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &[rustls_pki_types::CertificateDer<'_>],
            _: &rustls_pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls_pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Blind(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// `grpc.health.v1.Health/Check`: good when the answer's status is SERVING (1).
async fn grpc_check(agent: &Agent, pod: &Value, container: &Value, grpc: &Value) -> Result<bool, String> {
    let (host, port) = target(agent, pod, container, grpc).await?;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let socket = TcpStream::connect((host.as_str(), port)).await.map_err(|error| text(&error))?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
        .await
        .map_err(|error| text(&error))?;
    tokio::spawn(connection);
    let service = grpc["service"].text().as_bytes();
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend_from_slice(&[0x0a, u8::try_from(service.len()).unwrap_or(u8::MAX)]);
        message.extend_from_slice(service);
    }
    let mut framed = vec![0u8];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    framed.extend_from_slice(&message);
    let request = http::Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(framed)))
        .map_err(|error| text(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| text(&error))?;
    let body = answer.into_body().collect().await.map_err(|error| text(&error))?.to_bytes();
    // One frame: a flag, a length, then field 1 (varint) of the answer.
    Ok(body.get(5..7) == Some(&[0x08, 0x01]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_sent_on_within_its_host() {
        let here = Place { is_secure: false, host: "10.0.0.1".to_owned(), port: 8080, path: "/a/b".to_owned() };
        let check = |location: &str, expected: Option<(bool, u16, &str)>| {
            let next = here.next(location);
            let next = next.as_ref().map(|next| (next.is_secure, next.port, next.path.as_str()));
            assert_eq!(next, expected, "{location}");
        };
        check("/x?y=z", Some((false, 8080, "/x?y=z")));
        check("c", Some((false, 8080, "/a/c")));
        check("http://10.0.0.1/x", Some((false, 80, "/x")));
        check("https://10.0.0.1:8443", Some((true, 8443, "/")));
        for other in ["http://10.0.0.2:8080/x", "//10.0.0.2/x", "http://"] {
            check(other, None);
        }
    }

    #[tokio::test]
    async fn who_is_sent_to_another_host_was_answered() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let answers =
                [("302 Found", "Location: /b\r\n", ""), ("302 Found", "Location: http://0.0.0.0/\r\n", "away")];
            for (status, header, body) in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
                let length = body.len();
                let text =
                    format!("HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        let place = Place { is_secure: false, host: "127.0.0.1".to_owned(), port, path: "/a".to_owned() };
        assert_eq!(answered(place, &[]).await, Ok((302, format!("{SENT_AWAY}away"))));
    }
}
