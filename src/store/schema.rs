//! The file: its tables, and how it is opened.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use crate::error::{AtPath as _, Error, Result};

/// `aoru`: says that a SQLite file is a run store.
const APPLICATION_ID: i32 = 0x616f_7275;
/// Of the tables below. A file of a later version is left alone.
const VERSION: i32 = 1;
/// How long a writer waits for others.
const PATIENCE: Duration = Duration::from_secs(20);

const TABLES: &str = "
CREATE TABLE results (id INTEGER PRIMARY KEY, json TEXT NOT NULL) STRICT;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    started INTEGER NOT NULL, took REAL NOT NULL,
    line TEXT NOT NULL, command TEXT NOT NULL, subject TEXT NOT NULL,
    model_hash TEXT NOT NULL, data TEXT NOT NULL, seed INTEGER NOT NULL,
    version TEXT NOT NULL, device TEXT NOT NULL, kernels TEXT NOT NULL, baseline TEXT NOT NULL,
    sweep TEXT NOT NULL, trial TEXT NOT NULL, status TEXT NOT NULL,
    result INTEGER REFERENCES results (id)
) STRICT;
CREATE TABLE names (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, unit TEXT NOT NULL, UNIQUE (name, unit)
) STRICT;
CREATE TABLE metrics (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    name INTEGER NOT NULL REFERENCES names (id),
    place INTEGER NOT NULL, value REAL,
    PRIMARY KEY (run, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_by_sweep ON runs (sweep);
CREATE INDEX runs_by_result ON runs (result);
";

pub(super) fn open(path: &Path) -> Result<Connection> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).at(folder)?;
    }
    let fault = |error: rusqlite::Error| Error::file(path, format!("the run store: {error}"));
    let mut connection = Connection::open(path).map_err(fault)?;
    connection.busy_timeout(PATIENCE).map_err(fault)?;
    let (application, tables) = identity(&connection).map_err(fault)?;
    if application != APPLICATION_ID && tables > 0 {
        let words = "this SQLite file is no run store of aolab; name another file with --store";
        return Err(Error::file(path, words));
    }
    write_ahead(&connection).map_err(fault)?;
    connection
        .execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(fault)?;
    let version = upgrade(&mut connection).map_err(fault)?;
    if version > VERSION {
        return Err(Error::file(
            path,
            format!(
                "a run store of version {version}, and this aolab knows {VERSION}; use the newer aolab"
            ),
        ));
    }
    Ok(connection)
}

/// Whose file it is, and how many tables are in it.
fn identity(connection: &Connection) -> rusqlite::Result<(i32, i64)> {
    let application = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok((application, tables))
}

/// Turns WAL on. Unlike all else, this does not wait for other programs by itself.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let begun = Instant::now();
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && begun.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other.map(|_| ()),
        }
    }
}

/// Makes the tables of a new file; gives the file's version.
fn upgrade(connection: &mut Connection) -> rusqlite::Result<i32> {
    let version = |connection: &Connection| {
        connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i32>(0))
    };
    if version(connection)? >= VERSION {
        return version(connection);
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another program may have made them while this one waited.
    if version(&transaction)? == 0 {
        transaction.execute_batch(TABLES)?;
        transaction.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
        ))?;
    }
    transaction.commit()?;
    version(connection)
}

/// Moves what the log holds into the file.
pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}
