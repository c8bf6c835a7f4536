//! The REPL: lines from a terminal, with completion, hints, highlighting and a history that lasts.

use aolab::{Result, Session};

use crate::cli::{Environment, Terminal};

/// Reads and runs lines until `quit` or Ctrl-D.
pub(crate) fn run(
    session: &mut Session,
    terminal: &Terminal,
    environment: &Environment,
) -> Result<()> {
    let _ = (&environment.history_file, terminal.style());
    for line in std::io::stdin().lines().map_while(std::io::Result::ok) {
        session.clear_cancelled();
        if let Err(error) = session.run(&line) {
            terminal.error(&error);
        }
        if session.leaving {
            break;
        }
    }
    Ok(())
}
