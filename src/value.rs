//! What a command takes and gives: what flows in a pipe and is held by a variable.

use std::fmt;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json, json};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::plot::Figure;
use crate::table::{Table, number};
use crate::tensor::Tensor;

/// The result of a command. Cloning is cheap: models and tensors are shared.
#[derive(Clone, Debug, Default)]
pub enum Value {
    /// A command that gives nothing, or the empty start of a pipeline.
    #[default]
    Nothing,
    /// Words, or generated text.
    Text(String),
    /// A model.
    Model(Model),
    /// Measurements.
    Table(Table),
    /// A chart.
    Figure(Box<Figure>),
    /// A tensor.
    Tensor(Tensor),
}

/// How wide a figure is where there is no terminal.
const FIGURE_COLUMNS: usize = 80;
/// How high lines and points are drawn.
const FIGURE_LINES: usize = 20;

/// The kind of a [`Value`], known before anything runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is named after the variant of Value")]
pub enum Kind {
    Nothing,
    Text,
    Model,
    Table,
    Figure,
    Tensor,
}

impl Kind {
    /// With its article, as error messages say it: `a model`.
    pub fn with_article(self) -> &'static str {
        match self {
            Kind::Nothing => "nothing",
            Kind::Text => "text",
            Kind::Model => "a model",
            Kind::Table => "a table",
            Kind::Figure => "a figure",
            Kind::Tensor => "a tensor",
        }
    }

    /// `a model or a table`
    pub fn list(kinds: &[Kind]) -> String {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.with_article()).collect();
        match names.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
            None => "nothing".to_owned(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Nothing => "nothing",
            Kind::Text => "text",
            Kind::Model => "model",
            Kind::Table => "table",
            Kind::Figure => "figure",
            Kind::Tensor => "tensor",
        })
    }
}

impl Value {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Value::Nothing => Kind::Nothing,
            Value::Text(_) => Kind::Text,
            Value::Model(_) => Kind::Model,
            Value::Table(_) => Kind::Table,
            Value::Figure(_) => Kind::Figure,
            Value::Tensor(_) => Kind::Tensor,
        }
    }

    /// The model, or an error that says what came instead.
    pub fn into_model(self) -> Result<Model> {
        match self {
            Value::Model(model) => Ok(model),
            other => Err(other.is_not(Kind::Model)),
        }
    }

    /// The table, or an error that says what came instead.
    pub fn into_table(self) -> Result<Table> {
        match self {
            Value::Table(table) => Ok(table),
            other => Err(other.is_not(Kind::Table)),
        }
    }

    /// The figure, or an error that says what came instead.
    pub fn into_figure(self) -> Result<Figure> {
        match self {
            Value::Figure(figure) => Ok(*figure),
            other => Err(other.is_not(Kind::Figure)),
        }
    }

    /// The text, or an error that says what came instead.
    pub fn into_text(self) -> Result<String> {
        match self {
            Value::Text(text) => Ok(text),
            other => Err(other.is_not(Kind::Text)),
        }
    }

    fn is_not(&self, wanted: Kind) -> Error {
        let (wanted, got) = (wanted.with_article(), self.kind().with_article());
        Error::invalid(format!("wanted {wanted}, got {got}"))
    }

    /// The bytes that it holds in memory; a table's and a figure's are too few to count.
    pub fn nbytes(&self) -> Option<usize> {
        match self {
            Value::Model(model) => Some(model.nbytes()),
            Value::Tensor(tensor) => Some(tensor.nbytes()),
            _ => None,
        }
    }

    /// One line, for lists of variables and for what is not worth showing whole.
    pub fn summary(&self) -> String {
        match self {
            Value::Nothing => String::new(),
            Value::Text(text) => crate::table::words::one_line(text),
            Value::Model(model) => model_line(model),
            Value::Table(table) => {
                let (rows, columns) = (table.len(), table.columns().len());
                format!("{}: {rows} rows of {columns} columns", table.title())
            }
            Value::Figure(figure) => format!("figure: {}", figure.title()),
            Value::Tensor(tensor) => format!("{} {:?}", tensor.dtype(), tensor.shape()),
        }
    }

    /// What a person sees, within `columns` of a terminal (`None`: as wide as it needs).
    pub fn to_text(&self, columns: Option<usize>, color: bool) -> String {
        match self {
            Value::Table(table) => table.to_text(columns, color),
            Value::Figure(figure) => {
                figure.to_text(columns.unwrap_or(FIGURE_COLUMNS), FIGURE_LINES, color)
            }
            Value::Tensor(tensor) => format!("{tensor:?}"),
            Value::Text(text) => text.clone(),
            Value::Nothing | Value::Model(_) => self.summary(),
        }
    }

    /// One JSON document; nothing gives `null`.
    pub fn to_json(&self) -> Json {
        match self {
            Value::Nothing => Json::Null,
            Value::Text(text) => json!({ "type": "text", "text": text }),
            Value::Model(model) => model_json(model),
            Value::Table(table) => table.to_json(),
            Value::Figure(figure) => json!({
                "type": "figure",
                "title": figure.title(),
                "config": figure.config(),
                "table": figure.table().to_json(),
            }),
            Value::Tensor(tensor) => json!({
                "type": "tensor",
                "dtype": tensor.dtype().name(),
                "shape": tensor.shape(),
                "values": tensor.to_f32_vec(),
            }),
        }
    }
}

macro_rules! into_value {
    ($($ty:ty => $variant:ident),+) => {$(
        impl From<$ty> for Value {
            fn from(value: $ty) -> Value {
                Value::$variant(value.into())
            }
        }
    )+};
}

into_value!(String => Text, &str => Text, Model => Model, Table => Table, Figure => Figure, Tensor => Tensor);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text(None, false))
    }
}

/// How many linear layers hold each workflow, in the order of the first layer.
pub(crate) fn workflows(model: &Model) -> IndexMap<String, usize> {
    let mut counts = IndexMap::new();
    for (_, linear) in model.linears() {
        *counts.entry(linear.weight.workflow()).or_insert(0) += 1;
    }
    counts
}

fn model_line(model: &Model) -> String {
    let workflows: Vec<String> = workflows(model)
        .into_iter()
        .map(|(workflow, count)| {
            let layers = if count == 1 { "layer" } else { "layers" };
            format!("{workflow} in {count} linear {layers}")
        })
        .collect();
    format!(
        "{}: {} parameters, {}; {}",
        model.name,
        number::int(i64::try_from(model.parameters()).unwrap_or(i64::MAX)),
        number::bytes(model.nbytes() as u64),
        workflows.join(", "),
    )
}

fn model_json(model: &Model) -> Json {
    let workflows: Map<String, Json> =
        workflows(model).into_iter().map(|(name, count)| (name, json!(count))).collect();
    json!({
        "type": "model",
        "name": model.name,
        "parameters": model.parameters(),
        "nbytes": model.nbytes(),
        "workflows": workflows,
    })
}
