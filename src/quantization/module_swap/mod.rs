//! Module-swap recipes' range setting: torchao's prototype `QuantizationRecipe` (P16) for the weights of linear layers.
//!
//! `symmetric`: `scale = max(min / qmin, max / qmax)`, codes −2ᵇ⁻¹ ..= 2ᵇ⁻¹ − 1. `asymmetric`: `scale = (max − min) / (2ᵇ − 1)`,
//! `offset = clamp(round(−min / scale))`, codes 0 ..= 2ᵇ − 1, `q = clamp(round(w / scale) + offset)`. All in f32, a scale not
//! below 1e-9. Then the range is set:
//!
//! - `min-max`: as it is.
//! - `mse`: scales shrunk by i / num_points, i = 1 … num_points − 2, all groups of a row alike; the factor whose
//!   `Σ |w − ŵ|^norm` is least stays, the offset as it was.
//! - `activation-loss`: the same with the mean square of the layer's outputs on a text, `dᵀ · H · d` of a row's error d and the
//!   inputs' second moments H. torchao's `progressive` inputs, of layers that were quantized before, are `--sequential`.
//!
//! torchao tries a factor of 0 too, which divides by zero and never wins. Its recipe's other parts: `weight_codebook` (codes of one
//! codebook, see `codebook.rs`), and inputs and results that are rounded at every call, or between the extremes that a
//! text gave (`rounding.rs`). Embeddings are `quantize embedding`.

mod kmeans_weight;
mod layer;
mod observer;
mod options;
mod range;
mod rounding;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use self::layer::SwappedLayer;
use self::observer::Watch;
pub use self::options::{QuantizationMode, RangeSetting};
use self::range::Grid;
pub use self::rounding::ActivationGroups;
use self::rounding::Rounding;
use super::Recipe;
use super::calibration::{Calibrated, Hessian, LayerObserver, check_original, not_without_inputs};
use super::config::{Typed, to_dict};
use super::packed::{Activations, Codec, Kind, PackedWeight, Parts, Zeros};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::tensor::Tensor;

/// Weights of 2 to 8 bits whose range is set by what it costs.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct QuantizationRecipe {
    /// Bits of a code: 2 to 8
    #[arg(long, default_value_t = 4, value_name = "BITS")]
    pub weight_bits: u32,
    /// How many neighbours of a row share a scale; must divide K [default: a row]
    #[arg(long, value_name = "SIZE")]
    pub weight_group_size: Option<usize>,
    /// Symmetric or asymmetric
    #[arg(long, default_value = "symmetric", value_name = "MAPPING")]
    pub weight_quantization_mode: QuantizationMode,
    /// Min-max, mse or activation-loss, which reads a text first
    #[arg(long, default_value = "mse", value_name = "SETTING")]
    pub range_setting: RangeSetting,
    /// How finely ranges are shrunk
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    pub num_points: u32,
    /// The power of an error that mse sums
    #[arg(long, default_value_t = 2.0, value_name = "POWER")]
    pub norm: f32,
    /// Take the inputs that the quantized blocks before give, not the original model's
    #[arg(long)]
    pub sequential: bool,
    /// Codes of one codebook by k-means, of 2^(bits · dim) entries
    #[arg(long)]
    pub weight_codebook: bool,
    /// How many neighbours of a row are one code of the codebook
    #[arg(long, default_value_t = 1, requires = "weight_codebook", value_name = "COUNT")]
    pub codebook_dim: usize,
    /// Round the layer's inputs
    #[arg(long)]
    pub input_quantization: bool,
    /// Round the layer's results
    #[arg(long)]
    pub output_quantization: bool,
    /// Bits of a rounded activation: 2 to 16
    #[arg(long, default_value_t = 8, value_name = "BITS")]
    pub activation_bits: u32,
    /// Which activations share a range: per-token, per-tensor or SIZE
    #[arg(long, default_value = "per-token", value_name = "ACTIVATION_GROUPS")]
    pub activation_group_size: ActivationGroups,
    /// Look at each call's own range; false takes one that a text gave
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub dynamic_activations: bool,
}

