//! Zeros of sparse weights, which training keeps: after each step they are put back, and at the end the trained weights take
//! the sparse weights' formats.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::error::{Context as _, Result};
use crate::model::{Mask, Model, Weight, sparse_of};
use crate::tensor::{DType, Tensor};

/// The sparse layers of a model.
#[derive(Debug)]
pub(super) struct Zeros {
    /// By the parameter's name.
    layers: IndexMap<String, (Mask, Arc<dyn Weight>)>,
}

impl Zeros {
    /// Those of `model`'s linear layers.
    pub(super) fn of(model: &Model) -> Result<Zeros> {
        let mut layers = IndexMap::new();
        for (fqn, linear) in model.linears() {
            // Behind a transform the trained weight is another one than the sparse weight.
            if let (Some(sparse), None) = (sparse_of(&linear.weight), linear.weight.as_transform())
            {
                let mask = sparse.mask().within(&fqn)?;
                layers.insert(format!("{fqn}.weight"), (mask, Arc::clone(&linear.weight)));
            }
        }
        Ok(Zeros { layers })
    }

    /// Whether no layer is sparse.
    pub(super) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The parameter `name` with its zeros.
    pub(super) fn put_back(&self, name: &str, tensor: Tensor) -> Result<Tensor> {
        let Some((mask, _)) = self.layers.get(name) else { return Ok(tensor) };
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        let mut values = match dtype {
            DType::F32 => tensor.into_vec::<f32>()?,
            _ => tensor.to_f32_vec(),
        };
        mask.apply_rows(0, &mut values);
        Tensor::new(values, &shape)?.to_dtype(dtype)
    }

    /// The trained model, its sparse layers sparse again.
    pub(super) fn around(&self, mut model: Model) -> Result<Model> {
        for (name, (_, weight)) in &self.layers {
            let fqn = name.trim_end_matches(".weight");
            let trained = Arc::clone(&model.linear(fqn)?.weight);
            if let Some(sparse) = weight.as_sparse() {
                model.set_weight(fqn, sparse.around(trained).within(fqn)?)?;
            }
        }
        Ok(model)
    }
}
