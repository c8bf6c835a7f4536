//! AWQ: torchao's `AWQConfig` (P01), weights scaled up where the inputs are large before they are rounded.
//!
//! With `x̄` the mean magnitude of each input feature and `s = x̄^(i/20)` normalised by `√(max s · min s)`, the base quantizes
//! `W · s` for i = 0 … 19; the s whose layer output is nearest to the original one in mean square stays, and inputs are
//! multiplied by `1/s` at every call (Lin et al. 2023, arXiv 2306.00978). The search runs the base's own kernels on the
//! layer's inputs, so that a base that rounds activations is judged with them rounded.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::Recipe;
use super::calibration::{Calibrated, LayerObserver, check_original, not_without_inputs};
use super::config::Typed;
use super::pre_scaled::{self, PreScaledWeight};
use super::primitives::{round_to_dtype, torch_column_means, torch_pow};
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{DenseWeight, Weight};
use crate::tensor::{DType, Tensor};

/// A base format behind scales that protect the weights of large inputs.
#[derive(Clone, Debug)]
pub struct AwqConfig {
    /// The format.
    pub base: Arc<dyn Recipe>,
    /// How many exponents between 0 and 1 are tried.
    pub scale_search_space_size: usize,
}

impl AwqConfig {
    /// torchao's defaults over `base`.
    pub fn new(base: Arc<dyn Recipe>) -> AwqConfig {
        AwqConfig { base, scale_search_space_size: 20 }
    }

    fn check_options(&self) -> Result<()> {
        if self.scale_search_space_size == 0 {
            return Err(Error::invalid(
                "scale_search_space_size is 0; wanted 1 or more, usual is 20",
            ));
        }
        if self.base.calibrated().is_some() {
            return Err(Error::invalid(format!(
                "awq tries its base many times on each layer, and {} calibrates anew each time; \
                 give a format as the base, such as int4-weight-only",
                self.base.name()
            )));
        }
        Ok(())
    }
}

const TYPE: &str = "AWQConfig";

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "awq",
    ids: &["P01"],
    config_type: TYPE,
    weight_type: pre_scaled::TYPE,
    granularity: "the base's",
    kernel: "the base's",
    config_from_dict,
    read_weight: pre_scaled::read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    typed.check_version(1)?;
    typed.known_fields(&["base_config", "step", "scale_search_space_size"])?;
    let default = AwqConfig::new(typed.base_config()?);
    let scale_search_space_size =
        typed.field("scale_search_space_size", default.scale_search_space_size)?;
    let config = AwqConfig { scale_search_space_size, ..default };
    config.check_options()?;
    Ok(Arc::new(config))
}

impl Recipe for AwqConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        let data = json!({
            "base_config": self.base.config_to_dict(),
            "step": "convert",
            "scale_search_space_size": self.scale_search_space_size,
        });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        self.check_options()?;
        self.base.check(shape)
    }

    fn quantize(&self, _cpu: &Cpu, _weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        Err(not_without_inputs(WORKFLOW.name))
    }

    fn calibrated(&self) -> Option<&dyn Calibrated> {
        Some(self)
    }
}

impl Calibrated for AwqConfig {
    fn prepare(&self, _fqn: &str, weight: &Arc<dyn Weight>) -> Result<Box<dyn LayerObserver>> {
        check_original(WORKFLOW.name, weight.as_ref())?;
        self.check(weight.shape())?;
        let (config, weight) = (self.clone(), Arc::clone(weight));
        Ok(Box::new(AwqObserver { config, weight, inputs: Vec::new() }))
    }
}

/// Keeps the inputs of one layer, then searches.
#[derive(Debug)]
struct AwqObserver {
    config: AwqConfig,
    weight: Arc<dyn Weight>,
    /// `(M, K)`, all sequences.
    inputs: Vec<f32>,
}

impl LayerObserver for AwqObserver {
    fn observe(&mut self, _cpu: &Cpu, x: &[f32]) -> Result<()> {
        self.inputs.extend_from_slice(x);
        Ok(())
    }

    fn convert(&mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        let inputs = std::mem::take(&mut self.inputs);
        let found = search(cpu, self.weight.as_ref(), &inputs, &self.config)?;
        let pre_scale = found.scales.iter().map(|scale| 1.0 / scale).collect();
        Ok(Arc::new(PreScaledWeight::new(WORKFLOW.name, pre_scale, found.weight)?))
    }
}

/// What [`search`] found.
#[derive(Clone, Debug)]
pub struct Found {
    /// `(K)`: what the weight's columns were multiplied with.
    pub scales: Vec<f32>,
    /// The mean squared error of the layer's output, a candidate each.
    pub losses: Vec<f64>,
    /// The base's weight for the best scales.
    pub weight: Arc<dyn Weight>,
}

