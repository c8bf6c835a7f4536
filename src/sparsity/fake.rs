//! Fake sparsity (X08): masks beside weights that stay whole, chosen anew as often as wanted, and put in at the end.
//!
//! torch.ao's `prepare` attaches a `FakeSparsity` parametrization to each layer, `step` chooses masks, `squash_mask` multiplies them in. Here the
//! whole weights stay in this value and the model gets pruned copies, so that a number may come back at a later step.

use std::sync::Arc;

use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::model::{Linear, Mask, Model, Weight, sparse_of};
use crate::quantization::Recipe;

/// Layers under a sparsifier, none pruned at first.
#[derive(Debug)]
pub struct FakeSparsity {
    model: Model,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    fqn: String,
    whole: Arc<dyn Weight>,
    mask: Mask,
}

impl FakeSparsity {
    /// The layers of `model` that `filter` takes, each with a mask of ones.
    pub fn prepare(model: &Model, filter: impl Fn(&str, &Linear) -> bool) -> Result<FakeSparsity> {
        let mut layers = Vec::new();
        for (fqn, linear) in model.linears().into_iter().filter(|(fqn, linear)| filter(fqn, linear))
        {
            let (n, k) = linear.weight.shape();
            let mask = Mask::of(&vec![true; n * k], (n, k))?;
            layers.push(Layer { fqn, whole: linear.weight, mask });
        }
        if layers.is_empty() {
            return Err(Error::invalid("no linear layer was chosen"));
        }
        Ok(FakeSparsity { model: model.clone(), layers })
    }

    /// Chooses every mask anew from the whole weights. A schedule gives `sparsifier` another level at every step.
    pub fn step(&mut self, cpu: &Cpu, sparsifier: &dyn Recipe) -> Result<()> {
        for layer in &mut self.layers {
            let pruned = sparsifier.quantize_shared(cpu, &layer.whole).within(&layer.fqn)?;
            let sparse = sparse_of(&pruned).ok_or_else(|| {
                Error::invalid(format!("{} gives no sparse weight", sparsifier.name()))
            })?;
            layer.mask = sparse.mask()?;
            self.model.set_weight(&layer.fqn, Arc::clone(&pruned))?;
        }
        Ok(())
    }

    /// Puts other whole weights in (what an optimizer made of them), under the masks that were chosen.
    pub fn set_whole(&mut self, fqn: &str, weight: Arc<dyn Weight>) -> Result<()> {
        let known = self.layers.iter_mut().find(|layer| layer.fqn == fqn);
        let layer = known.ok_or_else(|| Error::invalid(format!("{fqn} was not prepared")))?;
        let sparse = crate::sparsity::MaskedWeight::new(
            Arc::clone(&weight),
            layer.mask.clone(),
            crate::model::Pattern::Unstructured,
        )?;
        self.model.set_weight(fqn, Arc::new(sparse))?;
        layer.whole = weight;
        Ok(())
    }

    /// The mask of a layer as it is now.
    pub fn mask(&self, fqn: &str) -> Option<&Mask> {
        self.layers.iter().find(|layer| layer.fqn == fqn).map(|layer| &layer.mask)
    }

    /// The model under its masks as they are now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model with its masks put in for good; the whole weights are gone.
    pub fn squash_mask(self) -> Model {
        self.model
    }
}
