//! What a cell says: lines for the session, or a magic in its first line.

use aolab::error::did_you_mean;
use aolab::language::{parse, quote};
use aolab::{Error, Result};

/// A cell, read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cell<'a> {
    /// The same lines as in the REPL.
    Lines(&'a str),
    /// `%%time`: such lines, and how long they took together.
    Timed(&'a str),
    /// `%%sweep FLAGS`: each statement is a pipeline of one `sweep`; this is its line.
    Sweep(String),
}

const MAGICS: [&str; 2] = ["%%sweep", "%%time"];

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
        "%%sweep" => sweep(first.trim_start_matches(word), rest).map(Cell::Sweep),
        _ => {
            let next = match did_you_mean(word, MAGICS) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("there is {}", MAGICS.join(", ")),
            };
            Err(Error::usage(format!("no cell magic is called {word}; {next}")))
        }
    }
}

/// The line that `%%sweep` stands for: the pipelines need no quotes in a cell, and may be long.
fn sweep(flags: &str, code: &str) -> Result<String> {
    let program = parse(code).map_err(|fault| fault.into_error(code))?;
    if program.statements.is_empty() {
        return Err(Error::usage(
            "`%%sweep` wants a pipeline below it: `quantize int4-weight-only --group-size {32,64} | eval perplexity`",
        ));
    }
    let pipelines = program.statements.iter().map(|statement| quote(&code[statement.span.clone()]));
    let words: Vec<String> = std::iter::once(flags.trim().to_owned()).chain(pipelines).collect();
    Ok(format!("sweep {}", words.join(" ").trim()))
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

    #[test]
    fn a_sweep_is_one_line_of_its_pipelines() {
        let cell = "%%sweep --random 2\nquantize nf4-weight-only |\n  size # small\n\nsize 'a b'";
        let Cell::Sweep(line) = read(cell).expect("a sweep") else { panic!("not a sweep") };
        let program = parse(&line).expect("a line");
        let [statement] = program.statements.as_slice() else { panic!("one statement: {line}") };
        let words: Vec<&str> =
            statement.stages[0].words.iter().map(|word| word.text.as_str()).collect();
        assert_eq!(words[..3], ["sweep", "--random", "2"]);
        assert!(words[3].starts_with("quantize nf4-weight-only |") && words[4] == "size 'a b'");
        assert!(read("%%sweep\n# nothing").is_err());
        assert!(read("%%sweep\nsize 'open").is_err());
    }
}
