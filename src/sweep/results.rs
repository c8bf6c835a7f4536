//! What trials found, as one table.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{Sweep, Trial};
use crate::error::Result;
use crate::store::{Query, Run, RunStore};
use crate::table::{Cell, Table};

/// A trial that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Which.
    pub trial: Trial,
    /// What its measuring commands found, in their order.
    pub runs: Vec<Run>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Finished {
    pub(super) fn of_run(trial: &Trial, run: &Run) -> Finished {
        Finished { trial: trial.clone(), runs: vec![run.clone()], error: None }
    }

    /// The metrics of all its commands; of a name that comes again the last.
    fn metrics(&self) -> IndexMap<(&str, &str), f64> {
        let metrics = self.runs.iter().flat_map(|run| &run.metrics);
        metrics.map(|metric| ((&*metric.name, &*metric.unit), metric.value)).collect()
    }
}

/// The trials of `sweep` that are done already, by their lines: what a resumed sweep does not do again.
pub fn finished_before(store: &RunStore, sweep: &Sweep) -> Result<BTreeMap<String, Run>> {
    let filter = format!("sweep = {} and status = done", sweep.id);
    let runs = store.query(&Query { filter, ascending: true, ..Query::default() })?;
    let mut all: BTreeMap<String, Run> = BTreeMap::new();
    for (_, run) in runs {
        // The commands of one trial have one row each: together they are what it found.
        match all.get_mut(&run.trial) {
            Some(earlier) => earlier.metrics.extend(run.metrics),
            None => drop(all.insert(run.trial.clone(), run)),
        }
    }
    Ok(all)
}

/// One row a trial: its settings, then its metrics; what failed says why.
pub fn results(sweep: &Sweep, finished: &[Finished]) -> Result<Table> {
    let mut settings: Vec<&str> = Vec::new();
    let mut metrics: Vec<(&str, &str)> = Vec::new();
    for one in finished {
        for (name, _) in &one.trial.settings {
            if !settings.contains(&name.as_str()) {
                settings.push(name);
            }
        }
        for name in one.metrics().into_keys() {
            if !metrics.contains(&name) {
                metrics.push(name);
            }
        }
    }
    let numbers: Vec<bool> = settings.iter().map(|name| all_numbers(finished, name)).collect();
    let failed = finished.iter().any(|one| one.error.is_some());
    let mut table = Table::new(format!("Sweep {}", sweep.id)).column("trial");
    let mut taken = vec!["trial".to_owned(), "failed".to_owned()];
    let mut unique = |name: &str| {
        let mut name = name.to_owned();
        while taken.contains(&name) {
            name.push('\'');
        }
        taken.push(name.clone());
        name
    };
    for name in &settings {
        table = table.column(unique(name));
    }
    for (name, unit) in &metrics {
        table = table.column_unit(unique(name), *unit);
    }
    if failed {
        table = table.column("failed");
    }
    for (i, one) in finished.iter().enumerate() {
        let mut row: Vec<Cell> = vec![(i + 1).into()];
        for (name, numbers) in settings.iter().zip(&numbers) {
            row.push(setting(one.trial.settings.iter().find(|(n, _)| n == name), *numbers));
        }
        let found = one.metrics();
        row.extend(metrics.iter().map(|name| Cell::from(found.get(name).copied())));
        if failed {
            row.push(one.error.as_ref().into());
        }
        table.push(row)?;
    }
    table.note(format!("each trial is a run of the store: runs where 'sweep = {}'", sweep.id));
    Ok(table)
}

/// Whether a setting is a number wherever it is set.
fn all_numbers(finished: &[Finished], name: &str) -> bool {
    let settings = finished.iter().flat_map(|one| &one.trial.settings);
    settings.filter(|(n, _)| n == name).all(|(_, value)| value.parse::<f64>().is_ok())
}

fn setting(found: Option<&(String, String)>, number: bool) -> Cell {
    let Some((_, value)) = found else { return Cell::Missing };
    match (number, value.parse::<i64>(), value.parse::<f64>()) {
        (true, Ok(whole), _) => Cell::Int(whole),
        (true, _, Ok(real)) => Cell::Float(real),
        _ => Cell::Text(value.clone()),
    }
}
