//! What the user said: command line, environment, configuration file and defaults, in this order, from one table.
//!
//! - [`table`]: the commands and flags; adding one is one row.
//! - [`value`]: what they may be given.
//! - [`file`]: the configuration file.
//!
//! Not here: what anything means. Invariant: every value in [`Settings`] passed its check, and whatever is refused is
//! refused with the place where it was said.

pub mod file;
pub mod table;
pub mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};

use crate::error::Error;
use table::{COMMANDS, CommandRow, FlagRow, command, flags_of};
use value::Kind;

/// Where a value was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    CommandLine,
    /// The variable's name.
    Environment(String),
    /// The file and the line.
    File(PathBuf, u64),
    Default,
}

impl Place {
    /// How a complaint about `flag` begins.
    fn of(&self, flag: &str) -> String {
        match self {
            Place::CommandLine | Place::Default => format!("--{flag}"),
            Place::Environment(variable) => variable.clone(),
            Place::File(path, line) => format!("{}, line {line}: {flag}", path.display()),
        }
    }
}

/// What holds for one run of one command.
#[derive(Clone, Debug)]
pub struct Settings {
    pub command: &'static str,
    values: BTreeMap<&'static str, (Vec<String>, Place)>,
    argument: Option<String>,
}

/// Reads everything that was said. `words` are the arguments with the program's name; `environment` looks variables up.
pub fn read(
    words: impl IntoIterator<Item = OsString>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, Error> {
    let matches = program().try_get_matches_from(words).map_err(Error::Words)?;
    let (path, matches) = chosen(&matches);
    let row = command(&path).expect("clap knows the commands of the table only");
    let mut said = BTreeMap::new();
    for flag in flags_of(row.path) {
        if let Some(values) = on_the_command_line(flag, matches) {
            said.insert(flag.name, (values, Place::CommandLine));
        } else if let Some(text) = environment(&flag.variable()) {
            let values = if flag.many { text.split(',').map(str::to_owned).collect() } else { vec![text] };
            said.insert(flag.name, (values, Place::Environment(flag.variable())));
        }
    }
    if let Some((values, _)) = said.get("config") {
        let path = PathBuf::from(&values[0]);
        for (name, value) in from_file(row, &path)? {
            said.entry(name).or_insert(value);
        }
    }
    for flag in flags_of(row.path).filter(|flag| !flag.default.is_empty()) {
        said.entry(flag.name).or_insert_with(|| (vec![flag.default.to_owned()], Place::Default));
    }
    for flag in flags_of(row.path) {
        let Some((values, place)) = said.get(flag.name) else { continue };
        for text in values {
            flag.kind.check(text).map_err(|why| Error::Value { place: place.of(flag.name), why })?;
        }
    }
    let argument = row.argument.and_then(|(name, kind, _)| {
        let text = matches.get_one::<String>(name)?;
        Some(kind.check(text).map(|()| text.clone()).map_err(|why| Error::Value { place: name.to_owned(), why }))
    });
    Ok(Settings { command: row.path, values: said, argument: argument.transpose()? })
}

/// The path of the command that was chosen, and what was said to it.
fn chosen(matches: &ArgMatches) -> (String, &ArgMatches) {
    let mut path = String::new();
    let mut at = matches;
    while let Some((name, inner)) = at.subcommand() {
        path = if path.is_empty() { name.to_owned() } else { format!("{path} {name}") };
        at = inner;
    }
    (path, at)
}

fn on_the_command_line(flag: &FlagRow, matches: &ArgMatches) -> Option<Vec<String>> {
    match flag.kind {
        Kind::Switch => matches.get_flag(flag.name).then(|| vec!["true".to_owned()]),
        _ => matches.get_many::<String>(flag.name).map(|values| values.cloned().collect()),
    }
}

type Said = (&'static str, (Vec<String>, Place));

/// The values of a configuration file for a command. Names of other commands are refused, as unknown ones are.
fn from_file(row: &CommandRow, path: &Path) -> Result<Vec<Said>, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::File {
        doing: "read the configuration",
        path: path.to_owned(),
        error,
    })?;
    let wrong = |line, why| Error::Value { place: format!("{}, line {line}", path.display()), why };
    let entries = file::read(&text).map_err(|file::Wrong { line, why }| wrong(line, why))?;
    let mut said = Vec::new();
    for file::Entry { name, values, line } in entries {
        let Some(flag) = flags_of(row.path).find(|flag| flag.name == name && name != "config") else {
            let mut why = format!("{name:?} is no flag of gantry {}", row.path);
            if let Some(near) = nearest(row.path, &name) {
                why.push_str(&format!("; did you mean {near:?}?"));
            }
            return Err(wrong(line, why));
        };
        if values.len() != 1 && !flag.many {
            // Words of a list may be written as a list, too.
            if !matches!(flag.kind, Kind::Words(_)) || values.is_empty() {
                return Err(wrong(line, format!("{name} takes one value")));
            }
            said.push((flag.name, (vec![values.join(",")], Place::File(path.to_owned(), line))));
            continue;
        }
        said.push((flag.name, (values, Place::File(path.to_owned(), line))));
    }
    Ok(said)
}

