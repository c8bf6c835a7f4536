//! Characters to words. Tolerant, because highlighting and completion read half-typed lines.

use std::ops::Range;

use super::fault::Fault;

/// What a piece of the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A command, an argument, `$name`.
    Word,
    /// The `=` of `name = pipeline`.
    Assign,
    /// `|`
    Pipe,
    /// `;` or the end of a line.
    End,
    /// `# …`
    Comment,
}

/// A piece of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// A word's text with quotes and escapes resolved; else the source's text.
    pub text: String,
    /// Whether any of the word was quoted or escaped, so that `'$x'` is not a variable.
    pub quoted: bool,
    /// Its bytes in the source.
    pub span: Range<usize>,
}

/// Cuts `source` into tokens. A fault (an open quote, a trailing backslash) comes with the tokens up to it.
pub fn lex(source: &str) -> (Vec<Token>, Option<Fault>) {
    let mut lexer = Lexer { source, at: 0, tokens: Vec::new() };
    let fault = lexer.run().err();
    (lexer.tokens, fault)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn run(&mut self) -> Result<(), Fault> {
        while let Some(c) = self.peek() {
            match c {
                '\n' | ';' => self.single(TokenKind::End),
                '|' => self.single(TokenKind::Pipe),
                '=' if self.may_assign() => self.single(TokenKind::Assign),
                '#' => self.comment(),
                '\\' if self.rest()[1..].trim_start_matches([' ', '\r']).starts_with('\n') => {
                    self.continue_line();
                }
                '\\' if self.rest()[1..].trim().is_empty() => {
                    let here = self.at..self.at + 1;
                    self.at = self.source.len();
                    return Err(Fault::incomplete("the line goes on after \\", here));
                }
                c if c.is_whitespace() => self.at += c.len_utf8(),
                _ => self.word()?,
            }
        }
        Ok(())
    }

    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn single(&mut self, kind: TokenKind) {
        let span = self.at..self.at + 1;
        let text = self.source[span.clone()].to_owned();
        self.at += 1;
        self.tokens.push(Token { kind, text, quoted: false, span });
    }

    fn comment(&mut self) {
        let end = self.rest().find('\n').map_or(self.source.len(), |i| self.at + i);
        let span = self.at..end;
        let text = self.source[span.clone()].to_owned();
        self.tokens.push(Token { kind: TokenKind::Comment, text, quoted: false, span });
        self.at = end;
    }

    fn continue_line(&mut self) {
        self.at += self.rest().find('\n').map_or(1, |i| i + 1);
    }

    /// Whether exactly one name stands before in this statement.
    fn may_assign(&self) -> bool {
        let separates = |token: &&Token| token.kind == TokenKind::End;
        let mut words = self.tokens.iter().rev().take_while(|token| !separates(token));
        let name = words.next().is_some_and(is_name);
        let alone = words.all(|token| token.kind == TokenKind::Comment);
        // `a == b` is a mistake that the parser names; the second `=` is a word.
        name && alone
    }

    fn word(&mut self) -> Result<(), Fault> {
        let start = self.at;
        let mut word =
            Token { kind: TokenKind::Word, text: String::new(), quoted: false, span: start..start };
        let first = !self.tokens.iter().any(|t| t.kind != TokenKind::Comment)
            || self.tokens.last().is_some_and(|t| t.kind == TokenKind::End);
        let result = loop {
            let Some(c) = self.peek() else { break Ok(()) };
            match c {
                '\'' | '"' => {
                    word.quoted = true;
                    if let Err(fault) = self.quoted(c, &mut word.text) {
                        break Err(fault);
                    }
                }
                '\\' => match self.rest()[1..].chars().next() {
                    Some(next) if " '\"|;#$\\".contains(next) => {
                        word.quoted = true;
                        word.text.push(next);
                        self.at += 2;
                    }
                    Some('\n') | None => break Ok(()),
                    Some(_) => {
                        word.text.push('\\');
                        self.at += 1;
                    }
                },
                '=' if first && !word.quoted && is_identifier(&word.text) => break Ok(()),
                '|' | ';' => break Ok(()),
                c if c.is_whitespace() => break Ok(()),
                c => {
                    word.text.push(c);
                    self.at += c.len_utf8();
                }
            }
        };
        word.span.end = self.at;
        self.tokens.push(word);
        result
    }

    /// The text between quotes; `self.at` stands on the opening one.
    fn quoted(&mut self, quote: char, text: &mut String) -> Result<(), Fault> {
        let start = self.at;
        self.at += 1;
        while let Some(c) = self.peek() {
            self.at += c.len_utf8();
            if c == quote {
                return Ok(());
            }
            let escaped = if c == '\\' && quote == '"' { self.peek() } else { None };
            let plain = match escaped {
                Some('n') => '\n',
                Some('t') => '\t',
                Some(next @ ('"' | '\\' | '$')) => next,
                _ => {
                    text.push(c);
                    continue;
                }
            };
            text.push(plain);
            self.at += 1;
        }
        let words = format!("the quote {quote} is not closed");
        Err(Fault::incomplete(words, start..start + 1))
    }
}

fn is_name(token: &Token) -> bool {
    token.kind == TokenKind::Word && !token.quoted && is_identifier(&token.text)
}

/// A letter or `_`, then letters, digits and `_`.
pub(super) fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && chars.all(|c| c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<String> {
        let (tokens, fault) = lex(source);
        assert_eq!(fault, None, "{source}");
        tokens.into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn words_quotes_and_escapes() {
        let cases: [(&str, &[&str]); 9] = [
            ("a  b|c;d", &["a", "b", "|", "c", ";", "d"]),
            ("a 'b c'd \"e\\n\\\"\"", &["a", "b cd", "e\n\""]),
            (r"--filter layers\.0\.", &["--filter", r"layers\.0\."]),
            (r#""\d+ \$x" '\n'"#, &[r"\d+ $x", r"\n"]),
            ("x = load a=b", &["x", "=", "load", "a=b"]),
            ("x=load tiny", &["x", "=", "load", "tiny"]),
            ("a # b | c\nd", &["a", "# b | c", "\n", "d"]),
            ("a \\\n b", &["a", "b"]),
            ("é#ü '' ", &["é#ü", ""]),
        ];
        for (source, wanted) in cases {
            assert_eq!(texts(source), wanted, "{source}");
        }
    }

    #[test]
    fn what_is_not_finished_says_so() {
        for source in ["a 'b", "a \"b\\", "a \\", "a \\  "] {
            let (_, fault) = lex(source);
            assert!(fault.is_some_and(|fault| fault.incomplete), "{source}");
        }
    }

    #[test]
    fn every_span_is_the_source_of_its_token() {
        let source = "ä = load 'x y' | b\\ c # d\n$q | e";
        let (tokens, _) = lex(source);
        let spans: Vec<&str> = tokens.iter().map(|t| &source[t.span.clone()]).collect();
        let wanted = ["ä", "=", "load", "'x y'", "|", "b\\ c", "# d", "\n", "$q", "|", "e"];
        assert_eq!(spans, wanted);
    }
}
