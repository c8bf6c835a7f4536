//! SparseGPT (X03's one-shot pruning): weights go one column after another, and those still to come make up for each (Frantar and
//! Alistarh 2023, arXiv 2301.00774).
//!
//! With `U` the upper Cholesky factor of the inverse of the inputs' second moments, as in GPTQ, a weight's score is
//! `w² / U[j, j]²`: what the output loses when it goes and the rest adapts. A block of columns chooses its zeros together, the lowest scores
//! of all its rows; N:M chooses within each row just before its columns' turn. Then each column's error moves into the columns behind it.

mod solve;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use self::solve::sparse_gpt;
use super::scores::check_level;
use super::sparse_weight;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{DenseWeight, Pattern, Weight};
use crate::quantization::Recipe;
use crate::quantization::calibration::{
    Calibrated, Hessian, LayerObserver, check_original, not_without_inputs,
};
use crate::quantization::config::{Typed, to_dict};

/// Prune so that a layer's outputs stay; reads a text first
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct SparseGptSparsifier {
    /// Where zeros may be: unstructured, or N:M such as 2:4
    #[arg(long, default_value = "unstructured", value_name = "PATTERN")]
    pub pattern: Pattern,
    /// The share of weights that goes; N:M says it itself
    #[arg(long, default_value_t = 0.5, value_name = "SHARE")]
    pub sparsity_level: f64,
    /// How much of the mean of the second moments' diagonal is added to it
    #[arg(long, default_value_t = 0.01)]
    pub percdamp: f64,
    /// Columns that choose their zeros together
    #[arg(long, default_value_t = 128, value_name = "COLUMNS")]
    pub blocksize: usize,
    /// Take the inputs that the pruned blocks before give, not the original model's
    #[arg(long)]
    pub sequential: bool,
}

impl Default for SparseGptSparsifier {
    fn default() -> SparseGptSparsifier {
        SparseGptSparsifier {
            pattern: Pattern::Unstructured,
            sparsity_level: 0.5,
            percdamp: 0.01,
            blocksize: 128,
            sequential: false,
        }
    }
}

pub(super) const TYPE: &str = "SparseGPTSparsifier";

pub(super) fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: SparseGptSparsifier = typed.read(1)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

impl SparseGptSparsifier {
    fn check_options(&self) -> Result<()> {
        check_level(self.sparsity_level)?;
        if !(self.percdamp >= 0.0 && self.percdamp.is_finite()) {
            let got = self.percdamp;
            return Err(Error::invalid(format!(
                "percdamp is {got}; wanted 0 or more, usual is 0.01"
            )));
        }
        match self.pattern {
            Pattern::Block { .. } => Err(Error::invalid(
                "sparse-gpt prunes column by column and makes no blocks; \
                 take magnitude or weight-norm for them",
            )),
            Pattern::NOfM { m, .. } if !self.blocksize.is_multiple_of(m) => Err(Error::invalid(
                format!("blocksize is {}; wanted a multiple of {m}", self.blocksize),
            )),
            _ if self.blocksize == 0 => {
                Err(Error::invalid("blocksize is 0; wanted 1 or more, usual is 128"))
            }
            _ => Ok(()),
        }
    }
}

impl Recipe for SparseGptSparsifier {
    fn name(&self) -> &'static str {
        "sparse-gpt"
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, 1, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        self.check_options()?;
        self.pattern.check(shape)
    }

    fn quantize(&self, _cpu: &Cpu, _weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        Err(not_without_inputs("sparse-gpt"))
    }

    fn quantize_shared(&self, _cpu: &Cpu, _weight: &Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        Err(not_without_inputs("sparse-gpt"))
    }

    fn calibrated(&self) -> Option<&dyn Calibrated> {
        Some(self)
    }
}

impl Calibrated for SparseGptSparsifier {
    fn prepare(&self, _fqn: &str, weight: &Arc<dyn Weight>) -> Result<Box<dyn LayerObserver>> {
        check_original("sparse-gpt", weight.as_ref())?;
        self.check(weight.shape())?;
        let hessian = Hessian::new(weight.shape().1);
        Ok(Box::new(SparseGptObserver {
            config: self.clone(),
            weight: Arc::clone(weight),
            hessian,
        }))
    }

    fn sequential(&self) -> bool {
        self.sequential
    }
}

/// Gathers second moments, then prunes.
#[derive(Debug)]
struct SparseGptObserver {
    config: SparseGptSparsifier,
    weight: Arc<dyn Weight>,
    hessian: Hessian,
}

impl LayerObserver for SparseGptObserver {
    fn observe(&mut self, cpu: &Cpu, x: &[f32]) -> Result<()> {
        self.hessian.update(cpu, x)
    }

    fn convert(&mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        let w = self.weight.dequantize()?;
        let (pruned, mask) = sparse_gpt(cpu, self.hessian.values(), &w, &self.config)?;
        let dense = DenseWeight::shared(pruned.to_dtype(self.weight.dtype())?)?;
        sparse_weight(dense, mask, self.config.pattern)
    }
}
