//! Where a cluster's state lives: in a store in the data folder, or in etcd, which several servers share.
//!
//! Servers that share a state must also be one cluster to clients: the same authority, the same keys of tokens and
//! Secrets, the same first tokens. These lie in etcd under `/cluster/keys`, sealed with a secret that the operator gives
//! every server; a server keeps a copy in its data folder, as one with a store of its own does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::Revision;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use etcd::Etcd;
use meta::Value;
use server::ca::write_private;
use server::seal::Seal;
use store::{Backend, Put, Range, Txn};
use tokio::sync::Notify;

use crate::error::Error;
use crate::flags::Settings;

/// Where the keys lie, as the store's key.
pub const KEYS: &[u8] = b"/cluster/keys";
/// The files of the folder of keys that make a cluster what it is.
const FILES: [&str; 6] = ["ca.crt", "ca.key", "tokens.key", "seal.key", "join-token", "admin-token"];
/// Where the secret lies in the data folder when nobody says otherwise.
const SECRET_FILE: &str = "cluster-secret";
const SECRET_MIN_BYTES: usize = 16;
/// What the key is derived for, so that the same secret used elsewhere gives another.
const PURPOSE: &[u8] = b"gantry cluster keys 1";

/// An opened state.
pub struct Opened {
    pub backend: Arc<dyn Backend>,
    /// Other servers may write to it, too.
    pub shared: bool,
}

/// Opens what the settings name; for a shared state, the folder of keys then holds the cluster's.
pub async fn open(settings: &Settings) -> Result<Opened, Error> {
    if settings.text("backend") != Some("etcd") {
        let (backend, _) = store::Embedded::open(&settings.data().join("store"), store::Options::default())?;
        wake_in_turn(&backend);
        return Ok(Opened { backend: Arc::new(backend), shared: false });
    }
    let backend = open_etcd(settings).await?;
    share_keys(settings, &backend).await?;
    Ok(Opened { backend: Arc::new(backend), shared: true })
}

/// Has the store's thread woken by a task that stands behind those that can run: what they write goes with it.
fn wake_in_turn(store: &store::Embedded) {
    let asked = Arc::new(Notify::new());
    let asking = asked.clone();
    let alarm = store.woken_by(move || asking.notify_one());
    tokio::spawn(async move {
        loop {
            asked.notified().await;
            // A task that is woken runs next; one that yields, after all that can.
            tokio::task::yield_now().await;
            alarm.ring();
        }
    });
}

pub async fn open_etcd(settings: &Settings) -> Result<Etcd, Error> {
    Etcd::open(&etcd_options(settings)?).await.map_err(|error| Error::Machine(error.to_string()))
}

/// The flags about etcd.
pub fn etcd_options(settings: &Settings) -> Result<etcd::Options, Error> {
    let words = settings.all("etcd-endpoints").iter().flat_map(|words| words.split(','));
    let read = |word: &str| etcd::Endpoint::parse(word).map_err(|why| settings.complain("etcd-endpoints", why));
    let endpoints: Vec<etcd::Endpoint> = words.filter(|word| !word.is_empty()).map(read).collect::<Result<_, _>>()?;
    if endpoints.is_empty() {
        let why = "is needed; give etcd's addresses, like https://192.0.2.10:2379,https://192.0.2.11:2379";
        return Err(settings.complain("etcd-endpoints", why));
    }
    let text = |name| settings.path(name).map(|path| read_text(&path)).transpose();
    let (ca, cert, key) = (text("etcd-cacert")?, text("etcd-cert")?, text("etcd-key")?);
    let identity = match (&cert, &key) {
        (Some(cert), Some(key)) => Some((cert.as_str(), key.as_str())),
        (None, None) => None,
        (None, Some(_)) => return Err(settings.complain("etcd-key", "is of use only with --etcd-cert")),
        (Some(_), None) => return Err(settings.complain("etcd-cert", "is of use only with --etcd-key")),
    };
    let tls = match &ca {
        Some(ca) => Some(etcd::tls(ca, identity).map_err(|error| settings.complain("etcd-cacert", error.to_string()))?),
        None if endpoints.iter().any(|endpoint| endpoint.tls) => {
            let why = "is needed for https; give the certificate of the authority that signed etcd's";
            return Err(settings.complain("etcd-cacert", why));
        }
        None => None,
    };
    let password = text("etcd-password-file")?.map(|password| password.trim_end().to_owned());
    let user = match (settings.text("etcd-user"), password) {
        (Some(user), Some(password)) => Some((user.to_owned(), password)),
        (None, None) => None,
        (Some(_), None) => return Err(settings.complain("etcd-user", "is of use only with --etcd-password-file")),
        (None, Some(_)) => return Err(settings.complain("etcd-password-file", "is of use only with --etcd-user")),
    };
    let limits = etcd::Limits {
        operations: settings.must("etcd-max-operations"),
        request_bytes: settings.must("etcd-max-request-bytes"),
    };
    Ok(etcd::Options { endpoints, tls, user, prefix: settings.must("etcd-prefix"), limits })
}

