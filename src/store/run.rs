//! One run: its row in the store, and how it is made of a measuring command's table.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use crate::model::{Model, Weight};
use crate::table::{Cell, Kind, Table};

/// A measured number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// `perplexity`; of one row among several `output SQNR [lm_head bf16]`.
    pub name: String,
    /// `tok/s`, or nothing.
    pub unit: String,
    /// NaN where it was none.
    #[serde(with = "finite_or_words")]
    pub value: f64,
}

/// What one measuring command found about one model, and all that is needed to find it again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// Milliseconds since 1970, UTC.
    pub started: i64,
    /// Milliseconds that the command took.
    pub took: f64,
    /// The whole line as it was typed.
    pub line: String,
    /// The stage of it that measured.
    pub command: String,
    /// The model's name.
    pub subject: String,
    /// BLAKE3 of its configuration and weights; empty where there was no model.
    pub model_hash: String,
    /// What was read, with its hash: `sotu@1f2e3d4c5b6a7988`.
    pub data: String,
    /// Where random draws began.
    pub seed: u64,
    /// aolab's.
    pub version: String,
    /// Processor, instruction set, threads, GPU.
    pub device: String,
    /// The kernels of the model's linear layers, for the rows that were multiplied.
    pub kernels: String,
    /// What it was compared with.
    pub baseline: String,
    /// The sweep that it is a trial of.
    pub sweep: String,
    /// Which trial: the line that it ran.
    pub trial: String,
    /// `done`, or `failed: ` and why.
    pub status: String,
    /// The numbers, in the order of the table's columns.
    pub metrics: Vec<Metric>,
    /// The whole table that they come from. One table may belong to several runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<Arc<Table>>,
}

