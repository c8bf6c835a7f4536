//! Quantized weights as files keep them: their tensors and a description, read back with nothing trusted.

use std::sync::Arc;

use serde_json::Value as Json;

use super::WORKFLOWS;
use super::config::Typed;
use super::layouts::{compressed, torchao};
use crate::error::{Context as _, Error, Result};
use crate::model::Weight;
use crate::sparsity::FORMATS;
use crate::tensor::{DType, Tensor};

/// The weight `(N, K)` whose [`Weight::meta`] is `meta` and whose [`Weight::tensors`] are `tensors`.
pub fn read_weight(
    meta: &Json,
    tensors: Vec<(String, Tensor)>,
    shape: (usize, usize),
) -> Result<Arc<dyn Weight>> {
    // torchao says beside the class which tensors it has; they are here to be counted.
    let mut meta = meta.clone();
    if let Some(object) = meta.as_object_mut() {
        object.remove("_tensor_data_names");
    }
    let typed = Typed::of(&meta, "a weight's format")?;
    if let Some((name, read)) = FORMATS.iter().find(|(name, _)| *name == typed.name) {
        return read(&typed, Stored { tensors, shape }).within(name);
    }
    match WORKFLOWS.iter().find(|workflow| workflow.weight_type == typed.name) {
        Some(workflow) => {
            let stored = Stored { tensors, shape };
            (workflow.read_weight)(&typed, stored).within(typed.name)
        }
        None if typed.name == "compressed-tensors" => compressed::read(&typed, tensors, shape),
        None if torchao::CLASSES.contains(&typed.name) => {
            torchao::read(&typed, tensors, shape).within(typed.name)
        }
        None => {
            let mut known: Vec<&str> = WORKFLOWS.iter().map(|w| w.weight_type).collect();
            known.extend(FORMATS.iter().map(|(name, _)| *name));
            Err(typed.unknown_type(typed.name, &known))
        }
    }
}

/// The tensors of one stored weight, taken out by name.
#[derive(Debug)]
pub(crate) struct Stored {
    tensors: Vec<(String, Tensor)>,
    shape: (usize, usize),
}

impl Stored {
    /// `(N, K)` of the layer, as the model's configuration says it.
    pub(crate) fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// The tensor `name`, which must be of one of `dtypes` and of `shape`.
    pub(crate) fn take(&mut self, name: &str, dtypes: &[DType], shape: &[usize]) -> Result<Tensor> {
        let at = self.tensors.iter().position(|(known, _)| known == name).ok_or_else(|| {
            let names: Vec<&str> = self.tensors.iter().map(|(name, _)| name.as_str()).collect();
            Error::invalid(format!("there is no tensor {name}; got {}", names.join(", ")))
        })?;
        let (_, tensor) = self.tensors.swap_remove(at);
        if dtypes.contains(&tensor.dtype()) && tensor.shape() == shape {
            return Ok(tensor);
        }
        let wanted: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
        Err(Error::invalid(format!(
            "{name} is {} {:?}; wanted {} {shape:?}",
            tensor.dtype(),
            tensor.shape(),
            wanted.join(" or ")
        )))
    }

    /// The tensors that nobody took yet.
    pub(crate) fn into_tensors(self) -> Vec<(String, Tensor)> {
        self.tensors
    }

    /// Refuses tensors that nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        match self.tensors.first() {
            None => Ok(()),
            Some((name, _)) => Err(Error::invalid(format!("the tensor {name} belongs to nothing"))),
        }
    }
}