fn read_text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(Error::file("read", path))
}

/// Makes the folder of keys hold the cluster's: those in etcd, or, for the first server, its own, which then are.
async fn share_keys(settings: &Settings, backend: &Etcd) -> Result<(), Error> {
    let dir = settings.data().join("keys");
    std::fs::create_dir_all(&dir).map_err(Error::file("create the folder", &dir))?;
    loop {
        let failed = |error: store::Error| Error::doing("read the cluster's keys in etcd", error);
        let page = backend.range(Range::key(KEYS), None, None, 0).await.map_err(failed)?;
        if let Some((_, version)) = page.items.first() {
            let secret = Secret::read(settings)?.ok_or_else(|| {
                Error::Machine(format!(
                    "the cluster in this etcd has a secret already; take the file {SECRET_FILE} from the data folder of \
                     one of its servers and give it with --cluster-secret-file"
                ))
            })?;
            return unpack(&secret.open(&version.value.bytes())?, &dir);
        }
        let secret = Secret::read_or_make(settings)?;
        // Makes what is missing.
        server::Keys::open(&dir)?;
        let put = Put::new(KEYS, secret.seal(&pack(&dir)?)?);
        match backend.txn(Txn::new().when(KEYS, Revision::ZERO).put(put)).await {
            Ok(_) => return Ok(()),
            // Another server was first: its keys are the cluster's.
            Err(store::Error::Refused(_)) => {}
            Err(error) => return Err(Error::doing("put the cluster's keys into etcd", error)),
        }
    }
}

/// The files of keys as one value.
pub fn pack(dir: &Path) -> Result<Bytes, Error> {
    let mut all = Value::Null;
    for name in FILES {
        let path = dir.join(name);
        let bytes = std::fs::read(&path).map_err(Error::file("read", &path))?;
        all.set(&[name], STANDARD.encode(bytes));
    }
    Ok(all.to_json().into())
}

/// Writes the files of keys; those that are the same already are left alone.
pub fn unpack(packed: &[u8], dir: &Path) -> Result<(), Error> {
    let wrong = |why: &str| Error::doing("read the cluster's keys", why);
    let all = Value::parse(packed).map_err(|error| wrong(&error.to_string()))?;
    std::fs::create_dir_all(dir).map_err(Error::file("create the folder", dir))?;
    for name in FILES {
        let bytes = STANDARD.decode(all[name].text()).map_err(|_| wrong("they are not base64"))?;
        if bytes.is_empty() {
            return Err(wrong(&format!("{name} is missing")));
        }
        let path = dir.join(name);
        if std::fs::read(&path).ok().as_ref() != Some(&bytes) {
            write_private(&path, &bytes)?;
        }
    }
    Ok(())
}

/// What the cluster's keys are sealed with outside of data folders.
pub struct Secret {
    seal: Seal,
    path: PathBuf,
}

impl Secret {
    fn path(settings: &Settings) -> PathBuf {
        settings.path("cluster-secret-file").unwrap_or_else(|| settings.data().join(SECRET_FILE))
    }

