//! Whom a certificate request (PKCS#10) is for: common name and organizations, and nothing else of it. Whoever signs
//! verifies the request itself.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// UTF8String, PrintableString, IA5String.
const TEXT: &[u8] = &[12, 19, 22];
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
}

/// Reads the subject of a request in PEM; `None` when it is none.
pub fn subject_of(pem: &str) -> Option<Subject> {
    let (_, rest) = pem.split_once("-----BEGIN CERTIFICATE REQUEST-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE REQUEST-----")?;
    let text: String = body.split_whitespace().collect();
    let der = STANDARD.decode(text).ok()?;
    let (request, _) = expect(&der, SEQUENCE)?;
    let (info, _) = expect(request, SEQUENCE)?;
    let (_, _, after_version) = next(info)?;
    let (mut names, _) = expect(after_version, SEQUENCE)?;
    let mut subject = Subject::default();
    while !names.is_empty() {
        let (set, rest) = expect(names, SET)?;
        names = rest;
        let mut pairs = set;
        while !pairs.is_empty() {
            let (pair, rest) = expect(pairs, SEQUENCE)?;
            pairs = rest;
            let (_, oid, value) = next(pair)?;
            let (tag, value, _) = next(value)?;
            // Other spellings of text may read differently to whoever checks the certificate.
            if !TEXT.contains(&tag) {
                return None;
            }
            let value = String::from_utf8(value.to_vec()).ok()?;
            match oid {
                // Two names would leave open whom the certificate speaks for.
                COMMON_NAME if !subject.common_name.is_empty() => return None,
                COMMON_NAME => subject.common_name = value,
                ORGANIZATION => subject.organizations.push(value),
                _ => {}
            }
        }
    }
    Some(subject)
}

fn expect(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = next(der)?;
    (found == tag).then_some((content, rest))
}

/// Tag, content and what follows of the first element.
fn next(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, mut rest) = rest.split_first()?;
    let mut length = usize::from(*first);
    if length >= 0x80 {
        let bytes = length - 0x80;
        if bytes == 0 || bytes > 4 || rest.len() < bytes {
            return None;
        }
        length = rest[..bytes].iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
        rest = &rest[bytes..];
    }
    if rest.len() < length {
        return None;
    }
    Some((*tag, &rest[..length], &rest[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_refuses_rubbish() {
        let pair = |oid: &[u8], text: &str| {
            let mut body = vec![6, 3];
            body.extend_from_slice(oid);
            body.extend_from_slice(&[12, text.len() as u8]);
            body.extend_from_slice(text.as_bytes());
            let mut out = vec![SET, body.len() as u8 + 2, SEQUENCE, body.len() as u8];
            out.extend(body);
            out
        };
        let wrap = |body: Vec<u8>| {
            let mut out = vec![SEQUENCE, body.len() as u8];
            out.extend(body);
            out
        };
        let names = wrap([pair(ORGANIZATION, "system:nodes"), pair(COMMON_NAME, "system:node:a")].concat());
        let der = wrap(wrap([vec![2, 1, 0], names].concat()));
        let pem = |der: &[u8]| {
            let text = STANDARD.encode(der);
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
        };
        let subject = subject_of(&pem(&der)).unwrap();
        assert_eq!((subject.common_name.as_str(), subject.organizations.len()), ("system:node:a", 1));
        let twice = wrap([pair(COMMON_NAME, "system:node:a"), pair(COMMON_NAME, "admin")].concat());
        assert_eq!(subject_of(&pem(&wrap(wrap([vec![2, 1, 0], twice].concat())))), None);
        for end in 0..der.len() {
            assert_eq!(subject_of(&pem(&der[..end])), None, "cut at {end}");
        }
        assert_eq!(subject_of("nothing"), None);
    }
}
