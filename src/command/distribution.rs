//! `distribution`

use super::eval::TextArgs;
use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::inspect::{ValuesConfig, distribution, inputs};
use crate::plot::Theme;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Draw how the values of a layer lie, with the grid of the quantized weight over them.
///
/// A grid belongs to a group: name the model before quantization with `--against`, a row, and the group's columns.
/// With `--inputs` it is the layer's inputs instead of its weight.
#[derive(Debug, clap::Args)]
pub(super) struct Distribution {
    /// The layer: model.layers.0.mlp.up_proj
    #[arg(value_name = "LAYER")]
    layer: String,
    /// The model that has the original weight: a $variable, or anything that load takes [default: the same]
    #[arg(long, value_name = "MODEL")]
    against: Option<String>,
    /// Only this row of the weight
    #[arg(long)]
    row: Option<usize>,
    /// Only these columns of the row: 0..32
    #[arg(long, value_name = "FROM..TO", value_parser = columns)]
    columns: Option<(usize, usize)>,
    /// The layer's inputs on the text, not its weight
    #[arg(long, conflicts_with_all = ["against", "row", "columns"])]
    inputs: bool,
    /// Colors of files
    #[arg(long, value_enum, default_value_t)]
    theme: Theme,
    #[command(flatten)]
    text: TextArgs,
}

fn columns(word: &str) -> std::result::Result<(usize, usize), String> {
    let ends =
        word.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    ends.ok_or_else(|| format!("{word} is no range of columns; wanted one like 0..32"))
}

impl Command for Distribution {
    const NAME: &'static str = "distribution";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Figure);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | quantize int4-weight-only --group-size 32 | distribution model.layers.0.mlp.up_proj --against tiny --row 0 --columns 0..32",
            about: "the 32 weights of a group, and the grid of 16 values that int4 gives it",
            expect: "marks: the values of tiny",
        },
        Example {
            line: "load tiny | distribution model.layers.0.mlp.down_proj --inputs --windows 1; save inputs.svg",
            about: "what the layer is given to multiply, as a figure in a file",
            expect: "inputs.svg",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let model = input.into_model()?;
        let config = ValuesConfig {
            layer: self.layer,
            row: self.row,
            columns: self.columns,
            theme: self.theme,
        };
        if !self.inputs {
            let base = match &self.against {
                Some(word) => session.model_called(word)?,
                None => model.clone(),
            };
            return distribution(&base, &model, &config).map(Value::from);
        }
        let model = session.placed(model)?;
        let (text, eval) = self.text.read(session)?;
        let cpu = session.cpu().clone();
        let task = session.task("reading");
        let progress = &mut |done, total| task.progress(done, total);
        inputs(&model, &cpu, &text, &eval, &config, progress).map(Value::from)
    }
}
