//! The file that keeps lines from one session to the next.

use std::fs;
use std::path::{Path, PathBuf};

use rustyline::Editor;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;

use super::editor::LineHelper;
use crate::cli::Terminal;

type LineEditor = Editor<LineHelper, FileHistory>;

/// Where lines are kept; made when the first line is added, readable by its owner only.
#[derive(Debug)]
pub(super) struct HistoryFile {
    path: Option<PathBuf>,
}

impl HistoryFile {
    /// Reads the earlier lines. A file that cannot be read as text is put aside, and said so.
    pub(super) fn open(
        path: Option<&Path>,
        editor: &mut LineEditor,
        terminal: &Terminal,
    ) -> HistoryFile {
        let Some(path) = path else { return HistoryFile { path: None } };
        let kept = HistoryFile { path: Some(path.to_owned()) };
        let error = match editor.load_history(path) {
            Ok(()) => return kept,
            Err(ReadlineError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return kept;
            }
            Err(error) => error,
        };
        // Half of the lines may have been read before the damage.
        let _ = editor.clear_history();
        let aside = path.with_extension("damaged");
        let (shown, words) = (path.display(), "cannot be read as earlier lines");
        if fs::rename(path, &aside).is_ok() {
            terminal.remark(&format!("{shown} {words} ({error}); it is now {}", aside.display()));
            return kept;
        }
        terminal.remark(&format!("{shown} {words} ({error}); lines are not kept this time"));
        HistoryFile { path: None }
    }

    /// Keeps a line, at once, so that a crash costs none.
    pub(super) fn add(&mut self, line: &str, editor: &mut LineEditor, terminal: &Terminal) {
        let added = editor.add_history_entry(line);
        let Some(path) = self.path.as_deref().filter(|_| added.is_ok_and(|added| added)) else {
            return;
        };
        let written = make_folder(path).map_err(ReadlineError::Io);
        if let Err(error) = written.and_then(|()| editor.append_history(path)) {
            let shown = path.display();
            terminal.remark(&format!("{shown}: {error}; lines are not kept this time"));
            self.path = None;
        }
    }
}

fn make_folder(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(folder) => fs::create_dir_all(folder),
        None => Ok(()),
    }
}
