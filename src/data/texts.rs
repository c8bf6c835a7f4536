//! The texts that are part of the program.

use crate::error::{Error, Result, did_you_mean};

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
