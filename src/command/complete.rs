//! What could stand where the cursor is: for the REPL's Tab and hints, and for notebooks.

use std::fs;
use std::ops::Range;

use super::entry::Entry;
use super::{COMMANDS, find, quantize, sparsify};
use crate::io::BUILTIN_MODELS;
use crate::language::{Token, TokenKind, lex, quote};
use crate::plot::PlotKind;
use crate::session::Session;
use crate::value::{Kind, Value};

/// The names that only a session knows, copied out of it so that an editor can hold them.
#[derive(Clone, Debug, Default)]
pub struct Names {
    variables: Vec<(String, Kind)>,
    layers: Vec<String>,
    columns: Vec<String>,
}

impl Names {
    /// The names of `session` as it is now: variables, the linear layers of its latest model, the
    /// columns of its latest table.
    pub fn of(session: &Session) -> Names {
        let variables = session.variables().iter();
        let layers = match session.latest(&[Kind::Model]) {
            Some(Value::Model(model)) => {
                model.linears().into_iter().map(|(name, _)| name).collect()
            }
            _ => Vec::new(),
        };
        let columns = match session.latest(&[Kind::Table]) {
            Some(Value::Table(table)) => table.columns().iter().map(|c| c.name.clone()).collect(),
            _ => Vec::new(),
        };
        let variables = variables.map(|(name, v)| (name.clone(), v.kind())).collect();
        Names { variables, layers, columns }
    }

    /// The names of a session whose latest model has these layers.
    pub fn with_layers(layers: Vec<String>) -> Names {
        Names { layers, ..Names::default() }
    }

    /// Whether there is a variable called `name`.
    pub fn has_variable(&self, name: &str) -> bool {
        self.variables.iter().any(|(known, _)| known == name)
    }

    fn dollars(&self, kinds: &[Kind]) -> Vec<String> {
        let fitting = self.variables.iter().filter(|(_, kind)| kinds.contains(kind));
        fitting.map(|(name, _)| format!("${name}")).collect()
    }

    fn all_dollars(&self) -> Vec<String> {
        self.variables.iter().map(|(name, _)| format!("${name}")).collect()
    }
}

/// What can replace a part of the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completions {
    /// The bytes that are replaced: the word up to the cursor.
    pub replaces: Range<usize>,
    /// The words that fit, in order; a folder ends with `/`.
    pub words: Vec<String>,
}

/// Everything that could stand at byte `at` of `source`.
pub fn complete(names: &Names, source: &str, at: usize) -> Completions {
    let Some(before) = source.get(..at) else {
        return Completions { replaces: at..at, words: Vec::new() };
    };
    let (tokens, _) = lex(before);
    let (done, word) = split_at_cursor(&tokens, at);
    let replaces = word.map_or(at..at, |token| token.span.clone());
    let typed = word.map_or("", |token| token.text.as_str());
    let stage = stage_of(done);
    let mut words = candidates(names, &stage, typed);
    words.retain(|candidate| candidate.starts_with(typed) && candidate != typed);
    words.dedup();
    Completions { replaces, words: words.iter().map(|word| quoted(word)).collect() }
}

/// Paths may need quotes; variables must not have them.
fn quoted(word: &str) -> String {
    if word.starts_with('$') { word.to_owned() } else { quote(word) }
}

/// The tokens before the word that the cursor touches, and that word.
fn split_at_cursor(tokens: &[Token], at: usize) -> (&[Token], Option<&Token>) {
    match tokens.split_last() {
        Some((last, done)) if last.kind == TokenKind::Word && last.span.end == at => {
            (done, Some(last))
        }
        _ => (tokens, None),
    }
}

/// The words of the stage that the cursor is in, and whether it is the first of its statement.
struct Stage<'a> {
    words: Vec<&'a str>,
    first: bool,
    comment: bool,
}

fn stage_of(tokens: &[Token]) -> Stage<'_> {
    let ends = |token: &Token| matches!(token.kind, TokenKind::End | TokenKind::Pipe);
    let start = tokens.iter().rposition(ends).map_or(0, |i| i + 1);
    let piped = start > 0 && tokens[start - 1].kind == TokenKind::Pipe;
    let mut stage = &tokens[start..];
    if let Some(assign) = stage.iter().position(|token| token.kind == TokenKind::Assign) {
        stage = &stage[assign + 1..];
    }
    let timed = |token: &Token| !piped && (token.text == "time" || token.text == "%time");
    if stage.first().is_some_and(timed) {
        stage = &stage[1..];
    }
    Stage {
        words: stage.iter().map(|token| token.text.as_str()).collect(),
        first: !piped,
        comment: stage.iter().any(|token| token.kind == TokenKind::Comment),
    }
}

