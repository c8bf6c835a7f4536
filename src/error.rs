//! What can go wrong, in words: what, got, wanted, what next.

use std::io;
use std::path::{Path, PathBuf};

/// The result of everything that can fail on input, files or hardware.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done. `Display` is what a person reads.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line itself is wrong: unknown command, flag or value. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A value, shape or configuration that cannot apply.
    #[error("{0}")]
    Invalid(String),
    /// A file whose content is not what it says, is damaged, or is not supported.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what was wanted.
        what: String,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Something went wrong inside a named part: a layer, a line of a script, a file of a folder.
    #[error("{part}: {source}")]
    In {
        /// The part's name.
        part: String,
        /// What went wrong there.
        source: Box<Error>,
    },
    /// The person pressed Ctrl-C (or the caller cancelled).
    #[error("stopped; what was finished is kept")]
    Cancelled,
}

impl Error {
    /// An [`Error::Invalid`] from words.
    pub fn invalid(words: impl Into<String>) -> Error {
        Error::Invalid(words.into())
    }

    /// An [`Error::Usage`] from words.
    pub fn usage(words: impl Into<String>) -> Error {
        Error::Usage(words.into())
    }

    /// An [`Error::File`] from words.
    pub fn file(path: impl AsRef<Path>, words: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), what: words.into() }
    }

    /// The exit code of a program that ends with this error: 2 for usage, 130 for Ctrl-C, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::In { source, .. } => source.exit_code(),
            Error::Cancelled => 130,
            _ => 1,
        }
    }

    /// Whether a person stopped the work, at whatever depth.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Error::Cancelled => true,
            Error::In { source, .. } => source.is_cancelled(),
            _ => false,
        }
    }
}

/// Adds the name of the part, or of the file, to an error on its way up.
pub trait Context<T> {
    /// Puts `part` in front: `layers.3.wo: K = 100 is not …`.
    fn within(self, part: impl std::fmt::Display) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn within(self, part: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| match error {
            Error::Cancelled => Error::Cancelled,
            other => Error::In { part: part.to_string(), source: Box::new(other) },
        })
    }
}

/// Gives an I/O error the path it is about.
pub trait AtPath<T> {
    /// `path: permission denied`.
    fn at(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { path: path.as_ref().to_path_buf(), source })
    }
}

/// The entry of `known` that a person most likely meant by `word`, for "did you mean …?".
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    let known = known.into_iter().filter(|_| !word.is_empty());
    known
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit || candidate.starts_with(word))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many insertions, deletions, substitutions and swaps of neighbours turn `a` into `b`
/// (the optimal string alignment distance).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let substituted = last[j] + usize::from(a[i] != b[j]);
            let mut least = substituted.min(row[j] + 1).min(last[j + 1] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_suggested_and_nonsense_is_not() {
        let known = ["quantize", "eval", "generate"];
        assert_eq!(did_you_mean("quantise", known), Some("quantize"));
        assert_eq!(did_you_mean("gen", known), Some("generate"));
        assert_eq!(did_you_mean("xylophone", known), None);
        assert_eq!(did_you_mean("", known), None);
        assert_eq!(did_you_mean("eavl", known), Some("eval"), "a swap is one mistake");
        for (a, b, distance) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "ba", 1),
            ("abc", "cab", 2),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
            assert_eq!(edit_distance(b, a), distance, "{b} {a}");
        }
    }

    #[test]
    fn exit_codes_survive_context() {
        let usage: Result<()> = Err(Error::usage("no such flag"));
        let wrapped = usage.within("line 3").expect_err("an error stays one");
        assert_eq!(wrapped.exit_code(), 2);
        assert_eq!(wrapped.to_string(), "line 3: no such flag");
    }
}
