//! `runs`

use std::path::PathBuf;
use std::sync::Arc;

use super::{Command, Example, Group, Output};
use crate::error::{AtPath as _, Error, Result};
use crate::io::files;
use crate::session::Session;
use crate::store::{Query, Run, RunStore, diff, utc};
use crate::table::{Cell, Table, number};
use crate::value::{Kind, Value};

/// List, filter, compare and export what was measured: the run store.
///
/// Every `eval`, `bench`, `compare`, `train` and trial of a sweep is kept with its command line, the hashes of model and data, seed, version,
/// device, kernels and baseline. The store is .aolab/runs.sqlite of this folder or of one above it, if `runs init` made one,
/// and else one file for all of a user's work; --store FILE names another, and --no-store keeps nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Runs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, clap::Args)]
struct Listing {
    /// Largest first by a metric (perplexity), a unit (tok/s) or a field [default: the latest first]
    #[arg(long, value_name = "NAME")]
    sort: Option<String>,
    /// Smallest first
    #[arg(long)]
    ascending: bool,
    /// At most so many
    #[arg(long, default_value_t = 30, value_name = "COUNT")]
    limit: usize,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Only the runs that fit, such as 'perplexity < 30 and model ~ int4'
    Where {
        /// Names are metrics, units or fields (model, command, line, hash, data, seed, device, kernel, baseline, sweep, trial, status, id);
        /// = != < <= > >= compare, ~ means "contains", and or not ( ) join
        #[arg(value_name = "FILTER")]
        filter: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// The whole table that a run came from, with where it came from
    Show {
        /// Its number
        id: i64,
    },
    /// Two runs side by side
    Diff {
        /// A run's number
        a: i64,
        /// Another's
        b: i64,
    },
    /// The curves of training runs, one below the other, for `plot loss`
    Losses {
        /// Which; without it, all
        #[arg(value_name = "FILTER", default_value = "")]
        filter: String,
        /// At most so many, the latest
        #[arg(long, default_value_t = 8, value_name = "COUNT")]
        limit: usize,
    },
    /// Write runs into a file, all metrics as columns
    Export(Export),
    /// Delete runs, and give the room of deleted ones back
    Gc {
        /// Which; without it, those that failed
        #[arg(long = "where", value_name = "FILTER", default_value = "not status = done")]
        filter: String,
    },
    /// Keep the runs of this folder in it, in .aolab/
    Init,
}

#[derive(Debug, clap::Args)]
struct Export {
    /// Where to [default: runs.parquet, runs.csv or runs.json]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// As Parquet, for data frames
    #[arg(long, group = "format")]
    parquet: bool,
    /// As CSV, for spreadsheets
    #[arg(long, group = "format")]
    csv: bool,
    /// As JSON
    #[arg(long, group = "format")]
    json: bool,
    /// Only runs that fit
    #[arg(long = "where", value_name = "FILTER", default_value = "")]
    filter: String,
}

impl Command for Runs {
    const NAME: &'static str = "runs";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const REPLAYS: bool = false;
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | eval perplexity --windows 1; runs",
            about: "what was measured, the latest first",
            expect: "eval perplexity --windows 1",
        },
        Example {
            line: "load tiny | eval perplexity --windows 1; runs where 'perplexity < 100 and model ~ tiny' --sort tok/s",
            about: "the good ones, fastest first",
            expect: "tok/s",
        },
        Example {
            line: "load tiny; eval perplexity --windows 1; quantize int8-weight-only | eval perplexity --windows 1; runs diff 1 2",
            about: "what differs between two",
            expect: "model hash ≠",
        },
        Example {
            line: "load tiny | eval perplexity --windows 1; runs export --parquet",
            about: "for a data frame",
            expect: "runs.parquet",
        },
        Example { line: "runs gc", about: "delete what failed", expect: "deleted" },
        Example { line: "runs init", about: "keep this folder's runs in it", expect: ".aolab" },
    ];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        if matches!(self.what, Some(What::Init)) {
            return init(session).map(Value::Table);
        }
        let store = session.store()?;
        let table = match self.what {
            None => list(&store, "", &self.listing)?,
            Some(What::Where { filter, listing }) => list(&store, &filter, &listing)?,
            Some(What::Show { id }) => {
                let run = store.get(id)?;
                let mut table = store.result(id)?;
                for words in about(id, &run) {
                    table.note(words);
                }
                table
            }
            Some(What::Diff { a, b }) => diff((a, &store.get(a)?), (b, &store.get(b)?))?,
            Some(What::Losses { filter, limit }) => losses(&store, &filter, limit)?,
            Some(What::Export(export)) => export.run(session, &store)?,
            Some(What::Gc { filter }) => {
                let done = store.gc(&filter)?;
                let mut table = Table::new("Garbage collection").column("runs deleted");
                table = table.column("bytes before").column("bytes after");
                table.push([
                    done.runs.into(),
                    Cell::Bytes(done.bytes.0),
                    Cell::Bytes(done.bytes.1),
                ])?;
                table
            }
            Some(What::Init) => Table::default(),
        };
        Ok(Value::Table(table))
    }
}

