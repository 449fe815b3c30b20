//! `gantry bench`: runs a bench of the crate `bench` on this program, and tells its figures.

use bench::{BENCHES, Bench, Run, Said};
use meta::Value;

use crate::error::Error;
use crate::flags::Settings;

/// Options that have a flag of their own.
const OWN_FLAGS: [&str; 3] = ["nodes", "pods", "shape"];

pub fn run(settings: &Settings) -> Result<(), Error> {
    let name = settings.argument();
    if name == "names" {
        return names(settings.flag("json"));
    }
    let known = || {
        let names: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        settings.complain("NAME", format!("{name:?} is no bench; there are {}", names.join(", ")))
    };
    let bench = bench::bench(name).ok_or_else(known)?;
    let result = measure(bench, &said(settings))?;
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

fn show(result: &Value, as_json: bool) {
    if as_json {
        return println!("{}", String::from_utf8_lossy(&result.to_json()));
    }
    println!("{}", String::from_utf8_lossy(&meta::value::pretty(result)));
}

fn names(as_json: bool) -> Result<(), Error> {
    if as_json {
        let names: Vec<Value> = BENCHES.iter().map(|bench| Value::from(bench.name)).collect();
        println!("{}", String::from_utf8_lossy(&Value::List(names).to_json()));
        return Ok(());
    }
    for bench in BENCHES {
        println!("{}: {}", bench.name, bench.about);
        for option in bench.options {
            println!("    {}={}  {}", option.name, option.default, option.help);
        }
    }
    Ok(())
}
