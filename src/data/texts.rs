//! The texts that are part of the program.

use std::path::Path;

use crate::error::{AtPath, Error, Result, did_you_mean};

/// The US State of the Union addresses of 2001 to 2020 (public domain), which the built-in model has never seen.
pub const SOTU: &str = include_str!("../model/tiny/eval.txt");

/// A part of what the built-in model was trained on (public domain): the first 3 MB of its text, State of the Union addresses
/// of 1790 to 2000 and chapters of Moby-Dick.
pub const SOTU_TRAIN: &str = include_str!("../model/tiny/train.txt");

/// Ninety-six pieces of the built-in model's training text, evenly spaced: what calibration reads unless told otherwise.
pub const CALIBRATION: &str = include_str!("../model/tiny/calibration.txt");

/// The names of the built-in texts.
pub const NAMES: [&str; 3] = ["sotu", "sotu-train", "calibration"];

/// The built-in text called `name`.
pub fn builtin(name: &str) -> Result<&'static str> {
    match name {
        "sotu" => return Ok(SOTU),
        "sotu-train" => return Ok(SOTU_TRAIN),
        "calibration" => return Ok(CALIBRATION),
        _ => {}
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
