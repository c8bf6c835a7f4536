//! `help`

use super::{COMMANDS, Command, Example, Group, Output, find, overview};
use crate::error::{Error, Result, did_you_mean};
use crate::session::Session;
use crate::value::{Kind, Value};

/// List the commands, or tell about one with examples.
#[derive(Debug, clap::Args)]
pub(super) struct Help {
    /// The command, and perhaps its workflow or subcommand
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

impl Command for Help {
    const NAME: &'static str = "help";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Text);
    const REPLAYS: bool = false;
    const EXAMPLES: &'static [Example] = &[
        Example { line: "help", about: "every command in one line", expect: "load" },
        Example { line: "help save", about: "one command, with examples", expect: "Examples:" },
    ];

    fn run(self, _session: &mut Session, _input: Value) -> Result<Value> {
        let Some((name, rest)) = self.command.split_first() else {
            return Ok(Value::Text(overview()));
        };
        let Some(entry) = find(name) else {
            let near = did_you_mean(name, COMMANDS.iter().map(|entry| entry.name));
            let next = near.map_or_else(
                || "`help` alone lists them".to_owned(),
                |near| format!("did you mean `help {near}`?"),
            );
            return Err(Error::usage(format!("no command is called {name:?}; {next}")));
        };
        if let Some(wrong) = rest.iter().find(|word| !entry.has_subcommand(word)) {
            return Err(Error::usage(format!(
                "`{name}` has no {wrong:?}; `help {name}` tells what it has"
            )));
        }
        let mut words: Vec<&str> = rest.iter().map(String::as_str).collect();
        words.push("--help");
        Ok(Value::Text(entry.help_for(&words)))
    }
}
