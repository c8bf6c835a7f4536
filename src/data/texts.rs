//! The texts that are part of the program.

use std::path::Path;

use crate::error::{AtPath, Error, Result, did_you_mean};

/// The US State of the Union addresses of 2001 to 2020 (public domain), which the built-in model has never seen.
pub const SOTU: &str = include_str!("../model/tiny/eval.txt");

/// The names of the built-in texts.
pub const NAMES: [&str; 1] = ["sotu"];

/// The built-in text called `name`.
pub fn builtin(name: &str) -> Result<&'static str> {
    if name == "sotu" {
        return Ok(SOTU);
    }
    let hint = did_you_mean(name, NAMES).map(|near| format!("; did you mean {near}?"));
    Err(Error::invalid(format!(
        "there is no built-in text {name:?}; wanted {}{}",
        NAMES.join(", "),
        hint.unwrap_or_default()
    )))
}

/// A text by the name of a built-in one, or else the UTF-8 file at `path`.
pub fn read(path: &Path) -> Result<String> {
    if let Some(name) = path.to_str()
        && NAMES.contains(&name)
    {
        return builtin(name).map(str::to_owned);
    }
    if !path.exists() {
        let names = NAMES.join(", ");
        return Err(Error::file(path, format!("no such file; wanted a text file or {names}")));
    }
    let bytes = std::fs::read(path).at(path)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::file(path, format!("not UTF-8 text: byte {at} is the first wrong one"))
    })
}