/// Numbers are strings that read back to the last bit, and so are NaN and infinity, which JSON lacks.
mod finite_or_words {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(f64),
        Word(String),
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{value:e}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        match Either::deserialize(from)? {
            Either::Number(value) => Ok(value),
            Either::Word(word) => word.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// More metrics of one table than this are in the kept table only.
const MOST_METRICS: usize = 4096;

/// The metrics of each subject of a measuring command's table: a row a model where the first column names models, else the
/// whole table is about one subject, and several rows give each metric the row's words.
pub fn metrics_of(table: &Table, subject: &str) -> Vec<(String, Vec<Metric>)> {
    let a_model_a_row = table.columns().first().is_some_and(|column| column.name == "model");
    if a_model_a_row {
        let rows = table.rows().iter();
        return rows.map(|row| (row[0].to_string(), row_metrics(table, row, ""))).collect();
    }
    let mut metrics = Vec::new();
    for row in table.rows() {
        let of_row = row.iter().zip(table.columns());
        let words: Vec<String> = of_row
            .filter(|(_, column)| matches!(column.kind, Kind::Text | Kind::Int))
            .map(|(cell, _)| cell.to_string())
            .collect();
        let label = if table.len() > 1 { format!(" [{}]", words.join(" ")) } else { String::new() };
        metrics.extend(row_metrics(table, row, &label));
    }
    metrics.truncate(MOST_METRICS);
    vec![(subject.to_owned(), metrics)]
}

fn row_metrics(table: &Table, row: &[Cell], label: &str) -> Vec<Metric> {
    let cells = row.iter().zip(table.columns());
    let wanted = cells.filter(|(_, column)| {
        matches!(column.kind, Kind::Float | Kind::Bytes)
            || (label.is_empty() && column.kind == Kind::Int)
    });
    wanted
        .filter_map(|(cell, column)| {
            let unit = if column.kind == Kind::Bytes { "B" } else { &column.unit };
            let name = format!("{}{label}", column.name);
            Some(Metric { name, unit: unit.to_owned(), value: cell.as_f64()? })
        })
        .collect()
}

/// Tables that were written already, by their address.
#[derive(Debug, Default)]
pub(super) struct Results(BTreeMap<usize, i64>);

impl Results {
    fn id(&mut self, at: &Connection, table: &Arc<Table>) -> rusqlite::Result<i64> {
        let address = Arc::as_ptr(table).addr();
        if let Some(id) = self.0.get(&address) {
            return Ok(*id);
        }
        at.prepare("INSERT INTO results (json) VALUES (?)")?
            .execute(params![table.to_json().to_string()])?;
        let id = at.last_insert_rowid();
        self.0.insert(address, id);
        Ok(id)
    }
}

impl Run {
    pub(super) fn insert(&self, at: &Connection, results: &mut Results) -> rusqlite::Result<i64> {
        let result = self.table.as_ref().map(|table| results.id(at, table)).transpose()?;
        let mut insert = at.prepare(
            "INSERT INTO runs (started, took, line, command, subject, model_hash, data, seed, version, \
             device, kernels, baseline, sweep, trial, status, result) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?;
        insert.execute(params![
            self.started,
            self.took,
            self.line,
            self.command,
            self.subject,
            self.model_hash,
            self.data,
            // All 64 bits are kept; a seed beyond 2⁶³ is a negative number in the file.
            self.seed.cast_signed(),
            self.version,
            self.device,
            self.kernels,
            self.baseline,
            self.sweep,
            self.trial,
            self.status,
            result,
        ])?;
        let id = at.last_insert_rowid();
        let mut keep = at.prepare(
            "INSERT OR REPLACE INTO metrics (run, name, place, value) VALUES (?, ?, ?, ?)",
        )?;
        for (place, metric) in self.metrics.iter().enumerate() {
            let name = name_id(at, metric)?;
            let place = i64::try_from(place).unwrap_or(i64::MAX);
            // SQLite has no NaN: it stands as NULL.
            keep.execute(params![
                id,
                name,
                place,
                (!metric.value.is_nan()).then_some(metric.value)
            ])?;
        }
        Ok(id)
    }
}

fn name_id(at: &Connection, metric: &Metric) -> rusqlite::Result<i64> {
    let both = params![metric.name, metric.unit];
    let mut find = at.prepare("SELECT id FROM names WHERE name = ? AND unit = ?")?;
    if let Some(id) = find.query_row(both, |row| row.get(0)).optional()? {
        return Ok(id);
    }
    at.execute("INSERT INTO names (name, unit) VALUES (?, ?)", both)?;
    Ok(at.last_insert_rowid())
}

/// BLAKE3 of a model's configuration and weights, 32 hexadecimal digits.
pub fn model_hash_of(model: &Model) -> String {
    ModelHashes::default().of(model, &|| false).unwrap_or_default()
}

/// The hashes of weights that were hashed already: a quantized copy shares most of its original.
#[derive(Debug, Default)]
pub(crate) struct ModelHashes {
    known: BTreeMap<usize, (Weak<dyn Weight>, blake3::Hash)>,
}

impl ModelHashes {
    /// `None` where `stopped` says so in the middle.
    pub(crate) fn of(&mut self, model: &Model, stopped: &dyn Fn() -> bool) -> Option<String> {
        let mut all = blake3::Hasher::new();
        all.update(format!("{:?} {:?}", model.config, model.kv_cache).as_bytes());
        for (name, vector) in model.vectors() {
            all.update(name.as_bytes()).update(vector.bytes());
        }
        let embedding = std::iter::once(&model.embed_tokens);
        let linears = model.linears();
        for weight in embedding.chain(linears.iter().map(|(_, linear)| &linear.weight)) {
            if stopped() {
                return None;
            }
            all.update(self.weight(weight).as_bytes());
        }
        for (_, linear) in &linears {
            all.update(linear.bias.as_ref().map_or(&[], |bias| bias.bytes()));
        }
        Some(all.finalize().to_hex()[..32].to_owned())
    }

    fn weight(&mut self, weight: &Arc<dyn Weight>) -> blake3::Hash {
        let address = Arc::as_ptr(weight).cast::<()>().addr();
        if let Some((kept, hash)) = self.known.get(&address)
            && kept.strong_count() > 0
        {
            return *hash;
        }
        // Addresses of weights that are gone will be given to others.
        self.known.retain(|_, (kept, _)| kept.strong_count() > 0);
        let mut hasher = blake3::Hasher::new();
        hasher.update(weight.workflow().as_bytes()).update(weight.meta().to_string().as_bytes());
        for (name, tensor) in weight.tensors() {
            let about = format!("{name} {} {:?}", tensor.dtype(), tensor.shape());
            hasher.update(about.as_bytes()).update(tensor.bytes());
        }
        let hash = hasher.finalize();
        self.known.insert(address, (Arc::downgrade(weight), hash));
        hash
    }
}
