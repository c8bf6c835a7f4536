//! `load`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::model::Model;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Load a model: the built-in one, a folder, a file, or from Hugging Face.
///
/// `tiny` is a small language model inside the program; it needs no network. A folder holds config.json,
/// model.safetensors (or shards with an index, or PyTorch's
/// pytorch_model.bin or model.pt) and tokenizer.json; a file is .safetensors, .gguf, or one of PyTorch's (.pt, .pth, .bin), whose
/// pickle is read without running anything; config.json lies beside it.
/// `hf:ORG/NAME` fetches a folder once and keeps it in Hugging Face's cache; HF_HOME, HF_TOKEN, HF_ENDPOINT,
/// HF_HUB_OFFLINE and SSL_CERT_FILE are heeded, and a download that broke off goes on where it ended.
#[derive(Debug, clap::Args)]
pub(super) struct Load {
    /// `tiny`, a folder, a file, or hf:ORG/NAME
    #[arg(value_name = "MODEL")]
    model: String,
    /// The file is a TorchScript program that you trust: libtorch reads it (a build with `--features torch`)
    #[arg(long)]
    torchscript: bool,
}

impl Command for Load {
    const NAME: &'static str = "load";
    const GROUP: Group = Group::Model;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Model);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny",
            about: "the built-in model becomes the one that commands work on",
            expect: "tiny: ",
        },
        Example {
            line: "base = load tiny; $base | size",
            about: "keep it under a name as well",
            expect: "total",
        },
    ];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        if self.torchscript {
            return torchscript(&self.model).map(Value::Model);
        }
        session.model_called(&self.model).map(Value::Model)
    }
}

#[cfg(feature = "torch")]
fn torchscript(path: &str) -> Result<Model> {
    crate::libtorch::load_script(std::path::Path::new(path))
}

#[cfg(not(feature = "torch"))]
fn torchscript(_path: &str) -> Result<Model> {
    Err(crate::Error::usage(super::NO_LIBTORCH))
}