fn init(session: &mut Session) -> Result<Table> {
    let path = PathBuf::from(".aolab").join("runs.sqlite");
    let path = std::path::absolute(&path).at(&path)?;
    session.set_store(Some(&path));
    let store = session.store()?;
    let mut table = Table::new("Run store").column("file").column("runs");
    table.push([store.path().display().to_string().into(), store.count("")?.into()])?;
    table.note("commands that run in this folder or below it keep their runs there");
    Ok(table)
}

fn list(store: &RunStore, filter: &str, listing: &Listing) -> Result<Table> {
    let query = Query {
        filter: filter.to_owned(),
        sort: listing.sort.clone(),
        ascending: listing.ascending,
        limit: Some(listing.limit),
    };
    let runs = store.query(&query)?;
    let mut table = wide("Runs", &runs, Some(6), listing.sort.as_deref())?;
    let all = store.count(filter)?;
    if all > runs.len() {
        table.note(format!("{} of {all} runs; --limit shows more", runs.len()));
    }
    if all == 0 {
        let what = if filter.is_empty() { "nothing was measured yet" } else { "no run fits" };
        table.note(format!("{what}; `load tiny | eval perplexity` measures"));
    }
    table.note(format!("in {}", store.path().display()));
    Ok(table)
}

/// The curves of the latest training runs that fit: a row a step, with the run's number and model.
fn losses(store: &RunStore, filter: &str, limit: usize) -> Result<Table> {
    let trained = "command ~ train and steps > 0";
    let filter =
        if filter.is_empty() { trained.to_owned() } else { format!("{trained} and ({filter})") };
    let query = Query { filter, limit: Some(limit), ..Query::default() };
    let mut runs = store.query(&query)?;
    runs.reverse();
    let mut table = Table::new("Losses of training")
        .column("run")
        .column("step")
        .column_unit("loss", "nats")
        .column_unit("held-out loss", "nats");
    for (id, run) in &runs {
        let curve = store.result(*id)?;
        let name = Cell::from(format!("{id} {}", run.subject));
        let column = |name: &str| {
            curve.columns().iter().position(|column| column.name == name).ok_or_else(|| {
                Error::invalid(format!("run {id} has kept no {name}; it is of another aolab"))
            })
        };
        let (step, loss, held_out) = (column("step")?, column("loss")?, column("held-out loss")?);
        for row in curve.rows() {
            let cells = [step, loss, held_out].map(|at| row[at].clone());
            table.push(std::iter::once(name.clone()).chain(cells))?;
        }
    }
    if runs.is_empty() {
        table.note("no training run fits; `train tiny --steps 20` makes one");
    }
    Ok(table)
}

/// A metric's name and unit.
type Heading<'a> = (&'a str, &'a str);

/// The metrics of `runs`, those that most runs have first; at most `limit`, and `first` (a name or a unit) before all.
fn headings<'a>(
    runs: &'a [(i64, Run)],
    limit: Option<usize>,
    first: Option<&str>,
) -> Vec<Heading<'a>> {
    let mut counts: indexmap::IndexMap<Heading<'a>, usize> = indexmap::IndexMap::new();
    for metric in runs.iter().flat_map(|(_, run)| &run.metrics) {
        *counts.entry((&metric.name, &metric.unit)).or_default() += 1;
    }
    let mut all: Vec<(Heading<'a>, usize)> = counts.into_iter().collect();
    if let Some(limit) = limit {
        let is_first =
            |name: &Heading<'_>| first.is_some_and(|word| name.0 == word || name.1 == word);
        all.sort_by_key(|(name, count)| (!is_first(name), std::cmp::Reverse(*count)));
        all.truncate(limit);
    }
    all.into_iter().map(|(name, _)| name).collect()
}

