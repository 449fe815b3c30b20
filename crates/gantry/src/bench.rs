//! `gantry bench`: runs a bench of the crate `bench` on this program, and tells its figures. `all` runs every one and
//! writes the page of results; `check` runs those whose processor time is stored, and fails when one needs a tenth more.

use std::path::Path;

use bench::{BENCHES, Bench, Run, Said, report};
use meta::{Value, json};

use crate::error::Error;
use crate::flags::Settings;

/// Options that have a flag of their own.
const OWN_FLAGS: [&str; 4] = ["nodes", "pods", "shape", "minutes"];
/// Benches that are no matter of speed; `all` leaves them out.
const OTHERS: [&str; 1] = ["torture"];
/// The results as programs read them, and as people do.
const RESULTS_FILE: &str = "results.json";
const PAGE_FILE: &str = "RESULTS.md";

pub fn run(settings: &Settings) -> Result<(), Error> {
    let name = settings.argument();
    match name {
        "names" => return names(settings.flag("json")),
        "all" => return all(settings),
        "check" => return check(settings),
        _ => {}
    }
    let known = || {
        let names: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        settings.complain("NAME", format!("{name:?} is no bench; there are {}", names.join(", ")))
    };
    let bench = bench::bench(name).ok_or_else(known)?;
    let result = measure(bench, &said(settings))?;
    if settings.path("results").is_some() {
        let mut results = stored(&folder(settings))?;
        keep(&mut results, result.clone());
        write(&folder(settings), &results)?;
    }
    show(&result, settings.flag("json"));
    Ok(())
}

fn said(settings: &Settings) -> Said {
    let mut said = Said { small: settings.flag("small"), alone: settings.flag("alone"), ..Said::default() };
    for name in OWN_FLAGS {
        if let Some(text) = settings.text(name) {
            said.options.insert(name.to_owned(), text.to_owned());
        }
    }
    for pair in settings.all("set") {
        if let Some((name, value)) = pair.split_once('=') {
            said.options.insert(name.to_owned(), value.to_owned());
        }
    }
    said
}

/// Runs one bench on this very program.
fn measure(bench: &'static Bench, said: &Said) -> Result<Value, Error> {
    let failed = |error: bench::Error| Error::doing(format!("run the bench {}", bench.name), error);
    if bench.needs_root {
        crate::machine::need_root("bench")?;
    }
    let binary = std::env::current_exe().map_err(|error| Error::doing("find this program", error))?;
    let mut run = Run::new(bench, said, &binary, |what| eprintln!("{what}")).map_err(failed)?;
    (bench.run)(&mut run).map_err(failed)?;
    Ok(run.finish())
}

/// The folder of results.
fn folder(settings: &Settings) -> std::path::PathBuf {
    settings.path("results").unwrap_or_else(|| "crates/bench".into())
}

/// Runs every bench; what fails is told, and the others go on. A result takes the place of the stored one of its bench.
fn all(settings: &Settings) -> Result<(), Error> {
    let (dir, said) = (folder(settings), said(settings));
    let mut results = stored(&dir)?;
    let mut failed = Vec::new();
    for bench in BENCHES.iter().filter(|bench| !OTHERS.contains(&bench.name)) {
        eprintln!("== {}", bench.name);
        match measure(bench, &said) {
            Ok(result) => {
                keep(&mut results, result);
                write(&dir, &results)?;
            }
            Err(error) => {
                eprintln!("{error}");
                failed.push(bench.name);
            }
        }
    }
    if settings.flag("json") {
        say!("{}", String::from_utf8_lossy(&Value::from(results).to_json()));
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::doing("run every bench", format!("without figures: {}", failed.join(", ")))),
    }
}

/// What an earlier run wrote, in the order of the table; nothing when there was none.
fn stored(dir: &Path) -> Result<Vec<Value>, Error> {
    let path = dir.join(RESULTS_FILE);
    match std::fs::read(&path) {
        Ok(text) => {
            let value = Value::parse(&text).map_err(|error| Error::doing("read the stored results", error))?;
            Ok(value["results"].items().to_vec())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// Puts a result in the place of the one that it is a later look at; the table's order is kept.
fn keep(results: &mut Vec<Value>, result: Value) {
    match results.iter_mut().find(|old| report::replaces(&result, old)) {
        Some(old) => *old = result,
        None => results.push(result),
    }
    let place = |result: &Value| BENCHES.iter().position(|bench| bench.name == result["bench"].text());
    results.sort_by_key(place);
}

/// Writes results, page and plots.
fn write(dir: &Path, results: &[Value]) -> Result<(), Error> {
    let put = |name: &str, text: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(Error::file("write", &path))
    };
    put(RESULTS_FILE, &meta::value::pretty(&json!({"results": (results.to_vec())})))?;
    put(PAGE_FILE, report::page(results).as_bytes())?;
    if let Some(growth) = results.iter().find(|result| result["bench"].text() == "growth") {
        for (metric, lines) in report::growth_lines(growth) {
            let title = format!("What one more costs ({metric})");
            put(&format!("growth-{metric}.svg"), report::plot(&title, &metric, &lines).as_bytes())?;
        }
    }
    Ok(())
}

/// Runs the benches of which a processor time of this processor is stored again, with the options of then.
fn check(settings: &Settings) -> Result<(), Error> {
    let results = stored(&folder(settings))?;
    let mut worse = Vec::new();
    let here = bench::machine::cpu();
    let timed = |result: &&Value| result["figures"].entries().keys().any(|key| key.starts_with("cpu_us_per_"));
    let comparable = |result: &&Value| timed(result) && result["machine"]["cpu"].text() == here;
    if !results.iter().any(|result| comparable(&result)) {
        let why = format!("no result of this processor ({here}) is stored; `gantry bench all` stores some");
        return Err(Error::doing("compare with what was", why));
    }
    for then in results.iter().filter(comparable) {
        let Some(bench) = bench::bench(then["bench"].text()) else { continue };
        eprintln!("== {}", bench.name);
        let mut said = said(settings);
        for (name, value) in then["options"].entries().iter() {
            let text =
                value.as_str().map_or_else(|| String::from_utf8_lossy(&value.to_json()).into_owned(), str::to_owned);
            said.options.entry(name.to_owned()).or_insert(text);
        }
        worse.extend(report::regressions(then, &measure(bench, &said)?));
    }
    match worse.is_empty() {
        true => Ok(()),
        false => Err(Error::doing("find everything as quick as it was", worse.join("; "))),
    }
}

fn show(result: &Value, as_json: bool) {
    if as_json {
        return say!("{}", String::from_utf8_lossy(&result.to_json()));
    }
    say!("{}", String::from_utf8_lossy(&meta::value::pretty(result)));
}

fn names(as_json: bool) -> Result<(), Error> {
    if as_json {
        let names: Vec<Value> = BENCHES.iter().map(|bench| Value::from(bench.name)).collect();
        say!("{}", String::from_utf8_lossy(&Value::from(names).to_json()));
        return Ok(());
    }
    for bench in BENCHES {
        say!("{}: {}", bench.name, bench.about);
        for option in bench.options {
            say!("    {}={}  {}", option.name, option.default, option.help);
        }
    }
    Ok(())
}
