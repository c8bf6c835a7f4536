//! What a command is, and its entry in the registry, where its type is erased.

use std::fmt::Write as _;

use crate::error::Result;
use crate::session::Session;
use crate::value::{Kind, Value};

/// A command: its arguments (the struct), its help (their doc comments) and what it does.
pub trait Command: clap::Args + std::fmt::Debug + Send + 'static {
    /// As it is typed: `quantize`.
    const NAME: &'static str;
    /// Under which heading help lists it.
    const GROUP: Group;
    /// What it takes from a pipe. With [`Kind::Nothing`] it may also start a pipeline with nothing;
    /// without it, at the start of a pipeline, it takes the most recent value of these kinds.
    const INPUT: &'static [Kind];
    /// What it gives.
    const OUTPUT: Output;
    /// At least one; each is run by the tests in an empty session.
    const EXAMPLES: &'static [Example];
    /// Whether it can change variables other than by its result (as `undo` does).
    const CHANGES_VARIABLES: bool = false;
    /// Whether it belongs into a script that does the session again.
    const REPLAYS: bool = true;
    /// Whether its table is a measurement, which the run store keeps.
    const MEASURES: bool = false;

    /// Does it. `input` has one of the kinds of [`Command::INPUT`].
    fn run(self, session: &mut Session, input: Value) -> Result<Value>;
}

/// What a command gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Always a value of this kind.
    Is(Kind),
    /// What it was given.
    SameAsInput,
}

/// A heading in the list of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Bringing models in and out.
    Model,
    /// Making them smaller.
    Change,
    /// Measuring and looking.
    See,
    /// The session itself.
    Session,
}

impl Group {
    /// Every group, in the order of help.
    pub const ALL: [Group; 4] = [Group::Model, Group::Change, Group::See, Group::Session];

    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Model => "Models in and out",
            Group::Change => "Change a model",
            Group::See => "Measure and look",
            Group::Session => "The session",
        }
    }
}

/// A line that shows what a command is for, and is a test of it.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// What to type, in an empty session and an empty folder.
    pub line: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// A part of what it prints.
    pub expect: &'static str,
}

/// A command whose arguments are read.
pub(super) trait Ready: Send {
    fn run(self: Box<Self>, session: &mut Session, input: Value) -> Result<Value>;
}

impl<C: Command> Ready for C {
    fn run(self: Box<Self>, session: &mut Session, input: Value) -> Result<Value> {
        Command::run(*self, session, input)
    }
}

/// A command in the registry.
#[derive(Debug)]
pub struct Entry {
    /// [`Command::NAME`]
    pub name: &'static str,
    /// [`Command::GROUP`]
    pub group: Group,
    /// [`Command::INPUT`]
    pub input: &'static [Kind],
    /// [`Command::OUTPUT`]
    pub output: Output,
    /// [`Command::EXAMPLES`]
    pub examples: &'static [Example],
    pub(super) changes_variables: bool,
    pub(super) replays: bool,
    pub(super) measures: bool,
    augment: fn(clap::Command) -> clap::Command,
    read: fn(&clap::ArgMatches) -> Result<Box<dyn Ready>, clap::Error>,
}

impl Entry {
    /// The entry of `C`.
    pub const fn of<C: Command>() -> Entry {
        Entry {
            name: C::NAME,
            group: C::GROUP,
            input: C::INPUT,
            output: C::OUTPUT,
            examples: C::EXAMPLES,
            changes_variables: C::CHANGES_VARIABLES,
            replays: C::REPLAYS,
            measures: C::MEASURES,
            augment: C::augment_args,
            read: |matches| Ok(Box::new(C::from_arg_matches(matches)?)),
        }
    }

    /// Its arguments as clap knows them, for help and completion.
    pub fn clap(&self) -> clap::Command {
        (self.augment)(clap::Command::new(self.name))
            .no_binary_name(true)
            .disable_help_subcommand(true)
            .disable_version_flag(true)
            .allow_negative_numbers(true)
            .color(clap::ColorChoice::Never)
            .term_width(100)
    }

    /// The first paragraph of its help, in one line.
    pub fn about(&self) -> String {
        self.clap().get_about().map(ToString::to_string).unwrap_or_default()
    }

    /// Reads its arguments.
    pub(super) fn read(&self, words: &[&str]) -> Result<Box<dyn Ready>, clap::Error> {
        (self.read)(&self.clap().try_get_matches_from(words)?)
    }

    /// Its help; with a subcommand among `words`, that of the subcommand.
    pub fn help_for(&self, words: &[&str]) -> String {
        let within = self.subcommand_of(words);
        let mut command = self.named();
        let mut text = match within.and_then(|name| command.find_subcommand_mut(name)) {
            Some(sub) => sub.render_long_help().to_string(),
            None => command.render_long_help().to_string(),
        };
        let _ = writeln!(text, "\n{}\n\nExamples:", self.pipe());
        let about_it = |example: &&Example| within.is_none_or(|name| example.line.contains(name));
        for example in self.examples.iter().filter(about_it) {
            let _ = writeln!(text, "  {}\n      {}", example.line, example.about);
        }
        text.trim_end().trim_end_matches("Examples:").trim_end().to_owned()
    }

    /// The usage and the flags alone, of the command or of a subcommand.
    pub(super) fn usage_and_options(&self, words: &[&str]) -> String {
        let mut command = self.named();
        let command = match self.subcommand_of(words) {
            Some(name) => command.find_subcommand_mut(name),
            None => Some(&mut command),
        };
        let Some(command) = command else { return String::new() };
        let plain = command.clone().about("").long_about("");
        plain
            .help_template("{usage-heading} {usage}\n\n{all-args}")
            .render_help()
            .to_string()
            .trim()
            .to_owned()
    }

    /// Its arguments with the names that usage lines show: `quantize int4-weight-only`.
    fn named(&self) -> clap::Command {
        let mut command = self.clap().no_binary_name(false).bin_name(self.name);
        // Also hands the flags that every subcommand has down to them.
        command.build();
        command
    }

    fn subcommand_of<'a>(&self, words: &[&'a str]) -> Option<&'a str> {
        words.iter().copied().find(|word| self.has_subcommand(word))
    }

    /// Whether `word` is one of its subcommands.
    pub(super) fn has_subcommand(&self, word: &str) -> bool {
        self.clap().find_subcommand(word).is_some()
    }

    /// What it takes and gives, in a sentence.
    pub fn pipe(&self) -> String {
        let takes: Vec<Kind> =
            self.input.iter().copied().filter(|kind| *kind != Kind::Nothing).collect();
        let optional = if self.input.contains(&Kind::Nothing) { ", if anything" } else { "" };
        let takes = match takes.as_slice() {
            [] => "Takes nothing from a pipe".to_owned(),
            kinds => format!("Takes {} from a pipe{optional}", Kind::list(kinds)),
        };
        match self.output {
            Output::Is(kind) => format!("{takes}; gives {}.", kind.with_article()),
            Output::SameAsInput => format!("{takes}; passes it on."),
        }
    }
}
