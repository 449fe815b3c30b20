//! The table's text form. What each word means is said in `meta::schema`, which reads it.

use std::collections::BTreeMap;

/// All types by full name.
#[derive(Debug, Default)]
pub struct Types(pub BTreeMap<String, Struct>);

/// One type.
#[derive(Debug, Default)]
pub struct Struct {
    /// `group/version/kind` of each kind it is.
    pub kinds: Vec<String>,
    pub atomic: bool,
    pub fields: Vec<Field>,
}

/// One field.
#[derive(Clone, Debug, Default)]
pub struct Field {
    pub name: String,
    /// The protobuf number, `2.5` for a field of an embedded message, or empty.
    pub number: String,
    pub of: String,
    flags: String,
    attributes: BTreeMap<String, String>,
}

impl Struct {
    pub fn push(&mut self, field: Field) {
        self.fields.push(field);
    }

    /// Adds the field, or replaces the one of its name.
    pub fn put(&mut self, field: Field) {
        self.fields.retain(|other| other.name != field.name);
        self.fields.push(field);
    }
}

impl Field {
    pub fn new(name: &str, of: &str, flags: &str) -> Field {
        Field { name: name.to_owned(), of: of.to_owned(), flags: flags.to_owned(), ..Field::default() }
    }

    /// Reads what [`write`] writes.
    pub fn parse(line: &str) -> Option<Field> {
        let mut words = line.split(' ');
        let mut field = Field::new(words.next()?, "", "");
        field.number = words.next()?.trim_matches('-').to_owned();
        field.of = words.next()?.to_owned();
        for word in words {
            match word.split_once('=') {
                Some((key, value)) => field.set(key, value),
                None => field.flags = word.to_owned(),
            }
        }
        Some(field)
    }

    pub fn toggle(&mut self, flag: &str) {
        match self.flags.contains(flag) {
            true => self.flags = self.flags.replace(flag, ""),
            false => self.flags.push_str(flag),
        }
    }

    pub fn toggle_pointer(&mut self) {
        match self.of.strip_prefix('*') {
            Some(of) => self.of = of.to_owned(),
            None => self.of.insert(0, '*'),
        }
    }

    /// Sets an attribute; an empty value takes it away.
    pub fn set(&mut self, key: &str, value: &str) {
        match value {
            "" => self.attributes.remove(key),
            value => self.attributes.insert(key.to_owned(), value.to_owned()),
        };
    }

    /// Takes over what upstream's markers say.
    pub fn mark(&mut self, markers: &[String]) {
        let mut keys = Vec::new();
        for marker in markers {
            let (name, value) = marker.split_once('=').unwrap_or((marker, ""));
            let value = value.trim();
            match name.trim() {
                "+listType" => self.set("l", value),
                "+listMapKey" => keys.push(value),
                "+patchStrategy" => self.set("s", value),
                "+patchMergeKey" => self.set("k", value),
                "+default" => self.set("d", &value.replace(' ', "")),
                "+mapType" | "+structType" if value == "atomic" => self.toggle("a"),
                _ => {}
            }
        }
        if !keys.is_empty() {
            self.set("l", &format!("map:{}", keys.join(",")));
        }
    }
}

/// The whole table.
pub fn write(types: &Types) -> String {
    let mut text = "# The schema of all built-in kinds. Made by schemagen; do not edit.\n".to_owned();
    let mut current = "";
    for (name, found) in &types.0 {
        let (package, short) = name.rsplit_once('.').unwrap_or(("", name));
        if package != current {
            text.push_str(&format!("package {package}\n"));
            current = package;
        }
        text.push_str(short);
        if found.atomic {
            text.push_str(" atomic");
        }
        for kind in &found.kinds {
            text.push_str(&format!(" {}", kind.strip_suffix(&format!("/{short}")).unwrap_or(kind)));
        }
        text.push('\n');
        let mut fields: Vec<&Field> = found.fields.iter().collect();
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        for field in fields {
            write_field(&mut text, package, field);
        }
    }
    text
}

fn write_field(text: &mut String, package: &str, field: &Field) {
    let number = if field.number.is_empty() { "-" } else { &field.number };
    let at = field.of.find("io.k8s.").unwrap_or(field.of.len());
    let (start, path) = field.of.split_at(at);
    let own = path.strip_prefix(package).and_then(|path| path.strip_prefix('.'));
    // A package is named by its last two parts, which are unique.
    let parts: Vec<&str> = path.rsplitn(4, '.').collect();
    let path = match (own, parts.as_slice()) {
        (Some(own), _) => own.to_owned(),
        (None, [name, version, group, _]) => format!("{group}.{version}.{name}"),
        _ => path.to_owned(),
    };
    text.push_str(&format!(" {} {number} {start}{path}", field.name));
    if !field.flags.is_empty() {
        let mut flags: Vec<char> = field.flags.chars().collect();
        flags.sort_unstable();
        text.push_str(&format!(" {}", String::from_iter(flags)));
    }
    for (key, value) in &field.attributes {
        text.push_str(&format!(" {key}={value}"));
    }
    text.push('\n');
}
