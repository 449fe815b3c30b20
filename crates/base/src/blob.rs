//! Bytes that may be held packed.
//!
//! Most of what a cluster stores is read rarely and looks like its siblings: 150,000 pods of a few templates differ in
//! some hundred bytes of six thousand. A [`Blob`] that nobody has used for a while is packed against a [`Dictionary`] of
//! such siblings; whoever reads it gets the same bytes as before. All holders of a blob share it, so that packing it once
//! frees the bytes for all.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lz4_flex::block::{compress_with_dict, decompress_with_dict};

/// Shorter ones are not worth it.
const LEN_MIN: usize = 256;
/// Packed to more than one part in so many, and what any object has for itself, is poor: the dictionary knows nothing like it.
const POOR: usize = 4;
/// A name, a uid, times and revisions: what no sibling has. A small object is not much more, and whatever it is packed
/// against is gone through each time.
const OWN_BYTES: usize = 160;
/// A dictionary takes in what it knows nothing like, up to so many bytes.
const DICTIONARY_BYTES_MAX: usize = 16 << 10;
/// After so many poor ones a dictionary takes one in: what comes alone is not worth a copy.
const POOR_FOR_MORE: u32 = 4;
/// After so many poor ones a full dictionary begins anew.
const POOR_FOR_ANEW: u32 = 64;

/// Bytes that never change, shared by all who hold a clone.
#[derive(Clone)]
pub struct Blob(Arc<Inner>);

struct Inner {
    len: usize,
    form: Mutex<Form>,
}

enum Form {
    Plain(Bytes),
    Packed { packed: Box<[u8]>, against: Bytes },
}

impl Blob {
    pub fn len(&self) -> usize {
        self.0.len
    }

    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The bytes. They are unpacked for the caller alone, and only where they are packed.
    pub fn bytes(&self) -> Bytes {
        match &*self.form() {
            Form::Plain(bytes) => bytes.clone(),
            Form::Packed { packed, against } => decompress_with_dict(packed, self.0.len, against)
                .expect("we packed it ourselves, against the very dictionary that is kept with it")
                .into(),
        }
    }

    /// Holds the bytes packed from now on, if that makes them smaller. The dictionary learns what it knows nothing like.
    pub fn pack(&self, dictionary: &mut Dictionary) {
        if self.len() < LEN_MIN || self.is_packed() {
            return;
        }
        let plain = self.bytes();
        let packed = compress_with_dict(&plain, &dictionary.text);
        if packed.len() > plain.len() / POOR + OWN_BYTES && dictionary.learn(&plain) {
            // It is held as a part of the dictionary, not twice.
            *self.form() = Form::Plain(dictionary.text.slice(dictionary.text.len() - plain.len()..));
        } else if packed.len() < plain.len() / 4 * 3 {
            let packed = packed.into_boxed_slice();
            *self.form() = Form::Packed { packed, against: dictionary.text.clone() };
        }
    }

    fn is_packed(&self) -> bool {
        matches!(&*self.form(), Form::Packed { .. })
    }

    fn form(&self) -> MutexGuard<'_, Form> {
        self.0.form.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Into<Bytes>> From<T> for Blob {
    fn from(bytes: T) -> Blob {
        let bytes = bytes.into();
        Blob(Arc::new(Inner { len: bytes.len(), form: Mutex::new(Form::Plain(bytes)) }))
    }
}

impl PartialEq for Blob {
    fn eq(&self, other: &Blob) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.len() == other.len() && self.bytes() == other.bytes()
    }
}

impl Eq for Blob {}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Blob {
    fn eq(&self, other: &T) -> bool {
        self.bytes() == other.as_ref()
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}

/// What blobs of one sort have in common: the text of some of them. What was packed against an earlier state of it keeps
/// that.
#[derive(Clone, Default)]
pub struct Dictionary {
    text: Bytes,
    /// How many it knew nothing like since it learnt last.
    poor: u32,
}

impl Dictionary {
    /// One that knows nothing yet.
    pub const fn new() -> Dictionary {
        Dictionary { text: Bytes::new(), poor: 0 }
    }

    fn learn(&mut self, plain: &Bytes) -> bool {
        if plain.len() > DICTIONARY_BYTES_MAX {
            return false;
        }
        self.poor += 1;
        let full = self.text.len() + plain.len() > DICTIONARY_BYTES_MAX;
        let text = if self.text.is_empty() || full && self.poor >= POOR_FOR_ANEW {
            plain.clone()
        } else if !full && self.poor >= POOR_FOR_MORE {
            [&self.text[..], plain].concat().into()
        } else {
            return false;
        };
        *self = Dictionary { text, poor: 0 };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    fn sibling(number: usize) -> Bytes {
        let parts: Vec<String> = (0..100).map(|part| format!("\"part-{part}\":\"what all have, {part}\"")).collect();
        format!("{{\"name\":\"sibling-{number}\",{}}}", parts.join(",")).into()
    }

    #[test]
    fn siblings_are_kept_in_little_and_read_as_they_were() {
        let (mut dictionary, mut total) = (Dictionary::default(), 0);
        let blobs: Vec<Blob> = (0..100).map(|number| Blob::from(sibling(number))).collect();
        blobs[0].pack(&mut dictionary);
        assert!(!blobs[0].is_packed(), "it is the dictionary");
        for blob in &blobs[1..] {
            blob.pack(&mut dictionary);
            let Form::Packed { packed, .. } = &*blob.form() else { panic!("a sibling is packed") };
            total += packed.len();
        }
        assert!(total < 100 * sibling(0).len() / 20, "{total} bytes");
        for (number, blob) in blobs.iter().enumerate() {
            assert_eq!((blob.bytes(), blob.len()), (sibling(number), sibling(number).len()));
        }
        assert_eq!(blobs[7], Blob::from(sibling(7)));
        assert_ne!(blobs[7], blobs[8]);
    }

    #[test]
    fn whatever_is_packed_comes_back() {
        let (mut rng, mut dictionary) = (Rng::new(7), Dictionary::default());
        let mut begun_anew = false;
        for round in 0..600_usize {
            let len = usize::try_from(rng.below(40_000)).unwrap_or(0) / (1 + round % 40);
            // Few letters, many letters, and noise.
            let letters = [2, 40, 256][round % 3];
            let plain: Vec<u8> = (0..len).map(|_| u8::try_from(rng.below(letters)).unwrap_or(0)).collect();
            let (blob, known) = (Blob::from(plain.clone()), dictionary.text.len());
            blob.pack(&mut dictionary);
            begun_anew |= dictionary.text.len() < known;
            assert_eq!(blob.bytes(), plain);
            assert!(dictionary.text.len() <= DICTIONARY_BYTES_MAX);
        }
        assert!(begun_anew, "a full dictionary that fits nothing goes");
    }

    #[test]
    fn noise_and_small_things_stay_as_they_are() {
        let mut rng = Rng::new(1);
        let noise: Vec<u8> = (0..4096).map(|_| u8::try_from(rng.below(256)).unwrap_or(0)).collect();
        for plain in [noise, b"small".to_vec(), Vec::new()] {
            let blob = Blob::from(plain);
            blob.pack(&mut Dictionary::default());
            assert!(!blob.is_packed());
        }
    }
}
