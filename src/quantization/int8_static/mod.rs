//! Int8 static activations and int8 weights: torchao's `Int8StaticActivationInt8WeightConfig` (Q08, A11).
//!
//! As int8 dynamic, but the scale of the activations is one number that was found once: by an observer (Q17) over a calibration
//! text, or given. Nothing is searched at run time, and what lies outside the range that was seen is clipped:
//! `y = (Σ a · q · s_x − zp_x · s_x · Σ q) · s_w`, each step rounded to f32 in this order.
//!
//! Activations share one scale (torchao's PerTensor); one for each token position would only fit inputs of the calibration's
//! shape. Weights have one a row or one for all, codes −128 ..= 127.

mod weight;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use self::weight::{Activation, Int8StaticWeight};
use super::Recipe;
use super::calibration::{Calibrated, LayerObserver, check_original, not_without_inputs};
use super::config::Typed;
use super::primitives::{
    AffineQuantizedObserver, CodeRange, Granularity, IntType, MappingType, ObserverConfig,
    ObserverKind, QParamsOptions, choose_qparams_affine, quantize_affine,
};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::int8_linear::ROW_SUM_MAX_K;
use crate::model::Weight;
use crate::tensor::{DType, Tensor};

/// How the activations' range is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActObserver {
    /// The least and the largest value.
    MinMax,
    /// Extremes that move a hundredth of the way to those of each sequence.
    MovingAverage,
    /// Of a hundred shrunk ranges the one with the least squared error over up to 2²⁰ inputs.
    Mse,
}

const OBSERVERS: [(&str, ActObserver); 3] = [
    ("min-max", ActObserver::MinMax),
    ("moving-average", ActObserver::MovingAverage),
    ("mse", ActObserver::Mse),
];

impl FromStr for ActObserver {
    type Err = Error;

    fn from_str(word: &str) -> Result<ActObserver> {
        OBSERVERS.iter().find(|(name, _)| *name == word).map(|(_, kind)| *kind).ok_or_else(|| {
            Error::usage(format!("{word} is no observer; wanted min-max, moving-average or mse"))
        })
    }
}

impl fmt::Display for ActObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = OBSERVERS.iter().find(|(_, kind)| kind == self).map_or("", |(name, _)| name);
        f.write_str(word)
    }
}

/// Int8 weights, activations on one int8 grid that was fixed before.
#[derive(clap::Args, Clone, Debug, PartialEq)]
pub struct Int8StaticActivationInt8WeightConfig {
    /// The activations' scale; without it, it is found on a calibration text
    #[arg(long, value_name = "SCALE")]
    pub act_quant_scale: Option<f32>,
    /// The activations' zero point, -128 to 127, where the mapping is asymmetric
    #[arg(long, value_name = "CODE", allow_hyphen_values = true, requires = "act_quant_scale")]
    pub act_quant_zero_point: Option<i8>,
    /// What shares a scale of the weights: per-row or per-tensor
    #[arg(long, default_value = "per-row", value_name = "GRANULARITY")]
    pub granularity: Granularity,
    /// How the activations' range is mapped onto codes: symmetric or asymmetric
    #[arg(long, default_value = "symmetric", value_name = "MAPPING")]
    pub act_mapping_type: MappingType,
    /// How the activations' range is found: min-max, moving-average or mse
    #[arg(long, default_value = "min-max", value_name = "OBSERVER")]
    pub observer: ActObserver,
}

impl Default for Int8StaticActivationInt8WeightConfig {
    fn default() -> Int8StaticActivationInt8WeightConfig {
        Int8StaticActivationInt8WeightConfig {
            act_quant_scale: None,
            act_quant_zero_point: None,
            granularity: Granularity::PER_ROW,
            act_mapping_type: MappingType::Symmetric,
            observer: ActObserver::MinMax,
        }
    }
}

const TYPE: &str = "Int8StaticActivationInt8WeightConfig";

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "int8-static-activation-int8-weight",
    ids: &["Q08", "Q17", "A11"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "per-row, per-tensor; activations per tensor",
    kernel: "int8_linear::dynamic",
    config_from_dict,
    read_weight,
};

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(Int8StaticWeight::read(typed, stored)?))
}

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    typed.check_version(1)?;
    typed.known_fields(&[
        "act_quant_scale",
        "act_quant_zero_point",
        "granularity",
        "act_mapping_type",
        "set_inductor_config",
        "reduce_range",
        "observer",
    ])?;
    if typed.field("reduce_range", false)? {
        return Err(Error::invalid("reduce_range is not for static activations; use int8-dynamic"));
    }
    let default = Int8StaticActivationInt8WeightConfig::default();
    let granularity: Json = typed.field("granularity", Json::Null)?;
    // torchao has one granularity for both, or a list of the activations' and the weights'.
    let granularity = match granularity {
        Json::Null => default.granularity,
        Json::Array(mut both) if both.len() == 2 => {
            let weights = both.pop().unwrap_or(Json::Null);
            serde_json::from_value(weights).map_err(|e| Error::invalid(e.to_string()))?
        }
        one => serde_json::from_value(one).map_err(|e| Error::invalid(e.to_string()))?,
    };
    let observer: String = typed.field("observer", default.observer.to_string())?;
    let config = Int8StaticActivationInt8WeightConfig {
        act_quant_scale: typed.field("act_quant_scale", None)?,
        act_quant_zero_point: typed.field("act_quant_zero_point", None)?,
        granularity,
        act_mapping_type: typed.field("act_mapping_type", default.act_mapping_type)?,
        observer: observer.parse()?,
    };
    config.check_options()?;
    Ok(Arc::new(config))
}

fn range() -> Result<CodeRange> {
    CodeRange::full(IntType::Int(8))
}

