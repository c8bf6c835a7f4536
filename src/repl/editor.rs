//! What the line editor asks while a person types.

use std::borrow::Cow;

use aolab::command::{Names, complete, find, usage_hint};
use aolab::language::{TokenKind, lex, parse};
use rustyline::completion::{Completer, Pair};
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::{Hint, Hinter};
use rustyline::history::SearchDirection;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper};

/// Completes, hints, paints and says whether a line is whole.
#[derive(Debug)]
pub(super) struct LineHelper {
    /// The session's names as of this prompt.
    pub(super) names: Names,
    color: bool,
}

impl LineHelper {
    pub(super) fn new(color: bool) -> LineHelper {
        LineHelper { names: Names::default(), color }
    }
}

impl Helper for LineHelper {}

impl Completer for LineHelper {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let found = complete(&self.names, line, at);
        let only = found.words.len() == 1;
        let pair = |word: String| {
            // A finished word is followed by a space; a folder or `--flag=` goes on.
            let goes_on = !only || word.ends_with(['/', '=', '\'', '"']);
            let replacement = if goes_on { word.clone() } else { format!("{word} ") };
            Pair { display: word, replacement }
        };
        Ok((found.replaces.start, found.words.into_iter().map(pair).collect()))
    }
}

/// Grey words behind the cursor; those from the history can be taken with the right arrow.
#[derive(Debug)]
pub(super) struct GreyWords {
    text: String,
    can_be_taken: bool,
}

impl Hint for GreyWords {
    fn display(&self) -> &str {
        &self.text
    }

    fn completion(&self) -> Option<&str> {
        self.can_be_taken.then_some(&self.text)
    }
}

impl Hinter for LineHelper {
    type Hint = GreyWords;

    fn hint(&self, line: &str, at: usize, context: &Context<'_>) -> Option<GreyWords> {
        // Without colors a hint could not be told from what was typed.
        if at < line.len() || line.trim().is_empty() || !self.color {
            return None;
        }
        let history = context.history();
        let newest = history.len().checked_sub(1);
        let earlier = newest.and_then(|newest| {
            history.starts_with(line, newest, SearchDirection::Reverse).ok().flatten()
        });
        let rest = earlier.and_then(|found| Some(found.entry.strip_prefix(line)?.to_owned()));
        match rest.filter(|rest| !rest.is_empty() && !rest.contains('\n')) {
            Some(text) => Some(GreyWords { text, can_be_taken: true }),
            None => usage_hint(line).map(|text| GreyWords { text, can_be_taken: false }),
        }
    }
}

impl Highlighter for LineHelper {
    fn highlight<'l>(&self, line: &'l str, _at: usize) -> Cow<'l, str> {
        if self.color { Cow::Owned(paint(&self.names, line)) } else { Cow::Borrowed(line) }
    }

    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(
        &'s self,
        prompt: &'p str,
        _default: bool,
    ) -> Cow<'b, str> {
        if self.color {
            Cow::Owned(format!("\x1b[1;36m{prompt}\x1b[0m"))
        } else {
            Cow::Borrowed(prompt)
        }
    }

    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        if self.color { Cow::Owned(format!("\x1b[2m{hint}\x1b[0m")) } else { Cow::Borrowed(hint) }
    }

    fn highlight_char(&self, _line: &str, _at: usize, _kind: CmdKind) -> bool {
        self.color
    }
}

impl Validator for LineHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match parse(context.input()) {
            Err(fault) if fault.incomplete => ValidationResult::Incomplete,
            // Other mistakes are told with a caret when the line is run.
            _ => ValidationResult::Valid(None),
        })
    }
}

const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const MAGENTA: &str = "35";
const CYAN: &str = "36";
const DIM: &str = "2";

/// The line with ANSI colors: commands, flags, texts, variables, comments; what is unknown is red.
fn paint(names: &Names, line: &str) -> String {
    let (tokens, _) = lex(line);
    let mut painted = String::with_capacity(2 * line.len());
    let mut at = 0;
    let mut begins = true;
    for (i, token) in tokens.iter().enumerate() {
        let source = &line[token.span.clone()];
        let binds = tokens.get(i + 1).is_some_and(|next| next.kind == TokenKind::Assign);
        let still_typed = token.span.end == line.len();
        let code = match token.kind {
            TokenKind::Comment => DIM,
            TokenKind::Pipe | TokenKind::End | TokenKind::Assign => BOLD,
            TokenKind::Word if token.quoted => GREEN,
            TokenKind::Word if token.text.starts_with('$') => {
                let known = names.has_variable(&token.text[1..]);
                if known || still_typed { MAGENTA } else { RED }
            }
            TokenKind::Word if begins && binds => MAGENTA,
            TokenKind::Word if begins && matches!(source, "time" | "%time") => YELLOW,
            TokenKind::Word if begins && find(&token.text).is_some() => CYAN,
            TokenKind::Word if begins && !still_typed => RED,
            TokenKind::Word if token.text.starts_with('-') => YELLOW,
            TokenKind::Word => "",
        };
        painted.push_str(&line[at..token.span.start]);
        if code.is_empty() {
            painted.push_str(source);
        } else {
            painted.push_str(&format!("\x1b[{code}m{source}\x1b[0m"));
        }
        at = token.span.end;
        begins = match token.kind {
            TokenKind::Word => begins && matches!(source, "time" | "%time"),
            _ => true,
        };
    }
    painted.push_str(&line[at..]);
    painted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paint_adds_colors_and_keeps_every_character() {
        let lines =
            ["load tiny | nonsense --a 'b c' # d", "x = load 'open", "$y | é\n show", "", "a \\"];
        for line in lines {
            let mut plain = paint(&Names::default(), line);
            for code in [BOLD, RED, GREEN, YELLOW, MAGENTA, CYAN, DIM, "0"] {
                plain = plain.replace(&format!("\x1b[{code}m"), "");
            }
            assert_eq!(plain, line);
        }
        let painted = paint(&Names::default(), "load x | nonsense y");
        assert!(painted.contains("\x1b[36mload\x1b[0m") && painted.contains("\x1b[31mnonsense"));
    }
}
