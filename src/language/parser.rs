//! Words to statements.

use std::ops::Range;

use super::fault::Fault;
use super::lexer::{Token, TokenKind, is_identifier, lex};
use crate::error::Result;

/// The statements of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// In the order in which they run.
    pub statements: Vec<Statement>,
}

/// `name = a | b | c`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The variable that takes the result.
    pub bind: Option<Word>,
    /// Whether it began with `time` or `%time`.
    pub timed: bool,
    /// At least one; only the first may be a `$name`.
    pub stages: Vec<Stage>,
    /// Its bytes in the source.
    pub span: Range<usize>,
}

/// A command with its arguments, or a `$name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// At least one word: the command.
    pub words: Vec<Word>,
}

/// A word and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// With quotes and escapes resolved.
    pub text: String,
    /// Whether any of it was quoted.
    pub quoted: bool,
    /// Its bytes in the source.
    pub span: Range<usize>,
}

impl Word {
    /// The variable's name if the word is `$name`.
    pub fn variable(&self) -> Option<&str> {
        self.text.strip_prefix('$').filter(|name| !self.quoted && is_identifier(name))
    }
}

impl Stage {
    /// The command, or `$name`.
    pub fn head(&self) -> &Word {
        &self.words[0]
    }

    /// The words after the command.
    pub fn arguments(&self) -> &[Word] {
        &self.words[1..]
    }

    /// Its bytes in the source.
    pub fn span(&self) -> Range<usize> {
        self.words[0].span.start..self.words[self.words.len() - 1].span.end
    }
}

/// Reads a source: one line, or a whole script.
pub fn parse(source: &str) -> Result<Program, Fault> {
    let (tokens, fault) = lex(source);
    if let Some(fault) = fault {
        return Err(fault);
    }
    let mut statements = Vec::new();
    let mut statement: Vec<Token> = Vec::new();
    let tokens: Vec<Token> =
        tokens.into_iter().filter(|token| token.kind != TokenKind::Comment).collect();
    for (i, token) in tokens.iter().enumerate() {
        if token.kind != TokenKind::End {
            statement.push(token.clone());
        } else if !(token.text == "\n" && goes_on(&statement, &tokens[i + 1..])) {
            statements.extend(read_statement(std::mem::take(&mut statement))?);
        }
    }
    statements.extend(read_statement(statement)?);
    Ok(Program { statements })
}

/// Whether the end of the line is not the end of the statement: `a |⏎ b` or `a⏎ | b`.
fn goes_on(before: &[Token], after: &[Token]) -> bool {
    let piped = |token: Option<&Token>| token.is_some_and(|token| token.kind == TokenKind::Pipe);
    let next = after.iter().find(|token| token.text != "\n" || token.kind != TokenKind::End);
    !before.is_empty() && (piped(before.last()) || piped(next))
}

fn read_statement(mut tokens: Vec<Token>) -> Result<Option<Statement>, Fault> {
    let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else { return Ok(None) };
    let span = first.span.start..last.span.end;
    let assigns = tokens.get(1).is_some_and(|token| token.kind == TokenKind::Assign);
    let bind = if assigns { tokens.drain(..2).next().map(word) } else { None };
    let timed = tokens
        .first()
        .is_some_and(|token| !token.quoted && (token.text == "time" || token.text == "%time"));
    let begin = if timed { tokens.remove(0).span.end } else { span.start };
    let here = begin..span.end;
    if tokens.is_empty() {
        let words = if timed {
            "time what? Write `time eval perplexity`".to_owned()
        } else {
            let name = bind.map_or_else(String::new, |word| word.text);
            format!("{name} = what? Write `{name} = load tiny`")
        };
        return Err(Fault::new(words, here));
    }
    let stages = read_stages(tokens)?;
    Ok(Some(Statement { bind, timed, stages, span }))
}

fn read_stages(tokens: Vec<Token>) -> Result<Vec<Stage>, Fault> {
    let mut stages = Vec::new();
    let mut words = Vec::new();
    let mut last_pipe = None;
    for token in tokens {
        if token.kind != TokenKind::Pipe {
            words.push(word(token));
            continue;
        }
        if words.is_empty() {
            return Err(Fault::new("nothing stands before this |", token.span));
        }
        push_stage(&mut stages, std::mem::take(&mut words))?;
        last_pipe = Some(token.span);
    }
    match last_pipe {
        Some(pipe) if words.is_empty() => {
            return Err(Fault::incomplete("nothing stands after this |", pipe));
        }
        _ => push_stage(&mut stages, words)?,
    }
    Ok(stages)
}

