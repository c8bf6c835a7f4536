//! TorchScript: programs that PyTorch traced or scripted, run by libtorch.

use std::path::Path;

use tch::CModule;

use super::{from_torch, to_torch, wrong};
use crate::error::{Context as _, Error, Result};
use crate::io::{LoadOptions, open_read};
use crate::model::Model;
use crate::tensor::Tensor;

/// Loads the model whose parameters a TorchScript file holds; config.json and the tokenizer lie beside it.
pub fn load_script(path: &Path) -> Result<Model> {
    let options = LoadOptions::new(crate::quantization::read_weight);
    let found = open_read(path, Script::open(path)?.parameters()?, &options)?;
    Model::build(&found.name, found.config, &*found.parameters, found.tokenizer)
}

/// A TorchScript module.
pub struct Script {
    module: CModule,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").finish_non_exhaustive()
    }
}

impl Script {
    /// Loads what `torch.jit.save` wrote. A TorchScript file is a program: load only those that you trust.
    pub fn open(path: &Path) -> Result<Script> {
        if !path.is_file() {
            return Err(Error::file(path, "there is no such file"));
        }
        let module = CModule::load(path).map_err(wrong).within(path.display())?;
        Ok(Script { module })
    }

    /// Its parameters and buffers by name.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let named = self.module.named_parameters().map_err(wrong)?;
        named.into_iter().map(|(name, tensor)| Ok((name, from_torch(tensor)?))).collect()
    }

    /// Its `forward`.
    pub fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let inputs = inputs.iter().map(to_torch).collect::<Result<Vec<_>>>()?;
        let output = tch::no_grad(|| self.module.forward_ts(&inputs)).map_err(wrong)?;
        from_torch(output)
    }
}
