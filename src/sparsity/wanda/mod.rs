//! Wanda (X05): weights are pruned by `|w| · ‖x‖₂`, what they are times what they get to see (Sun et al. 2023, arXiv 2306.11695).
//!
//! torchao's `PerChannelNormObserver` sums the squared norms of batches and never takes the root, so that its metric is
//! `|w| · ‖x‖₂²`. Here the norm is the paper's; `squared_norm` gives torchao's masks. As in torchao the lowest
//! `int(numel · level)` of the whole layer go, or half of each `semi_structured_block_size` neighbours; the paper compares within an output's row, which
//! is `per_output`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::scores::{check_level, count_down, lowest, n_of_m};
use super::sparse_weight;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{Mask, Pattern, Weight};
use crate::quantization::Recipe;
use crate::quantization::calibration::{Calibrated, LayerObserver, not_without_inputs};
use crate::quantization::config::{Typed, to_dict};
use crate::tensor::Tensor;

/// Prune by weights times the norms of their inputs; reads a text first
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct WandaSparsifier {
    /// The share of weights that goes
    #[arg(long, default_value_t = 0.5, value_name = "SHARE")]
    pub sparsity_level: f64,
    /// Instead: half of each so many neighbours go; 4 gives 2:4
    #[arg(long, value_name = "SIZE")]
    pub semi_structured_block_size: Option<usize>,
    /// Compare weights within an output's row, as the paper does, not within the whole layer
    #[arg(long)]
    pub per_output: bool,
    /// torchao's metric: the norm squared
    #[arg(long)]
    pub squared_norm: bool,
}

impl Default for WandaSparsifier {
    fn default() -> WandaSparsifier {
        WandaSparsifier {
            sparsity_level: 0.5,
            semi_structured_block_size: None,
            per_output: false,
            squared_norm: false,
        }
    }
}

pub(super) const TYPE: &str = "WandaSparsifier";

pub(super) fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: WandaSparsifier = typed.read(1)?;
    check_level(config.sparsity_level)?;
    Ok(Arc::new(config))
}

impl WandaSparsifier {
    fn pattern(&self) -> Pattern {
        match self.semi_structured_block_size {
            Some(m) => Pattern::NOfM { n: m - m / 2, m },
            None => Pattern::Unstructured,
        }
    }

    /// Which numbers of `w (N, K)` stay, given `Σx²` of each input.
    pub fn mask(&self, cpu: &Cpu, w: &Tensor, square_sums: &[f32]) -> Result<Mask> {
        let (n, k) = w.dims2()?;
        self.check((n, k))?;
        if square_sums.len() != k {
            let got = square_sums.len();
            return Err(Error::invalid(format!("norms of {k} inputs wanted; got {got}")));
        }
        let norm = |sum: &f32| if self.squared_norm { *sum } else { sum.sqrt() };
        let norms: Vec<f32> = square_sums.iter().map(norm).collect();
        let mut scores = w.to_f32_vec();
        for row in scores.chunks_exact_mut(k.max(1)) {
            row.iter_mut().zip(&norms).for_each(|(w, norm)| *w = w.abs() * norm);
        }
        let kept = |scores: &[f32]| {
            let gone = lowest(scores, count_down(scores.len(), self.sparsity_level));
            gone.into_iter().map(|gone| !gone)
        };
        let keep: Vec<bool> = match (self.pattern(), self.per_output) {
            (Pattern::NOfM { n, m }, _) => n_of_m(cpu, &scores, k, (n, m)),
            (_, true) => scores.chunks_exact(k.max(1)).flat_map(kept).collect(),
            (_, false) => kept(&scores).collect(),
        };
        Mask::of(&keep, (n, k))
    }
}

/// Adds `‖x‖₂²` of each column of `x (M, K)`, as torchao's observer does: a batch's norm is rounded to f32 and squared.
#[expect(clippy::cast_possible_truncation, reason = "kept in f32, as torchao keeps it")]
pub fn add_square_norms(sums: &mut [f32], x: &[f32]) {
    let mut squares = vec![0.0_f64; sums.len()];
    for row in x.chunks_exact(sums.len().max(1)) {
        row.iter().zip(&mut squares).for_each(|(x, sum)| *sum += f64::from(*x).powi(2));
    }
    for (sum, square) in sums.iter_mut().zip(squares) {
        let norm = square.sqrt() as f32;
        *sum += norm * norm;
    }
}

impl Recipe for WandaSparsifier {
    fn name(&self) -> &'static str {
        "wanda"
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, 1, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        check_level(self.sparsity_level)?;
        if self.semi_structured_block_size == Some(0) {
            return Err(Error::invalid("semi_structured_block_size is 0; wanted 2 or more"));
        }
        self.pattern().check(shape)
    }

    fn quantize(&self, _cpu: &Cpu, _weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        Err(not_without_inputs("wanda"))
    }

    fn quantize_shared(&self, _cpu: &Cpu, _weight: &Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        Err(not_without_inputs("wanda"))
    }

    fn calibrated(&self) -> Option<&dyn Calibrated> {
        Some(self)
    }
}

impl Calibrated for WandaSparsifier {
    fn prepare(&self, _fqn: &str, weight: &Arc<dyn Weight>) -> Result<Box<dyn LayerObserver>> {
        self.check(weight.shape())?;
        let square_sums = vec![0.0; weight.shape().1];
        Ok(Box::new(WandaObserver {
            config: self.clone(),
            weight: Arc::clone(weight),
            square_sums,
        }))
    }
}

/// Gathers norms, then prunes.
#[derive(Debug)]
struct WandaObserver {
    config: WandaSparsifier,
    weight: Arc<dyn Weight>,
    square_sums: Vec<f32>,
}

impl LayerObserver for WandaObserver {
    fn observe(&mut self, _cpu: &Cpu, x: &[f32]) -> Result<()> {
        add_square_norms(&mut self.square_sums, x);
        Ok(())
    }

    fn convert(&mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        let mask = self.config.mask(cpu, &self.weight.dequantize()?, &self.square_sums)?;
        sparse_weight(Arc::clone(&self.weight), mask, self.config.pattern())
    }
}
