//! Lines to results: every statement is read and checked before the first one runs.

use std::collections::BTreeMap;
use std::time::Instant;

use super::clap_faults::fault_of;
use super::entry::{Entry, Output, Ready};
use super::{COMMANDS, find};
use crate::error::{Context as _, Error, Result, did_you_mean};
use crate::language::{Fault, Program, Stage, Statement, parse, quote};
use crate::session::{Effect, HistoryLine, Outcome, Session, Status, unknown_variable};
use crate::table::Table;
use crate::value::{Kind, Value};

/// A statement that is known to fit.
struct Checked<'a> {
    statement: &'a Statement,
    stages: Vec<Step>,
    replays: bool,
}

/// A stage that is known to fit.
enum Step {
    Variable(String),
    Command {
        entry: &'static Entry,
        ready: Box<dyn Ready>,
        /// As it would be typed.
        words: String,
    },
    /// `CMD --help` anywhere shows that help and runs nothing.
    Help(String),
}

impl Session {
    /// Runs a line, or the text of a whole script, and gives the last statement's value.
    ///
    /// Nothing runs if any statement has a mistake that can be seen beforehand. Every result is
    /// also told to the session's front end as it comes.
    pub fn run(&mut self, source: &str) -> Result<Value> {
        let program = parse(source).map_err(|fault| fault.into_error(source))?;
        self.run_program(source, &program)
    }

    /// The same for a program that has been parsed from `source`.
    pub fn run_program(&mut self, source: &str, program: &Program) -> Result<Value> {
        let checked = check(self, program).map_err(|fault| fault.into_error(source)).inspect_err(
            |error| {
                // What was mistyped is not lost either: it is in the history, as a comment of its script.
                self.remember_line(HistoryLine {
                    source: source.trim().to_owned(),
                    status: Status::Failed(error.to_string()),
                    replays: true,
                    effect: Effect::Nothing,
                });
            },
        )?;
        let mut last = Value::Nothing;
        for statement in checked {
            last = self.run_statement(source, statement)?;
            if self.leaving {
                break;
            }
        }
        Ok(last)
    }

    /// Reads and checks a source without running it.
    pub(crate) fn check_source(&self, source: &str) -> Result<Program, Fault> {
        let program = parse(source)?;
        check(self, &program)?;
        Ok(program)
    }

    /// Says what is wrong with a line, as far as that can be seen before it runs.
    pub(crate) fn check_line(&self, line: &str) -> Result<()> {
        self.check_source(line).map(|_| ()).map_err(|fault| fault.into_error(line))
    }

    fn run_statement(&mut self, source: &str, checked: Checked<'_>) -> Result<Value> {
        let Checked { statement, stages, replays } = checked;
        let text = &source[statement.span.clone()];
        let begins_with = statement.stages[0].head().text.as_str();
        self.forget_inputs();
        let began = Instant::now();
        let result = self.run_stages(text, stages);
        let status = match &result {
            Ok(_) => Status::Done,
            Err(error) if error.is_cancelled() => Status::Cancelled,
            Err(error) => Status::Failed(error.to_string()),
        };
        let bound = statement.bind.as_ref().map(|word| word.text.as_str());
        let effect = match &result {
            Ok((value, _)) => match (self.keep(text, bound, value), begins_with) {
                (_, "set" | "cache") => Effect::Setting,
                (_, "run" | "watch") => Effect::Script,
                (_, "undo") => Effect::Undo,
                (_, "redo") => Effect::Redo,
                (effect, _) => effect,
            },
            Err(_) => Effect::Nothing,
        };
        self.log(text, &result, began.elapsed());
        self.remember_line(HistoryLine { source: text.to_owned(), status, replays, effect });
        if self.depth == 0 && result.as_ref().is_err_and(Error::is_cancelled) {
            self.clear_cancelled();
        }
        let (value, times) = result?;
        let timing = if statement.timed { Some(timing(&times)?) } else { None };
        self.front_end().result(&Outcome { source: text, bound, value: &value, timing });
        Ok(value)
    }

    fn run_stages(&mut self, line: &str, stages: Vec<Step>) -> Result<(Value, Vec<(String, f64)>)> {
        let mut value = Value::Nothing;
        let mut times = Vec::new();
        let alone = stages.len() == 1;
        for (i, step) in stages.into_iter().enumerate() {
            self.check()?;
            let start = Instant::now();
            let (name, result) = match step {
                Step::Help(text) => return Ok((Value::Text(text), times)),
                Step::Variable(name) => {
                    self.uses(&format!("${name}"));
                    (format!("${name}"), self.variable(&name).cloned())
                }
                Step::Command { entry, ready, words } => {
                    let input = if i == 0 { self.first_input(entry)? } else { value };
                    (entry.name.to_owned(), self.run_command(entry, ready, input, (line, words)))
                }
            };
            value = if alone { result? } else { result.within(&name)? };
            times.push((name, start.elapsed().as_secs_f64() * 1e3));
        }
        Ok((value, times))
    }

