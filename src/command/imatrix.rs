//! `imatrix`

use std::path::PathBuf;

use super::calibrate::CalibrationArgs;
use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::quantization::gguf::importance_matrix;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Write how large the inputs of every column are, for llama.cpp's quantizer and ours.
///
/// The model reads a text; the file is llama.cpp's importance matrix. `quantize gguf --imatrix FILE` and llama.cpp's own quantizer read it. The name's ending says the form: .dat is the older one.
#[derive(Debug, clap::Args)]
pub(super) struct Imatrix {
    /// The file: NAME.gguf or NAME.dat
    #[arg(value_name = "PATH")]
    path: PathBuf,
    #[command(flatten)]
    calibration: CalibrationArgs,
}

impl Command for Imatrix {
    const NAME: &'static str = "imatrix";
    const GROUP: Group = Group::Model;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::SameAsInput;
    const EXAMPLES: &'static [Example] = &[Example {
        line: "load tiny | imatrix tiny.imatrix.gguf --sequences 4 | quantize gguf --type Q3_K --imatrix tiny.imatrix.gguf",
        about: "found once, used for any type, here or by llama.cpp",
        expect: "Q3_K in 43 linear layers",
    }];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let model = input.clone().into_model()?;
        let (sequences, _, text) = self.calibration.draw(session, &model)?;
        let task = session.task("reading");
        let mut matrix =
            importance_matrix(session.cpu(), &model, &sequences, &mut |done, total, _| {
                task.progress(done, total)
            })?;
        drop(task);
        matrix.datasets.push(text);
        matrix.write(&self.path)?;
        session.note(&format!("saved {}", self.path.display()));
        Ok(input)
    }
}
