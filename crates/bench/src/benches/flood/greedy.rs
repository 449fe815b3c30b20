//! What a client can do too much of. Each sort of greed is a row of [`SORTS`] and goes on until it is told to stop.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use meta::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::NAMESPACE;
use crate::cluster::lock;
use crate::door::{Ask, Door, Line};
use crate::error::Error;

/// Requests outstanding on each connection.
const OUTSTANDING: usize = 20;
/// Bytes of a body that is too large, and of headers that are.
const BODY_BYTES: usize = 20 << 20;
const HEADERS_BYTES: usize = 1 << 20;
/// After so many resets a connection is opened anew, if the server has not closed it.
const RESETS: u32 = 20_000;
/// Watches that are opened, spread over the connections.
const WATCHES: usize = 4_000;
const PAUSE: Duration = Duration::from_millis(100);
/// Where a client that is slow, or wrong, gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server answered.
#[derive(Default)]
pub struct Heard {
    /// 429s, and those of them that did not say when to come again.
    pub refused: AtomicU64,
    pub without_retry: AtomicU64,
    codes: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

impl Heard {
    fn note(&self, sort: &'static str, code: u16, retry: bool) {
        *lock(&self.codes).entry((sort, code)).or_default() += 1;
        if code == 429 {
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.without_retry.fetch_add(u64::from(!retry), Ordering::Relaxed);
        }
    }

    /// Code 0 is a connection that ended without an answer.
    pub fn told(&self) -> String {
        let codes = lock(&self.codes);
        codes.iter().map(|((sort, code), count)| format!("{sort} {code}: {count}")).collect::<Vec<_>>().join(", ")
    }
}

#[derive(Clone)]
pub struct Greed {
    pub door: Door,
    pub connections: usize,
    pub heard: Arc<Heard>,
    pub stop: Arc<AtomicBool>,
}

type Done = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

struct Sort {
    name: &'static str,
    /// What one connection does, once.
    once: fn(Greed) -> Done,
}

const SORTS: &[Sort] = &[
    Sort { name: "lists", once: |greed| Box::pin(greed.lists()) },
    Sort { name: "writes", once: |greed| Box::pin(greed.writes()) },
    Sort { name: "unread-lists", once: |greed| Box::pin(greed.unread_lists()) },
    Sort { name: "huge-bodies", once: |greed| Box::pin(greed.huge_bodies()) },
    Sort { name: "slow-bodies", once: |greed| Box::pin(greed.slow_bodies()) },
    Sort { name: "watches", once: |greed| Box::pin(greed.watches()) },
    Sort { name: "headers", once: |greed| Box::pin(greed.headers()) },
    Sort { name: "resets", once: |greed| Box::pin(greed.resets()) },
    Sort { name: "handshakes", once: |greed| Box::pin(greed.handshakes()) },
];

impl Greed {
    /// Begins on a thread of its own, which ends soon after `stop` is set.
    pub fn begin(self, only: String) -> Result<JoinHandle<()>, Error> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let tokio = tokio.map_err(Error::while_doing("start the greedy client"))?;
        Ok(std::thread::spawn(move || {
            super::yield_to_others();
            tokio.block_on(async {
                let wanted = SORTS.iter().filter(|sort| only == "all" || sort.name.contains(&only));
                for sort in wanted {
                    for _ in 0..self.connections {
                        tokio::spawn(self.clone().keep_on(sort));
                    }
                }
                while !self.stop.load(Ordering::Relaxed) {
                    tokio::time::sleep(PAUSE).await;
                }
            });
            // What is under way goes with the runtime.
            tokio.shutdown_background();
        }))
    }

