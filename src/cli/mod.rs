//! The command line: `aolab CMD …`, `aolab -c LINES`, scripts on standard input, or the REPL.

mod arguments;
mod terminal;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aolab::error::AtPath as _;
use aolab::io::HubConfig;
use aolab::language::program_of_words;
use aolab::training::distributed::Launch;
use aolab::{Error, Result, Session};

use arguments::Arguments;
use terminal::Style;
pub(crate) use terminal::Terminal;

/// Who this process is among several, or what is wrong with the words that say so.
pub type Launched = std::result::Result<Option<Launch>, String>;

/// Reads a launcher's variables; what is wrong with them is said by the command that needs them.
pub fn launched(find: impl Fn(&str) -> Option<String>) -> Launched {
    Launch::from_env(find).map_err(|error| error.to_string())
}

/// A prompt is there 200 ms after Ctrl-C, and what follows a command takes a part of them.
const PATIENCE: Duration = Duration::from_millis(120);

/// What `main` read from the environment.
#[derive(Debug)]
pub struct Environment {
    /// `NO_COLOR` is set and not empty.
    pub no_color: bool,
    /// `TERM` is `dumb` or not set.
    pub dumb_terminal: bool,
    /// Where models of the hub come from.
    pub hub: HubConfig,
    /// Where a GPU's libraries and compiled kernels lie.
    pub cuda: aolab::kernels::cuda::Options,
    /// Where Jupyter looks for kernels.
    pub jupyter: JupyterFolders,
    /// Where runs are kept that no project keeps.
    pub runs_file: Option<PathBuf>,
    /// Where the REPL keeps what sessions held.
    pub sessions_folder: Option<PathBuf>,
    /// What a launcher of several processes says.
    pub launch: Launched,
    /// Where the REPL keeps its lines.
    pub history_file: Option<PathBuf>,
}

/// Where Jupyter looks for kernels.
#[derive(Debug)]
pub struct JupyterFolders {
    /// Jupyter's own folder of this user.
    pub user: Option<PathBuf>,
    /// The active Python environment.
    pub environment: Option<PathBuf>,
    /// Jupyter started us and wants us to end when it does.
    pub has_parent: bool,
}

/// Does what the arguments say, and gives the exit code: 2 for usage, 130 for Ctrl-C, 1 for other errors.
pub fn main(words: impl IntoIterator<Item = OsString>, environment: &Environment) -> ExitCode {
    let arguments = match Arguments::read(words) {
        Ok(arguments) => arguments,
        Err(shown) => return ended_by(&shown),
    };
    let mut session = Session::new();
    session.set_hub(environment.hub.clone());
    session.set_launch(environment.launch.clone());
    let mut cuda = environment.cuda.clone();
    if let Some(folder) = &arguments.cuda_libraries {
        cuda.library_folders.insert(0, folder.clone());
    }
    session.set_cuda_options(cuda);
    let stop = session.cancel_flag();
    let terminal = Arc::new(Terminal::new(Style::of(&arguments, environment), Arc::clone(&stop)));
    session.set_front_end(Arc::clone(&terminal) as _);
    let asked = arguments.lines.is_some() || !arguments.words.is_empty();
    let kernel = serves_jupyter(&arguments.words);
    let interactive = !asked && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    // Whoever waits at a shell can press twice; what a stopped training still writes is worth waiting for there.
    session.set_patience((interactive || kernel).then_some(PATIENCE));
    let result = catch_ctrl_c(stop, interactive || kernel)
        .and_then(|()| prepare(&arguments, environment, &mut session))
        .and_then(|()| {
            if !arguments.resume {
                return Ok(());
            }
            let sessions = environment.sessions_folder.as_deref();
            match crate::repl::resume(&mut session, &terminal, sessions) {
                // A person at a prompt can begin anew.
                Err(error) if interactive => terminal.error(&error),
                other => other?,
            }
            Ok(())
        })
        .and_then(|()| {
            if let Some(("jupyter", words)) = arguments.first_word() {
                jupyter(words, &arguments.flags(), session, &terminal, environment)
            } else if interactive {
                crate::repl::run(&mut session, &terminal, environment)
            } else {
                work(&arguments, &mut session)
            }
        });
    // Whoever read our output has left (`| head`): that is their wish, not a failure.
    if terminal.reader_left() {
        return ExitCode::SUCCESS;
    }
    // Work that stopped because its output could not be written was not stopped by a person.
    let result = match terminal.finish() {
        Err(error) if result.as_ref().err().is_none_or(Error::is_cancelled) => Err(error),
        _ => result,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Help and version go to standard output and succeed; mistakes go to standard error.
fn ended_by(shown: &clap::Error) -> ExitCode {
    // If even this cannot be written there is nobody to tell.
    let _ = shown.print();
    ExitCode::from(u8::try_from(shown.exit_code()).unwrap_or(2))
}

/// Work stops at the first Ctrl-C as soon as it can, and the program at the second; a REPL and a kernel
/// never end so.
fn catch_ctrl_c(stop: Arc<AtomicBool>, interactive: bool) -> Result<()> {
    let handler = move || {
        if stop.swap(true, Ordering::Relaxed) && !interactive {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler)
        .map_err(|error| Error::invalid(format!("Ctrl-C cannot be caught: {error}")))
}

#[cfg(feature = "jupyter")]
use crate::jupyter::{main as jupyter, serves as serves_jupyter};

#[cfg(not(feature = "jupyter"))]
fn serves_jupyter(_words: &[String]) -> bool {
    false
}

#[cfg(not(feature = "jupyter"))]
fn jupyter(
    _words: &[String],
    _flags: &[String],
    _session: Session,
    _terminal: &Terminal,
    _environment: &Environment,
) -> Result<()> {
    Err(Error::usage("this aolab was built without notebooks; build it with --features jupyter"))
}

fn prepare(arguments: &Arguments, environment: &Environment, session: &mut Session) -> Result<()> {
    if !arguments.no_store {
        let project = || project_store(&std::env::current_dir().ok()?);
        let path = arguments.store.clone().or_else(project);
        session.set_store(path.or_else(|| environment.runs_file.clone()).as_deref());
    }
    if let Some(threads) = arguments.threads {
        session.set_threads(usize::from(threads));
    }
    if let Some(isa) = &arguments.isa {
        session.set_isa(isa)?;
    }
    if let Some(device) = &arguments.device {
        session.set_device(device)?;
    }
    if let Some(seed) = arguments.seed {
        session.set_seed(seed);
    }
    Ok(())
}

/// The run store of the project that `folder` is in: the nearest `.aolab` of it or of a folder above.
fn project_store(folder: &Path) -> Option<PathBuf> {
    let mut folders = folder.ancestors().map(|folder| folder.join(".aolab"));
    Some(folders.find(|folder| folder.is_dir())?.join("runs.sqlite"))
}

fn work(arguments: &Arguments, session: &mut Session) -> Result<()> {
    if let Some(lines) = &arguments.lines {
        session.run(lines)?;
    } else if !arguments.words.is_empty() {
        let (source, program) = program_of_words(&arguments.words)?;
        session.run_program(&source, &program)?;
    } else {
        let mut script = String::new();
        std::io::stdin().lock().read_to_string(&mut script).at("standard input")?;
        session.run_script("standard input", &script)?;
    }
    Ok(())
}
