//! Image names, normalised as Kubernetes does: `nginx` is `docker.io/library/nginx:latest`.
//!
//! A name is a registry, a repository and a tag or a digest (or both, then the digest decides).

use crate::Error;

/// Longest repository, as upstream allows it.
const REPOSITORY_MAX_BYTES: usize = 255;
/// Longest tag.
const TAG_MAX_BYTES: usize = 128;
const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

/// A normalised image name. [`std::fmt::Display`] writes it out in full.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    /// `docker.io`, `registry.example:5000`.
    pub registry: String,
    /// `library/nginx`.
    pub repository: String,
    pub tag: Option<String>,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: Option<String>,
}

impl ImageName {
    /// Reads a name as users write it. Fails with [`Error::ImageName`].
    pub fn parse(text: &str) -> Result<ImageName, Error> {
        let bad = |why| Error::ImageName { name: text.chars().take(300).collect(), why };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(bad("the digest must be sha256: and 64 hexadecimal digits")),
            None => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(bad("the tag must be 1 to 128 of [A-Za-z0-9_.-], not starting with . or -"));
        }
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
            _ if path.contains('/') => (DEFAULT_REGISTRY, path.to_owned()),
            _ => (DEFAULT_REGISTRY, format!("library/{path}")),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let repository = match repository.split_once('/') {
            None if registry == DEFAULT_REGISTRY => format!("library/{repository}"),
            _ => repository,
        };
        if !is_host(registry) {
            return Err(bad("the registry is no host name with an optional port"));
        }
        if repository.len() > REPOSITORY_MAX_BYTES || !repository.split('/').all(is_path_part) {
            return Err(bad("the repository must be lower-case words of [a-z0-9] joined by . _ __ or -"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None, Some(_)) => None,
        };
        Ok(ImageName { registry: registry.to_owned(), repository, tag, digest })
    }

    /// What is asked of the registry: the digest, else the tag.
    pub fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// `registry/repository`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name under which a pulled image is found again: with the tag when it has one.
    pub fn with_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.path())
    }

    /// Whether the registry is this machine's loopback, where plain HTTP is allowed.
    pub fn is_loopback(&self) -> bool {
        let host = match self.registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(""),
            None => self.registry.split(':').next().unwrap_or(""),
        };
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether the text is a digest we can verify.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= TAG_MAX_BYTES
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((v6, "")) => (v6, None),
        Some((v6, rest)) => (v6, rest.strip_prefix(':')),
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let name_ok = if host.starts_with('[') {
        name.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        !name.is_empty()
            && name.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            })
    };
    name_ok && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_part(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !word(*first) || !word(*last) {
        return false;
    }
    bytes
        .split(|b| word(*b))
        .all(|joint| joint.is_empty() || matches!(joint, b"." | b"_" | b"__") || joint.iter().all(|b| *b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let found = match ImageName::parse(text) {
            Ok(name) => name.to_string(),
            Err(_) => "refused".to_owned(),
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn names_become_full() {
        let digest = format!("sha256:{}", "a".repeat(64));
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.2", "docker.io/library/nginx:1.2");
        check("me/app", "docker.io/me/app:latest");
        check("docker.io/nginx", "docker.io/library/nginx:latest");
        check("index.docker.io/me/app:x", "docker.io/me/app:x");
        check("localhost/app", "localhost/app:latest");
        check("127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1");
        check("[::1]:5000/a", "[::1]:5000/a:latest");
        check("registry.k8s.io/pause", "registry.k8s.io/pause:latest");
        check(&format!("a@{digest}"), &format!("docker.io/library/a@{digest}"));
        check(&format!("r.io/a:t@{digest}"), &format!("r.io/a:t@{digest}"));
        for wrong in ["", ":", "a:", "a/", "/a", "A", "a b", "a//b", "a@sha256:1", "a:-x", "a@", "x.io:99999/a", "a..b"]
        {
            check(wrong, "refused");
        }
        for bad in ["x.io/../a", "x.io/a/..", "-.io/a", "a___b", "a.-b", "[zz]/a"] {
            check(bad, "refused");
        }
    }

    #[test]
    fn no_text_panics() {
        let mut rng = base::Rng::new(7);
        let alphabet: Vec<char> = "ab.:/@-_[]sha256A0 \u{e9}".chars().collect();
        for _ in 0..20_000 {
            let text: String =
                (0..rng.below(24)).map(|_| alphabet[rng.below(alphabet.len() as u64) as usize]).collect();
            if let Ok(name) = ImageName::parse(&text) {
                assert_eq!(ImageName::parse(&name.to_string()).unwrap(), name, "{text}");
            }
        }
    }
}