    /// Runs one command, and keeps what it measured. Scripts are run here: each of their lines can be stopped.
    fn run_command(
        &mut self,
        entry: &'static Entry,
        ready: Box<dyn Ready>,
        input: Value,
        (line, words): (&str, String),
    ) -> Result<Value> {
        if matches!(entry.name, "run" | "watch") {
            return ready.run(self, input);
        }
        let line = line.to_owned();
        self.with_patience(Box::new(move |session| {
            let began = session.begin_measuring();
            let result = ready.run(session, input);
            let stopped = result.as_ref().is_err_and(Error::is_cancelled);
            session.keep_beside(&began, &line, &words, if stopped { "stopped" } else { "done" });
            if stopped && entry.measures {
                session.keep_finished_rows(&began, (&line, &words));
            }
            let result = result?;
            if let (true, Value::Table(table)) = (entry.measures, &result) {
                session.check()?;
                session.keep_runs(&began, (&line, &words), table, "done");
            }
            Ok(result)
        }))
    }

    fn first_input(&mut self, entry: &Entry) -> Result<Value> {
        if entry.input.contains(&Kind::Nothing) {
            return Ok(Value::Nothing);
        }
        let latest =
            self.latest(entry.input).cloned().ok_or_else(|| Error::Usage(no_input(entry)))?;
        self.uses(&latest.kind().to_string());
        Ok(latest)
    }
}

fn timing(times: &[(String, f64)]) -> Result<Table> {
    let mut table = Table::new("Time").column("stage").column_unit("time", "ms");
    for (name, time_ms) in times {
        table.push([name.into(), (*time_ms).into()])?;
    }
    if times.len() > 1 {
        let total: f64 = times.iter().map(|(_, time_ms)| time_ms).sum();
        table.push(["total".into(), total.into()])?;
    }
    Ok(table)
}

/// What is known before running: the kinds of variables and of the latest values. A script or `undo` may change
/// them in ways that only running shows; from then on, anything may be there.
struct Known {
    variables: BTreeMap<String, Option<Kind>>,
    latest: Vec<Kind>,
    all: bool,
}

fn check<'a>(session: &Session, program: &'a Program) -> Result<Vec<Checked<'a>>, Fault> {
    let kinds = [Kind::Text, Kind::Model, Kind::Table, Kind::Figure, Kind::Tensor];
    let variables = session.variables().iter();
    let mut known = Known {
        variables: variables.map(|(name, value)| (name.clone(), Some(value.kind()))).collect(),
        latest: kinds.into_iter().filter(|kind| session.latest(&[*kind]).is_some()).collect(),
        all: true,
    };
    program.statements.iter().map(|statement| check_statement(&mut known, statement)).collect()
}

fn check_statement<'a>(known: &mut Known, statement: &'a Statement) -> Result<Checked<'a>, Fault> {
    let mut checked = Checked { statement, stages: Vec::new(), replays: true };
    let mut kind = Some(Kind::Nothing);
    for (i, stage) in statement.stages.iter().enumerate() {
        if i == 0
            && let Some((first, rest)) = model_named_first(known, stage)
        {
            let place = stage.head().span.clone();
            kind = check_stage(known, &mut checked, &first, kind, true)
                .map_err(|fault| Fault { span: place, ..fault })?;
            kind = check_stage(known, &mut checked, &rest, kind, false)?;
        } else {
            kind = check_stage(known, &mut checked, stage, kind, i == 0)?;
        }
    }
    if let Some(name) = &statement.bind {
        if kind == Some(Kind::Nothing) {
            let words = format!("this gives nothing that {} could hold", name.text);
            return Err(Fault::new(words, name.span.clone()));
        }
        known.variables.insert(name.text.clone(), kind);
    }
    known.latest.extend(kind);
    Ok(checked)
}

