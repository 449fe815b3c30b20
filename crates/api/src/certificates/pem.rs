//! Blocks of PEM as Kubernetes' programs read them: text between blocks is passed over, and so is what only looks like one.
//!
//! Not here: what the bytes of a block mean.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";
/// Letters of base64 on a line that is written.
const LINE_LETTERS: usize = 64;
/// Writers differ in what they leave in the last bits.
const LENIENT: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// One block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// `CERTIFICATE`, `PRIVATE KEY` …
    pub label: &'a str,
    /// Whether lines of `Name: value` stand before the bytes.
    pub has_headers: bool,
    pub bytes: Vec<u8>,
}

/// The blocks of `text`, in order.
pub fn blocks(text: &str) -> impl Iterator<Item = Block<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let (at, _) = rest.match_indices(BEGIN).find(|(at, _)| *at == 0 || rest[..*at].ends_with('\n'))?;
            rest = &rest[at + BEGIN.len()..];
            if let Some((block, after)) = block(rest) {
                rest = after;
                return Some(block);
            }
        }
    })
}

/// The block whose label `text` begins with, and what follows it.
fn block(text: &str) -> Option<(Block<'_>, &str)> {
    let (line, mut body) = text.split_once('\n')?;
    let label = line.trim_end().strip_suffix(DASHES)?;
    let mut has_headers = false;
    while let Some((header, after)) = body.split_once('\n').filter(|(line, _)| line.contains(':')) {
        // A line of the end has no colon, but whoever leaves it out may have one further down.
        if header.starts_with(DASHES) {
            break;
        }
        (has_headers, body) = (true, after);
    }
    let end = format!("{END}{label}{DASHES}");
    let (at, _) = body.match_indices(&end).find(|(at, _)| *at == 0 || body[..*at].ends_with('\n'))?;
    let after = &body[at + end.len()..];
    let (rest_of_line, after) = after.split_once('\n').unwrap_or((after, ""));
    if !rest_of_line.trim().is_empty() {
        return None;
    }
    let letters: String = body[..at].chars().filter(|letter| !letter.is_ascii_whitespace()).collect();
    let bytes = LENIENT.decode(letters).ok()?;
    Some((Block { label, has_headers, bytes }, after))
}

/// A block as text.
pub fn write(label: &str, bytes: &[u8]) -> String {
    let letters = LENIENT.encode(bytes);
    let mut text = format!("{BEGIN}{label}{DASHES}\n");
    let mut rest = letters.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE_LETTERS));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("{END}{label}{DASHES}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, bool, &[u8])]) {
        let found: Vec<Block> = blocks(text).collect();
        let found: Vec<(&str, bool, &[u8])> =
            found.iter().map(|block| (block.label, block.has_headers, &*block.bytes)).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn text_between_blocks_is_passed_over() {
        let two = format!("about a\n{}about b\n{}\nend", write("A", b"one"), write("B C", &[7; 100]));
        check(&two, &[("A", false, b"one"), ("B C", false, &[7; 100])]);
        check("-----BEGIN A-----\r\nb25l\r\n-----END A-----", &[("A", false, b"one")]);
        check("-----BEGIN A-----\nProc-Type: 4\nX: y\n\nb25l\n-----END A-----\n", &[("A", true, b"one")]);
        check("-----BEGIN A-----\n-----END A-----\n", &[("A", false, b"")]);
    }

    #[test]
    fn what_is_no_block_hides_none_after_it() {
        let good = write("A", b"one");
        for bad in [
            "-----BEGIN A",
            "-----BEGIN A-----",
            "-----BEGIN A-----\n!!!!\n-----END A-----\n",
            "-----BEGIN A-----\nb25l\n-----END B-----\n",
            "x -----BEGIN A-----\nb25l\n-----END A-----\n",
        ] {
            check(bad, &[]);
            check(&format!("{bad}\n{good}"), &[("A", false, b"one")]);
        }
    }
}