fn candidates(names: &Names, stage: &Stage<'_>, typed: &str) -> Vec<String> {
    if stage.comment {
        return Vec::new();
    }
    let Some((command, arguments)) = stage.words.split_first() else {
        let mut words: Vec<String> = COMMANDS.iter().map(|e| e.name.to_owned()).collect();
        if stage.first {
            words.push("time".to_owned());
            words.extend(names.all_dollars());
        }
        return words;
    };
    let Some(entry) = find(command) else { return Vec::new() };
    if typed.starts_with('$') {
        return names.all_dollars();
    }
    let mut words = arguments_of(names, entry, arguments, typed);
    let takes_model = entry.input.contains(&Kind::Model) && !entry.input.contains(&Kind::Nothing);
    if stage.first && takes_model && arguments.is_empty() && !typed.starts_with('-') {
        words.extend(names.dollars(&[Kind::Model]));
        words.extend(BUILTIN_MODELS.map(str::to_owned));
    }
    words
}

fn arguments_of(names: &Names, entry: &Entry, arguments: &[&str], typed: &str) -> Vec<String> {
    let root = entry.clap();
    let chosen = arguments.iter().find_map(|word| root.find_subcommand(word));
    let flags = || {
        let of_chosen = chosen.into_iter().flat_map(clap::Command::get_arguments);
        let of_root = root.get_arguments().filter(|a| chosen.is_none() || a.is_global_set());
        of_chosen.chain(of_root)
    };
    let by_name = |name: &str| {
        flags().find(|arg| arg.get_long().is_some_and(|long| name == format!("--{long}")))
    };
    if let Some((flag, value)) = typed.split_once('=').filter(|_| typed.starts_with("--")) {
        let values = by_name(flag).map(|arg| values_of(names, arg, value)).unwrap_or_default();
        return values.into_iter().map(|value| format!("{flag}={value}")).collect();
    }
    if typed.starts_with('-') {
        let unused = |flag: &String| !arguments.contains(&flag.as_str());
        let longs = flags().filter_map(clap::Arg::get_long).map(|long| format!("--{long}"));
        return longs.filter(unused).chain(["--help".to_owned()]).collect();
    }
    let waiting = arguments.last().and_then(|last| by_name(last));
    if let Some(arg) = waiting.filter(|arg| arg.get_action().takes_values()) {
        return values_of(names, arg, typed);
    }
    if chosen.is_none() && root.has_subcommands() {
        return root.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    }
    let positional = chosen.unwrap_or(&root).get_positionals().next();
    positional.map(|arg| values_of(names, arg, typed)).unwrap_or_default()
}

/// What an argument can be, by its possible values or by the name of its value.
fn values_of(names: &Names, arg: &clap::Arg, typed: &str) -> Vec<String> {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        return possible.iter().map(|value| value.get_name().to_owned()).collect();
    }
    let name = arg.get_value_names().and_then(<[_]>::first).map_or("", |name| name.as_str());
    match name {
        "MODEL" => {
            let mut words = names.dollars(&[Kind::Model]);
            words.extend(BUILTIN_MODELS.map(str::to_owned));
            words.extend(paths(typed));
            words
        }
        "LAYER" | "REGEX" => names.layers.clone(),
        "COLUMN" => names.columns.clone(),
        "KIND" => {
            let names = PlotKind::NAMES.iter().map(|(name, _)| (*name).to_owned());
            names
                .chain(
                    [super::plot::SPARSITY, super::plot::LOSS, super::plot::ROOFLINE]
                        .map(str::to_owned),
                )
                .collect()
        }
        "FILE" | "DIR" | "PATH" => paths(typed),
        "COMMAND" => COMMANDS.iter().map(|entry| entry.name.to_owned()).collect(),
        _ => [quantize::words_of(name), sparsify::words_of(name)]
            .concat()
            .iter()
            .map(|word| (*word).to_owned())
            .collect(),
    }
}

