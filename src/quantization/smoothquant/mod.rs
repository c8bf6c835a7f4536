//! SmoothQuant: torchao's `SmoothQuantConfig` (P02), outliers of activations moved into the weight.
//!
//! With `x` and `w` the largest magnitudes of an input feature in the inputs and in the weight,
//! `s = (x + ε)^α / (w + ε)^(1 − α)`; the base quantizes `W · s`, and inputs are multiplied by `1/s` at every call
//! (Xiao et al. 2022, arXiv 2211.10438). Without an alpha nothing is moved.
//!
//! Magnitudes are running maxima, which is torchao's `use_running_absmax` and the same numbers as keeping all inputs. A
//! base that is calibrated itself, such as int8-static with its activation scale, then sees the smoothed inputs in a second
//! pass: torchao's two-pass calibration.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::Recipe;
use super::calibration::{Calibrated, LayerObserver, check_original, not_without_inputs};
use super::config::Typed;
use super::pre_scaled::{self, PreScaledWeight};
use super::primitives::torch_pow;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{DenseWeight, Weight};
use crate::tensor::Tensor;

/// A base that quantizes activations, behind factors that even them out.
#[derive(Clone, Debug)]
pub struct SmoothQuantConfig {
    /// What quantizes the smoothed weight.
    pub base: Arc<dyn Recipe>,
    /// How much of the activations' range goes into the weight: 0 none, 1 all. `None` smooths nothing.
    pub alpha: Option<f64>,
    /// Kept for torchao's JSON: it saves memory there, and gives the same numbers.
    pub use_running_absmax: bool,
}

impl SmoothQuantConfig {
    /// torchao's defaults over `base`.
    pub fn new(base: Arc<dyn Recipe>) -> SmoothQuantConfig {
        SmoothQuantConfig { base, alpha: Some(0.5), use_running_absmax: false }
    }

    fn check_options(&self) -> Result<()> {
        if let Some(alpha) = self.alpha.filter(|alpha| !(0.0..=1.0).contains(alpha)) {
            return Err(Error::invalid(format!("alpha is {alpha}; wanted 0 to 1, usual is 0.5")));
        }
        if self.base.name() == WORKFLOW.name {
            return Err(Error::invalid(
                "smoothquant inside smoothquant smooths what is smooth; give a format as the base",
            ));
        }
        Ok(())
    }
}

const TYPE: &str = "SmoothQuantConfig";

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "smoothquant",
    ids: &["P02"],
    config_type: TYPE,
    weight_type: pre_scaled::TYPE,
    granularity: "the base's",
    kernel: "the base's",
    config_from_dict,
    read_weight: pre_scaled::read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    typed.check_version(1)?;
    typed.known_fields(&["base_config", "step", "alpha", "use_running_absmax"])?;
    let default = SmoothQuantConfig::new(typed.base_config()?);
    let config = SmoothQuantConfig {
        alpha: typed.field("alpha", default.alpha)?,
        use_running_absmax: typed.field("use_running_absmax", false)?,
        ..default
    };
    config.check_options()?;
    Ok(Arc::new(config))
}

