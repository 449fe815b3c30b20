//! The configuration file: a YAML map of flags by their names, each with the line it stands on.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// One entry: its name, its values, its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub values: Vec<String>,
    pub line: u64,
}

/// What is wrong with a file, and on which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub line: u64,
    pub why: String,
}

/// Reads the text of a file; an empty one says nothing.
pub fn read(text: &str) -> Result<Vec<Entry>, Wrong> {
    let empty = text.lines().all(|line| matches!(line.trim(), "" | "---") || line.trim_start().starts_with('#'));
    if empty {
        return Ok(Vec::new());
    }
    let Entries(found) = serde_saphyr::from_str(text).map_err(|error| {
        let why = error.without_snippet().to_string();
        Wrong { line: error.location().map_or(1, |at| at.line()), why: why.lines().next().unwrap_or("").to_owned() }
    })?;
    let mut entries: Vec<Entry> = Vec::new();
    for (name, word) in found {
        let (line, name) = (name.referenced.line(), name.value);
        let values = match word.value {
            Word::One(value) => vec![value],
            Word::Many(values) => values,
            Word::Nothing => return Err(Wrong { line, why: format!("{name} has no value") }),
            Word::Wrong => return Err(Wrong { line, why: format!("{name} takes a value or a list of values") }),
        };
        entries.push(Entry { name, values, line });
    }
    Ok(entries)
}

struct Entries(Vec<(Spanned<String>, Spanned<Word>)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Entries, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of flags, as in `listen: 127.0.0.1:7443`")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        reader.deserialize_map(Map)
    }
}

/// A value as YAML has it.
enum Word {
    One(String),
    Many(Vec<String>),
    Nothing,
    Wrong,
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Word, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Word;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Word, E> {
                Ok(Word::One(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Word, E> {
                Ok(Word::One(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Word, E> {
                Ok(Word::One(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Word, E> {
                Ok(Word::One(value.to_string()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Word, E> {
                Ok(Word::One(value.to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Word, E> {
                Ok(Word::Nothing)
            }
            fn visit_none<E>(self) -> Result<Word, E> {
                Ok(Word::Nothing)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Word, A::Error> {
                let (mut values, mut wrong) = (Vec::new(), false);
                while let Some(word) = list.next_element::<Word>()? {
                    match word {
                        Word::One(value) => values.push(value),
                        _ => wrong = true,
                    }
                }
                Ok(if wrong { Word::Wrong } else { Word::Many(values) })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Word, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Word::Wrong)
            }
        }
        reader.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_know_their_lines() {
        let text = "# a cluster\nlisten: 127.0.0.1:7443\nnodes: 3\n\napply:\n- a.yaml\n- b.yaml\ndelete-data: true\n";
        let entries = read(text).unwrap();
        let shown: Vec<(&str, String, u64)> =
            entries.iter().map(|entry| (entry.name.as_str(), entry.values.join(","), entry.line)).collect();
        assert_eq!(
            shown,
            [
                ("listen", "127.0.0.1:7443".to_owned(), 2),
                ("nodes", "3".to_owned(), 3),
                ("apply", "a.yaml,b.yaml".to_owned(), 5),
                ("delete-data", "true".to_owned(), 8)
            ]
        );
        assert_eq!(read("# nothing\n---\n"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_has_a_line_and_one_sentence() {
        let wrong = |text: &str| read(text).unwrap_err();
        assert_eq!(wrong("nodes: 3\nlisten:\n"), Wrong { line: 2, why: "listen has no value".to_owned() });
        assert_eq!(wrong("a: 1\nnodes: {a: 1}\n").line, 2);
        for text in ["- a\n", "nodes: [\n", "a: 1\na: 2\n", "just words\n"] {
            let Wrong { line, why } = wrong(text);
            assert!(line >= 1 && !why.is_empty() && !why.contains('\n'), "{text:?}: line {line}: {why}");
        }
    }
}
