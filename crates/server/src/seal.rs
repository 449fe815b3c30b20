//! Encryption at rest: AES-256-GCM over the stored bytes of the resources that hold secrets, bound to their keys.
//!
//! Layout of a sealed value: `gs1:`, 12 bytes nonce, ciphertext and tag. The store's key is the additional data, so a
//! value moved to another key does not open.

use std::path::Path;

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::ca::write_private;
use crate::error::Error;

const MARK: &[u8] = b"gs1:";

/// The key in use.
pub struct Seal {
    key: LessSafeKey,
    random: SystemRandom,
}

fn bad_key(why: &str) -> Error {
    Error::Certificate { what: "read the key for encryption at rest".to_owned(), why: why.to_owned() }
}

impl Seal {
    /// Loads the key from `dir/seal.key`, or makes one there.
    pub fn open(dir: &Path) -> Result<Seal, Error> {
        let path = dir.join("seal.key");
        if path.exists() {
            let key = std::fs::read(&path).map_err(|error| Error::File { what: "read", path, error })?;
            return Seal::of(&key);
        }
        let (seal, key) = Seal::make()?;
        write_private(&path, &key)?;
        Ok(seal)
    }

    /// A new key, also as bytes.
    pub(crate) fn make() -> Result<(Seal, Vec<u8>), Error> {
        let mut key = vec![0u8; AES_256_GCM.key_len()];
        SystemRandom::new().fill(&mut key).map_err(|_| bad_key("no randomness"))?;
        Ok((Seal::of(&key)?, key))
    }

    /// Seals with this key of 32 bytes.
    ///
    /// # Errors
    /// When it has another length.
    pub fn of(key: &[u8]) -> Result<Seal, Error> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| bad_key("it has the wrong length"))?;
        Ok(Seal { key: LessSafeKey::new(key), random: SystemRandom::new() })
    }

    /// Encrypts `value` for the place `key`.
    pub fn seal(&self, key: &[u8], value: &[u8]) -> Result<Bytes, Error> {
        let failed = || Error::Store { what: "encrypt a value", why: "no randomness".to_owned() };
        let mut nonce = [0u8; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| failed())?;
        let mut sealed = value.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(key), &mut sealed)
            .map_err(|_| failed())?;
        Ok([MARK, &nonce, &sealed].concat().into())
    }

    /// The plain value; values that were never sealed are returned as they are.
    pub fn unseal(&self, key: &[u8], value: &Bytes) -> Result<Bytes, Error> {
        let Some(rest) = value.strip_prefix(MARK) else { return Ok(value.clone()) };
        let failed = |why: &str| Error::Store { what: "decrypt a value", why: why.to_owned() };
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN).ok_or_else(|| failed("it is too short"))?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| failed("it is too short"))?;
        let mut plain = sealed.to_vec();
        let len = self
            .key
            .open_in_place(nonce, Aad::from(key), &mut plain)
            .map_err(|_| failed("it was changed, moved, or sealed with another key"))?
            .len();
        plain.truncate(len);
        Ok(plain.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_unchanged_at_its_own_place() {
        let dir = tempfile::tempdir().unwrap();
        let seal = Seal::open(dir.path()).unwrap();
        let sealed = seal.seal(b"/a", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        let again = Seal::open(dir.path()).unwrap();
        assert_eq!(again.unseal(b"/a", &sealed).unwrap(), "secret");
        assert!(again.unseal(b"/b", &sealed).is_err());
        for at in 4..sealed.len() {
            let mut damaged = sealed.to_vec();
            damaged[at] ^= 1;
            assert!(again.unseal(b"/a", &damaged.into()).is_err());
        }
        assert_eq!(again.unseal(b"/a", &Bytes::from_static(b"{}")).unwrap(), "{}");
    }
}
