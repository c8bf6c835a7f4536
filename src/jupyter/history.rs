//! Earlier cells: those of this kernel, and the lines that the REPL and other kernels kept before.

use std::path::{Path, PathBuf};

use jupyter_protocol::{HistoryEntry, HistoryReply, HistoryRequest};
use rustyline::history::{FileHistory, History as _};

/// What a cell can be recalled from.
#[derive(Debug)]
pub(super) struct History {
    /// The file that the REPL keeps as well.
    path: Option<PathBuf>,
    past: Vec<String>,
    /// The cells of this kernel, with their numbers.
    cells: Vec<(usize, String)>,
}

impl History {
    /// Reads the file; one that cannot be read is left alone, and nothing is added to it.
    pub(super) fn open(path: Option<&Path>) -> History {
        let mut past = Vec::new();
        let path = path.filter(|path| {
            let mut file = FileHistory::new();
            let readable = !path.exists() || file.load(path).is_ok();
            past = file.iter().cloned().collect();
            readable
        });
        History { path: path.map(Path::to_owned), past, cells: Vec::new() }
    }

    /// Keeps a cell, in the file as well.
    pub(super) fn add(&mut self, count: usize, code: &str) {
        self.cells.push((count, code.to_owned()));
        let Some(path) = &self.path else { return };
        let mut one = FileHistory::new();
        let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        // A history that cannot be written costs nobody a result.
        if folder.is_err() || one.add(code).is_err() || one.append(path).is_err() {
            self.path = None;
        }
    }

    /// The past is session 0, this kernel session 1.
    fn entries(&self) -> impl DoubleEndedIterator<Item = (usize, usize, &str)> {
        let past = self.past.iter().enumerate().map(|(i, line)| (0, i + 1, line.as_str()));
        past.chain(self.cells.iter().map(|(count, code)| (1, *count, code.as_str())))
    }

    /// What a client asks for.
    pub(super) fn reply(&self, request: &HistoryRequest) -> HistoryReply {
        let at_most = |n: i32| usize::try_from(n).unwrap_or(0);
        let (found, output): (Vec<_>, bool) = match request {
            HistoryRequest::Tail { n, output, .. } => {
                (self.entries().rev().take(at_most(*n)).collect(), *output)
            }
            HistoryRequest::Range { session, start, stop, output, .. } => {
                let wanted = match session {
                    // 0 is this session, -1 the one before.
                    None | Some(0 | 1) => 1,
                    Some(_) => 0,
                };
                let range = at_most(*start)..if *stop > 0 { at_most(*stop) } else { usize::MAX };
                let within =
                    |(s, line, _): &(usize, usize, &str)| *s == wanted && range.contains(line);
                (self.entries().rev().filter(within).collect(), *output)
            }
            HistoryRequest::Search { pattern, unique, output, n, .. } => {
                let mut seen = std::collections::BTreeSet::new();
                let fits = |(_, _, code): &(usize, usize, &str)| {
                    matches(pattern, code) && (!unique || seen.insert((*code).to_owned()))
                };
                (self.entries().rev().filter(fits).take(at_most(*n)).collect(), *output)
            }
        };
        let entry = |(session, line, code): (usize, usize, &str)| {
            let code = code.to_owned();
            if output {
                HistoryEntry::InputOutput(session, line, (code, String::new()))
            } else {
                HistoryEntry::Input(session, line, code)
            }
        };
        HistoryReply::new(found.into_iter().rev().map(entry).collect())
    }
}

/// Glob patterns as Jupyter has them: `*` is any text, `?` any character. Linear in the text.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                // The star before takes one character more.
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_cells() {
        let cases = [
            ("load*", "load tiny", true),
            ("*size*", "load tiny\nsize", true),
            ("load", "load tiny", false),
            ("l??d *", "load tiny", true),
            ("", "", true),
            ("*a*b", "aab", true),
            ("*a*b", "aba", false),
        ];
        for (pattern, text, wanted) in cases {
            assert_eq!(matches(pattern, text), wanted, "{pattern:?} {text:?}");
        }
    }

    #[test]
    fn cells_are_recalled_also_by_the_next_kernel() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deeper").join("history");
        let mut history = History::open(Some(&path));
        history.add(1, "load tiny");
        history.add(2, "load tiny\nsize");
        let next = History::open(Some(&path));
        let tail = HistoryRequest::Tail { n: 1, output: false, raw: true };
        for history in [&history, &next] {
            let HistoryEntry::Input(_, line, code) = &history.reply(&tail).history[0] else {
                panic!("no output was asked for");
            };
            assert_eq!((*line, code.as_str()), (2, "load tiny\nsize"));
        }
        let search = HistoryRequest::Search {
            pattern: "load*".into(),
            unique: true,
            output: true,
            raw: true,
            n: 10,
        };
        assert_eq!(next.reply(&search).history.len(), 2);
        let range =
            HistoryRequest::Range { session: Some(0), start: 1, stop: 2, output: false, raw: true };
        assert_eq!(history.reply(&range).history.len(), 1);
        assert_eq!(next.reply(&range).history.len(), 0);
    }
}
