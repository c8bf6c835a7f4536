//! `tensors`

use std::path::PathBuf;

use super::{Command, Example, Group, Output};
use crate::error::{Error, Result};
use crate::io::pytorch::TorchFile;
use crate::io::safetensors::SafetensorsFile;
use crate::session::Session;
use crate::value::{Kind, Value};

/// List the tensors of a file: PyTorch's .pt, .pth and .bin, and .safetensors.
///
/// Every tensor with its type, shape and bytes, as the file names them; those of nested dicts and lists are joined by
/// dots, and numbers and texts beside them are shown. No configuration is needed, and nothing in the file is run: a
/// pickle that names anything but tensors, containers and scalars is refused by that name.
#[derive(Debug, clap::Args)]
pub(super) struct Tensors {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Command for Tensors {
    const NAME: &'static str = "tensors";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] = &[Example {
        line: "load tiny | save tiny.pt; tensors tiny.pt",
        about: "what is in a state dict",
        expect: "model.embed_tokens.weight",
    }];

    fn run(self, _session: &mut Session, _input: Value) -> Result<Value> {
        let table = match self.file.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => SafetensorsFile::open(&self.file)?.table(),
            Some("pt" | "pth" | "bin") => TorchFile::open(&self.file)?.table(),
            _ => Err(Error::file(&self.file, "wanted a .pt, .pth, .bin or .safetensors file")),
        };
        table.map(Value::Table)
    }
}
