//! Writes the schema table anew.

use std::process::ExitCode;

fn main() -> ExitCode {
    let path = schemagen::table_path();
    let written = schemagen::generate()
        .and_then(|text| std::fs::write(&path, text).map_err(|error| schemagen::Error::Read(path.clone(), error)));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
