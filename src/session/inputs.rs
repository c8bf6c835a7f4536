//! Which files a value was made of, and whether they have changed since.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Session;

/// A file as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The file.
    pub path: PathBuf,
    modified: Option<SystemTime>,
    nbytes: u64,
}

impl Input {
    fn new(path: PathBuf, found: &Metadata) -> Input {
        Input { path, modified: found.modified().ok(), nbytes: found.len() }
    }

    /// How the file differs from what was read: `changed` or `gone`.
    fn change(&self) -> Option<&'static str> {
        match std::fs::metadata(&self.path) {
            Err(_) => Some("is gone"),
            Ok(now) if Input::new(self.path.clone(), &now) != *self => Some("has changed"),
            Ok(_) => None,
        }
    }
}

impl Session {
    /// Says that the statement under way reads `path`: a file, or a folder with its files. What is no path is nothing to watch.
    pub(crate) fn touches(&mut self, path: &Path) {
        let Ok(found) = std::fs::metadata(path) else { return };
        if found.is_file() {
            self.inputs.push(Input::new(path.to_owned(), &found));
            return;
        }
        let Ok(entries) = std::fs::read_dir(path) else { return };
        let mut files: Vec<Input> = entries
            .flatten()
            .filter_map(|entry| {
                Some(Input::new(entry.path(), &entry.metadata().ok().filter(Metadata::is_file)?))
            })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        self.inputs.extend(files);
    }

    /// Says that the statement under way uses the variable `$name` or the latest value of a kind. One that is stale is remarked upon.
    pub(crate) fn uses(&mut self, what: &str) {
        if let Some(why) = self.stale(what) {
            self.note(&format!("{what} is stale: {why} since it was read; run what made it again"));
        }
        let inputs = self.timeline.now.inputs(what).to_vec();
        for input in inputs {
            if !self.inputs.contains(&input) {
                self.inputs.push(input);
            }
        }
    }

    pub(crate) fn forget_inputs(&mut self) {
        self.inputs.clear();
    }

    /// The file that makes a value stale, and how: `texts/a.txt has changed`.
    pub fn stale(&self, what: &str) -> Option<String> {
        let inputs = self.timeline.now.inputs(what).iter();
        let mut changed = inputs.filter_map(|input| Some((input, input.change()?)));
        changed.next().map(|(input, how)| format!("{} {how}", input.path.display()))
    }
}
