//! One pull: reference -> manifest -> configuration -> layers -> unpacked image.
//!
//! Transient faults (no connection, 5xx, 429, a broken body) are tried again with back-off; a layer goes on where it
//! broke off. Everything fetched is verified against its digest before it is used.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::Backoff;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use tokio::io::AsyncWriteExt;

use super::manifest::{self, ACCEPT, DOCUMENT_MAX_BYTES, Descriptor, Document, Manifest};
use super::registry::{Registry, next_chunk, read_small};
use super::{Hasher, Images, LayerSource, sha256};
use crate::seam::{Credentials, ImageStatus, Progress};
use crate::{Error, ImageName, lock};

/// Layers fetched at the same time.
const PARALLEL: usize = 4;
/// Attempts at one document or layer. A layer that made progress starts counting anew.
const ATTEMPTS: u32 = 5;
const BACKOFF: Backoff = Backoff::new(200, 5_000);
const NESTING_MAX: usize = 4;

impl Images {
    pub async fn pull(
        self: &Arc<Self>,
        text: &str,
        credentials: Option<Credentials>,
        progress: Progress,
    ) -> Result<ImageStatus, Error> {
        let name = ImageName::parse(text)?;
        let registry = Registry::new(&name, credentials, &self.registries)?;
        let (manifest, top) = fetch_manifest(&registry, &name).await?;
        let config = fetch_document(&registry, &format!("blobs/{}", manifest.config.digest), "*/*").await?;
        verify(&name, &manifest.config.digest, &config)?;
        let parsed = manifest::parse_config(&name.to_string(), &config, manifest.layers.len())?;
        let known = self.known_layers(&parsed.diff_ids);
        let total = manifest.layers[known..].iter().map(|l| l.size).sum();
        let done = AtomicU64::new(0);
        let report = |bytes: u64| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
        let mut files = self.fetch_layers(&registry, &manifest.layers[known..], &report).await?;
        let _one = self.unpacking.lock().await;
        let status = ImageStatus {
            id: manifest.config.digest.clone(),
            tags: name.tag.iter().map(|_| ImageName { digest: None, ..name.clone() }.to_string()).collect(),
            digests: vec![name.with_digest(&top)],
            size_bytes: 0,
            config: parsed.config,
        };
        // Another pull may have brought, or a removal taken, layers meanwhile.
        if self.known_layers(&parsed.diff_ids) < known {
            files = self.fetch_layers(&registry, &manifest.layers, &report).await?;
        }
        let images = self.clone();
        let work = tokio::task::spawn_blocking(move || images.enter(status, &parsed.diff_ids, &manifest, &files));
        work.await.unwrap_or_else(|e| Err(Error::Io { doing: "unpack an image".to_owned(), source: e.into() }))
    }

    /// Unpacks the downloaded files (those of the last layers) and removes them.
    fn enter(
        &self,
        status: ImageStatus,
        diff_ids: &[String],
        manifest: &Manifest,
        files: &[PathBuf],
    ) -> Result<ImageStatus, Error> {
        let first = manifest.layers.len() - files.len();
        let sources = manifest.layers.iter().zip(diff_ids).enumerate().map(|(at, (layer, diff_id))| LayerSource {
            digest: layer.digest.clone(),
            diff_id: diff_id.clone(),
            open: Box::new(move || {
                let path = at
                    .checked_sub(first)
                    .and_then(|n| files.get(n))
                    .ok_or_else(|| Error::NotFound { what: "layer", id: layer.digest.clone() })?;
                let file = std::fs::File::open(path).map_err(Error::io(format!("open {}", path.display())))?;
                Ok(Box::new(file) as Box<dyn std::io::Read>)
            }),
        });
        let result = self.add(status, diff_ids, sources.collect());
        lock(&self.fetching).retain(|digest, _| !manifest.layers.iter().any(|l| l.digest == *digest));
        for file in files {
            let _ = std::fs::remove_file(file);
        }
        result
    }