    async fn keep_on(self, sort: &'static Sort) {
        while !self.stop.load(Ordering::Relaxed) {
            if (sort.once)(self.clone()).await.is_err() {
                self.heard.note(sort.name, 0, true);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Sends, and reads the whole answer.
    async fn exchange(&self, sort: &'static str, line: &mut Line, ask: &Ask) -> Result<(), Error> {
        let (parts, body) = line.open(ask).await?.into_parts();
        let retry = parts.headers.contains_key(http::header::RETRY_AFTER);
        let mut body = body;
        while let Some(frame) = body.frame().await {
            frame.map_err(Error::while_doing("read an answer"))?;
        }
        self.heard.note(sort, parts.status.as_u16(), retry);
        Ok(())
    }

    /// Keeps many requests outstanding on one connection.
    async fn many(&self, sort: &'static str, make: fn(usize) -> Ask) -> Result<(), Error> {
        let line = self.door.two().await?;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..OUTSTANDING {
            let Some(mut line) = line.share() else { continue };
            let greed = self.clone();
            tasks.spawn(async move {
                for round in 0.. {
                    if greed.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    greed.exchange(sort, &mut line, &make(number + OUTSTANDING * round)).await?;
                }
                Ok::<_, Error>(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(Error::while_doing("flood"))??;
        }
        Ok(())
    }

    async fn lists(self) -> Result<(), Error> {
        self.many("lists", |_| Ask::get(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps"))).await
    }

    async fn writes(self) -> Result<(), Error> {
        let make = |number: usize| {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/filler-{}", number % 50);
            let data = json!({"data": {"greedy": (number.to_string())}});
            Ask::patch(&path, "application/merge-patch+json", &data)
        };
        self.many("writes", make).await
    }

    /// The head of a request as HTTP/1.1 has it.
    fn head(&self, method: &str, path: &str, more: &str) -> String {
        let (host, proof) = self.door.said();
        format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: {proof}\r\n{more}\r\n")
    }

    /// Notes the code in the first line of an answer.
    async fn read_code(&self, sort: &'static str, stream: &mut (impl AsyncReadExt + Unpin)) -> Result<(), Error> {
        let mut bytes = vec![0; 4096];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await;
        let count =
            read.map_err(Error::while_doing("read an answer"))?.map_err(Error::while_doing("read an answer"))?;
        let text = String::from_utf8_lossy(&bytes[..count]).to_lowercase();
        let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        self.heard.note(sort, code, text.contains("retry-after:"));
        Ok(())
    }

    /// Asks for everything and takes nothing.
    async fn unread_lists(self) -> Result<(), Error> {
        let mut stream = self.door.stream_one().await?;
        let head = self.head("GET", "/api/v1/configmaps", "");
        stream.write_all(head.as_bytes()).await.map_err(Error::while_doing("ask"))?;
        tokio::time::sleep(PATIENCE).await;
        self.read_code("unread-lists", &mut stream).await
    }

    async fn huge_bodies(self) -> Result<(), Error> {
        static BODY: std::sync::LazyLock<Bytes> = std::sync::LazyLock::new(|| vec![b'x'; BODY_BYTES].into());
        let mut line = self.door.two().await?;
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
        let ask = Ask { body: BODY.clone(), ..Ask::new(http::Method::POST, &path, Bytes::new()) };
        let sent = tokio::time::timeout(PATIENCE, self.exchange("huge-bodies", &mut line, &ask)).await;
        sent.map_err(Error::while_doing("send a huge body"))?
    }

    /// Says that a body comes, and sends a byte of it now and then.
    async fn slow_bodies(self) -> Result<(), Error> {
        let mut stream = self.door.stream_one().await?;
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
        let head = self.head("POST", &path, "content-type: application/json\r\ncontent-length: 1000000\r\n");
        stream.write_all(head.as_bytes()).await.map_err(Error::while_doing("ask"))?;
        for _ in 0..PATIENCE.as_secs() {
            if stream.write_all(b" ").await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.read_code("slow-bodies", &mut stream).await
    }

    /// Watches that are read, of what the writers change.
    async fn watches(self) -> Result<(), Error> {
        let line = self.door.two().await?;
        let mut bodies = Vec::new();
        for _ in 0..(WATCHES / self.connections.max(1)).max(1) {
            let Some(mut line) = line.share() else { continue };
            let ask = Ask::get(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps?watch=true&resourceVersion=0"));
            let answer = line.open(&ask).await?;
            let retry = answer.headers().contains_key(http::header::RETRY_AFTER);
            self.heard.note("watches", answer.status().as_u16(), retry);
            bodies.push(answer.into_body());
        }
        // The first is read, the others lag until the server has had enough of it.
        while !self.stop.load(Ordering::Relaxed) {
            let Some(body) = bodies.first_mut() else { break };
            match tokio::time::timeout(PAUSE, body.frame()).await {
                Ok(Some(Ok(_))) | Err(_) => {}
                Ok(_) => break,
            }
        }
        Ok(())
    }

    async fn headers(self) -> Result<(), Error> {
        let mut stream = self.door.stream_one().await?;
        let head = self.head("GET", "/version", &format!("x-long: {}\r\n", "x".repeat(HEADERS_BYTES)));
        // The server may have had enough before all is sent.
        let _ = stream.write_all(head.as_bytes()).await;
        self.read_code("headers", &mut stream).await
    }

    /// Begins requests and takes them back at once.
    async fn resets(self) -> Result<(), Error> {
        let mut stream = self.door.stream().await?;
        let wrong = Error::while_doing::<std::io::Error>;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.map_err(wrong("begin"))?;
        let fields = self.fields("/api/v1/configmaps");
        for number in 0..RESETS {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let stream_id = (2 * number + 1).to_be_bytes();
            let mut frames = Vec::with_capacity(fields.len() + 22);
            // HEADERS with END_STREAM and END_HEADERS, then RST_STREAM with CANCEL.
            frames.extend_from_slice(&u32::try_from(fields.len()).unwrap_or(0).to_be_bytes()[1..]);
            frames.extend_from_slice(&[1, 5]);
            frames.extend_from_slice(&stream_id);
            frames.extend_from_slice(&fields);
            frames.extend_from_slice(&[0, 0, 4, 3, 0]);
            frames.extend_from_slice(&stream_id);
            frames.extend_from_slice(&8u32.to_be_bytes());
            stream.write_all(&frames).await.map_err(wrong("reset"))?;
        }
        self.heard.note("resets", 1, true);
        Ok(())
    }

    /// A request's header in HPACK, of literals and the static table only.
    fn fields(&self, path: &str) -> Vec<u8> {
        let (host, proof) = self.door.said();
        // :method GET, :scheme https.
        let mut out = vec![0x82, 0x87];
        for (name, value) in [(&[0x04][..], path), (&[0x01][..], host), (&[0x0f, 0x08][..], proof)] {
            out.extend_from_slice(name);
            // A length takes seven bits, and what is beyond 127 as many bytes of seven bits as it needs.
            let mut rest = value.len();
            if rest < 127 {
                out.push(rest as u8);
            } else {
                out.push(127);
                rest -= 127;
                while rest >= 128 {
                    out.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                out.push(rest as u8);
            }
            out.extend_from_slice(value.as_bytes());
        }
        out
    }

    /// Connects and says nothing more.
    async fn handshakes(self) -> Result<(), Error> {
        let stream = self.door.stream().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(stream);
        Ok(())
    }
}
