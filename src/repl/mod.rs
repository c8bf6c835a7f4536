//! The REPL: lines from a terminal, with completion, hints, highlighting and a history that lasts.

mod autosave;
mod editor;
mod history;

use aolab::command::Names;
use aolab::error::AtPath as _;
use aolab::{Error, Result, Session};
use rustyline::config::{BellStyle, ColorMode, CompletionType};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use crate::cli::{Environment, Terminal};
use autosave::Autosave;
pub(crate) use autosave::resume;
use editor::LineHelper;
use history::HistoryFile;

const PROMPT: &str = "› ";

/// Reads and runs lines until `quit` or Ctrl-D. Errors are shown and end nothing.
pub(crate) fn run(
    session: &mut Session,
    terminal: &Terminal,
    environment: &Environment,
) -> Result<()> {
    let color = terminal.style().color;
    let mut editor = new_editor(color)?;
    let mut file = HistoryFile::open(environment.history_file.as_deref(), &mut editor, terminal);
    let mut autosave = Autosave::new(environment.sessions_folder.as_deref());
    welcome(session, terminal);
    loop {
        if let Some(helper) = editor.helper_mut() {
            helper.names = Names::of(session);
        }
        match editor.readline(PROMPT) {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => {
                let line = line.trim_end();
                file.add(line, &mut editor, terminal);
                session.clear_cancelled();
                if let Err(error) = session.run(line) {
                    terminal.error(&error);
                }
                autosave.save(session, terminal);
            }
            // Ctrl-C clears the line.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(terminal_error(error)),
        }
        if session.leaving || terminal.reader_left() {
            break;
        }
    }
    Ok(())
}

fn new_editor(color: bool) -> Result<Editor<LineHelper, FileHistory>> {
    let color_mode = if color { ColorMode::Enabled } else { ColorMode::Disabled };
    let config = Config::builder()
        .history_ignore_space(true)
        .max_history_size(10_000)
        .and_then(|builder| builder.history_ignore_dups(true))
        .map_err(terminal_error)?
        .completion_type(CompletionType::List)
        .completion_prompt_limit(200)
        .bell_style(BellStyle::None)
        .bracketed_paste(true)
        .color_mode(color_mode)
        .build();
    let mut editor = Editor::with_config(config).map_err(terminal_error)?;
    editor.set_helper(Some(LineHelper::new(color)));
    Ok(editor)
}

fn welcome(session: &Session, terminal: &Terminal) {
    let cpu = session.cpu();
    let (version, isa, threads) =
        (env!("CARGO_PKG_VERSION"), cpu.isa().name(), cpu.threads().count());
    terminal.remark(&format!(
        "aolab {version} · {isa} · {threads} threads · `help` lists commands, Tab completes, Ctrl-D leaves"
    ));
}

fn terminal_error(error: ReadlineError) -> Error {
    let source = match error {
        ReadlineError::Io(error) => error,
        other => std::io::Error::other(other.to_string()),
    };
    Err::<(), _>(source).at("terminal").err().unwrap_or(Error::Cancelled)
}