/// The flag whose name is most like `name`, if any is.
fn nearest(path: &str, name: &str) -> Option<&'static str> {
    /// From this many changed letters on, two names are not alike.
    const CHANGES_MAX: usize = 3;
    let best = flags_of(path).map(|flag| (changes(flag.name, name), flag.name)).min()?;
    (best.0 < CHANGES_MAX).then_some(best.1)
}

/// Letters to change, add or take away to make one of the other.
fn changes(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let keep = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = keep.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The whole program for clap, made of the table.
pub fn program() -> Command {
    let mut program = Command::new("gantry")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A whole Kubernetes-compatible cluster in one program")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .after_help("Flags may also stand in a file (--config FILE, by their names) or in the environment (GANTRY_…).");
    let mut groups: Vec<(&str, Command)> = Vec::new();
    for row in COMMANDS {
        match row.path.split_once(' ') {
            None => program = program.subcommand(one(row, row.path)),
            Some((group, name)) => {
                let known = groups.iter().position(|(known, _)| *known == group);
                let at = known.unwrap_or_else(|| {
                    let made = Command::new(group).about(about(group)).subcommand_required(true);
                    groups.push((group, made.arg_required_else_help(true).disable_help_subcommand(true)));
                    groups.len() - 1
                });
                groups[at].1 = std::mem::take(&mut groups[at].1).subcommand(one(row, name));
            }
        }
    }
    groups.into_iter().fold(program, |program, (_, group)| program.subcommand(group))
}

fn about(group: &str) -> &'static str {
    match group {
        "image" => "Load, pull, list and remove images of nodes; also while they run",
        "backup" => "Write, check and restore backups of a whole cluster",
        _ => "Check, dump, restore and move a store that nobody runs",
    }
}

fn one(row: &'static CommandRow, name: &'static str) -> Command {
    let mut made = Command::new(name).about(row.about);
    if let Some((name, kind, help)) = row.argument {
        made = made.arg(takes(Arg::new(name).required(true).help(help), kind).value_name(name));
    }
    for flag in flags_of(row.path) {
        let mut help = flag.help.to_owned();
        if flag.many {
            help.push_str("; may be given several times");
        }
        if !flag.default.is_empty() {
            help.push_str(&format!(" [default: {}]", flag.default));
        }
        help.push_str(&format!(" [env: {}]", flag.variable()));
        let mut arg = Arg::new(flag.name).long(flag.name).help(help);
        if flag.kind == Kind::Switch {
            arg = arg.action(ArgAction::SetTrue);
        } else {
            arg = takes(arg, flag.kind).value_name(flag.kind.placeholder());
            arg = arg.action(if flag.many { ArgAction::Append } else { ArgAction::Set });
        }
        made = made.arg(arg);
    }
    let width = row.examples.iter().map(|(_, line)| line.len()).max().unwrap_or(0);
    let examples = row.examples.iter().map(|(what, line)| format!("  {line:width$}  # {what}\n"));
    let examples: String = examples.collect();
    if examples.is_empty() { made } else { made.after_help(format!("Examples:\n{}", examples.trim_end())) }
}

