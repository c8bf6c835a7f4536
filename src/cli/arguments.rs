//! The program's own flags, which may stand before or after the command.

use std::ffi::OsString;

use aolab::command::{find, overview};
use aolab::error::did_you_mean;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _};

/// torchao's job done in Rust, as a laboratory: quantize a model, see what it cost, keep the result.
///
/// Without a command it reads lines: from a terminal with completion and history, else as a script.
#[derive(Debug, clap::Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
#[command(
    name = "aolab",
    version,
    args_override_self = true,
    override_usage = "aolab [OPTIONS] [COMMAND …]\n       aolab [OPTIONS] -c LINES\n       aolab [OPTIONS] run FILE.ao|FILE.md\n       aolab [OPTIONS] jupyter install|uninstall|run"
)]
pub(super) struct Arguments {
    /// Run these lines: `aolab -c "load tiny | size"`
    #[arg(short = 'c', value_name = "LINES", conflicts_with = "words")]
    pub(super) lines: Option<String>,
    /// Print each result as one JSON document
    #[arg(long)]
    pub(super) json: bool,
    /// No progress bars and no remarks
    #[arg(long, short)]
    pub(super) quiet: bool,
    /// No colors (so does the environment's NO_COLOR)
    #[arg(long)]
    pub(super) no_color: bool,
    /// How many threads kernels run on [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) threads: Option<u16>,
    /// The instruction set that kernels use: scalar, avx2, avx512, avx512vnni, neon [default: the fastest]
    #[arg(long, value_name = "NAME")]
    pub(super) isa: Option<String>,
    /// Where models run: cpu, cuda (the first NVIDIA GPU) or cuda:N [default: cpu]
    #[arg(long, value_name = "NAME")]
    pub(super) device: Option<String>,
    /// A folder with NVRTC and cuBLASLt, where they are neither in a toolkit nor in the active Python environment
    #[arg(long, value_name = "DIR")]
    pub(super) cuda_libraries: Option<std::path::PathBuf>,
    /// Where measured runs are kept [default: .aolab/runs.sqlite of this folder or one above it, if there is one, else the user's]
    #[arg(long, value_name = "FILE", conflicts_with = "no_store")]
    pub(super) store: Option<std::path::PathBuf>,
    /// Begin with the models and variables that the last session at a prompt held
    #[arg(long)]
    pub(super) resume: bool,
    /// Keep no runs
    #[arg(long)]
    pub(super) no_store: bool,
    /// Where random draws start [default: 0]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
    /// The command and its arguments; a `|` in quotes is a pipe
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        hide = true
    )]
    pub(super) words: Vec<String>,
}

/// Flags of ours with a value; those without one are `SWITCHES`.
const OPTIONS: [&str; 6] =
    ["--threads", "--isa", "--device", "--cuda-libraries", "--store", "--seed"];
const SWITCHES: [&str; 5] = ["--json", "--quiet", "--no-color", "--no-store", "--resume"];

impl Arguments {
    /// Reads the command line; help and version are errors too, as clap has it.
    pub(super) fn read(
        words: impl IntoIterator<Item = OsString>,
    ) -> Result<Arguments, clap::Error> {
        let command = || Arguments::command().after_help(overview()).term_width(100);
        let words: Vec<OsString> = words.into_iter().collect();
        let matches = command().try_get_matches_from(words)?;
        let mut arguments = Arguments::from_arg_matches(&matches)?;
        let (ours, rest) = lift(&arguments.words);
        if !ours.is_empty() {
            let ours = std::iter::once("aolab".to_owned()).chain(ours);
            let lifted = Arguments::from_arg_matches(&command().try_get_matches_from(ours)?)?;
            arguments = arguments.with(lifted);
        }
        // A command's words may begin with a dash; the command itself does not.
        if let Some(flag) = rest.first().filter(|word| word.starts_with('-')) {
            let known = SWITCHES.into_iter().chain(OPTIONS).chain(["--help", "--version"]);
            let next = did_you_mean(flag, known).map_or_else(
                || "see `aolab --help`".to_owned(),
                |near| format!("did you mean {near}?"),
            );
            let words = format!("aolab has no flag {flag}; {next}\n");
            return Err(command().error(ErrorKind::UnknownArgument, words));
        }
        arguments.words = rest;
        Ok(arguments)
    }

