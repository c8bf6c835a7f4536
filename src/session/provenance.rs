//! Where a measured number came from: what the command under way measures with, and the runs that are kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::Session;
use crate::error::Result;
use crate::model::Model;
use crate::store::{Metric, ModelHashes, Run, RunStore, metrics_of, utc_now_ms};
use crate::table::Table;

/// The run store, and what belongs to the measuring command under way.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Where runs are kept; without it they are not.
    path: Option<PathBuf>,
    /// Opened when it is first needed.
    store: Option<Arc<RunStore>>,
    hashes: ModelHashes,
    /// The models that are measured, with the rows that their layers multiply.
    subjects: Vec<(Model, Vec<usize>)>,
    baseline: Option<Model>,
    /// What a command that gives no table measured besides, and its metrics: training and its losses.
    beside: Option<(Table, Vec<Metric>)>,
    /// The rows that a command under way has finished, for the case that it is stopped.
    finished_rows: Option<Table>,
    /// What was read: `sotu@1f2e3d4c`.
    data: Vec<String>,
    /// The sweep under way and the trial.
    pub(crate) trial: Option<(String, String)>,
    /// The runs of a trial, for whoever runs it.
    pub(crate) collected: Option<Vec<Run>>,
}

impl Records {
    /// For a session beside this one: the same file, through a connection of its own.
    pub(super) fn fork(&self) -> Records {
        Records { path: self.path.clone(), trial: self.trial.clone(), ..Records::default() }
    }
}

/// When a command began.
#[derive(Debug)]
pub(crate) struct Began {
    utc_ms: i64,
    at: Instant,
}

impl Session {
    /// Keeps every measured number in the run store at `path` (`None`: nowhere). The file is made by the first.
    pub fn set_store(&mut self, path: Option<&Path>) {
        self.records.path = path.map(Path::to_owned);
        self.records.store = None;
    }