/// f32's eps for every dtype, as torchao has it.
const OPTIONS: QParamsOptions = QParamsOptions {
    eps: Some(f32::EPSILON),
    scale_dtype: Some(DType::F32),
    zero_point_dtype: Some(DType::I8),
    keepdim: true,
};

impl Int8StaticActivationInt8WeightConfig {
    fn check_options(&self) -> Result<()> {
        if let Some(scale) = self.act_quant_scale.filter(|s| !(*s > 0.0 && s.is_finite())) {
            return Err(Error::invalid(format!("act_quant_scale is {scale}; wanted more than 0")));
        }
        let symmetric = self.act_mapping_type == MappingType::Symmetric;
        if symmetric && self.act_quant_zero_point.is_some_and(|zero| zero != 0) {
            return Err(Error::invalid(
                "a zero point belongs to an asymmetric mapping; give --act-mapping-type asymmetric",
            ));
        }
        if self.act_mapping_type == MappingType::SymmetricNoClippingErr {
            return Err(Error::invalid(format!(
                "act_mapping_type {} is not for activations; use symmetric or asymmetric",
                self.act_mapping_type
            )));
        }
        match self.granularity {
            Granularity::PerTensor | Granularity::PerRow { dim: -1 } => Ok(()),
            ref other => Err(Error::invalid(format!(
                "granularity {other} is not for int8 weights; use per-row or per-tensor"
            ))),
        }
    }

    fn convert(&self, weight: &dyn Weight, activation: Activation) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        let w = weight.dequantize()?.to_dtype(weight.dtype())?;
        let block = self.granularity.block_size(&[n, k])?;
        let (scale, zero) =
            choose_qparams_affine(&w, MappingType::Symmetric, &block, range()?, OPTIONS)?;
        let codes = quantize_affine(&w, &block, &scale, &zero, range()?)?;
        let rows = if self.granularity == Granularity::PerTensor { 1 } else { n };
        let scale = scale.reshape(&[rows, 1])?;
        Ok(Arc::new(Int8StaticWeight::new(codes, scale, weight.dtype(), activation)?))
    }
}

impl Recipe for Int8StaticActivationInt8WeightConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        let mut data = json!({
            "act_quant_scale": self.act_quant_scale,
            "act_quant_zero_point": self.act_quant_zero_point,
            "granularity": [Granularity::PerTensor, self.granularity],
            "act_mapping_type": self.act_mapping_type,
            "set_inductor_config": true,
            "reduce_range": false,
        });
        if self.observer != ActObserver::MinMax {
            // torchao has no such field, and reads none that it does not know.
            data["observer"] = self.observer.to_string().into();
        }
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn check(&self, (_, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        if k <= ROW_SUM_MAX_K {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "K = {k}: sums of more than {ROW_SUM_MAX_K} int8 products may not fit 32 bits; use int8-weight-only"
        )))
    }

    fn quantize(&self, _cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let scale = self.act_quant_scale.ok_or_else(|| not_without_inputs(WORKFLOW.name))?;
        let zero_point = self.act_quant_zero_point.map(i32::from).unwrap_or_default();
        self.convert(weight, Activation { scale, zero_point })
    }

    fn calibrated(&self) -> Option<&dyn Calibrated> {
        if self.act_quant_scale.is_some() { None } else { Some(self) }
    }
}

impl Calibrated for Int8StaticActivationInt8WeightConfig {
    fn prepare(&self, _fqn: &str, weight: &Arc<dyn Weight>) -> Result<Box<dyn LayerObserver>> {
        check_original(WORKFLOW.name, weight.as_ref())?;
        self.check(weight.shape())?;
        let config = ObserverConfig {
            mapping: self.act_mapping_type,
            range: range()?,
            granularity: Granularity::PerTensor,
            options: OPTIONS,
        };
        let kind = match self.observer {
            ActObserver::MinMax => ObserverKind::MinMax,
            ActObserver::MovingAverage => ObserverKind::MovingAverage(0.01),
            ActObserver::Mse => ObserverKind::Mse { steps: 100, run_once: false },
        };
        Ok(Box::new(StaticObserver {
            config: self.clone(),
            weight: Arc::clone(weight),
            observer: AffineQuantizedObserver::new(config, kind),
            inputs: Vec::new(),
        }))
    }
}

/// Inputs that the MSE search looks at: a hundred roundings of a million values take seconds, of more minutes.
const MSE_INPUTS: usize = 1 << 20;

#[derive(Debug)]
struct StaticObserver {
    config: Int8StaticActivationInt8WeightConfig,
    weight: Arc<dyn Weight>,
    observer: AffineQuantizedObserver,
    /// For the MSE search, which looks at all inputs at once: torchao's takes the range of the latest one.
    inputs: Vec<f32>,
}

impl LayerObserver for StaticObserver {
    fn observe(&mut self, _cpu: &Cpu, x: &[f32]) -> Result<()> {
        if self.config.observer == ActObserver::Mse {
            let room = MSE_INPUTS.saturating_sub(self.inputs.len());
            self.inputs.extend_from_slice(&x[..x.len().min(room)]);
            return Ok(());
        }
        self.observer.observe(&Tensor::new(x.to_vec(), &[1, x.len()])?)
    }

    fn convert(&mut self, _cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        let inputs = std::mem::take(&mut self.inputs);
        let len = inputs.len();
        self.observer.observe(&Tensor::new(inputs, &[1, len])?)?;
        let (scale, zero) = self.observer.calculate_qparams()?;
        let scale = scale.to_f32_vec().first().copied().unwrap_or_default();
        let zero_point = i32::from(zero.as_slice::<i8>()?.first().copied().unwrap_or_default());
        self.config.convert(self.weight.as_ref(), Activation { scale, zero_point })
    }
}