/// One row a run. With a limit, for people: few fields and the commonest metrics; without, everything.
fn wide(
    title: &str,
    runs: &[(i64, Run)],
    limit: Option<usize>,
    first: Option<&str>,
) -> Result<Table> {
    let metrics = headings(runs, limit, first);
    let whole = limit.is_none();
    let mut table =
        Table::new(title).column("run").column("started (UTC)").column("model").column("command");
    let fields: &[&str] = if whole { &FIELDS } else { &[] };
    for field in fields {
        table = table.column(*field);
    }
    // The same name may have two units; and a metric may be called like a field.
    let mut taken: Vec<String> = table.columns().iter().map(|column| column.name.clone()).collect();
    for (name, unit) in &metrics {
        let mut unique = (*name).to_owned();
        while taken.contains(&unique) {
            unique = if unique == *name { format!("{name} in {unit}") } else { unique + "'" };
        }
        taken.push(unique.clone());
        table = table.column_unit(unique, *unit);
    }
    for (id, run) in runs {
        let texts = [utc(run.started), run.subject.clone(), run.command.clone()];
        let mut row: Vec<Cell> = vec![(*id).into()];
        row.extend(texts.map(Cell::from));
        if whole {
            row.extend(fields_of(run));
        }
        for (name, unit) in &metrics {
            let found =
                run.metrics.iter().find(|metric| (&*metric.name, &*metric.unit) == (*name, *unit));
            row.push(found.map(|metric| metric.value).into());
        }
        table.push(row)?;
    }
    Ok(table)
}

const FIELDS: [&str; 12] = [
    "took (ms)",
    "line",
    "model hash",
    "data",
    "seed",
    "version",
    "device",
    "kernels",
    "baseline",
    "sweep",
    "trial",
    "status",
];

fn fields_of(run: &Run) -> [Cell; 12] {
    let text = |words: &String| Cell::from(words);
    [
        run.took.into(),
        text(&run.line),
        text(&run.model_hash),
        text(&run.data),
        run.seed.to_string().into(),
        text(&run.version),
        text(&run.device),
        text(&run.kernels),
        text(&run.baseline),
        text(&run.sweep),
        text(&run.trial),
        text(&run.status),
    ]
}

fn about(id: i64, run: &Run) -> Vec<String> {
    let said = [
        ("line", &run.line),
        ("model", &run.model_hash),
        ("data", &run.data),
        ("device", &run.device),
        ("kernels", &run.kernels),
        ("baseline", &run.baseline),
        ("trial", &run.trial),
    ];
    let mut words = vec![format!(
        "run {id}: {} UTC, {} ms, aolab {}, seed {}",
        utc(run.started),
        number::float(run.took),
        run.version,
        run.seed
    )];
    let said = said.into_iter().filter(|(_, text)| !text.is_empty());
    words.extend(said.map(|(what, text)| format!("{what}: {text}")));
    words
}

impl Export {
    fn run(self, session: &Session, store: &Arc<RunStore>) -> Result<Table> {
        let by_name =
            self.file.as_deref().and_then(|file| file.extension()?.to_str()).unwrap_or("");
        let format = match (self.parquet, self.csv, self.json) {
            (true, ..) => "parquet",
            (_, true, _) => "csv",
            (.., true) => "json",
            _ if ["parquet", "csv", "json"].contains(&by_name) => by_name,
            _ => return Err(Error::usage("export as what? --parquet, --csv or --json")),
        };
        let path = self.file.clone().unwrap_or_else(|| PathBuf::from(format!("runs.{format}")));
        let query = Query { filter: self.filter, ascending: true, ..Query::default() };
        let runs = store.query(&query)?;
        let table = wide("Runs", &runs, None, None)?;
        let bytes = match format {
            "parquet" => table.to_parquet()?,
            "csv" => table.to_csv().into_bytes(),
            _ => {
                let text = serde_json::to_string_pretty(&table.to_json());
                (text.map_err(|error| Error::file(&path, error.to_string()))? + "\n").into_bytes()
            }
        };
        files::write_atomically(&path, |out| out.write_all(&bytes))?;
        session.note(&format!("saved {}", path.display()));
        let mut said =
            Table::new("Export").column("file").column("runs").column("columns").column("bytes");
        let row =
            [path.display().to_string().into(), table.len().into(), table.columns().len().into()];
        said.push(row.into_iter().chain([Cell::bytes(bytes.len())]))?;
        Ok(said)
    }
}
