use std::collections::BTreeSet;

use super::table::FLAGS;
use super::*;

fn said(words: &str, environment: &[(&str, &str)]) -> Result<Settings, Error> {
    let words = std::iter::once("gantry").chain(words.split_whitespace()).map(OsString::from);
    let look = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    read(words, &look)
}

fn complaint(words: &str, environment: &[(&str, &str)]) -> String {
    said(words, environment).unwrap_err().to_string()
}

#[test]
fn the_table_is_sound() {
    program().debug_assert();
    let mut seen = BTreeSet::new();
    for flag in FLAGS {
        assert!(!flag.help.ends_with('.') && !flag.commands.is_empty(), "{}", flag.name);
        for path in flag.commands {
            assert!(command(path).is_some(), "{}: no command {path}", flag.name);
            assert!(seen.insert((flag.name, *path)), "{} stands twice for {path}", flag.name);
        }
        if !flag.default.is_empty() {
            assert_eq!(flag.kind.check(flag.default), Ok(()), "{}", flag.name);
        }
    }
    for row in COMMANDS {
        for (_, example) in row.examples.iter().filter(|(_, example)| example.starts_with("gantry ")) {
            let words = example.split_whitespace().map(OsString::from);
            assert_eq!(read(words, &|_| None).unwrap().command, row.path, "{example}");
        }
    }
}

#[test]
fn the_command_line_beats_the_environment_beats_the_file_beats_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gantry.yaml");
    std::fs::write(&path, "nodes: 3\nlisten: 127.0.0.1:3\nlog: debug\napply: [a.yaml, b.yaml]\n").unwrap();
    let words = format!("up --nodes 1 --config {}", path.display());
    let settings = said(&words, &[("GANTRY_NODES", "2"), ("GANTRY_LISTEN", "127.0.0.1:2")]).unwrap();
    assert_eq!(settings.must::<u32>("nodes"), 1);
    assert_eq!(settings.text("listen"), Some("127.0.0.1:2"));
    assert_eq!(settings.text("log"), Some("debug"));
    assert_eq!(settings.all("apply"), ["a.yaml", "b.yaml"]);
    assert_eq!(settings.text("pod-cidr"), Some("10.244.0.0/16"));
    let settings = said("up", &[("GANTRY_APPLY", "x,y"), ("GANTRY_CONFIG", &path.display().to_string())]).unwrap();
    assert_eq!((settings.all("apply").len(), settings.must::<u32>("nodes")), (2, 3));
}

#[test]
fn what_may_be_empty_can_be_said_to_be() {
    let settings = said("up --token-config-map=", &[]).unwrap();
    assert_eq!(settings.all("token-config-map"), [""]);
    assert_eq!(complaint("up --log=", &[]), "--log: it is empty");
}

#[test]
fn complaints_name_the_place() {
    assert_eq!(complaint("up --nodes 0", &[]), "--nodes: \"0\" is no number from 1 to 100");
    assert_eq!(complaint("up", &[("GANTRY_NODES", "x")]), "GANTRY_NODES: \"x\" is no number from 1 to 100");
    let bad = "--pod-cidr: \"10.1\" is no range of addresses; write it like 10.244.0.0/16";
    assert_eq!(complaint("server --pod-cidr 10.1", &[]), bad);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("g.yaml");
    let in_file = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let told = complaint(&format!("up --config {}", path.display()), &[]);
        told.replace(&path.display().to_string(), "F")
    };
    assert_eq!(in_file("log: info\nnodes: many\n"), "F, line 2: nodes: \"many\" is no number from 1 to 100");
    assert_eq!(in_file("nodse: 3\n"), "F, line 1: \"nodse\" is no flag of gantry up; did you mean \"nodes\"?");
    assert_eq!(in_file("\nparts: api\n"), "F, line 2: \"parts\" is no flag of gantry up");
    assert_eq!(in_file("nodes: [1, 2]\n"), "F, line 1: nodes takes one value");
    let missing = complaint("up --config /does/not/exist", &[]);
    assert!(missing.starts_with("cannot read the configuration /does/not/exist: "), "{missing}");
}

#[test]
fn help_and_completion_come_from_the_table() {
    let help = said("server --help", &[]).unwrap_err().to_string();
    for part in
        ["--service-cidr <CIDR>", "[default: 10.96.0.0/16]", "[env: GANTRY_SERVICE_CIDR]", "gantry server --parts api"]
    {
        assert!(help.contains(part), "no {part} in {help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = String::from_utf8(completion(shell)).unwrap();
        for flag in FLAGS {
            assert!(script.contains(flag.name), "{shell} does not know --{}", flag.name);
        }
        assert!(script.contains("wrapped"));
    }
    assert_eq!(said("image load a.tar", &[]).unwrap().argument(), "a.tar");
    assert!(complaint("up --nodse 3", &[]).contains("--nodes"));
}
