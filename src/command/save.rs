//! `save`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Command, Example, Group, Output};
use crate::error::{Context as _, Error, Result};
use crate::io::{self, files};
use crate::model::{Model, Weight};
use crate::plot::{Figure, PlotConfig, figure};
use crate::quantization::Layout;
use crate::session::Session;
use crate::table::Table;
use crate::tensor::Tensor;
use crate::value::{Kind, Value};

/// Save a model as a folder, a table, or the session as a script.
///
/// The name says what: DIR is the model in Hugging Face's layout, quantized weights in their packed form, which
/// `load DIR` reads back bit for bit; NAME.gguf is the model for llama.cpp, if its weights are floats or `quantize gguf` made
/// them; NAME.pt is a state dict that `torch.load(weights_only=True)` reads, quantized weights as the numbers they stand for;
/// NAME.csv, .json, .md or .html is the table; NAME.svg or .png is the
/// figure; NAME.parquet is the table for data frames; NAME.txt is any of them as text; NAME.ao, .ipynb and .rs are
/// what was done in this session, as a script, a notebook and a Rust program that do it again. At the start of a line the latest model, table
/// or figure is taken. Files appear under their name only when they are complete.
#[derive(Debug, clap::Args)]
pub(super) struct Save {
    /// A folder, or a file with one of the endings above
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// How the folder keeps quantized weights: aolab (every format), torchao (its flattened safetensors), or compressed-tensors
    #[arg(long, default_value_t, value_name = "LAYOUT")]
    layout: Layout,
    /// Replace the model that is in the folder already
    #[arg(long)]
    overwrite: bool,
}

impl Command for Save {
    const NAME: &'static str = "save";
    const GROUP: Group = Group::Model;
    const INPUT: &'static [Kind] =
        &[Kind::Nothing, Kind::Text, Kind::Model, Kind::Table, Kind::Figure];
    const OUTPUT: Output = Output::SameAsInput;
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | save copy; load copy | size",
            about: "a model as a folder, and back",
            expect: "Size of copy",
        },
        Example {
            line: "quantize tiny gguf --type Q8_0 | save tiny.gguf; load tiny.gguf | size",
            about: "a file for llama.cpp",
            expect: "Q8_0",
        },
        Example {
            line: "quantize tiny int8-weight-only | save tiny.pt; tensors tiny.pt",
            about: "a state dict for PyTorch, and what it holds",
            expect: "model.layers.0.mlp.down_proj.weight",
        },
        Example {
            line: "quantize tiny int8-weight-only | save there --layout torchao; load there | size",
            about: "a folder for Python's torchao, and back",
            expect: "int8-weight-only",
        },
        Example {
            line: "load tiny | size | save sizes.csv",
            about: "a table for a spreadsheet",
            expect: "total",
        },
        Example {
            line: "load tiny | size | plot | save sizes.svg",
            about: "a figure for a page",
            expect: "sizes.svg",
        },
        Example {
            line: "load tiny; size; save steps.ao",
            about: "this session as a script",
            expect: "steps.ao",
        },
        Example {
            line: "load tiny; size; save steps.ipynb; run steps.ipynb",
            about: "as a notebook, which runs here too",
            expect: "total",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let path = &self.path;
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if self.layout != Layout::default() && FILES.contains(&extension) {
            return Err(Error::usage(format!(
                "--layout {} is how a folder keeps weights; {} is a file: leave the flag out, or name a folder",
                self.layout,
                path.display()
            )));
        }
        let latest = |kinds: &[Kind]| match &input {
            Value::Nothing => session.latest(kinds).cloned().ok_or_else(|| {
                Error::usage(format!(
                    "there is {} to save yet",
                    Kind::list(kinds).replace("a ", "no ")
                ))
            }),
            piped if kinds.contains(&piped.kind()) => Ok(piped.clone()),
            piped => Err(Error::usage(format!(
                "{} takes {}, got {}; {}",
                path.display(),
                Kind::list(kinds),
                piped.kind().with_article(),
                endings(piped.kind()),
            ))),
        };
        match extension {
            "ao" => write(path, session.script().as_bytes())?,
            "ipynb" => write(path, session.notebook()?.as_bytes())?,
            "rs" => write(path, session.rust_program().as_bytes())?,
            "parquet" => write(path, &latest(&[Kind::Table])?.into_table()?.to_parquet()?)?,
            "csv" | "json" | "md" | "html" => {
                write(
                    path,
                    table_as(&latest(&[Kind::Table])?.into_table()?, extension)?.as_bytes(),
                )?;
            }
            "svg" => write(path, figure_of(latest(FIGURES)?)?.to_svg()?.as_bytes())?,
            "png" => {
                let figure = figure_of(latest(FIGURES)?)?;
                // Twice the pixels of the layout, which is what sharp screens show.
                let (width, height) = figure.size();
                write(path, &figure.to_png(2 * width, 2 * height)?)?;
            }
            "txt" => write(
                path,
                latest(&[Kind::Table, Kind::Figure, Kind::Text])?.to_text(None, false).as_bytes(),
            )?,
            "gguf" => {
                let model = latest(&[Kind::Model])?.into_model()?;
                with_parts(session, &model, |parts| io::gguf::write(parts, path))?;
            }
            "pt" | "pth" => {
                let model = latest(&[Kind::Model])?.into_model()?;
                save_state_dict(session, path, &model)?;
            }
            _ => {
                let model = latest(&[Kind::Model])?.into_model()?;
                let layout = self.layout.of_files();
                with_parts(session, &model, |parts| {
                    io::save_as(parts, path, self.overwrite, layout)
                })?;
            }
        }
        session.note(&format!("saved {}", path.display()));
        Ok(input)
    }
}