impl Default for QuantizationRecipe {
    fn default() -> QuantizationRecipe {
        QuantizationRecipe {
            weight_bits: 4,
            weight_group_size: None,
            weight_quantization_mode: QuantizationMode::Symmetric,
            range_setting: RangeSetting::Mse,
            num_points: 100,
            norm: 2.0,
            sequential: false,
            weight_codebook: false,
            codebook_dim: 1,
            input_quantization: false,
            output_quantization: false,
            activation_bits: 8,
            activation_group_size: ActivationGroups::PerToken,
            dynamic_activations: true,
        }
    }
}

const TYPE: &str = "QuantizationRecipe";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: KIND.workflow,
    ids: &["P16"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "per-row, per-group:SIZE",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

const KIND: Kind = Kind {
    workflow: "module-swap",
    weight_type: "ModuleSwapWeight",
    activations: Activations::AsTheyAre,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: QuantizationRecipe = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

/// What files keep of the configuration.
#[derive(Serialize, Deserialize)]
struct Fields {
    weight_bits: u32,
    group_size: usize,
    weight_quantization_mode: QuantizationMode,
    range_setting: RangeSetting,
}

impl Fields {
    fn codec(&self) -> Codec {
        let zeros = match self.weight_quantization_mode {
            QuantizationMode::Symmetric => Zeros::None,
            QuantizationMode::Asymmetric => Zeros::Codes,
        };
        // Offsets are kept counted from the middle code, so that those of 8 bits fit an i8.
        let bias = 1 << (self.weight_bits - 1);
        Codec { bits: self.weight_bits, bias, group_size: self.group_size, zeros }
    }

    fn details(&self) -> String {
        let sign = match self.weight_quantization_mode {
            QuantizationMode::Symmetric => "int",
            QuantizationMode::Asymmetric => "uint",
        };
        let Fields { weight_bits, group_size, range_setting, .. } = self;
        format!("{sign}{weight_bits}, group_size {group_size}, range by {range_setting}")
    }

    fn to_map(&self) -> Map<String, Json> {
        match serde_json::to_value(self) {
            Ok(Json::Object(map)) => map,
            _ => Map::new(), // Words and numbers always become an object.
        }
    }
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    if typed.object()?.contains_key("inner") {
        return Ok(Arc::new(SwappedLayer::read(typed, stored)?));
    }
    let names = ["weight_bits", "group_size", "weight_quantization_mode", "range_setting"];
    let read = |fields: &Map<String, Json>, _: (usize, usize)| {
        let fields: Fields = serde_json::from_value(Json::Object(fields.clone()))
            .map_err(|error| Error::invalid(format!("{}: {error}", KIND.weight_type)))?;
        check_bits(fields.weight_bits)?;
        Ok((fields.codec(), fields.details()))
    };
    Ok(Arc::new(PackedWeight::read(typed, stored, KIND, &names, read)?))
}

fn check_bits(bits: u32) -> Result<()> {
    if (2..=8).contains(&bits) {
        return Ok(());
    }
    Err(Error::invalid(format!("weight_bits is {bits}; wanted 2 to 8")))
}

impl QuantizationRecipe {
    fn check_options(&self) -> Result<()> {
        check_bits(self.weight_bits)?;
        if !(1..=10_000).contains(&self.num_points) {
            let got = self.num_points;
            return Err(Error::invalid(format!("num_points is {got}; wanted 1 to 10000")));
        }
        if !(self.norm > 0.0 && self.norm.is_finite()) {
            return Err(Error::invalid(format!("norm is {}; wanted more than 0", self.norm)));
        }
        if self.sequential && self.calibrated().is_none() {
            return Err(Error::invalid(
                "sequential belongs to a recipe that reads a text: range_setting activation-loss, \
                 or dynamic_activations false",
            ));
        }
        if self.weight_codebook && self.range_setting == RangeSetting::ActivationLoss {
            return Err(Error::invalid(
                "a codebook has no range to set; leave range_setting activation-loss out",
            ));
        }
        if !self.weight_codebook && self.codebook_dim != 1 {
            return Err(Error::invalid("codebook_dim belongs to weight_codebook"));
        }
        if !self.dynamic_activations && self.activation_group_size == ActivationGroups::PerToken {
            return Err(Error::invalid(
                "a range that is fixed before tokens are known is one for all: \
                 activation_group_size per-tensor belongs to dynamic_activations false",
            ));
        }
        Ok(())
    }

    /// The weight with its ranges set; `hessian` where outputs decide.
    fn weight(
        &self,
        cpu: &Cpu,
        weight: &dyn Weight,
        hessian: Option<&Hessian>,
    ) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        self.check((n, k))?;
        if self.weight_codebook {
            return kmeans_weight::quantize(cpu, weight, self.weight_bits, self.codebook_dim);
        }
        let group_size = self.weight_group_size.unwrap_or(k);
        let symmetric = self.weight_quantization_mode == QuantizationMode::Symmetric;
        let w = weight.dequantize()?.to_f32_vec();
        let mut grid = Grid::of(&w, k, group_size, (self.weight_bits, symmetric));
        match (self.range_setting, hessian) {
            (RangeSetting::MinMax, _) => {}
            (_, Some(hessian)) => grid.shrink_by_outputs(cpu, &w, hessian, self.num_points),
            (_, None) => grid.shrink_by_weights(cpu, &w, self.norm, self.num_points),
        }
        let fields = Fields {
            weight_bits: self.weight_bits,
            group_size,
            weight_quantization_mode: self.weight_quantization_mode,
            range_setting: self.range_setting,
        };
        let shape = [n, k / group_size];
        let parts = Parts {
            codes: grid.codes(&w),
            scale: Tensor::new(grid.scales().to_vec(), &shape)?,
            zero_point: match symmetric {
                true => None,
                false => Some(Tensor::new(grid.offsets_from_the_middle(), &shape)?),
            },
        };
        let about = (fields.to_map(), fields.details());
        let (shape, dtype) = (((n, k), fields.codec()), weight.dtype());
        Ok(Arc::new(PackedWeight::new(cpu, KIND, shape, &parts, dtype, about)?))
    }

    /// `weight` between the roundings of its inputs and results; a text's extremes of both, if it gave some.
    fn rounded(
        &self,
        weight: Arc<dyn Weight>,
        input: Option<(f32, f32)>,
        output: Option<(f32, f32)>,
    ) -> Result<Arc<dyn Weight>> {
        if !(self.weight_codebook || self.input_quantization || self.output_quantization) {
            return Ok(weight);
        }
        let (bits, groups) = (self.activation_bits, self.activation_group_size);
        let rounding = |range| Rounding { bits, groups, range };
        let input = self.input_quantization.then(|| rounding(input));
        let output = self.output_quantization.then(|| rounding(output));
        Ok(Arc::new(SwappedLayer::new(weight, input, output)?))
    }

    /// Whether a text gives the ranges of activations.
    fn fixes_activations(&self) -> bool {
        !self.dynamic_activations && (self.input_quantization || self.output_quantization)
    }
}

impl Recipe for QuantizationRecipe {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        if self.weight_codebook {
            kmeans_weight::check((n, k), self.weight_bits, self.codebook_dim)?;
        }
        let rounding = Rounding {
            bits: self.activation_bits,
            groups: self.activation_group_size,
            range: None,
        };
        for (given, width) in [(self.input_quantization, k), (self.output_quantization, n)] {
            if given {
                rounding.check(width)?;
            }
        }
        match self.weight_group_size {
            Some(group) if group == 0 || !k.is_multiple_of(group) => Err(Error::invalid(format!(
                "K = {k} is not a multiple of weight_group_size {group}; leave it out for a scale a row"
            ))),
            _ => Ok(()),
        }
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        if self.calibrated().is_some() {
            return Err(not_without_inputs(WORKFLOW.name));
        }
        self.rounded(self.weight(cpu, weight, None)?, None, None)
    }

    fn calibrated(&self) -> Option<&dyn Calibrated> {
        let reads = self.range_setting == RangeSetting::ActivationLoss || self.fixes_activations();
        reads.then_some(self as &dyn Calibrated)
    }
}

impl Calibrated for QuantizationRecipe {
    fn prepare(&self, _fqn: &str, weight: &Arc<dyn Weight>) -> Result<Box<dyn LayerObserver>> {
        check_original(WORKFLOW.name, weight.as_ref())?;
        self.check(weight.shape())?;
        Ok(Box::new(Watch::new(self, weight)))
    }

    fn sequential(&self) -> bool {
        self.sequential
    }
}
