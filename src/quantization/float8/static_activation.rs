//! `Float8StaticActivationFloat8WeightConfig` (P05): float8 weights, and activations rounded to float8 with one scale that
//! is given, or measured on a text: `act_quant_scale = amax / 448` of the largest input that calibration saw.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::options::Float8MMConfig;
use super::quantize::quantize;
use super::weight::{self, Activation, Float8Weight, check_float8};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::quantization::Recipe;
use crate::quantization::calibration::{
    Calibrated, LayerObserver, check_original, not_without_inputs,
};
use crate::quantization::config::{Typed, to_dict};
use crate::quantization::primitives::{Float8, Granularity, KernelPreference};
use crate::quantization::stored::Stored;
use crate::quantization::workflows::Workflow;

/// Float8 weights, and float8 activations with a scale that is given.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Float8StaticActivationFloat8WeightConfig {
    /// torchao's step of calibration; here a scale is given or found in one go, so that it is null.
    #[arg(skip)]
    pub step: Option<String>,
    /// The scale of activations: the largest that they reach, over 448 (57344 for float8_e5m2); without it, it is found on a
    /// calibration text
    #[arg(long, value_name = "NUMBER")]
    pub act_quant_scale: Option<f32>,
    /// The type of activations: float8_e4m3fn or float8_e5m2
    #[arg(long, default_value = "float8_e4m3fn", value_name = "FLOAT8")]
    pub activation_dtype: Float8,
    /// The type of weights: float8_e4m3fn or float8_e5m2
    #[arg(long, default_value = "float8_e4m3fn", value_name = "FLOAT8")]
    pub weight_dtype: Float8,
    /// Always per-tensor, or null for the same.
    #[arg(skip)]
    pub granularity: Option<Granularity>,
    /// How torchao multiplies on a GPU; it does nothing here.
    #[arg(skip)]
    pub mm_config: Option<Float8MMConfig>,
    /// Which kernels torchao is to run; it does nothing here.
    #[arg(skip = KernelPreference::Auto)]
    pub kernel_preference: KernelPreference,
    /// Kept for torchao, where it tunes a compiler; it does nothing here.
    #[arg(skip = true)]
    pub set_inductor_config: bool,
    /// Round results to float8 and back too
    #[arg(long)]
    pub quantize_and_dequantize_output: bool,
    /// The scale of results; found as that of activations is, or given with it
    #[arg(long, requires = "quantize_and_dequantize_output", value_name = "NUMBER")]
    pub output_act_quant_scale: Option<f32>,
}

impl Default for Float8StaticActivationFloat8WeightConfig {
    fn default() -> Float8StaticActivationFloat8WeightConfig {
        Float8StaticActivationFloat8WeightConfig {
            step: None,
            act_quant_scale: None,
            activation_dtype: Float8::E4m3fn,
            weight_dtype: Float8::E4m3fn,
            granularity: None,
            mm_config: None,
            kernel_preference: KernelPreference::Auto,
            set_inductor_config: true,
            quantize_and_dequantize_output: false,
            output_act_quant_scale: None,
        }
    }
}

const TYPE: &str = "Float8StaticActivationFloat8WeightConfig";
const VERSION: u64 = 1;

pub(in crate::quantization) const WORKFLOW: Workflow = Workflow {
    name: "float8-static-activation-float8-weight",
    ids: &["P05"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "per-tensor",
    kernel: "float_linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Float8StaticActivationFloat8WeightConfig = typed.read(VERSION)?;
    // A scale that is missing may still be measured: `check` asks for it.
    if config.act_quant_scale.is_some() || config.step.is_some() {
        config.activation()?;
    }
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(Float8Weight::read(typed, stored)?))
}

