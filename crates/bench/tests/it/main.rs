//! The tiny form of every bench that needs neither root nor a peer, on a real server: it runs, and its result has the
//! shape that programs read. Speeds are nobody's business here.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use bench::{BENCHES, Run, Said};
use meta::Value;

/// The program under test, built as the tests are.
fn binary() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--package", "gantry", "--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs, it runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8_lossy(&output.stdout);
    let found = lines.lines().filter_map(|line| Value::parse(line.as_bytes()).ok()).find_map(|line| {
        let path = line["executable"].as_str()?.to_owned();
        (line["target"]["name"].text() == "gantry").then_some(path)
    });
    found.expect("cargo tells where it put the program").into()
}

#[test]
fn small_forms_run_and_tell_their_figures() {
    let binary = binary();
    for bench in BENCHES.iter().filter(|bench| !bench.needs_root) {
        let said = Said { small: true, alone: true, ..Said::default() };
        let mut run = Run::new(bench, &said, &binary, |_| ()).unwrap();
        let folder = run.dir().to_owned();
        (bench.run)(&mut run).unwrap_or_else(|error| panic!("{}: {error}", bench.name));
        let result = run.finish();
        assert!(!folder.exists(), "{} left its folder", bench.name);
        assert_eq!(result["bench"].text(), bench.name);
        assert_eq!(result["peer"], Value::Null, "{}", bench.name);
        assert_eq!(result["options"].entries().len(), bench.options.len());
        for figure in bench.figures {
            let value = &result["figures"][figure.key];
            assert!(matches!(value, Value::Int(_) | Value::Float(_)), "{}: {} is {value:?}", bench.name, figure.key);
        }
        for key in ["cores", "memory_mb", "foreign_cpu_percent", "seconds", "cpu", "kernel", "date"] {
            assert!(!result["machine"][key].is_null(), "{key}");
        }
    }
}

#[test]
fn the_table_is_sound() {
    let names: BTreeSet<&str> = BENCHES.iter().map(|bench| bench.name).collect();
    assert_eq!(names.len(), BENCHES.len());
    for bench in BENCHES {
        let units = ["_s", "_us", "_ms", "_mb", "_seconds", "_percent", "_positives", "_used"];
        for figure in bench.figures {
            let known = units.iter().any(|unit| figure.key.ends_with(unit))
                || ["_per_", "_over_"].iter().any(|word| figure.key.contains(word));
            assert!(known || figure.key == "seconds", "{}: the unit stands last in {}", bench.name, figure.key);
        }
        for option in bench.options {
            assert!(!option.help.ends_with('.') && !option.default.is_empty(), "{}", option.name);
        }
    }
}

#[test]
fn unknown_options_are_refused() {
    let mut said = Said::default();
    said.options.insert("colour".into(), "red".into());
    let refused = Run::new(&BENCHES[0], &said, &PathBuf::new(), |_| ()).err().unwrap().to_string();
    assert!(refused.contains("--colour") && refused.contains("seconds"), "{refused}");
}