    /// The secret that the settings name; `None` when there is no file in the usual place.
    pub fn read(settings: &Settings) -> Result<Option<Secret>, Error> {
        let path = Secret::path(settings);
        match std::fs::read(&path) {
            Ok(bytes) => Secret::of(&bytes, path).map(Some),
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && settings.text("cluster-secret-file").is_none() =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::file("read the cluster's secret", path)(error)),
        }
    }

    pub fn read_or_make(settings: &Settings) -> Result<Secret, Error> {
        if let Some(secret) = Secret::read(settings)? {
            return Ok(secret);
        }
        let (path, mut bytes) = (Secret::path(settings), [0u8; 32]);
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::doing("make the cluster's secret", error))?;
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(Error::file("create the folder", dir))?;
        }
        write_private(&path, STANDARD.encode(bytes).as_bytes())?;
        Secret::read(settings)?.ok_or_else(|| Error::doing("make the cluster's secret", "it did not stay"))
    }

    fn of(bytes: &[u8], path: PathBuf) -> Result<Secret, Error> {
        let secret = bytes.trim_ascii();
        if secret.len() < SECRET_MIN_BYTES {
            let why = format!("{} holds no secret: at least {SECRET_MIN_BYTES} bytes are needed", path.display());
            return Err(Error::Machine(why));
        }
        let failed = |_| Error::doing("derive a key from the cluster's secret", "it has the wrong length");
        let (salt, mut key) = (ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, PURPOSE), [0u8; 32]);
        let derived = salt.extract(secret);
        let expanded = derived.expand(&[b"seal"], ring::hkdf::HKDF_SHA256).map_err(failed)?;
        expanded.fill(&mut key).map_err(failed)?;
        Ok(Secret { seal: Seal::of(&key)?, path })
    }

    pub fn seal(&self, packed: &[u8]) -> Result<Bytes, Error> {
        Ok(self.seal.seal(KEYS, packed)?)
    }

    pub fn open(&self, sealed: &Bytes) -> Result<Bytes, Error> {
        self.seal.unseal(KEYS, sealed).map_err(|_| {
            Error::Machine(format!(
                "the secret in {} is not the one that this cluster was made with; take the file {SECRET_FILE} from the \
                 data folder of a server of the cluster",
                self.path.display()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_travel_sealed_and_another_secret_does_not_open_them() {
        let dir = tempfile::tempdir().unwrap();
        let settings = |name: &str| {
            let path = dir.path().join(name).display().to_string();
            Settings::of("server", &[("data", path)])
        };
        let (one, two) = (settings("one"), settings("two"));
        assert!(Secret::read(&one).unwrap().is_none());
        let secret = Secret::read_or_make(&one).unwrap();
        let keys = one.data().join("keys");
        server::Keys::open(&keys).unwrap();
        let packed = pack(&keys).unwrap();
        let sealed = secret.seal(&packed).unwrap();
        assert!(!sealed.windows(8).any(|window| packed.windows(8).any(|known| known == window)));
        unpack(&Secret::read(&one).unwrap().unwrap().open(&sealed).unwrap(), &two.data().join("keys")).unwrap();
        assert_eq!(pack(&two.data().join("keys")).unwrap(), packed);
        let other = Secret::read_or_make(&two).unwrap();
        assert!(other.open(&sealed).unwrap_err().to_string().contains("not the one"));
        std::fs::write(two.data().join("cluster-secret"), "short").unwrap();
        assert!(Secret::read(&two).is_err_and(|error| error.to_string().contains("at least 16 bytes")));
    }

    #[test]
    fn what_is_said_of_etcd_fits_together() {
        let complaint = |values: &[(&'static str, &str)]| {
            let values: Vec<_> = values.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            etcd_options(&Settings::of("server", &values)).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(complaint(&[]).contains("etcd-endpoints: is needed"));
        assert!(complaint(&[("etcd-endpoints", "https://a:1")]).contains("etcd-cacert: is needed for https"));
        assert!(complaint(&[("etcd-endpoints", "b")]).contains("no endpoint of etcd"));
        assert!(complaint(&[("etcd-endpoints", "http://a:1"), ("etcd-user", "u")]).contains("etcd-password-file"));
        assert_eq!(complaint(&[("etcd-endpoints", "http://a:1,http://b:2")]), "");
    }
}
