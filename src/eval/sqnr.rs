//! Signal-to-quantization-noise ratio (N23): of each layer's weight, of its output on real inputs, and of the logits.
//!
//! `SQNR(x, y) = 20 · log10(‖x‖₂ / ‖x − y‖₂)` in dB, with the baseline as `x`. Sums are in f64.

use aolab_kernels::Cpu;
use serde::{Deserialize, Serialize};

use super::{EvalConfig, Progress, windows_of};
use crate::error::{Error, Result};
use crate::model::{Linear, Model, NoObserver, Observer};

/// The figures of one linear layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerSqnr {
    /// Its name.
    pub layer: String,
    /// Its workflow in the compared model.
    pub workflow: String,
    /// Of the dequantized weight against the baseline's.
    pub weight_db: f64,
    /// Of the layer's output against the baseline's, both given the baseline's input.
    pub output_db: f64,
}

/// What [`sqnr`] found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SqnrResult {
    /// Every linear layer, in the order in which they run.
    pub layers: Vec<LayerSqnr>,
    /// Of the logits of the whole model, each model running on its own hidden states.
    pub logits_db: f64,
    /// Positions read.
    pub tokens: usize,
}

/// `Σx²` and `Σ(x − y)²`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Power {
    signal: f64,
    noise: f64,
}

impl Power {
    pub(super) fn add(&mut self, x: &[f32], y: &[f32]) {
        for (x, y) in x.iter().zip(y) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            self.signal += x * x;
            self.noise += (x - y) * (x - y);
        }
    }

    pub(super) fn db(self) -> f64 {
        10.0 * (self.signal / self.noise).log10()
    }
}

/// Runs both models' layers on the baseline's inputs.
struct LayerByLayer<'a> {
    cpu: &'a Cpu,
    base: &'a [(String, Linear)],
    model: &'a [(String, Linear)],
    powers: Vec<Power>,
    error: Option<Error>,
}

impl LayerByLayer<'_> {
    fn compare(&mut self, layer: usize, name: &str, x: &[f32]) -> Result<()> {
        let wanted = format!("model.layers.{layer}.{name}");
        match self.base.iter().position(|(fqn, _)| *fqn == wanted) {
            Some(at) => self.compare_at(at, x),
            None => Ok(()),
        }
    }

    /// Gives `x` to both models' layer number `at`.
    fn compare_at(&mut self, at: usize, x: &[f32]) -> Result<()> {
        let (base, model) = (&self.base[at].1.weight, &self.model[at].1.weight);
        let (n, k) = base.shape();
        let m = x.len() / k;
        let (mut y, mut z) = (vec![0.0; m * n], vec![0.0; m * n]);
        base.linear(self.cpu, x, m, &mut y)?;
        model.linear(self.cpu, x, m, &mut z)?;
        self.powers[at].add(&y, &z);
        Ok(())
    }
}

impl Observer for LayerByLayer<'_> {
    fn linear_input(&mut self, layer: usize, name: &'static str, x: &[f32]) {
        if let Err(error) = self.compare(layer, name, x) {
            self.error.get_or_insert(error);
        }
    }
}

/// Compares `model` with `base`, layer by layer and in the logits, on the first windows of `text`.
pub fn sqnr(
    base: &Model,
    model: &Model,
    cpu: &Cpu,
    text: &str,
    config: &EvalConfig,
    progress: Progress,
) -> Result<SqnrResult> {
    let (names, other) = (base.linears(), model.linears());
    let same = names.len() == other.len()
        && names
            .iter()
            .zip(&other)
            .all(|(a, b)| a.0 == b.0 && a.1.weight.shape() == b.1.weight.shape());
    if !same {
        return Err(Error::invalid(format!(
            "{} and {} have different layers: compare a model with its own quantized copy",
            base.name, model.name
        )));
    }
    let (windows, _, _) = windows_of(base, text, config)?;
    let powers = vec![Power::default(); names.len()];
    let mut watch = LayerByLayer { cpu, base: &names, model: &other, powers, error: None };
    let mut logits = Power::default();
    let mut tokens = 0;
    let d = base.config.hidden_size;
    for (done, window) in windows.iter().enumerate() {
        if !progress(done, windows.len()) {
            return Err(Error::Cancelled);
        }
        let p =
            base.forward(cpu, &window.tokens, &mut base.context(window.tokens.len()), &mut watch)?;
        if let Some(error) = watch.error.take() {
            return Err(error);
        }
        let mut context = model.context(window.tokens.len());
        let q = model.forward(cpu, &window.tokens, &mut context, &mut NoObserver)?;
        tokens += window.tokens.len();
        for (p, q) in p.chunks(64 * d).zip(q.chunks(64 * d)) {
            let x = base.logits(cpu, p)?;
            logits.add(&x, &model.logits(cpu, q)?);
            // The observer sees blocks only; an output layer of its own is the last of the list.
            if base.lm_head.is_some() {
                watch.compare_at(names.len() - 1, p)?;
            }
        }
    }
    progress(windows.len(), windows.len());
    let layers = names
        .iter()
        .zip(&other)
        .zip(&watch.powers)
        .map(|(((layer, a), (_, b)), power)| {
            let mut weight = Power::default();
            weight.add(&a.weight.dequantize()?.to_f32_vec(), &b.weight.dequantize()?.to_f32_vec());
            Ok(LayerSqnr {
                layer: layer.clone(),
                workflow: b.weight.workflow(),
                weight_db: weight.db(),
                output_db: power.db(),
            })
        })
        .collect::<Result<_>>()?;
    Ok(SqnrResult { layers, logits_db: logits.db(), tokens })
}