fn push_stage(stages: &mut Vec<Stage>, words: Vec<Word>) -> Result<(), Fault> {
    let stage = Stage { words };
    if stage.head().variable().is_some() {
        if !stages.is_empty() {
            let words = format!(
                "{} is a value, not a command: it can only start a pipeline",
                stage.head().text
            );
            return Err(Fault::new(words, stage.head().span.clone()));
        }
        if let Some(extra) = stage.arguments().first() {
            let words = format!("put a | between {} and {}", stage.head().text, extra.text);
            return Err(Fault::new(words, extra.span.clone()));
        }
    }
    stages.push(stage);
    Ok(())
}

fn word(token: Token) -> Word {
    Word { text: token.text, quoted: token.quoted, span: token.span }
}

/// The pipeline of words that a shell has split already; a word `|` is a pipe. Returns it with the
/// source that its spans are about.
pub fn program_of_words(words: &[String]) -> Result<(String, Program)> {
    let mut source = String::new();
    let mut tokens = Vec::new();
    for text in words {
        if !source.is_empty() {
            source.push(' ');
        }
        let start = source.len();
        source.push_str(&quote(text));
        let kind = if text == "|" { TokenKind::Pipe } else { TokenKind::Word };
        let span = start..source.len();
        tokens.push(Token { kind, text: text.clone(), quoted: false, span });
    }
    let statements = read_statement(tokens).map_err(|fault| fault.into_error(&source))?;
    Ok((source, Program { statements: statements.into_iter().collect() }))
}

/// `text` as a word of the language, quoted where it must be.
pub fn quote(text: &str) -> String {
    let special = |c: char| c.is_whitespace() || "'\";#|\\".contains(c);
    if text == "|" || !(text.is_empty() || text.contains(special)) {
        return text.to_owned();
    }
    if text.contains('\'') {
        let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        return format!("\"{escaped}\"");
    }
    format!("'{text}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(source: &str) -> String {
        let program = match parse(source) {
            Ok(program) => program,
            Err(fault) => return format!("! {}", fault.words),
        };
        let stage = |stage: &Stage| {
            stage.words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ")
        };
        let statement = |statement: &Statement| {
            let bind = statement.bind.as_ref().map_or("", |word| &word.text);
            let stages: Vec<String> = statement.stages.iter().map(stage).collect();
            format!("{bind}:{}:{}", if statement.timed { "t" } else { "" }, stages.join(">"))
        };
        program.statements.iter().map(statement).collect::<Vec<_>>().join(" ; ")
    }

    #[test]
    fn statements_pipes_and_bindings() {
        let cases = [
            ("", ""),
            ("# only this\n\n", ""),
            ("load tiny | size", "::load tiny>size"),
            ("a = load tiny; $a | size\nshow", "a::load tiny ; ::$a>size ; ::show"),
            ("load tiny |\n size", "::load tiny>size"),
            ("load tiny\n\n  | size # two\n| show", "::load tiny>size>show"),
            ("load \\\n tiny", "::load tiny"),
            ("x = time load tiny", "x:t:load tiny"),
            ("%time load tiny", ":t:load tiny"),
            ("echo a = b", "::echo a = b"),
            ("echo '|' \\| ", "::echo | |"),
            ("| size", "! nothing stands before this |"),
            ("a || b", "! nothing stands before this |"),
            ("load |", "! nothing stands after this |"),
            ("load | ; size", "! nothing stands after this |"),
            ("x =", "! x = what? Write `x = load tiny`"),
            ("load tiny | $x", "! $x is a value, not a command: it can only start a pipeline"),
            ("$x size", "! put a | between $x and size"),
        ];
        for (source, wanted) in cases {
            assert_eq!(shape(source), wanted, "{source:?}");
        }
    }

    #[test]
    fn words_from_a_shell_keep_their_text_and_get_a_readable_source() {
        let words = ["echo", "it's $5; ok", "|", "save", "a b"].map(str::to_owned);
        let (source, program) = program_of_words(&words).expect("a pipeline");
        assert_eq!(source, "echo \"it's $5; ok\" | save 'a b'");
        let stages = &program.statements[0].stages;
        assert_eq!(stages[0].words[1].text, "it's $5; ok");
        assert_eq!(&source[stages[1].words[1].span.clone()], "'a b'");
        assert_eq!(stages.len(), 2);
    }
}