impl Float8StaticActivationFloat8WeightConfig {
    /// What becomes of activations, if the options are sound.
    fn activation(&self) -> Result<Activation> {
        if let Some(step) = &self.step {
            return Err(Error::invalid(format!(
                "step {step:?}: here the scale is given as act_quant_scale, and there are no steps"
            )));
        }
        if !matches!(self.granularity, None | Some(Granularity::PerTensor)) {
            let words =
                "granularity: a scale that is fixed before the batch is known is per-tensor";
            return Err(Error::invalid(words));
        }
        check_float8(self.weight_dtype)?;
        let scale = self.act_quant_scale.ok_or_else(|| {
            Error::invalid("act_quant_scale is missing; wanted amax / 448 of the activations")
        })?;
        let output_scale = match (self.quantize_and_dequantize_output, self.output_act_quant_scale)
        {
            (false, _) => None,
            (true, Some(scale)) => Some(scale),
            (true, None) => {
                let words = "quantize_and_dequantize_output wants output_act_quant_scale too";
                return Err(Error::invalid(words));
            }
        };
        let activation =
            Activation::Static { float8_dtype: self.activation_dtype, scale, output_scale };
        activation.check()?;
        Ok(activation)
    }
}

impl Recipe for Float8StaticActivationFloat8WeightConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    /// As torchao writes it, which fills in its own way of multiplying.
    fn config_to_dict(&self) -> Json {
        let mm_config = self.mm_config.or(Some(Float8MMConfig::fast(true)));
        to_dict(TYPE, VERSION, &Self { mm_config, ..self.clone() })
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        // Scales that are still to be found are sound ones.
        let found = Self { act_quant_scale: self.act_quant_scale.or(Some(1.0)), ..self.clone() };
        let output = found.output_act_quant_scale.or(self.act_quant_scale.is_none().then_some(1.0));
        Self { output_act_quant_scale: output, ..found }.activation()?;
        if n.is_multiple_of(16) && k.is_multiple_of(16) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "N = {n} and K = {k}: float8 activations and weights want multiples of 16; use float8-weight-only"
        )))
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        if self.act_quant_scale.is_none() {
            return Err(not_without_inputs(WORKFLOW.name));
        }
        let format = (self.weight_dtype, &Granularity::PerTensor);
        Ok(Arc::new(quantize(cpu, weight, format, self.activation()?)?))
    }

    fn calibrated(&self) -> Option<&dyn Calibrated> {
        if self.act_quant_scale.is_some() { None } else { Some(self) }
    }
}

impl Calibrated for Float8StaticActivationFloat8WeightConfig {
    fn prepare(&self, _fqn: &str, weight: &Arc<dyn Weight>) -> Result<Box<dyn LayerObserver>> {
        check_original(WORKFLOW.name, weight.as_ref())?;
        self.check(weight.shape())?;
        let (config, weight) = (self.clone(), Arc::clone(weight));
        Ok(Box::new(Watch { config, weight, input: 0.0, output: 0.0 }))
    }
}

/// Remembers the largest magnitudes, then quantizes.
#[derive(Debug)]
struct Watch {
    config: Float8StaticActivationFloat8WeightConfig,
    weight: Arc<dyn Weight>,
    input: f32,
    output: f32,
}

fn largest(so_far: f32, values: &[f32]) -> f32 {
    values.iter().fold(so_far, |most, value| most.max(value.abs()))
}

impl LayerObserver for Watch {
    fn observe(&mut self, cpu: &Cpu, x: &[f32]) -> Result<()> {
        self.input = largest(self.input, x);
        if self.config.quantize_and_dequantize_output {
            let (n, k) = self.weight.shape();
            let m = x.len().checked_div(k).unwrap_or(0);
            let mut y = vec![0.0; m * n];
            self.weight.linear(cpu, x, m, &mut y)?;
            self.output = largest(self.output, &y);
        }
        Ok(())
    }

    fn convert(&mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        let max = self.config.activation_dtype.max();
        // Inputs that were all 0 get torchao's smallest scale, not 0.
        let scale = |amax: f32| (amax / max).max(f32::EPSILON);
        let output = self.config.quantize_and_dequantize_output.then(|| scale(self.output));
        let config = Float8StaticActivationFloat8WeightConfig {
            act_quant_scale: Some(scale(self.input)),
            output_act_quant_scale: self.config.output_act_quant_scale.or(output),
            ..self.config.clone()
        };
        config.quantize(cpu, self.weight.as_ref())
    }
}