impl Recipe for SmoothQuantConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        let data = json!({
            "base_config": self.base.config_to_dict(),
            "step": "convert",
            "alpha": self.alpha,
            "use_running_absmax": self.use_running_absmax,
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

impl Calibrated for SmoothQuantConfig {
    fn prepare(&self, fqn: &str, weight: &Arc<dyn Weight>) -> Result<Box<dyn LayerObserver>> {
        check_original(WORKFLOW.name, weight.as_ref())?;
        self.check(weight.shape())?;
        Ok(Box::new(SmoothQuantObserver {
            config: self.clone(),
            fqn: fqn.to_owned(),
            weight: Arc::clone(weight),
            x_abs_max: vec![0.0; weight.shape().1],
            smoothed: None,
        }))
    }

    fn sequential(&self) -> bool {
        self.base.calibrated().is_some_and(|base| base.sequential())
    }
}

#[derive(Debug)]
struct SmoothQuantObserver {
    config: SmoothQuantConfig,
    fqn: String,
    weight: Arc<dyn Weight>,
    x_abs_max: Vec<f32>,
    /// Of the second pass.
    smoothed: Option<Smoothed>,
}

#[derive(Debug)]
struct Smoothed {
    factor: Vec<f32>,
    /// `W · s`.
    weight: Arc<dyn Weight>,
    base: Option<Box<dyn LayerObserver>>,
}

impl LayerObserver for SmoothQuantObserver {
    fn observe(&mut self, cpu: &Cpu, x: &[f32]) -> Result<()> {
        match &mut self.smoothed {
            None => {
                grow_abs_max(&mut self.x_abs_max, x);
                Ok(())
            }
            Some(Smoothed { base: None, .. }) => Ok(()),
            Some(Smoothed { factor, base: Some(base), .. }) => {
                let rows = x.chunks_exact(factor.len().max(1));
                let x = rows.flat_map(|row| row.iter().zip(&*factor).map(|(x, s)| x / s));
                base.observe(cpu, &x.collect::<Vec<f32>>())
            }
        }
    }

    fn another_pass(&mut self) -> Result<bool> {
        if let Some(smoothed) = &mut self.smoothed {
            return smoothed.base.as_mut().map_or(Ok(false), |base| base.another_pass());
        }
        let smoothed = self.smooth()?;
        let again = smoothed.base.is_some();
        self.smoothed = Some(smoothed);
        Ok(again)
    }

    fn convert(&mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        let mut smoothed = match self.smoothed.take() {
            Some(smoothed) => smoothed,
            None => self.smooth()?,
        };
        let quantized = match &mut smoothed.base {
            Some(base) => base.convert(cpu)?,
            None => self.config.base.quantize(cpu, smoothed.weight.as_ref())?,
        };
        let pre_scale = smoothed.factor.iter().map(|factor| 1.0 / factor).collect();
        Ok(Arc::new(PreScaledWeight::new(WORKFLOW.name, pre_scale, quantized)?))
    }
}

impl SmoothQuantObserver {
    fn smooth(&self) -> Result<Smoothed> {
        let (n, k) = self.weight.shape();
        let w = self.weight.dequantize()?.to_f32_vec();
        let mut w_abs_max = vec![0.0; k];
        grow_abs_max(&mut w_abs_max, &w);
        let factor = smoothing_factor(&self.x_abs_max, &w_abs_max, self.config.alpha);
        let scaled = w.chunks_exact(k).flat_map(|row| row.iter().zip(&factor).map(|(w, s)| w * s));
        let weight = DenseWeight::shared(Tensor::new(scaled.collect::<Vec<f32>>(), &[n, k])?)?;
        let base = match self.config.base.calibrated() {
            Some(base) => Some(base.prepare(&self.fqn, &weight)?),
            None => None,
        };
        Ok(Smoothed { factor, weight, base })
    }
}

/// Raises `abs_max (K)` to the largest magnitudes of `values (M, K)`. A NaN, once there, stays.
pub fn grow_abs_max(abs_max: &mut [f32], values: &[f32]) {
    for row in values.chunks_exact(abs_max.len().max(1)) {
        for (max, value) in abs_max.iter_mut().zip(row) {
            let value = value.abs();
            *max = if value > *max || value.is_nan() { value } else { *max };
        }
    }
}

/// `(x + ε)^α / (w + ε)^(1 − α)`, in f32; all 1 without an alpha.
#[expect(clippy::cast_possible_truncation, reason = "torch raises f32 to an f32 power too")]
pub fn smoothing_factor(x_abs_max: &[f32], w_abs_max: &[f32], alpha: Option<f64>) -> Vec<f32> {
    let Some(alpha) = alpha else { return vec![1.0; x_abs_max.len()] };
    let (for_x, for_w) = (alpha as f32, (1.0 - alpha) as f32);
    let pairs = x_abs_max.iter().zip(w_abs_max);
    pairs
        .map(|(x, w)| torch_pow(x + f32::EPSILON, for_x) / torch_pow(w + f32::EPSILON, for_w))
        .collect()
}