/// What shells offer for a value.
fn takes(arg: Arg, kind: Kind) -> Arg {
    match kind {
        Kind::Dir => arg.value_hint(ValueHint::DirPath),
        Kind::File => arg.value_hint(ValueHint::FilePath),
        Kind::Url | Kind::Urls => arg.value_hint(ValueHint::Url),
        // Checked by clap as well, which makes shells offer the words.
        Kind::Word(words) => arg.value_parser(clap::builder::PossibleValuesParser::new(words)),
        _ => arg.value_hint(ValueHint::Other),
    }
}

/// The completion script of a shell.
pub fn completion(shell: &str) -> Vec<u8> {
    let mut script = Vec::new();
    let shell = match shell {
        "zsh" => clap_complete::Shell::Zsh,
        "fish" => clap_complete::Shell::Fish,
        _ => clap_complete::Shell::Bash,
    };
    clap_complete::generate(shell, &mut program(), "gantry", &mut script);
    script
}

impl Settings {
    /// For a command that another one runs inside: the defaults, and these values.
    pub fn of(command: &'static str, values: &[(&'static str, String)]) -> Settings {
        let mut said = BTreeMap::new();
        for flag in flags_of(command).filter(|flag| !flag.default.is_empty()) {
            said.insert(flag.name, (vec![flag.default.to_owned()], Place::Default));
        }
        for (name, value) in values {
            said.insert(name, (vec![value.clone()], Place::CommandLine));
        }
        Settings { command, values: said, argument: None }
    }

    /// The same values for another command, where it has such flags.
    pub fn handed_to(&self, command: &'static str) -> Settings {
        let mut settings = Settings::of(command, &[]);
        for flag in flags_of(command) {
            if let Some(known) = self.values.get(flag.name) {
                settings.values.insert(flag.name, known.clone());
            }
        }
        settings
    }

    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Settings {
        self.values.insert(name, (vec![value.to_string()], Place::CommandLine));
        self
    }

    pub fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], |(values, _)| values)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.all(name).last().map(String::as_str)
    }

    pub fn flag(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }

    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    /// The folder of the command's data.
    pub fn data(&self) -> PathBuf {
        self.path("data").expect("every command that asks has a default")
    }

    /// A value that has a form: it passed its check, so it can be read.
    pub fn read<T: FromStr>(&self, name: &str) -> Option<T> {
        self.text(name).and_then(|text| text.parse().ok())
    }

    /// As [`Settings::read`], for flags with a default.
    pub fn must<T: FromStr>(&self, name: &str) -> T {
        self.read(name).expect("the flag has a default, and every value passed its check")
    }

    pub fn sockets(&self, name: &str) -> Vec<SocketAddr> {
        self.all(name).iter().filter_map(|text| text.parse().ok()).collect()
    }

    pub fn duration(&self, name: &str) -> Duration {
        let read = self.text(name).and_then(|text| value::duration(text).ok());
        read.expect("the flag has a default, and every value passed its check")
    }

    /// Whether a comma-separated list names the word.
    pub fn names(&self, name: &str, word: &str) -> bool {
        self.text(name).is_some_and(|text| text.split(',').any(|one| one == word))
    }

    /// What was given without a flag.
    pub fn argument(&self) -> &str {
        self.argument.as_deref().expect("clap asks for it")
    }

    /// The place where a value was said, for a complaint that only its use shows.
    pub fn complain(&self, name: &str, why: impl Into<String>) -> Error {
        let place = self.values.get(name).map_or(Place::CommandLine, |(_, place)| place.clone());
        Error::Value { place: place.of(name), why: why.into() }
    }
}

#[cfg(test)]
mod tests;