/// Tries the scales on the inputs `x (M, K)`. The first of equal losses wins.
pub fn search(cpu: &Cpu, weight: &dyn Weight, x: &[f32], config: &AwqConfig) -> Result<Found> {
    let trials = Trials::new(cpu, weight, x, config)?;
    let (mut best, mut losses) = (None, Vec::new());
    for i in 0..config.scale_search_space_size {
        let scales = trials.candidate(i, f32::sqrt);
        let (loss, quantized) = trials.loss(&scales)?;
        if best.as_ref().is_none_or(|(least, _, _)| loss < *least) {
            best = Some((loss, scales, quantized));
        }
        losses.push(loss);
    }
    let (_, scales, weight) = best.ok_or_else(|| Error::invalid("no scales were tried"))?;
    Ok(Found { scales, losses, weight })
}

/// A layer on whose inputs scales are tried.
#[derive(Debug)]
pub(crate) struct Trials<'a> {
    cpu: &'a Cpu,
    config: &'a AwqConfig,
    shape: (usize, usize),
    dtype: DType,
    x: &'a [f32],
    w: Vec<f32>,
    means: Vec<f32>,
    /// The outputs of the original weight.
    wanted: Vec<f32>,
}

impl<'a> Trials<'a> {
    pub(crate) fn new(
        cpu: &'a Cpu,
        weight: &dyn Weight,
        x: &'a [f32],
        config: &'a AwqConfig,
    ) -> Result<Trials<'a>> {
        let (n, k) = weight.shape();
        if x.is_empty() || !x.len().is_multiple_of(k) {
            let got = x.len();
            return Err(Error::invalid(format!("awq wants inputs of {k} features; got {got}")));
        }
        let mut wanted = vec![0.0; x.len() / k * n];
        weight.linear(cpu, x, x.len() / k, &mut wanted)?;
        Ok(Trials {
            cpu,
            config,
            shape: (n, k),
            dtype: weight.dtype(),
            x,
            w: weight.dequantize()?.to_f32_vec(),
            means: mean_magnitudes(x, k),
            wanted,
        })
    }

    /// `x̄^(i / size)`, not below 10⁻⁴, over `√(max · min)`, each step in the weight's dtype.
    #[expect(clippy::cast_precision_loss, reason = "the search space is small")]
    #[expect(clippy::cast_possible_truncation, reason = "torch raises f32 to an f32 power too")]
    pub(crate) fn candidate(&self, i: usize, root: impl Fn(f32) -> f32) -> Vec<f32> {
        let rounded = |value| round_to_dtype(self.dtype, value);
        let ratio = (i as f64 / self.config.scale_search_space_size as f64) as f32;
        let scale = |mean: &f32| rounded(torch_pow(*mean, ratio)).max(rounded(1e-4));
        let scales: Vec<f32> = self.means.iter().map(scale).collect();
        let max = scales.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let min = scales.iter().copied().fold(f32::INFINITY, f32::min);
        let middle = rounded(root(rounded(max * min)));
        scales.into_iter().map(|scale| rounded(scale / middle)).collect()
    }

    /// The mean squared error of the outputs, and the base's weight.
    pub(crate) fn loss(&self, scales: &[f32]) -> Result<(f64, Arc<dyn Weight>)> {
        let (n, k) = self.shape;
        let rows = self.w.chunks_exact(k);
        let scaled = rows.flat_map(|row| row.iter().zip(scales).map(|(w, s)| w * s));
        let scaled = Tensor::new(scaled.collect::<Vec<f32>>(), &[n, k])?.to_dtype(self.dtype)?;
        let quantized = self.config.base.quantize(self.cpu, &DenseWeight::new(scaled)?)?;
        let rows = self.x.chunks_exact(k);
        let x = rows.flat_map(|row| row.iter().zip(scales).map(|(x, s)| x / s));
        let mut got = vec![0.0; self.wanted.len()];
        quantized.linear(self.cpu, &x.collect::<Vec<f32>>(), self.x.len() / k, &mut got)?;
        Ok((mean_square(&self.wanted, &got), quantized))
    }
}

/// `mean |x|` of each feature, in torch's order of additions.
pub fn mean_magnitudes(x: &[f32], k: usize) -> Vec<f32> {
    torch_column_means(&x.iter().map(|x| x.abs()).collect::<Vec<f32>>(), k)
}

#[expect(clippy::cast_precision_loss, reason = "outputs are far fewer than 2⁵³")]
fn mean_square(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    squares.sum::<f64>() / a.len() as f64
}
