//! aolab's own Jupyter kernel: cells of the same lines as the REPL, in one session.
//!
//! ```text
//! install    writes and removes the kernelspec that Jupyter finds
//! server     five sockets, one loop
//! kernel     one notebook being served: its queue of cells, what the running one shows
//! worker     the thread that owns the session and runs one cell after another
//! cell       what a cell says: lines for the session, or a magic in its first line
//! screen     results, remarks and progress on their way from the session to the notebook
//! replies    completion, inspection, history: answered at once, also while a cell runs
//! ```

mod cell;
mod history;
mod install;
mod kernel;
mod replies;
mod screen;
mod server;
mod worker;

use std::path::PathBuf;

use aolab::{Error, Result, Session};
use clap::Parser;

use crate::cli::{Environment, Terminal};

/// Notebooks whose cells are aolab's lines.
#[derive(Debug, Parser)]
#[command(name = "aolab jupyter", no_binary_name = true, disable_help_subcommand = true)]
enum Verb {
    /// Tell Jupyter about this kernel: JupyterLab then offers it.
    ///
    /// The flags of aolab itself (--threads, --isa, --device, --seed) go into it:
    /// `aolab --threads 4 jupyter install --name aolab-4`.
    Install(install::Install),
    /// Take it away again
    Uninstall(install::Place),
    /// Serve the notebook that a connection file describes; Jupyter calls this
    Run {
        /// The file that Jupyter writes
        #[arg(value_name = "CONNECTION_FILE")]
        connection: PathBuf,
    },
}

/// Whether `words` ask for a kernel, which no Ctrl-C ends.
pub(crate) fn serves(words: &[String]) -> bool {
    words.first().is_some_and(|word| word == "jupyter")
        && words.get(1).is_some_and(|word| word == "run")
}

/// Does `aolab jupyter WORDS`; `flags` are aolab's own flags, which an installed kernel keeps.
pub(crate) fn main(
    words: &[String],
    flags: &[String],
    session: Session,
    terminal: &Terminal,
    environment: &Environment,
) -> Result<()> {
    let verb = match Verb::try_parse_from(words) {
        Ok(verb) => verb,
        Err(shown) if shown.exit_code() == 0 => {
            // Help goes to standard output; where that is closed nobody asked.
            let _ = shown.print();
            return Ok(());
        }
        Err(fault) => return Err(Error::usage(fault.to_string().trim_end())),
    };
    match verb {
        Verb::Install(install) => {
            let folder = install::install(&install, flags, &environment.jupyter)?;
            let name = &install.place.name;
            terminal.remark(&format!(
                "{} is the kernel {name:?} now; `jupyter lab` offers it",
                folder.display()
            ));
            Ok(())
        }
        Verb::Uninstall(place) => {
            let folder = install::uninstall(&place, &environment.jupyter)?;
            terminal.remark(&format!("{} is gone", folder.display()));
            Ok(())
        }
        Verb::Run { connection } => server::run(&connection, session, environment),
    }
}
