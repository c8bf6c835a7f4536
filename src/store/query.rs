//! Reading runs: filtered, sorted, one, or how many.

use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};

use super::filter::{Problem, condition};
use super::names::{Names, Reference};
use super::run::{Metric, Run};

/// Which runs, in which order.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// `perplexity < 30 and model ~ int4`; empty lets all through.
    pub filter: String,
    /// A metric, a metric's unit or a field; without it the latest come first.
    pub sort: Option<String>,
    /// The smallest first.
    pub ascending: bool,
    /// At most so many.
    pub limit: Option<usize>,
}

const COLUMNS: &str = "runs.id, started, took, line, command, subject, model_hash, data, seed, \
     version, device, kernels, baseline, sweep, trial, status";

pub(super) fn query(at: &Connection, query: &Query) -> Result<Vec<(i64, Run)>, Problem> {
    let names = Names::read(at)?;
    let filter = condition(&query.filter, &names)?;
    let direction = if query.ascending { "ASC" } else { "DESC" };
    let (order, sorted_by) = match query.sort.as_deref().map(|word| names.find(word)).transpose()? {
        None => (format!("runs.id {direction}"), Vec::new()),
        Some(Reference::Text(column) | Reference::Number(column)) => {
            (format!("runs.{column} {direction}, runs.id DESC"), Vec::new())
        }
        // A run that lacks the metric comes last either way.
        Some(Reference::Metrics(ids)) => {
            let marks = vec!["?"; ids.len()].join(", ");
            let value = format!(
                "(SELECT value FROM metrics WHERE metrics.run = runs.id AND metrics.name IN ({marks}) \
                 ORDER BY metrics.name LIMIT 1)"
            );
            (format!("{value} {direction} NULLS LAST, runs.id DESC"), ids)
        }
    };
    let limit = query.limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(-1);
    let sql = format!("SELECT {COLUMNS} FROM runs WHERE {} ORDER BY {order} LIMIT ?", filter.sql);
    let mut values = filter.values;
    values.extend(sorted_by.into_iter().map(Sql::Integer));
    values.push(Sql::Integer(limit));
    let mut statement = at.prepare(&sql)?;
    let rows = statement.query_map(params_from_iter(values), row)?;
    let mut runs = rows.collect::<Result<Vec<_>, _>>()?;
    let mut metrics = metrics(at)?;
    for (id, run) in &mut runs {
        run.metrics = read_metrics(&mut metrics, *id)?;
    }
    Ok(runs)
}

pub(super) fn count(at: &Connection, filter: &str) -> Result<usize, Problem> {
    let filter = condition(filter, &Names::read(at)?)?;
    let sql = format!("SELECT count(*) FROM runs WHERE {}", filter.sql);
    let count: i64 = at.query_row(&sql, params_from_iter(filter.values), |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

pub(super) fn get(at: &Connection, id: i64) -> Result<Option<Run>, Problem> {
    let sql = format!("SELECT {COLUMNS} FROM runs WHERE id = ?");
    let found = at.query_row(&sql, params![id], row).optional()?;
    let Some((id, mut run)) = found else { return Ok(None) };
    run.metrics = read_metrics(&mut metrics(at)?, id)?;
    Ok(Some(run))
}

/// Deletes what `filter` finds; an empty filter finds nothing here.
pub(super) fn delete(at: &Connection, filter: &str) -> Result<usize, Problem> {
    if filter.trim().is_empty() {
        return Ok(0);
    }
    let filter = condition(filter, &Names::read(at)?)?;
    let sql = format!("DELETE FROM runs WHERE {}", filter.sql);
    Ok(at.execute(&sql, params_from_iter(filter.values))?)
}

fn row(row: &Row<'_>) -> rusqlite::Result<(i64, Run)> {
    let run = Run {
        started: row.get(1)?,
        took: row.get(2)?,
        line: row.get(3)?,
        command: row.get(4)?,
        subject: row.get(5)?,
        model_hash: row.get(6)?,
        data: row.get(7)?,
        seed: row.get::<_, i64>(8)?.cast_unsigned(),
        version: row.get(9)?,
        device: row.get(10)?,
        kernels: row.get(11)?,
        baseline: row.get(12)?,
        sweep: row.get(13)?,
        trial: row.get(14)?,
        status: row.get(15)?,
        metrics: Vec::new(),
        table: None,
    };
    Ok((row.get(0)?, run))
}

fn metrics(at: &Connection) -> rusqlite::Result<rusqlite::Statement<'_>> {
    at.prepare(
        "SELECT names.name, names.unit, metrics.value FROM metrics JOIN names ON names.id = metrics.name \
         WHERE metrics.run = ? ORDER BY metrics.place",
    )
}

fn read_metrics(statement: &mut rusqlite::Statement<'_>, id: i64) -> rusqlite::Result<Vec<Metric>> {
    let rows = statement.query_map(params![id], |row| {
        let value: Option<f64> = row.get(2)?;
        Ok(Metric { name: row.get(0)?, unit: row.get(1)?, value: value.unwrap_or(f64::NAN) })
    })?;
    rows.collect()
}
