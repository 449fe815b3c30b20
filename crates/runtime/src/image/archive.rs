//! Images out of a file: OCI layout archives and `docker save` archives, also both in one.
//!
//! The archive is read through once to learn where its members are; blobs are then read in place, so an image larger
//! than memory is no problem. Every blob of an OCI layout is verified before it is used.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::manifest::{self, DOCUMENT_MAX_BYTES, Descriptor, Document, Manifest};
use super::{Hasher, Images, LayerSource, sha256};
use crate::rooted::clean;
use crate::seam::ImageStatus;
use crate::{Error, ImageName};

/// Most members of an archive.
const MEMBERS_MAX: usize = 100_000;
/// How deep indexes may lie in indexes.
const NESTING_MAX: usize = 4;

struct Members {
    file: Arc<File>,
    /// Name to (offset, length).
    at: HashMap<String, (u64, u64)>,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Images {
    /// Takes every image of the archive that fits this machine. Fails when there is none.
    pub async fn load(self: &Arc<Self>, path: &Path) -> Result<Vec<ImageStatus>, Error> {
        let _one = self.unpacking.lock().await;
        let (images, path) = (self.clone(), path.to_owned());
        let work = tokio::task::spawn_blocking(move || images.load_now(&path));
        work.await.unwrap_or_else(|e| Err(Error::Io { doing: "load images".to_owned(), source: e.into() }))
    }

    fn load_now(&self, path: &Path) -> Result<Vec<ImageStatus>, Error> {
        let members = Members::read(path)?;
        if members.at.contains_key("index.json") {
            self.load_layout(&members)
        } else if members.at.contains_key("manifest.json") {
            self.load_docker(&members)
        } else {
            Err(members.invalid("it has neither index.json nor manifest.json"))
        }
    }

    fn load_layout(&self, members: &Members) -> Result<Vec<ImageStatus>, Error> {
        let Document::Index(entries) = manifest::parse(&members.name, &members.document("index.json")?)? else {
            return Err(members.invalid("index.json is no index"));
        };
        let mut loaded = Vec::new();
        let mut other = None;
        for entry in &entries {
            let names = manifest::names_of(entry);
            let status = members
                .manifest_below(entry, 0)
                .and_then(|manifest| self.load_manifest(members, &manifest, &names, &entry.digest));
            match status {
                Ok(status) => loaded.push(status),
                Err(error @ Error::ImagePlatform { .. }) => other = Some(error),
                Err(error) => return Err(error),
            }
        }
        match (loaded.is_empty(), other) {
            (false, _) => Ok(loaded),
            (true, Some(error)) => Err(error),
            (true, None) => Err(members.invalid("it holds no image")),
        }
    }

    fn load_manifest(
        &self,
        members: &Members,
        manifest: &Manifest,
        names: &[ImageName],
        top: &str,
    ) -> Result<ImageStatus, Error> {
        let config = members.blob(&manifest.config.digest)?;
        let parsed = manifest::parse_config(&members.name, &config, manifest.layers.len())?;
        let layers = manifest.layers.iter().zip(&parsed.diff_ids).map(|(layer, diff_id)| LayerSource {
            digest: layer.digest.clone(),
            diff_id: diff_id.clone(),
            open: Box::new(move || {
                let name = blob_name(&layer.digest);
                members.verify(&name, &layer.digest)?;
                members.open(&name)
            }),
        });
        let status = ImageStatus {
            id: manifest.config.digest.clone(),
            tags: names.iter().filter(|n| n.tag.is_some()).map(tag_name).collect(),
            digests: names.iter().map(|n| n.with_digest(top)).collect(),
            size_bytes: 0,
            config: parsed.config,
        };
        self.add(status, &parsed.diff_ids, layers.collect())
    }

    fn load_docker(&self, members: &Members) -> Result<Vec<ImageStatus>, Error> {
        let list: Vec<DockerImage> = serde_json::from_slice(&members.document("manifest.json")?)
            .map_err(|e| members.invalid(&format!("manifest.json: {e}")))?;
        let mut loaded = Vec::new();
        for image in &list {
            let config = members.document(&image.config)?;
            let parsed = manifest::parse_config(&members.name, &config, image.layers.len())?;
            let layers = image.layers.iter().zip(&parsed.diff_ids).map(|(name, diff_id)| LayerSource {
                digest: diff_id.clone(),
                diff_id: diff_id.clone(),
                open: Box::new(move || members.open(name)),
            });
            let names = image.repo_tags.iter().flatten().map(|t| ImageName::parse(t)).collect::<Result<Vec<_>, _>>()?;
            let status = ImageStatus {
                id: sha256(&config),
                tags: names.iter().map(tag_name).collect(),
                digests: Vec::new(),
                size_bytes: 0,
                config: parsed.config,
            };
            loaded.push(self.add(status, &parsed.diff_ids, layers.collect())?);
        }
        if loaded.is_empty() { Err(members.invalid("it holds no image")) } else { Ok(loaded) }
    }
}

fn tag_name(name: &ImageName) -> String {
    ImageName { digest: None, ..name.clone() }.to_string()
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

impl Members {
    fn read(path: &Path) -> Result<Members, Error> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(Error::io(format!("open {name}")))?;
        let damaged = |e: std::io::Error| {
            let why = e.to_string();
            let first = why.lines().next().unwrap_or_default();
            Error::ImageInvalid { what: name.clone(), why: format!("it is no archive of images ({first})") }
        };
        let mut at = HashMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(damaged)? {
            let entry = entry.map_err(damaged)?;
            if at.len() >= MEMBERS_MAX {
                return Err(Error::TooLarge {
                    what: format!("the number of members of {name}"),
                    limit: MEMBERS_MAX as u64,
                });
            }
            let member = clean(&entry.path().map_err(damaged)?).to_string_lossy().into_owned();
            if entry.header().entry_type().is_file() {
                at.insert(member, (entry.raw_file_position(), entry.size()));
            } else if entry.header().entry_type().is_symlink() {
                // Older `docker save` links equal layers of different images.
                let parent = Path::new(&member).parent().unwrap_or(Path::new("")).to_owned();
                let target = entry.link_name().map_err(damaged)?.map(|t| clean(&parent.join(t)));
                let target = target.and_then(|t| at.get(&*t.to_string_lossy()).copied());
                if let Some(target) = target {
                    at.insert(member, target);
                }
            }
        }
        Ok(Members { file: Arc::new(file), at, name })
    }

    fn invalid(&self, why: &str) -> Error {
        Error::ImageInvalid { what: self.name.clone(), why: why.to_owned() }
    }

    fn open(&self, member: &str) -> Result<Box<dyn Read>, Error> {
        let (offset, length) = *self.at.get(member).ok_or_else(|| self.invalid(&format!("it lacks {member:?}")))?;
        let part = Part { file: self.file.clone(), at: offset, end: offset.saturating_add(length) };
        Ok(Box::new(std::io::BufReader::with_capacity(128 << 10, part)))
    }

    fn document(&self, member: &str) -> Result<Vec<u8>, Error> {
        let mut text = Vec::new();
        let doing = format!("read {member} of {}", self.name);
        self.open(member)?.take(DOCUMENT_MAX_BYTES).read_to_end(&mut text).map_err(Error::io(doing))?;
        Ok(text)
    }

    /// A small blob, verified.
    fn blob(&self, digest: &str) -> Result<Vec<u8>, Error> {
        let text = self.document(&blob_name(digest))?;
        let found = sha256(&text);
        match found == digest {
            true => Ok(text),
            false => {
                Err(Error::ImageDigest { what: format!("a blob of {}", self.name), expected: digest.to_owned(), found })
            }
        }
    }

    fn verify(&self, member: &str, digest: &str) -> Result<(), Error> {
        let mut hasher = Hasher::new();
        let mut reader = self.open(member)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match reader.read(&mut buffer).map_err(Error::io(format!("read {member} of {}", self.name)))? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        let found = hasher.finish();
        match found == digest {
            true => Ok(()),
            false => Err(Error::ImageDigest {
                what: format!("{member} of {}", self.name),
                expected: digest.to_owned(),
                found,
            }),
        }
    }

    /// The manifest for this machine at or below an entry.
    fn manifest_below(&self, entry: &Descriptor, depth: usize) -> Result<Manifest, Error> {
        if depth > NESTING_MAX {
            return Err(self.invalid("its indexes are nested too deep"));
        }
        match manifest::parse(&self.name, &self.blob(&entry.digest)?)? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(list) => {
                let chosen = manifest::choose(&self.name, &list, &manifest::machine())?;
                self.manifest_below(chosen, depth + 1)
            }
        }
    }
}

/// A stretch of a shared file, read without moving anybody else's place in it.
struct Part {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let room = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..room], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