fn check_stage(
    known: &mut Known,
    checked: &mut Checked<'_>,
    stage: &Stage,
    input: Option<Kind>,
    first: bool,
) -> Result<Option<Kind>, Fault> {
    let head = stage.head();
    for word in &stage.words {
        if let Some(name) = word.variable()
            && known.all
            && !known.variables.contains_key(name)
        {
            let words = unknown_variable(name, known.variables.keys().map(String::as_str));
            return Err(Fault::new(words, word.span.clone()));
        }
    }
    if let Some(name) = head.variable() {
        checked.stages.push(Step::Variable(name.to_owned()));
        return Ok(known.variables.get(name).copied().flatten());
    }
    let entry = find(&head.text)
        .ok_or_else(|| Fault::new(unknown_command(&head.text), head.span.clone()))?;
    let arguments: Vec<&str> = stage.arguments().iter().map(|word| word.text.as_str()).collect();
    if arguments.iter().any(|word| matches!(*word, "--help" | "-h")) {
        checked.stages.insert(0, Step::Help(entry.help_for(&arguments)));
        return Ok(Some(Kind::Text));
    }
    let ready = entry.read(&arguments).map_err(|error| fault_of(&error, entry, stage))?;
    check_input(known, entry, stage, input, first)?;
    let words: Vec<String> = stage.words.iter().map(|word| quote(&word.text)).collect();
    checked.stages.push(Step::Command { entry, ready, words: words.join(" ") });
    checked.replays &= entry.replays;
    known.all &= !entry.changes_variables;
    Ok(match entry.output {
        Output::Is(kind) => Some(kind),
        Output::SameAsInput => input,
    })
}

fn check_input(
    known: &Known,
    entry: &Entry,
    stage: &Stage,
    input: Option<Kind>,
    first: bool,
) -> Result<(), Fault> {
    let takes: Vec<Kind> =
        entry.input.iter().copied().filter(|kind| *kind != Kind::Nothing).collect();
    let fault = |words: String| Err(Fault::new(words, stage.head().span.clone()));
    if first {
        let there = takes.iter().any(|kind| known.latest.contains(kind));
        if takes.len() == entry.input.len() && known.all && !there {
            return fault(no_input(entry));
        }
        return Ok(());
    }
    match input {
        Some(kind) if takes.is_empty() => fault(format!(
            "`{}` takes nothing from a pipe, and gets {}; put it on a line of its own",
            entry.name,
            kind.with_article()
        )),
        Some(kind) if !takes.contains(&kind) => fault(format!(
            "`{}` takes {}, and the stage before gives {}",
            entry.name,
            Kind::list(&takes),
            kind.with_article()
        )),
        _ => Ok(()),
    }
}

fn no_input(entry: &Entry) -> String {
    let name = entry.name;
    let what = Kind::list(entry.input);
    if entry.input.contains(&Kind::Model) {
        return format!("`{name}` wants {what}; write `load tiny` first, or `{name} tiny …`");
    }
    format!("`{name}` wants {what}, and there is none yet; pipe one into it")
}

/// `quantize tiny int4-weight-only` is short for `load tiny | quantize int4-weight-only`, and the same
/// with `$name`: a command that needs a model may name it first.
fn model_named_first(known: &Known, stage: &Stage) -> Option<(Stage, Stage)> {
    let entry = find(&stage.head().text)?;
    let needs_model = entry.input.contains(&Kind::Model) && !entry.input.contains(&Kind::Nothing);
    let word = stage.arguments().first().filter(|_| needs_model)?;
    let variable = word.variable().is_some_and(|name| {
        known.variables.get(name).is_none_or(|kind| *kind == Some(Kind::Model))
    });
    if !variable && (word.quoted || !names_a_model(&word.text)) {
        return None;
    }
    let mut first = Stage { words: vec![word.clone()] };
    if !variable {
        let mut load = word.clone();
        "load".clone_into(&mut load.text);
        first.words.insert(0, load);
    }
    let mut rest = stage.clone();
    rest.words.remove(1);
    Some((first, rest))
}

/// Whether a word can only mean a model to load.
fn names_a_model(word: &str) -> bool {
    word == "tiny"
        || word.starts_with("hf:")
        || [".gguf", ".pt", ".pth", ".bin"].iter().any(|ending| word.ends_with(ending))
        || word.ends_with(".safetensors")
        || (word.contains('/') && !word.contains(char::is_whitespace) && !word.starts_with('-'))
}

fn unknown_command(name: &str) -> String {
    let next = match did_you_mean(name, COMMANDS.iter().map(|entry| entry.name)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`help` lists them".to_owned(),
    };
    format!("no command is called {name:?}; {next}")
}

/// The usage of a command in one line, for hints: `quantize [OPTIONS] <COMMAND>`.
pub fn usage_line(entry: &Entry) -> String {
    let usage = entry.clap().render_usage().to_string();
    usage.trim_start_matches("Usage:").trim().to_owned()
}