    /// The first word and the others.
    pub(super) fn first_word(&self) -> Option<(&str, &[String])> {
        self.words.split_first().map(|(first, rest)| (first.as_str(), rest))
    }

    /// The flags that say how a session works, as they would be written: a kernelspec keeps them.
    pub(super) fn flags(&self) -> Vec<String> {
        let threads = self.threads.map(|threads| ("--threads", threads.to_string()));
        let isa = self.isa.clone().map(|isa| ("--isa", isa));
        let device = self.device.clone().map(|device| ("--device", device));
        let libraries = self.cuda_libraries.as_ref();
        let libraries = libraries.map(|f| ("--cuda-libraries", f.display().to_string()));
        let seed = self.seed.map(|seed| ("--seed", seed.to_string()));
        let flags = [threads, isa, device, libraries, seed].into_iter().flatten();
        flags.flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    fn with(self, later: Arguments) -> Arguments {
        Arguments {
            lines: self.lines,
            json: self.json | later.json,
            quiet: self.quiet | later.quiet,
            no_color: self.no_color | later.no_color,
            threads: later.threads.or(self.threads),
            isa: later.isa.or(self.isa),
            device: later.device.or(self.device),
            cuda_libraries: later.cuda_libraries.or(self.cuda_libraries),
            store: later.store.or(self.store),
            resume: self.resume | later.resume,
            no_store: self.no_store | later.no_store,
            seed: later.seed.or(self.seed),
            words: self.words,
        }
    }
}

/// Takes our flags out of a command's words, except those that the command has itself.
fn lift(words: &[String]) -> (Vec<String>, Vec<String>) {
    let own = flags_of(words);
    let (mut ours, mut rest) = (Vec::new(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let flag = word.split('=').next().unwrap_or_default();
        let is_ours = |flags: &[&str]| flags.contains(&flag) && !own.iter().any(|own| own == flag);
        if word == "--" {
            rest.push(word.clone());
            rest.extend(words.by_ref().cloned());
        } else if is_ours(&SWITCHES) {
            ours.push(word.clone());
        } else if is_ours(&OPTIONS) {
            ours.push(word.clone());
            if !word.contains('=') {
                ours.extend(words.next().cloned());
            }
        } else {
            rest.push(word.clone());
        }
    }
    (ours, rest)
}

/// The long flags of every command among `words` and of its subcommands.
fn flags_of(words: &[String]) -> Vec<String> {
    let stages = words.split(|word| word == "|");
    let entries = stages.filter_map(|stage| find(stage.first()?));
    let mut flags = Vec::new();
    for entry in entries {
        let command = entry.clap();
        let all = std::iter::once(&command).chain(command.get_subcommands());
        let longs = all.flat_map(|command| command.get_arguments().filter_map(clap::Arg::get_long));
        flags.extend(longs.map(|long| format!("--{long}")));
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Arguments {
        let words = std::iter::once("aolab").chain(line.split(' ')).map(OsString::from);
        Arguments::read(words).expect("a command line")
    }

    #[test]
    fn our_flags_stand_before_or_behind_the_command() {
        for line in [
            "--json --threads 2 size tiny",
            "size tiny --json --threads=2",
            "--json size --threads 2 tiny",
        ] {
            let arguments = read(line);
            assert!(arguments.json, "{line}");
            assert_eq!(arguments.threads, Some(2), "{line}");
            assert_eq!(arguments.words, ["size", "tiny"], "{line}");
        }
        assert_eq!(read("echo -- --json").words, ["echo", "--", "--json"]);
        Arguments::command().debug_assert();
    }
}
