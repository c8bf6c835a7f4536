//! What a cell says: lines for the session, or a magic in its first line.

use aolab::error::did_you_mean;
use aolab::{Error, Result};

/// A cell, read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cell<'a> {
    /// The same lines as in the REPL.
    Lines(&'a str),
    /// `%%time`: such lines, and how long they took together.
    Timed(&'a str),
}

const MAGICS: [&str; 1] = ["%%time"];

/// Reads a cell. A first line that begins with `%%` is a magic; there is no other way to be one.
pub(super) fn read(code: &str) -> Result<Cell<'_>> {
    let code = code.trim_start();
    if !code.starts_with("%%") {
        return Ok(Cell::Lines(code));
    }
    let (first, rest) = code.split_once('\n').unwrap_or((code, ""));
    let word = first.split_whitespace().next().unwrap_or_default();
    match word {
        "%%time" if first.trim() != word => Err(Error::usage(
            "`%%time` stands alone in its line; `time` in front of a line times that line",
        )),
        "%%time" => Ok(Cell::Timed(rest)),
        _ => {
            let next = match did_you_mean(word, MAGICS) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("there is {}", MAGICS.join(", ")),
            };
            Err(Error::usage(format!("no cell magic is called {word}; {next}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_magic_stands_in_the_first_line() {
        assert_eq!(read("load tiny\nsize").expect("lines"), Cell::Lines("load tiny\nsize"));
        assert_eq!(read("\n%%time\nsize").expect("timed"), Cell::Timed("size"));
        assert_eq!(read("%%time").expect("timed"), Cell::Timed(""));
        assert_eq!(read("size\n%%time").expect("lines"), Cell::Lines("size\n%%time"));
        let wrong = read("%%tim\nsize").expect_err("no such magic").to_string();
        assert!(wrong.contains("did you mean %%time?"), "{wrong}");
        assert!(read("%%time size").is_err());
    }
}
