//! What a word of a filter stands for: a field of the run, or metrics.

use rusqlite::Connection;

use super::filter::Problem;
use crate::error::{Error, did_you_mean};

/// What is compared or sorted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    /// A column of texts of the table `runs`.
    Text(&'static str),
    /// A column of numbers.
    Number(&'static str),
    /// Metrics by their numbers in the table `names`.
    Metrics(Vec<i64>),
}

/// The words for fields, and the columns that hold them.
const TEXTS: [(&str, &str); 13] = [
    ("model", "subject"),
    ("subject", "subject"),
    ("line", "line"),
    ("command", "command"),
    ("hash", "model_hash"),
    ("data", "data"),
    ("version", "version"),
    ("device", "device"),
    ("kernel", "kernels"),
    ("baseline", "baseline"),
    ("sweep", "sweep"),
    ("trial", "trial"),
    ("status", "status"),
];
const NUMBERS: [(&str, &str); 4] =
    [("id", "id"), ("seed", "seed"), ("took", "took"), ("started", "started")];

/// The metrics' names of a store.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<(i64, String, String)>);

impl Names {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Names> {
        let mut all = connection.prepare("SELECT id, name, unit FROM names ORDER BY id")?;
        let rows = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect::<Result<_, _>>().map(Names)
    }

    #[cfg(test)]
    pub(super) fn of(names: &[(i64, &str, &str)]) -> Names {
        Names(names.iter().map(|(id, name, unit)| (*id, (*name).into(), (*unit).into())).collect())
    }

    /// A field; a metric by its name, by its heading `speed (tok/s)`, or else by its unit.
    pub(super) fn find(&self, word: &str) -> Result<Reference, Problem> {
        let field = |fields: &[(&str, &'static str)]| {
            fields.iter().find(|(name, _)| *name == word).map(|(_, column)| *column)
        };
        if let Some(column) = field(&TEXTS) {
            return Ok(Reference::Text(column));
        }
        if let Some(column) = field(&NUMBERS) {
            return Ok(Reference::Number(column));
        }
        let ids = |fits: &dyn Fn(&str, &str) -> bool| {
            let all = self.0.iter().filter(|(_, name, unit)| fits(name, unit));
            all.map(|(id, _, _)| *id).collect::<Vec<_>>()
        };
        let by_name = ids(&|name, unit| name == word || format!("{name} ({unit})") == word);
        let found = if by_name.is_empty() { ids(&|_, unit| unit == word) } else { by_name };
        if found.is_empty() {
            Err(Problem::Words(self.unknown(word)))
        } else {
            Ok(Reference::Metrics(found))
        }
    }

    fn unknown(&self, word: &str) -> Error {
        let fields =
            TEXTS.iter().map(|(name, _)| *name).chain(NUMBERS.iter().map(|(name, _)| *name));
        let metrics = self.0.iter().map(|(_, name, _)| name.as_str());
        let hint = match did_you_mean(word, metrics.clone().chain(fields)) {
            Some(near) => format!("did you mean {near:?}?"),
            None if self.0.is_empty() => "the store has no run with a number yet".to_owned(),
            None => {
                let some: Vec<&str> = metrics.filter(|name| !name.contains('[')).take(12).collect();
                format!(
                    "among its metrics are {}; model, command, sweep … are fields",
                    some.join(", ")
                )
            }
        };
        Error::usage(format!("the run store has no metric or field {word:?}; {hint}"))
    }
}