/// The endings of files; every other name is that of a model's folder.
const FILES: &[&str] = &[
    "ao", "ipynb", "rs", "parquet", "csv", "json", "md", "html", "svg", "png", "txt", "gguf", "pt",
    "pth",
];

/// What can be drawn: a table as `plot` alone would.
const FIGURES: &[Kind] = &[Kind::Figure, Kind::Table];

fn figure_of(value: Value) -> Result<Figure> {
    match value {
        Value::Table(table) => figure(&table, &PlotConfig::default()),
        other => other.into_figure(),
    }
}

fn endings(kind: Kind) -> &'static str {
    match kind {
        Kind::Table => "a table goes into NAME.csv, .json, .parquet, .md, .html or .txt",
        Kind::Figure => "a figure goes into NAME.svg or .png",
        Kind::Text => "a text goes into NAME.txt",
        _ => {
            "a model goes into NAME.gguf, NAME.pt or a folder, whose name has none of these endings"
        }
    }
}

fn table_as(table: &Table, extension: &str) -> Result<String> {
    Ok(match extension {
        "csv" => table.to_csv(),
        "md" => table.to_markdown(),
        "html" => table.to_html(),
        _ => {
            let json = serde_json::to_string_pretty(&table.to_json());
            json.map_err(|error| Error::invalid(error.to_string()))? + "\n"
        }
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    files::write_atomically(path, |out| out.write_all(bytes))
}

pub(super) fn save_model(
    session: &Session,
    path: &Path,
    model: &Model,
    overwrite: bool,
) -> Result<()> {
    with_parts(session, model, |parts| io::save(parts, path, overwrite))
}

/// Every parameter by the name that PyTorch's users know: a quantized weight as the numbers it stands for, and a tied output
/// layer by both of its names.
fn save_state_dict(session: &Session, path: &Path, model: &Model) -> Result<()> {
    let mut tensors = Vec::new();
    let mut add = |module: &str, weight: &Arc<dyn Weight>| -> Result<Tensor> {
        session.check()?;
        let mut stored = weight.tensors();
        let dense = weight.meta().is_null() && stored.len() == 1;
        let tensor = if dense { stored.remove(0).1 } else { weight.dequantize()? };
        tensors.push((format!("{module}.weight"), tensor.clone()));
        Ok(tensor)
    };
    let embedding = add("model.embed_tokens", &model.embed_tokens)?;
    let mut rest = model.vectors();
    for (name, linear) in model.linears() {
        add(&name, &linear.weight).within(&name)?;
        rest.extend(linear.bias.map(|bias| (format!("{name}.bias"), bias)));
    }
    if model.lm_head.is_none() {
        rest.push(("lm_head.weight".into(), embedding));
    }
    tensors.extend(rest);
    io::pytorch::write_state_dict_unless(Some(&session.cancel_flag()), path, &tensors)
}

fn with_parts<T>(session: &Session, model: &Model, write: impl FnOnce(&io::Parts<'_>) -> T) -> T {
    let mut weights = vec![("model.embed_tokens".to_owned(), model.embed_tokens.clone())];
    let mut vectors: Vec<_> = model.vectors();
    for (name, linear) in model.linears() {
        vectors.extend(linear.bias.map(|bias| (format!("{name}.bias"), bias)));
        weights.push((name, linear.weight));
    }
    let (name, config, tokenizer) = (&model.name, &model.config, model.tokenizer.as_ref());
    let stop = session.cancel_flag();
    write(&io::Parts { name, config, weights, vectors, tokenizer, stop: Some(&stop) })
}