    /// The run store, opened; an error where this session keeps none.
    pub fn store(&mut self) -> Result<Arc<RunStore>> {
        if let Some(store) = &self.records.store {
            return Ok(Arc::clone(store));
        }
        let path = self.records.path.as_deref().ok_or_else(|| {
            let words =
                "this session keeps no runs; name a file with --store, or Session::set_store";
            crate::Error::usage(words)
        })?;
        let store = Arc::new(RunStore::open(path)?);
        self.records.store = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Where runs are kept.
    pub fn store_path(&self) -> Option<&Path> {
        self.records.path.as_deref()
    }

    /// Says that the command under way measures `model`, whose layers multiply so many `rows` at once.
    pub(crate) fn measures(&mut self, model: &Model, rows: &[usize]) {
        self.records.subjects.push((model.clone(), rows.to_vec()));
    }

    /// Says what the command under way compares with.
    pub(crate) fn compares_with(&mut self, model: &Model) {
        self.records.baseline = Some(model.clone());
    }

    /// Says what the command under way reads.
    pub(crate) fn reads(&mut self, name: &str, bytes: &[u8]) {
        let hash = blake3::hash(bytes).to_hex();
        self.records.data.push(format!("{name}@{}", &hash[..16]));
    }

    /// Says what the command under way measured besides what it gives.
    pub(crate) fn measured(&mut self, table: Table, metrics: Vec<Metric>) {
        self.records.beside = Some((table, metrics));
    }

    /// Says which rows the command under way has finished: they are kept if it is stopped before it can give its table.
    pub(crate) fn has_finished(&mut self, rows: Table) {
        self.records.finished_rows = Some(rows);
    }

    pub(crate) fn begin_measuring(&mut self) -> Began {
        self.records.finished_rows = None;
        self.records.beside = None;
        self.records.subjects.clear();
        self.records.data.clear();
        self.records.baseline = None;
        Began { utc_ms: utc_now_ms(), at: Instant::now() }
    }

    /// Keeps what a measuring command found. A store that cannot be written costs a remark, not the numbers.
    pub(crate) fn keep_runs(
        &mut self,
        began: &Began,
        (line, command): (&str, &str),
        table: &Table,
        status: &str,
    ) {
        if !self.keeps() {
            return;
        }
        let frame = self.frame_of(began, (line, command), table.clone());
        let frame = Run { status: status.to_owned(), ..frame };
        let found = metrics_of(table, &self.subject());
        let runs: Vec<Run> = found
            .into_iter()
            .map(|(name, metrics)| self.completed(&frame, name, metrics))
            .collect();
        self.keep_finished(&runs);
    }

    /// Keeps the rows that a command had finished when it was stopped.
    pub(crate) fn keep_finished_rows(&mut self, began: &Began, of: (&str, &str)) {
        let Some(rows) = self.records.finished_rows.take().filter(|_| self.keeps()) else { return };
        self.keep_runs(began, of, &rows, "stopped");
        let rows = rows.len();
        self.note(&format!(
            "{rows} finished rows are in the run store: `runs where 'status = stopped'`"
        ));
    }

    /// Keeps what a command measured besides, with how it ended.
    pub(crate) fn keep_beside(&mut self, began: &Began, line: &str, command: &str, status: &str) {
        let Some((table, metrics)) = self.records.beside.take() else { return };
        if !self.keeps() {
            return;
        }
        let frame =
            Run { status: status.to_owned(), ..self.frame_of(began, (line, command), table) };
        let run = self.completed(&frame, self.subject(), metrics);
        self.keep_finished(&[run]);
    }

    fn keeps(&self) -> bool {
        self.records.path.is_some() || self.records.collected.is_some()
    }

    /// Whose measurements they are where the table does not say.
    fn subject(&self) -> String {
        self.records.subjects.first().map_or("", |(model, _)| &model.name).to_owned()
    }

    /// What all runs of one command have in common.
    fn frame_of(&self, began: &Began, (line, command): (&str, &str), table: Table) -> Run {
        Run {
            started: began.utc_ms,
            took: began.at.elapsed().as_secs_f64() * 1e3,
            line: line.to_owned(),
            command: command.to_owned(),
            table: Some(Arc::new(table)),
            ..self.frame()
        }
    }

    /// What all runs of this session have in common.
    pub(crate) fn frame(&self) -> Run {
        let (sweep, trial) = self.records.trial.clone().unwrap_or_default();
        let gpu = self.device.as_ref().map(|device| format!(", {device:?}")).unwrap_or_default();
        let (arch, isa, compute) =
            (std::env::consts::ARCH, self.cpu.isa().name(), self.cpu.compute().name());
        let threads = self.cpu.threads().count();
        Run {
            seed: self.seed,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: format!("{arch} {isa}, {threads} threads, {compute}{gpu}"),
            data: self.records.data.join(", "),
            status: "done".to_owned(),
            sweep,
            trial,
            ..Run::default()
        }
    }

    fn completed(&mut self, frame: &Run, subject: String, metrics: Vec<Metric>) -> Run {
        let mut run = Run { subject, metrics, ..frame.clone() };
        let cancel = Arc::clone(&self.cancel);
        let stopped = || cancel.load(std::sync::atomic::Ordering::Relaxed);
        let records = &mut self.records;
        let mut hash = |model: &Model| records.hashes.of(model, &stopped).unwrap_or_default();
        if let Some(base) = &records.baseline {
            run.baseline = format!("{}@{}", base.name, hash(base));
        }
        let subjects = &records.subjects;
        let named = subjects.iter().find(|(model, _)| model.name == run.subject);
        let Some((model, rows)) = named.or(subjects.first()) else { return run };
        run.model_hash = hash(model);
        let mut kernels: Vec<String> = Vec::new();
        let placed = model.placement().unwrap_or_default();
        for kernel in placed.into_iter().map(|layer| layer.kernel) {
            kernels.push(kernel);
        }
        if kernels.is_empty() {
            for (_, linear) in model.linears() {
                kernels.extend(rows.iter().map(|m| linear.weight.kernel(&self.cpu, *m)));
            }
        }
        kernels.sort_unstable();
        kernels.dedup();
        run.kernels = kernels.join(", ");
        run.metrics.extend(sizes(model));
        run
    }

    /// Keeps runs that are complete.
    pub(crate) fn keep_finished(&mut self, runs: &[Run]) {
        if let Some(collected) = &mut self.records.collected {
            collected.extend(runs.iter().cloned());
        }
        if self.records.path.is_none() {
            return;
        }
        let kept = self.store().and_then(|store| store.insert(runs));
        if let Err(error) = kept {
            self.note(&format!("this run is not kept: {error}"));
        }
    }
}

/// What every run says of its model: bits a weight of the linear layers, and bytes of the whole.
#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2⁵³")]
fn sizes(model: &Model) -> [Metric; 2] {
    let linears = model.linears();
    let bytes: usize = linears.iter().map(|(_, linear)| linear.weight.nbytes()).sum();
    let shapes = linears.iter().map(|(_, linear)| linear.weight.shape());
    let weights: usize = shapes.map(|(n, k)| n * k).sum();
    let metric =
        |name: &str, unit: &str, value| Metric { name: name.into(), unit: unit.into(), value };
    [
        metric("bits", "bits a weight", 8.0 * bytes as f64 / weights as f64),
        metric("model size", "B", model.nbytes() as f64),
    ]
}
