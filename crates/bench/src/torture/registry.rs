//! A registry of images that goes away in the middle of a pull.
//!
//! Just enough of the protocol for one image at a time, without TLS, on the address that nodes know the machine by.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use meta::json;
use runtime::testing::{Blobs, Compression, TestFile, TestImage};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::cluster::{Torture, eventually, is_ready};
use crate::cluster::Task;
use crate::error::Error;
use base::Rng;

/// Bytes of the layer that makes a pull last, and after how many of them the registry goes.
const LAYER_BYTES: usize = 6 << 20;
const CUT_BYTES: usize = 2 << 20;
/// Bytes of a request's head.
const HEAD_MAX_BYTES: usize = 16 << 10;
const PULLED: &str = "pulled";

pub struct Registry {
    pub address: SocketAddr,
    images: AtomicU64,
}

/// What was seen of a pull.
#[derive(Default)]
pub struct Seen {
    /// How often a layer broke off.
    cut: AtomicU64,
    /// How often somebody went on in the middle.
    resumed: AtomicU64,
}

impl Registry {
    pub fn at(address: SocketAddr) -> Registry {
        Registry { address, images: AtomicU64::new(0) }
    }

    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    /// An image that no node has, and its name.
    pub fn new_image(&self) -> (Arc<Blobs>, String) {
        let number = self.images.fetch_add(1, Ordering::Relaxed);
        let mut noise = vec![0; LAYER_BYTES];
        let mut rng = Rng::new(number);
        noise.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]));
        let image = TestImage { compression: Compression::None, ..TestImage::busybox() };
        let blobs = image.layer(&[TestFile::File("noise", &noise, 0o644)]).blobs();
        (Arc::new(blobs), format!("{}/torture/app:{number}", self.address))
    }

    /// Serves one image until the task is dropped; with `seen`, long layers break off.
    pub async fn serve(&self, image: Arc<Blobs>, seen: Option<Arc<Seen>>) -> Result<Task, Error> {
        let cut = seen.is_some();
        self.serve_noting(image, seen.unwrap_or_default(), cut).await
    }

    async fn serve_noting(&self, image: Arc<Blobs>, seen: Arc<Seen>, cut: bool) -> Result<Task, Error> {
        let listener = TcpListener::bind(self.address).await.map_err(Error::while_doing("open a registry"))?;
        Ok(Task::spawn(async move {
            // The connections go with the registry.
            let mut open = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (image, seen) = (image.clone(), seen.clone());
                open.spawn(async move { converse(socket, &image, &seen, cut).await.is_ok() });
            }
        }))
    }
}

/// Answers the requests of one connection.
async fn converse(socket: TcpStream, image: &Blobs, seen: &Seen, cut: bool) -> std::io::Result<()> {
    let mut socket = BufReader::new(socket);
    loop {
        let (mut head, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            let count = socket.read_line(&mut line).await?;
            if count == 0 || head.len() > HEAD_MAX_BYTES {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            head.push_str(&line);
        }
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let range = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("range").then(|| value.trim().strip_prefix("bytes=")?.strip_suffix('-'))?
        });
        let from: usize = range.and_then(|from| from.parse().ok()).unwrap_or(0);
        let blob = match path.rsplit_once('/') {
            Some((of, _)) if of.ends_with("/manifests") => Some(&image.manifest),
            Some((_, digest)) => image.layers.iter().chain([&image.config]).find(|blob| blob.digest == digest),
            None => None,
        };
        let Some(blob) = blob else {
            socket.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?;
            continue;
        };
        let bytes = &blob.bytes[from.min(blob.bytes.len())..];
        let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
        seen.resumed.fetch_add(u64::from(from > 0), Ordering::Relaxed);
        let (of_type, all) = (&blob.media_type, blob.bytes.len());
        let range = format!("content-range: bytes {from}-{}/{all}\r\n", all.saturating_sub(1));
        let range = if from > 0 { range.as_str() } else { "" };
        let length = bytes.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: {of_type}\r\ncontent-length: {length}\r\n{range}\r\n");
        socket.write_all(head.as_bytes()).await?;
        if cut && bytes.len() > CUT_BYTES {
            socket.write_all(&bytes[..CUT_BYTES]).await?;
            socket.flush().await?;
            seen.cut.fetch_add(1, Ordering::Relaxed);
            // Silent from here on, until the registry is gone.
            std::future::pending::<()>().await;
        }
        socket.write_all(bytes).await?;
        socket.flush().await?;
    }
}

impl Torture {
    /// The registry goes when a layer is half there, and comes back: the pull goes on where it was.
    pub async fn lose_registry(&mut self) -> Result<(), Error> {
        let (image, name) = self.registry.new_image();
        let seen = Arc::new(Seen::default());
        let first = self.registry.serve(image.clone(), Some(seen.clone())).await?;
        self.make_pod(PULLED, json!(["sleep", "1000000"]), |container| container.set(&["image"], name.as_str()))
            .await?;
        let half = async || Ok((seen.cut.load(Ordering::Relaxed) > 0).then_some(()));
        eventually("see a pull begin", half).await?;
        drop(first);
        tokio::time::sleep(self.stand).await;
        let bind = async || Ok(self.registry.serve_noting(image.clone(), seen.clone(), false).await.ok());
        let again = eventually("open the registry again", bind).await?;
        let ready = async || Ok(is_ready(&self.pod(PULLED).await?).then_some(()));
        eventually("see a pod run whose registry was gone", ready).await?;
        drop(again);
        if seen.resumed.load(Ordering::Relaxed) == 0 {
            return Err(Error::doing("go on with a pull", "the layer was fetched from its beginning again"));
        }
        self.remove_pod(PULLED).await?;
        self.remove_image(&name)
    }
}
