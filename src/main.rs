//! The `aolab` program: a laboratory on the command line. Everything it can do is in the library.
#![forbid(unsafe_code)]

mod cli;
mod repl;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(std::env::args_os(), &environment())
}

/// The one place that reads the environment.
#[expect(clippy::disallowed_methods, reason = "this is main")]
fn environment() -> cli::Environment {
    use std::env::var_os;
    let set = |name: &str| var_os(name).filter(|value| !value.is_empty());
    let data = set("XDG_DATA_HOME")
        .map(std::path::PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(std::path::PathBuf::from(set("HOME")?).join(".local/share")));
    cli::Environment {
        no_color: set("NO_COLOR").is_some(),
        dumb_terminal: var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb"),
        hub: aolab::io::HubConfig::from_env(|name| std::env::var(name).ok()),
        history_file: data.map(|folder| folder.join("aolab").join("history")),
    }
}
