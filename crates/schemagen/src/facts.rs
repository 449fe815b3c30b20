//! The facts that neither crate holds: which fields are pointers in Go, what is omitted when it is empty, and what is
//! newer than `k8s-pb`. The file `facts.txt` has one type a paragraph; what its lines mean is said at its top.

use crate::Error;
use crate::table::{Field, Types};

/// Applies `text` to `types`.
pub fn apply(types: &mut Types, text: &str) -> Result<(), Error> {
    let mut current = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let wrong = || Error::Fact(format!("{current}: {line}"));
        if let Some(name) = line.strip_prefix("type ") {
            let mut words = name.split(' ');
            current = words.next().unwrap_or_default().to_owned();
            let found = types.0.entry(current.clone()).or_default();
            for word in words {
                match word {
                    "atomic" => found.atomic = !found.atomic,
                    kind => found.kinds.push(kind.to_owned()),
                }
            }
            continue;
        }
        let (operation, rest) = line.trim().split_once(' ').ok_or_else(wrong)?;
        let found = types.0.get_mut(&current).ok_or_else(wrong)?;
        if operation == "+" {
            found.put(Field::parse(rest).ok_or_else(wrong)?);
            continue;
        }
        for word in rest.split(' ') {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let field = found.fields.iter_mut().find(|field| field.name == name).ok_or_else(wrong)?;
            match operation {
                "*" => field.toggle_pointer(),
                "o" | "z" | "r" | "a" => field.toggle(operation),
                "n" => value.clone_into(&mut field.number),
                "t" => value.clone_into(&mut field.of),
                "l" | "s" | "k" | "d" => field.set(operation, value),
                "-" => {
                    let name = name.to_owned();
                    found.fields.retain(|field| field.name != name);
                }
                _ => return Err(wrong()),
            }
        }
    }
    Ok(())
}
