//! A mistake at a place of the source.

use std::ops::Range;

use crate::error::Error;

/// How many bytes of a line are shown before and behind a mistake.
const NEIGHBOURHOOD: usize = 100;

/// What is wrong with a line, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What, got, wanted, what next.
    pub words: String,
    /// The bytes of the source that it is about.
    pub span: Range<usize>,
    /// Whether more lines could make it right: an open quote, a trailing `|` or `\`.
    pub incomplete: bool,
}

impl Fault {
    /// A mistake that more lines cannot mend.
    pub fn new(words: impl Into<String>, span: Range<usize>) -> Fault {
        Fault { words: words.into(), span, incomplete: false }
    }

    pub(super) fn incomplete(words: impl Into<String>, span: Range<usize>) -> Fault {
        Fault { incomplete: true, ..Fault::new(words, span) }
    }

    /// The words, then the line of `source` with a caret under the place.
    pub fn render(&self, source: &str) -> String {
        let start = floor(source, self.span.start);
        let line_start = source[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = source[start..].find('\n').map_or(source.len(), |i| start + i);
        let end = floor(source, self.span.end.clamp(start, line_end));
        // Of a very long line only the neighbourhood helps.
        let shown_from = floor(source, line_start.max(start.saturating_sub(NEIGHBOURHOOD)));
        let shown_to = floor(source, line_end.min(start + NEIGHBOURHOOD));
        let dots = |cut: bool| if cut { "…" } else { "" };
        let (before, after) = (dots(shown_from > line_start), dots(shown_to < line_end));
        let shown = |part: &str| part.replace(|c: char| c.is_control(), " ");
        let width = |text: &str| crate::table::words::width(text);
        let carets = width(&shown(&source[start..end.min(shown_to)])).max(1);
        let line = shown(&source[shown_from..shown_to]);
        let indent = width(before) + width(&shown(&source[shown_from..start]));
        format!(
            "{}\n  {before}{line}{after}\n  {}{}",
            self.words,
            " ".repeat(indent),
            "^".repeat(carets)
        )
    }

    /// The same as an error of usage (exit code 2).
    pub fn into_error(self, source: &str) -> Error {
        Error::Usage(self.render(source))
    }
}

/// The nearest character boundary at or before `at`.
fn floor(source: &str, at: usize) -> usize {
    let at = at.min(source.len());
    (0..=at).rev().find(|i| source.is_char_boundary(*i)).unwrap_or(0)
}

/// The number of the line of `source`, from 1, that byte `at` is on.
pub(crate) fn line_number(source: &str, at: usize) -> usize {
    1 + source[..floor(source, at)].matches('\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_place() {
        let fault = Fault::new("no such thing", 9..11);
        assert_eq!(fault.render("ä b\n  cde fg"), "no such thing\n    cde fg\n      ^^");
        assert_eq!(Fault::new("end", 3..3).render("abc"), "end\n  abc\n     ^");
        assert_eq!(Fault::new("beyond", 30..99).render("abc"), "beyond\n  abc\n     ^");
        let long = format!("{}?{}", "a".repeat(5000), "é".repeat(5000));
        let shown = Fault::new("long", 5000..5001).render(&long);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].chars().count() < 300 && lines[1].ends_with('…'), "{shown}");
        let caret = lines[2].find('^').expect("a caret");
        assert_eq!(lines[1].chars().nth(caret), Some('?'), "{shown}");
    }
}
