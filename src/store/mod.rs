//! The run store: every measured number with where it came from, in one SQLite file.
//!
//! A [`Run`] is what one measuring command found about one model: its metrics beside the command line, the hashes of the
//! model's weights and of the text it read, seed, device, kernels and baseline. The whole table it came from is kept too.
//!
//! ```
//! # fn main() -> aolab::Result<()> {
//! use aolab::store::{Metric, Query, Run, RunStore};
//! # let folder = tempfile::tempdir().unwrap();
//! let store = RunStore::open(&folder.path().join("runs.sqlite"))?;
//! let perplexity = Metric { name: "perplexity".into(), unit: String::new(), value: 39.8 };
//! store.insert(&[Run { subject: "tiny".into(), metrics: vec![perplexity], ..Run::default() }])?;
//! let found = store.query(&Query { filter: "perplexity < 40".into(), ..Query::default() })?;
//! assert_eq!(found[0].1.subject, "tiny");
//! # Ok(()) }
//! ```
//!
//! Several programs may write at once: the file is in WAL mode, each run is one transaction that is on disk before
//! `insert` returns, and whoever must wait waits. A program that is killed loses at most the run that it was writing. WAL needs
//! memory that all writers share: on a network file system, write elsewhere and bring the runs together with [`RunStore::insert`].

mod diff;
mod filter;
mod names;
mod query;
mod run;
mod schema;
mod time;

pub use diff::diff;
pub use query::Query;
pub(crate) use run::ModelHashes;
pub use run::{Metric, Run, metrics_of, model_hash_of};
pub use time::{utc, utc_now_ms};

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use crate::error::{Error, Result};
use crate::table::Table;

/// An open run store.
#[derive(Debug)]
pub struct RunStore {
    connection: Mutex<Connection>,
    path: PathBuf,
}

/// What [`RunStore::gc`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collected {
    /// Runs that are gone.
    pub runs: usize,
    /// Bytes of the file before and after.
    pub bytes: (u64, u64),
}

impl RunStore {
    /// Opens the store at `path`, and makes it where there is none.
    pub fn open(path: &Path) -> Result<RunStore> {
        let connection = schema::open(path)?;
        Ok(RunStore { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What SQLite said, with the file's name.
    fn fault(&self, error: &rusqlite::Error) -> Error {
        Error::file(&self.path, format!("the run store: {error}"))
    }

    /// Keeps runs in one transaction, which is on disk when this returns; gives their numbers.
    pub fn insert(&self, runs: &[Run]) -> Result<Vec<i64>> {
        let mut connection = self.connection();
        let mut write = || {
            let behavior = TransactionBehavior::Immediate;
            let transaction = connection.transaction_with_behavior(behavior)?;
            let mut results = run::Results::default();
            let ids: Result<Vec<i64>, rusqlite::Error> =
                runs.iter().map(|run| run.insert(&transaction, &mut results)).collect();
            let ids = ids?;
            transaction.commit()?;
            Ok(ids)
        };
        write().map_err(|error| self.fault(&error))
    }

    /// The runs that `query` asks for, with their numbers, in its order.
    pub fn query(&self, query: &Query) -> Result<Vec<(i64, Run)>> {
        query::query(&self.connection(), query).map_err(|problem| problem.at(self))
    }

    /// How many runs a query finds.
    pub fn count(&self, filter: &str) -> Result<usize> {
        query::count(&self.connection(), filter).map_err(|problem| problem.at(self))
    }

    /// One run by its number.
    pub fn get(&self, id: i64) -> Result<Run> {
        let found = query::get(&self.connection(), id).map_err(|problem| problem.at(self))?;
        found.ok_or_else(|| {
            Error::usage(format!("no run has the number {id}; `runs` lists those there are"))
        })
    }

    /// The whole table that a run came from.
    pub fn result(&self, id: i64) -> Result<Table> {
        let sql =
            "SELECT json FROM results JOIN runs ON runs.result = results.id WHERE runs.id = ?";
        let json: Option<String> = self
            .connection()
            .query_row(sql, params![id], |row| row.get(0))
            .optional()
            .map_err(|error| self.fault(&error))?;
        let json = json.ok_or_else(|| Error::usage(format!("run {id} has kept no table")))?;
        let json = serde_json::from_str(&json)
            .map_err(|error| Error::file(&self.path, format!("run {id}'s table: {error}")))?;
        Table::from_json(json)
    }

    /// Deletes the runs that `filter` finds (none where it is empty) and tables that no run names, and gives their room back.
    pub fn gc(&self, filter: &str) -> Result<Collected> {
        let size = || std::fs::metadata(&self.path).map_or(0, |file| file.len());
        let mut connection = self.connection();
        // What other programs still see in the log is moved into the file first, so that sizes mean something.
        schema::checkpoint(&connection).map_err(|error| self.fault(&error))?;
        let before = size();
        let behavior = TransactionBehavior::Immediate;
        let transaction =
            connection.transaction_with_behavior(behavior).map_err(|error| self.fault(&error))?;
        let runs = query::delete(&transaction, filter).map_err(|problem| problem.at(self))?;
        let finish = |transaction: rusqlite::Transaction<'_>| {
            transaction.execute(
                "DELETE FROM results WHERE id NOT IN \
                 (SELECT result FROM runs WHERE result IS NOT NULL)",
                [],
            )?;
            transaction.commit()
        };
        finish(transaction)
            .and_then(|()| connection.execute_batch("VACUUM"))
            .and_then(|()| schema::checkpoint(&connection))
            .map_err(|error| self.fault(&error))?;
        Ok(Collected { runs, bytes: (before, size()) })
    }

    /// A change counter: it differs after any program wrote into the store.
    pub fn version(&self) -> Result<i64> {
        self.connection()
            .query_row("SELECT count(*) + ifnull(max(id), 0) FROM runs", [], |row| row.get(0))
            .map_err(|error| self.fault(&error))
    }
}
