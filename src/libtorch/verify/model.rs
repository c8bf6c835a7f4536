//! A whole model: logits, loss and every gradient against the same model from libtorch's operations.

use tch::Tensor as Torch;

use super::super::{TorchNetwork, from_torch, wrong};
use super::Check;
use crate::autograd::Tape;
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::Model;
use crate::rng::Rng;
use crate::tensor::{DType, Tensor};
use crate::training::{Batch, ForwardOptions, Network, Parameters, Plain};

/// Differences grow from block to block: each adds some last bits of f32.
const BLOCKS: f64 = 1e-5;
/// Gradients add the way back.
const GRADIENTS: f64 = 5e-5;

pub(super) fn verify(cpu: &Cpu, model: &Model, rng: &mut Rng) -> Result<Vec<Check>> {
    let parameters = Parameters::of(model, DType::F32)?;
    let theirs = TorchNetwork::new(&model.config, &parameters)?;
    let network = Network::new(std::sync::Arc::clone(&model.config));
    let options = ForwardOptions::new(std::sync::Arc::new(Plain));
    let rule = |x: &Torch, w: &Torch| x.f_linear::<&Torch>(w, None).map_err(wrong);
    let mut logits = Check::new("model: logits", "the same model of tch tensors", BLOCKS);
    let mut losses = Check::new("model: loss", "the same model of tch tensors", BLOCKS);
    let mut gradients = Check::new("model: gradients", "torch's autograd", GRADIENTS);
    for (batch, tokens) in [(1, 3), (2, 9), (1, 33)] {
        let vocabulary = model.config.vocab_size as u64;
        let mut ids = |len: usize| -> Vec<u32> {
            (0..len).map(|_| u32::try_from(rng.next_u64() % vocabulary).unwrap_or(0)).collect()
        };
        let (inputs, targets) = (ids(batch * tokens), ids(batch * tokens));
        let batch = Batch { batch, inputs, targets };
        let case = format!("{}x{tokens}", batch.batch);
        let tape = Tape::new(cpu);
        let vars = parameters.on(&tape, &|_| false)?;
        let ours = network.logits(&tape, &vars, &batch, &options)?;
        let loss = tape.cross_entropy(&ours, &batch.targets)?;
        let found = tape.backward(&loss)?;
        let torch_logits = tch::no_grad(|| theirs.logits(&batch, &rule))?;
        logits.compare(&case, ours.value().as_slice()?, from_torch(torch_logits)?.as_slice()?);
        let torch_loss = theirs.loss(&batch, &rule)?;
        let torch_found = theirs.gradients(&torch_loss)?;
        let value = from_torch(torch_loss.detach().copy())?.to_f32_vec();
        losses.compare(&case, loss.value().as_slice()?, &value);
        for (name, torch) in theirs.parameters().keys().zip(torch_found) {
            let ours = found.of(vars.get(name)?).map_or_else(Vec::new, Tensor::to_f32_vec);
            let case = format!("{case}, {name}");
            gradients.compare(&case, &ours, from_torch(torch)?.as_slice()?);
        }
    }
    Ok(vec![logits, losses, gradients])
}
