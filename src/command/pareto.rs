//! `pareto`

use super::{Command, Example, Group, Output};
use crate::error::{Error, Result};
use crate::plot::{PlotConfig, PlotKind, figure};
use crate::session::Session;
use crate::store::{Query, Run};
use crate::sweep::pareto;
use crate::table::{Cell, Table};
use crate::value::{Kind, Value};

/// Which trials no other beats in two numbers at once.
///
/// The table is the latest one or one from a pipe, such as a sweep's; --where takes runs of the store instead. What comes out is the table
/// with a column that says which rows are on the front; a chart with names is shown beside it, and
/// `plot scatter --by front --label COLUMN` draws it for a file.
#[derive(Debug, clap::Args)]
pub(super) struct Pareto {
    /// One number, such as bits
    #[arg(long, value_name = "COLUMN")]
    x: String,
    /// The other, such as perplexity
    #[arg(long, value_name = "COLUMN")]
    y: String,
    /// Larger is better for this one of the two; may be given twice
    #[arg(long, value_name = "COLUMN")]
    larger: Vec<String>,
    /// Take runs of the store that fit
    #[arg(long = "where", value_name = "FILTER")]
    filter: Option<String>,
}

impl Command for Pareto {
    const NAME: &'static str = "pareto";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Nothing, Kind::Table];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny; sweep \"quantize int4-weight-only --group-size {32,64,128} | eval perplexity --windows 2\" | pareto --x bits --y perplexity",
            about: "the group sizes that are worth their bits",
            expect: "on the front",
        },
        Example {
            line: "load tiny | eval perplexity --windows 1; pareto --where 'model = tiny' --x bits --y perplexity",
            about: "of everything that was measured",
            expect: "1 of 1 rows",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let table = match (&self.filter, input) {
            (Some(filter), _) => self.runs(session, filter)?,
            (None, Value::Table(table)) => table,
            (None, _) => match session.latest(&[Kind::Table]) {
                Some(Value::Table(table)) => table.clone(),
                _ => {
                    return Err(Error::usage(
                        "there is no table yet; pipe a sweep into it, or take runs with --where",
                    ));
                }
            },
        };
        for name in &self.larger {
            if *name != self.x && *name != self.y {
                return Err(Error::usage(format!(
                    "--larger {name}: wanted {} or {}",
                    self.x, self.y
                )));
            }
        }
        let larger = (self.larger.contains(&self.x), self.larger.contains(&self.y));
        let found = pareto(&table, &self.x, &self.y, larger)?;
        let config = PlotConfig {
            kind: PlotKind::Scatter,
            x: Some(self.x),
            y: vec![self.y],
            by: Some("front".to_owned()),
            label: label_of(&found),
            ..PlotConfig::default()
        };
        let chart = figure(&found, &config)?;
        session.note(chart.to_text(100, 18, false).trim_end());
        Ok(Value::Table(found))
    }
}

/// The column that tells rows apart best: the first of texts, else the first.
fn label_of(table: &Table) -> Option<String> {
    let columns = table.columns();
    let texts = columns
        .iter()
        .filter(|column| column.kind == crate::table::Kind::Text && column.name != "front");
    let settings = columns.iter().filter(|column| column.name != "trial");
    texts.chain(settings).next().map(|column| column.name.clone())
}

impl Pareto {
    fn runs(&self, session: &mut Session, filter: &str) -> Result<Table> {
        let store = session.store()?;
        let runs = store.query(&Query { filter: filter.to_owned(), ..Query::default() })?;
        let mut table = Table::new("runs").column("run").column("model");
        table = table.column(&self.x).column(&self.y);
        let value = |run: &Run, word: &str| {
            let found =
                run.metrics.iter().find(|metric| metric.name == word || metric.unit == word);
            found.map(|metric| metric.value)
        };
        for (id, run) in &runs {
            let cells: [Cell; 4] = [
                (*id).into(),
                (&run.subject).into(),
                value(run, &self.x).into(),
                value(run, &self.y).into(),
            ];
            table.push(cells)?;
        }
        Ok(table)
    }
}
