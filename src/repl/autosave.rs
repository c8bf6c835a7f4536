//! What a session holds, as a script that is written after each line: `aolab --resume` brings it back after a crash.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use aolab::store::{utc, utc_now_ms};
use aolab::{Error, Result, Session};

use crate::cli::Terminal;

/// Scripts that are kept, of this session and of earlier ones.
const KEPT: usize = 20;

/// The script of this session. A session in which nothing was made writes none.
#[derive(Debug)]
pub(super) struct Autosave {
    path: Option<PathBuf>,
    written: String,
}

impl Autosave {
    pub(super) fn new(folder: Option<&Path>) -> Autosave {
        // The time comes first, so that names sort by it; the process tells sessions of one second apart.
        let stamp = utc(utc_now_ms()).replace(' ', "T").replace(':', "");
        let name = format!("{stamp}-{}.ao", std::process::id());
        Autosave { path: folder.map(|folder| folder.join(name)), written: String::new() }
    }

    /// Writes what the session holds, if that has changed.
    pub(super) fn save(&mut self, session: &Session, terminal: &Terminal) {
        let Some(path) = &self.path else { return };
        let script = session.resume_script();
        // The first line is the heading.
        if script == self.written || script.lines().count() < 2 {
            return;
        }
        if let Err(error) = write(path, &script) {
            terminal.remark(&format!("{}: {error}; this session is not saved", path.display()));
            self.path = None;
            return;
        }
        if self.written.is_empty() {
            remove_old(path);
        }
        self.written = script;
    }
}

/// A whole file under its name or none, readable by its owner only.
fn write(path: &Path, script: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let partial = path.with_extension("partial");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(&partial)?.write_all(script.as_bytes())?;
    fs::rename(&partial, path)
}

/// The scripts in the folder of `path`, oldest first.
fn scripts(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut all: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "ao")).collect();
    all.sort();
    all
}

fn remove_old(path: &Path) {
    let all = path.parent().map(scripts).unwrap_or_default();
    for old in &all[..all.len().saturating_sub(KEPT)] {
        // One that stays behind is removed by the next session.
        let _ = fs::remove_file(old);
    }
}

/// Brings back what the last session held. A line that no longer works is told and left out.
pub(crate) fn resume(
    session: &mut Session,
    terminal: &Terminal,
    folder: Option<&Path>,
) -> Result<()> {
    let last = folder.and_then(|folder| scripts(folder).pop());
    let Some(path) = last else {
        return Err(Error::usage("no earlier session is saved here; start one without --resume"));
    };
    let script =
        fs::read_to_string(&path).map_err(|error| Error::file(&path, error.to_string()))?;
    terminal.remark(&format!("bringing back {}", path.display()));
    let program = aolab::language::parse(&script)
        .map_err(|fault| Error::file(&path, fault.into_error(&script).to_string()))?;
    for statement in program.statements {
        match session.run(&script[statement.span]) {
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => terminal.error(&error),
            Ok(_) => {}
        }
    }
    Ok(())
}