    /// Fetches several layers at a time. The files are in the order of the layers.
    async fn fetch_layers(
        &self,
        registry: &Registry,
        layers: &[Descriptor],
        report: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Vec<PathBuf>, Error> {
        let mut fetches: Vec<BoxFuture<'_, Result<PathBuf, Error>>> = Vec::new();
        for layer in layers {
            fetches.push(Box::pin(self.fetch_layer(registry, layer, report)));
        }
        stream::iter(fetches).buffered(PARALLEL).try_collect().await
    }

    /// Fetches one layer into a file, verified. Returns where it is.
    async fn fetch_layer(
        &self,
        registry: &Registry,
        layer: &Descriptor,
        report: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<PathBuf, Error> {
        let path = self.ingest.join(layer.digest.replace(':', "-"));
        // Two pulls of the same layer share the file, one after the other; the second finds it whole.
        let gate = lock(&self.fetching).entry(layer.digest.clone()).or_default().clone();
        let _one = gate.lock().await;
        let mut failures = 0;
        let mut best = 0;
        loop {
            match fetch_into(registry, layer, &path, report).await {
                Ok(()) => return Ok(path),
                Err(error) if !error.transient() => {
                    let _ = std::fs::remove_file(&path);
                    return Err(error);
                }
                Err(error) => {
                    let have = std::fs::metadata(&path).map_or(0, |m| m.len());
                    failures = if have > best { 1 } else { failures + 1 };
                    best = best.max(have);
                    if failures >= ATTEMPTS {
                        return Err(error);
                    }
                    tracing::info!(%error, layer = layer.digest, "a layer broke off and is fetched on");
                    pause(failures).await;
                }
            }
        }
    }
}

async fn pause(failures: u32) {
    tokio::time::sleep(Duration::from_millis(BACKOFF.delay_ms(failures))).await;
}

fn verify(name: &ImageName, digest: &str, bytes: &[u8]) -> Result<(), Error> {
    let found = sha256(bytes);
    match found == digest {
        true => Ok(()),
        false => Err(Error::ImageDigest { what: format!("a document of {name}"), expected: digest.to_owned(), found }),
    }
}

/// The manifest for this machine, and the digest of what the name itself points to.
async fn fetch_manifest(registry: &Registry, name: &ImageName) -> Result<(Manifest, String), Error> {
    let mut version = name.version().to_owned();
    let mut top = None;
    for _ in 0..NESTING_MAX {
        let text = fetch_document(registry, &format!("manifests/{version}"), ACCEPT).await?;
        let digest = sha256(&text);
        if crate::name::is_digest(&version) {
            verify(name, &version, &text)?;
        }
        let top = top.get_or_insert(digest).clone();
        match manifest::parse(&name.to_string(), &text)? {
            Document::Manifest(manifest) => return Ok((manifest, top)),
            Document::Index(list) => {
                version = manifest::choose(&name.to_string(), &list, &manifest::machine())?.digest.clone();
            }
        }
    }
    Err(Error::ImageInvalid { what: name.to_string(), why: "its indexes are nested too deep".to_owned() })
}

/// A small document, with attempts.
async fn fetch_document(registry: &Registry, path: &str, accept: &str) -> Result<Vec<u8>, Error> {
    let mut failures = 0;
    loop {
        let attempt = async {
            let response = registry.get(path, accept, 0).await?;
            check_status(registry, path, response.status())?;
            read_small(response, DOCUMENT_MAX_BYTES).await.map_err(|why| registry.unreachable(why))
        };
        match attempt.await {
            Err(error) if error.transient() && failures + 1 < ATTEMPTS => {
                failures += 1;
                pause(failures).await;
            }
            other => return other,
        }
    }
}

fn check_status(registry: &Registry, path: &str, status: StatusCode) -> Result<(), Error> {
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(()),
        StatusCode::NOT_FOUND => Err(registry.missing()),
        StatusCode::UNAUTHORIZED => Err(registry.unauthorized("the credentials are missing or wrong")),
        StatusCode::FORBIDDEN => Err(registry.unauthorized("the credentials do not allow it")),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            Err(registry.unreachable(format!("it says {status}")))
        }
        s if s.is_server_error() => Err(registry.unreachable(format!("it says {s}"))),
        s => Err(Error::ImageInvalid { what: path.to_owned(), why: format!("the registry answered {s}") }),
    }
}

/// One attempt at a layer, going on from what the file holds. The digest covers the whole.
async fn fetch_into(
    registry: &Registry,
    layer: &Descriptor,
    path: &std::path::Path,
    report: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), Error> {
    let doing = || format!("keep layer {}", layer.digest);
    let mut have = std::fs::metadata(path).map_or(0, |m| m.len());
    if have > layer.size {
        have = 0;
    }
    let mut hasher = Hasher::new();
    if have > 0 {
        hasher = hash_file(path, have).await?;
    }
    if have < layer.size || layer.size == 0 {
        let response = registry.get(&format!("blobs/{}", layer.digest), "*/*", have).await?;
        check_status(registry, &layer.digest, response.status())?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            (have, hasher) = (0, Hasher::new());
        }
        let mut options = tokio::fs::File::options();
        let mut file =
            options.create(true).write(true).truncate(have == 0).open(path).await.map_err(Error::io(doing()))?;
        file.set_len(have).await.map_err(Error::io(doing()))?;
        tokio::io::AsyncSeekExt::seek(&mut file, std::io::SeekFrom::Start(have)).await.map_err(Error::io(doing()))?;
        let mut body = response.into_body();
        let result = loop {
            match next_chunk(&mut body).await {
                Ok(None) => break Ok(()),
                Ok(Some(chunk)) => {
                    have += chunk.len() as u64;
                    if have > layer.size {
                        break Err(Error::TooLarge { what: format!("layer {}", layer.digest), limit: layer.size });
                    }
                    hasher.update(&chunk);
                    file.write_all(&chunk).await.map_err(Error::io(doing()))?;
                    report(chunk.len() as u64);
                }
                Err(why) => break Err(registry.unreachable(why)),
            }
        };
        file.flush().await.map_err(Error::io(doing()))?;
        result?;
    } else {
        report(have);
    }
    if have < layer.size {
        return Err(registry.unreachable("the connection ended early"));
    }
    let found = hasher.finish();
    match found == layer.digest {
        true => Ok(()),
        false => Err(Error::ImageDigest { what: "a layer".to_owned(), expected: layer.digest.clone(), found }),
    }
}

async fn hash_file(path: &std::path::Path, length: u64) -> Result<Hasher, Error> {
    let path = path.to_owned();
    let work = tokio::task::spawn_blocking(move || {
        use std::io::Read;
        let doing = format!("read {}", path.display());
        let mut file = std::fs::File::open(&path).map_err(Error::io(doing.clone()))?.take(length);
        let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 128 << 10]);
        loop {
            match file.read(&mut buffer).map_err(Error::io(doing.clone()))? {
                0 => return Ok(hasher),
                n => hasher.update(&buffer[..n]),
            }
        }
    });
    work.await.unwrap_or_else(|e| Err(Error::Io { doing: "read a layer".to_owned(), source: e.into() }))
}
