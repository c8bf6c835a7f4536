//! Whole rows go (X08): torch.ao's `SaliencyPruner` (the lowest `Σ|w|`) and `FPGMPruner` (those nearest to all others).
//!
//! torch.ao then makes layers smaller and everything that reads them; here rows become zeros and shapes stay. FPGM scores a row by the sum
//! of its L2 distances to all rows (He et al. 2019, arXiv 1811.00250): what lies in the middle of the others can be spared.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::scores::{check_level, count_down, count_nearest, lowest};
use super::sparse_weight;
use crate::error::Result;
use crate::kernels::{Cpu, Shape, dense_linear};
use crate::model::{Mask, Pattern, Weight};
use crate::quantization::Recipe;
use crate::quantization::config::{Typed, to_dict};
use crate::tensor::Tensor;

/// Prune the rows with the smallest weights
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct SaliencyPruner {
    /// The share of rows that goes
    #[arg(long, default_value_t = 0.5, value_name = "SHARE")]
    pub sparsity_level: f64,
}

/// Prune the rows that are nearest to all others
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct FpgmPruner {
    /// The share of rows that goes
    #[arg(long, default_value_t = 0.5, value_name = "SHARE")]
    pub sparsity_level: f64,
}

impl Default for SaliencyPruner {
    fn default() -> SaliencyPruner {
        SaliencyPruner { sparsity_level: 0.5 }
    }
}

impl Default for FpgmPruner {
    fn default() -> FpgmPruner {
        FpgmPruner { sparsity_level: 0.5 }
    }
}

pub(super) const SALIENCY_TYPE: &str = "SaliencyPruner";
pub(super) const FPGM_TYPE: &str = "FPGMPruner";

pub(super) fn saliency_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: SaliencyPruner = typed.read(1)?;
    check_level(config.sparsity_level)?;
    Ok(Arc::new(config))
}

pub(super) fn fpgm_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: FpgmPruner = typed.read(1)?;
    check_level(config.sparsity_level)?;
    Ok(Arc::new(config))
}

impl SaliencyPruner {
    /// Which rows of `w (N, K)` stay.
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    pub fn mask(&self, w: &Tensor) -> Result<Mask> {
        check_level(self.sparsity_level)?;
        let (n, k) = w.dims2()?;
        let values = w.to_f32_vec();
        let norm = |row: &[f32]| row.iter().map(|w| f64::from(w.abs())).sum::<f64>() as f32;
        let norms: Vec<f32> = values.chunks_exact(k.max(1)).map(norm).collect();
        rows_mask(&lowest(&norms, count_down(n, self.sparsity_level)), (n, k))
    }
}

impl FpgmPruner {
    /// Which rows of `w (N, K)` stay.
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    pub fn mask(&self, cpu: &Cpu, w: &Tensor) -> Result<Mask> {
        check_level(self.sparsity_level)?;
        let (n, k) = w.dims2()?;
        let values = w.to_f32_vec();
        // ‖a − b‖² = ‖a‖² + ‖b‖² − 2 a·b, a block of rows at a time.
        let square = |row: &[f32]| row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
        let squares: Vec<f64> = values.chunks_exact(k.max(1)).map(square).collect();
        let mut distances = Vec::with_capacity(n);
        for start in (0..n).step_by(64) {
            let rows = &values[start * k..n.min(start + 64) * k];
            let m = rows.len() / k.max(1);
            let mut products = vec![0.0; m * n];
            dense_linear::f32(cpu, &values, rows, &mut products, Shape { m, n, k });
            for (i, products) in products.chunks_exact(n).enumerate() {
                let own = squares[start + i];
                let distance = |(dot, other): (&f32, &f64)| {
                    (own + other - 2.0 * f64::from(*dot)).max(0.0).sqrt()
                };
                distances.push(products.iter().zip(&squares).map(distance).sum::<f64>() as f32);
            }
        }
        rows_mask(&lowest(&distances, count_nearest(n, self.sparsity_level)), (n, k))
    }
}

fn rows_mask(gone: &[bool], shape: (usize, usize)) -> Result<Mask> {
    let keep: Vec<bool> =
        gone.iter().flat_map(|gone| std::iter::repeat_n(!gone, shape.1)).collect();
    Mask::of(&keep, shape)
}

impl Recipe for SaliencyPruner {
    fn name(&self) -> &'static str {
        "saliency"
    }

    fn config_to_dict(&self) -> Json {
        to_dict(SALIENCY_TYPE, 1, self)
    }

    fn check(&self, _shape: (usize, usize)) -> Result<()> {
        check_level(self.sparsity_level)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        super::of_dense(self, cpu, weight)
    }

    fn quantize_shared(&self, _cpu: &Cpu, weight: &Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        let mask = self.mask(&weight.dequantize()?)?;
        sparse_weight(Arc::clone(weight), mask, Pattern::Unstructured)
    }
}

impl Recipe for FpgmPruner {
    fn name(&self) -> &'static str {
        "fpgm"
    }

    fn config_to_dict(&self) -> Json {
        to_dict(FPGM_TYPE, 1, self)
    }

    fn check(&self, _shape: (usize, usize)) -> Result<()> {
        check_level(self.sparsity_level)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        super::of_dense(self, cpu, weight)
    }

    fn quantize_shared(&self, cpu: &Cpu, weight: &Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        let mask = self.mask(cpu, &weight.dequantize()?)?;
        sparse_weight(Arc::clone(weight), mask, Pattern::Unstructured)
    }
}
