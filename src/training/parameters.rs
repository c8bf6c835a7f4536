//! The parameters of a model by name, and the model that has them.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::autograd::{Tape, Var};
use crate::error::{Context as _, Error, Result};
use crate::model::{DenseWeight, Model, ParameterSource, Weight};
use crate::tensor::{DType, Tensor};

/// Tensors by their Hugging Face names (`model.layers.0.mlp.up_proj.weight`), in f32 or bf16.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    tensors: IndexMap<String, Tensor>,
}

impl Parameters {
    /// The parameters of `model`, quantized weights as what they stand for, all in `dtype`.
    pub fn of(model: &Model, dtype: DType) -> Result<Parameters> {
        if !matches!(dtype, DType::F32 | DType::BF16) {
            return Err(Error::invalid(format!("parameters in {dtype}; wanted f32 or bf16")));
        }
        let mut tensors = IndexMap::new();
        let mut weight = |module: &str, weight: &dyn Weight| -> Result<()> {
            let tensor = weight.dequantize().within(module)?.to_dtype(dtype)?;
            tensors.insert(format!("{module}.weight"), tensor);
            Ok(())
        };
        weight("model.embed_tokens", &*model.embed_tokens)?;
        for (fqn, linear) in model.linears() {
            weight(&fqn, &*linear.weight)?;
        }
        for (fqn, linear) in model.linears() {
            if let Some(bias) = &linear.bias {
                tensors.insert(format!("{fqn}.bias"), bias.to_dtype(dtype)?);
            }
        }
        for (name, vector) in model.vectors() {
            tensors.insert(name, vector.to_dtype(dtype)?);
        }
        Ok(Parameters { tensors })
    }

    /// The parameter called `name`.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::invalid(format!("there is no parameter {name}")))
    }

    /// Puts a parameter in, or in the place of the one of that name.
    pub fn set(&mut self, name: &str, tensor: Tensor) {
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// Names and tensors, in the order in which they were put in.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.tensors.iter()
    }

    /// How many numbers they hold.
    pub fn numel(&self) -> usize {
        self.tensors.values().map(Tensor::numel).sum()
    }

    /// Takes a parameter out, to be changed and put back under its name.
    pub(super) fn take(&mut self, index: usize) -> Result<(String, Tensor)> {
        let empty = Tensor::new(Vec::<f32>::new(), &[0])?;
        match self.tensors.get_index_mut(index) {
            Some((name, tensor)) => Ok((name.clone(), std::mem::replace(tensor, empty))),
            None => Err(Error::invalid(format!("there is no parameter {index}"))),
        }
    }

    /// `model` with these parameters.
    pub fn to_model(&self, model: &Model, name: &str) -> Result<Model> {
        let source = Source { parameters: self, has_head: model.lm_head.is_some() };
        Model::build(name, (*model.config).clone(), &source, model.tokenizer.clone())
    }

    /// The parameters as f32 variables of `tape`; those for which `frozen` is true take no gradient.
    pub fn on(&self, tape: &Tape, frozen: &dyn Fn(&str) -> bool) -> Result<Vars> {
        let mut vars = IndexMap::with_capacity(self.tensors.len());
        for (name, tensor) in &self.tensors {
            let value = tensor.to_dtype(DType::F32)?;
            let var = if frozen(name) { tape.constant(value) } else { tape.leaf(value) };
            vars.insert(name.clone(), var);
        }
        Ok(Vars { vars })
    }
}

/// Parameters on a tape. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Vars {
    vars: IndexMap<String, Var>,
}

impl Vars {
    /// The variable called `name`.
    pub fn get(&self, name: &str) -> Result<&Var> {
        self.find(name).ok_or_else(|| Error::invalid(format!("there is no parameter {name}")))
    }

    /// The variable called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<&Var> {
        self.vars.get(name)
    }

    /// Names and variables.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Var)> {
        self.vars.iter()
    }

    /// Those whose name begins with `prefix`.
    #[must_use]
    pub fn below(&self, prefix: &str) -> Vars {
        let chosen = self.vars.iter().filter(|(name, _)| name.starts_with(prefix));
        Vars { vars: chosen.map(|(name, var)| (name.clone(), var.clone())).collect() }
    }
}

impl FromIterator<(String, Var)> for Vars {
    fn from_iter<I: IntoIterator<Item = (String, Var)>>(vars: I) -> Vars {
        Vars { vars: vars.into_iter().collect() }
    }
}

struct Source<'a> {
    parameters: &'a Parameters,
    has_head: bool,
}

impl ParameterSource for Source<'_> {
    fn weight(&self, module: &str, _shape: (usize, usize)) -> Result<Arc<dyn Weight>> {
        DenseWeight::shared(self.parameters.get(&format!("{module}.weight"))?.clone())
    }

    fn vector(&self, name: &str, _len: usize) -> Result<Tensor> {
        self.parameters.get(name)?.to_dtype(DType::F32)
    }

    fn has(&self, name: &str) -> bool {
        if name == "lm_head.weight" { self.has_head } else { self.parameters.get(name).is_ok() }
    }
}