/// Paths that begin with `typed`, hidden ones only when their dot is typed.
fn paths(typed: &str) -> Vec<String> {
    let (folder, start) = match typed.rfind('/') {
        Some(slash) => typed.split_at(slash + 1),
        None => ("", typed),
    };
    let read = fs::read_dir(if folder.is_empty() { "." } else { folder });
    let Ok(entries) = read else { return Vec::new() };
    let mut found: Vec<String> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let hidden = name.starts_with('.') && !start.starts_with('.');
            let slash = if entry.path().is_dir() { "/" } else { "" };
            (!hidden && name.starts_with(start)).then(|| format!("{folder}{name}{slash}"))
        })
        .collect();
    found.sort();
    found
}

/// What the command before the cursor still wants, in the words of its usage; for a hint behind `source`.
pub fn usage_hint(source: &str) -> Option<String> {
    let (tokens, fault) = lex(source);
    let stage = stage_of(&tokens);
    let [command] = stage.words.as_slice() else { return None };
    let entry = find(command).filter(|_| fault.is_none() && source.ends_with(' '))?;
    let usage = super::usage_line(entry);
    let rest = usage.strip_prefix(entry.name)?.trim();
    (!rest.is_empty()).then(|| rest.to_owned())
}

/// The help of the command whose word, or one of whose arguments, byte `at` of `source` touches.
pub fn help_at(source: &str, at: usize) -> Option<String> {
    let (tokens, _) = lex(source);
    let touches = |token: &Token| token.span.start <= at && at <= token.span.end;
    let here = tokens.iter().rposition(|t| t.kind == TokenKind::Word && touches(t))?;
    let stage = stage_of(&tokens[..=here]);
    let (command, arguments) = stage.words.split_first()?;
    let entry = find(command).filter(|_| !stage.comment)?;
    Some(entry.help_for(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        let names = Names {
            variables: vec![("base".into(), Kind::Model), ("t".into(), Kind::Table)],
            layers: vec!["model.layers.0.mlp.up_proj".into(), "lm_head".into()],
            columns: vec!["bytes".into()],
        };
        complete(&names, line, line.len()).words
    }

    #[test]
    fn what_fits_is_offered() {
        let cases: [(&str, &[&str]); 13] = [
            ("qua", &["quantize"]),
            ("load tiny | sho", &["show"]),
            ("x = qui", &["quit"]),
            ("time qui", &["quit"]),
            ("$", &["$base", "$t"]),
            ("quantize int4-w", &["int4-weight-only"]),
            ("quantize int4-weight-only --gr", &["--group-size"]),
            ("quantize int4-weight-only --fi", &["--filter"]),
            ("quantize int4-weight-only --filter lm", &["lm_head"]),
            ("quantize int8-weight-only --granularity=per-t", &["--granularity=per-tensor"]),
            ("load ti", &["tiny"]),
            ("size $b", &["$base"]),
            ("help quan", &["quantize"]),
        ];
        for (line, wanted) in cases {
            assert_eq!(words(line), wanted, "{line:?}");
        }
        assert!(words("nonsense ").is_empty());
        assert!(words("load tiny # qu").is_empty());
        assert!(words("quantize ").contains(&"$base".to_owned()));
    }

    #[test]
    fn the_word_at_the_cursor_is_replaced() {
        let found = complete(&Names::default(), "load tiny | sho | x", 15);
        assert_eq!((found.replaces, found.words), (12..15, vec!["show".to_owned()]));
        assert_eq!(complete(&Names::default(), "é", 1).words, Vec::<String>::new());
    }

    #[test]
    fn usage_is_hinted_once_the_command_stands() {
        assert!(usage_hint("load ").is_some_and(|hint| hint.contains("<MODEL>")));
        assert_eq!(usage_hint("load"), None);
        assert_eq!(usage_hint("load tiny "), None);
        assert_eq!(usage_hint("nonsense "), None);
    }

    #[test]
    fn help_is_that_of_the_command_under_the_cursor() {
        let line = "base = load tiny | quantize int4-weight-only --group-size 64 # size";
        let help = |part: &str| help_at(line, line.find(part).expect("in the line") + 1);
        assert!(help("tiny").is_some_and(|text| text.contains("load")));
        let quantize = help("quantize").expect("a command");
        let workflow = help("--group-size").expect("its flag");
        assert!(workflow.contains("--group-size") && workflow != quantize);
        assert_eq!(help("base"), None);
        assert_eq!(help("# size"), None);
        assert_eq!(help_at("", 0), None);
    }
}
