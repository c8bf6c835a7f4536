//! A float8 weight: `w = code · scale`, and what becomes of the activations that it multiplies.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::quantize::element;
use crate::error::{Error, Result};
use crate::kernels::cuda::linear::Float8Scales;
use crate::kernels::float_linear::{self, Panels, Scales};
use crate::kernels::{Cost, Cpu, Shape};
use crate::model::{DeviceForm, Weight, check_linear, float_form};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use crate::quantization::primitives::{
    Float8, Granularity, choose_scale_float8, quantize_affine_float8,
};
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "Float8Weight";

/// What becomes of activations; torchao keeps it in the weight too (A15).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Activation {
    /// Nothing.
    AsIs,
    /// Float8 with a scale of their own, chosen at every call.
    Dynamic {
        float8_dtype: Float8,
        granularity: Granularity,
        hp_value_lb: Option<f32>,
        hp_value_ub: Option<f32>,
    },
    /// Float8 with a scale that is given; and the results too, if they have one.
    Static { float8_dtype: Float8, scale: f32, output_scale: Option<f32> },
}

/// Codes with a scale of the tensor, of rows, groups or squares of 128.
#[derive(Clone, Debug)]
pub(super) struct Float8Weight {
    panels: Panels,
    float8: Float8,
    dtype: DType,
    activation: Activation,
}

impl Float8Weight {
    pub(super) fn new(
        panels: Panels,
        float8: Float8,
        dtype: DType,
        activation: Activation,
    ) -> Float8Weight {
        Float8Weight { panels, float8, dtype, activation }
    }

    pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<Float8Weight> {
        typed.check_version(1)?;
        let fields = ["dtype", "float8_dtype", "granularity", "act_quant_kwargs"];
        let data = typed.object()?;
        if let Some(key) = data.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(unknown_field(TYPE, key, &fields));
        }
        let field = |name: &str| data.get(name).cloned().unwrap_or(Json::Null);
        fn read<T: serde::de::DeserializeOwned>(name: &str, json: Json) -> Result<T> {
            let got = json.to_string();
            serde_json::from_value(json)
                .map_err(|error| Error::invalid(format!("{name} is {got}: {error}")))
        }
        let dtype = dtype_from_dict(&field("dtype"))?;
        let float8: Float8 = read("float8_dtype", field("float8_dtype"))?;
        check_float8(float8)?;
        let granularity: Granularity = read("granularity", field("granularity"))?;
        let activation: Activation = read("act_quant_kwargs", field("act_quant_kwargs"))?;
        activation.check()?;
        let (n, k) = stored.shape();
        let block = granularity.block_size(&[n, k])?;
        if n == 0 || k == 0 {
            return Err(Error::invalid(format!("a weight of {n} × {k} has no numbers")));
        }
        let qdata = stored.take("qdata", &[DType::U8], &[n, k])?;
        let scale = stored.take("scale", &[DType::F32], &[n / block[0], k / block[1]])?;
        stored.finish()?;
        let values = scale.as_slice::<f32>()?.to_vec();
        let scales = match granularity {
            Granularity::PerTensor => Scales::Tensor(values.first().copied().unwrap_or_default()),
            Granularity::PerRow { .. } => Scales::Groups { values, group_size: k },
            Granularity::PerGroup { group_size } => Scales::Groups { values, group_size },
            Granularity::PerBlock { ref block_size } if block_size[..] == [128, 128] => {
                Scales::Blocks128(values)
            }
            other => {
                return Err(Error::invalid(format!(
                    "granularity {other} is not of float8 weights; wanted per-tensor, per-row, per-group:SIZE or \
                     per-block:128x128"
                )));
            }
        };
        let codes = qdata.as_slice::<u8>()?;
        let row = |i: usize, to: &mut [u8]| to.copy_from_slice(&codes[i * k..][..k]);
        let panels = Panels::pack(&Cpu::new(None), element(float8), (n, k), scales, row);
        qdata.done_with();
        Ok(Float8Weight { panels, float8, dtype, activation })
    }

    fn granularity(&self) -> Granularity {
        match self.panels.scales() {
            Scales::Tensor(_) => Granularity::PerTensor,
            Scales::Groups { group_size, .. } if group_size != self.panels.k() => {
                Granularity::PerGroup { group_size }
            }
            Scales::Blocks128(_) => Granularity::PerBlock { block_size: vec![128, 128] },
            _ => Granularity::PER_ROW,
        }
    }

    /// Products with activations that are float8 with one scale a block.
    fn multiply_float8(
        &self,
        cpu: &Cpu,
        x: &Tensor,
        (block, scale): (&[usize], &Tensor),
        float8: Float8,
        y: &mut [f32],
    ) -> Result<()> {
        let (m, k) = x.dims2()?;
        let mut values = through_float8(x, block, scale, float8)?;
        let scales = scale.as_slice::<f32>()?;
        if block[1] < k {
            for (values, scale) in values.chunks_mut(block[1]).zip(scales) {
                values.iter_mut().for_each(|value| *value *= scale);
            }
            self.multiply(cpu, &values, m, y);
            return Ok(());
        }
        // Float8's own numbers are exact in the kernel; the scale comes after the sum, as torch has it.
        self.multiply(cpu, &values, m, y);
        for (row, y) in y.chunks_exact_mut(self.panels.n()).enumerate() {
            let scale = scales[if scales.len() == 1 { 0 } else { row }];
            y.iter_mut().for_each(|y| *y *= scale);
        }
        Ok(())
    }

    fn multiply(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) {
        let (n, k) = self.shape();
        float_linear::linear(cpu, &self.panels, x, y, Shape { m, n, k });
    }
}

/// Refuses the types of AMD's MI300, which no kernel multiplies.
pub(super) fn check_float8(float8: Float8) -> Result<()> {
    match float8 {
        Float8::E4m3fn | Float8::E5m2 => Ok(()),
        other => Err(Error::invalid(format!(
            "{other} is of AMD's MI300; wanted float8_e4m3fn or float8_e5m2"
        ))),
    }
}

impl Activation {
    /// Refuses what no activation can be quantized with.
    pub(super) fn check(&self) -> Result<()> {
        let sound = |name: &str, scale: f32| {
            if scale.is_finite() && scale > 0.0 {
                return Ok(());
            }
            Err(Error::invalid(format!("{name} is {scale}; wanted a positive number")))
        };
        match self {
            Activation::AsIs => Ok(()),
            Activation::Dynamic { float8_dtype, granularity, .. } => {
                check_float8(*float8_dtype)?;
                match granularity {
                    Granularity::PerTensor | Granularity::PerRow { dim: -1 } => Ok(()),
                    Granularity::PerBlock { block_size } if block_size[..] == [1, 128] => Ok(()),
                    other => Err(Error::invalid(format!(
                        "granularity {other} is not for float8 activations; wanted per-tensor, per-row or per-block:1x128"
                    ))),
                }
            }
            Activation::Static { float8_dtype, scale, output_scale } => {
                check_float8(*float8_dtype)?;
                sound("act_quant_scale", *scale)?;
                output_scale.map_or(Ok(()), |scale| sound("output_act_quant_scale", scale))
            }
        }
    }

    fn words(&self) -> String {
        match self {
            Activation::AsIs => String::new(),
            Activation::Dynamic { float8_dtype, granularity, .. } => {
                format!(", activations {granularity} {float8_dtype}")
            }
            Activation::Static { float8_dtype, scale, .. } => {
                format!(", activations {float8_dtype} of scale {scale}")
            }
        }
    }
}

/// The numbers of a matrix of `k` columns that float8 keeps, before they are scaled.
fn through_float8(x: &Tensor, block: &[usize], scale: &Tensor, float8: Float8) -> Result<Vec<f32>> {
    let codes = quantize_affine_float8(x, block, scale, float8)?;
    let pairs = codes.as_slice::<u8>()?.iter().zip(x.as_slice::<f32>()?);
    // 0 / 0 would be NaN.
    Ok(pairs.map(|(code, x)| if *x == 0.0 { 0.0 } else { float8.decode(*code) }).collect())
}

fn scalar(scale: f32) -> Result<Tensor> {
    Tensor::new(vec![scale], &[1, 1])
}

impl Weight for Float8Weight {
    fn shape(&self) -> (usize, usize) {
        (self.panels.n(), self.panels.k())
    }

    fn workflow(&self) -> String {
        match self.activation {
            Activation::AsIs => super::WEIGHT_ONLY.name,
            Activation::Dynamic { .. } => super::DYNAMIC.name,
            Activation::Static { .. } => super::STATIC.name,
        }
        .to_owned()
    }

    fn details(&self) -> String {
        format!("{} {}{}", self.granularity(), self.float8, self.activation.words())
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (_, k) = self.shape();
        self.panels.dequantize(rows, 0..k, out, k);
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let (n, k) = self.shape();
        let mut codes = vec![0; n * k];
        for (i, row) in codes.chunks_exact_mut(k.max(1)).enumerate() {
            self.panels.row_codes(i, row);
        }
        let (scale, shape) = match self.panels.scales() {
            Scales::Groups { values, group_size } => (values, [n, k / group_size.max(1)]),
            Scales::Blocks128(values) => (values, [n / 128, k / 128]),
            Scales::Tensor(scale) => (vec![scale], [1, 1]),
            Scales::E8m0(_) | Scales::E4m3 { .. } => (Vec::new(), [0, 0]),
        };
        let tensors =
            [("qdata", Tensor::new(codes, &[n, k])), ("scale", Tensor::new(scale, &shape))];
        tensors.into_iter().filter_map(|(name, made)| Some((name.to_owned(), made.ok()?))).collect()
    }

    fn meta(&self) -> Json {
        let data = json!({
            "dtype": dtype_to_dict(self.dtype),
            "float8_dtype": self.float8,
            "granularity": self.granularity(),
            "act_quant_kwargs": self.activation,
        });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn nbytes(&self) -> usize {
        self.panels.nbytes()
    }

    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        Ok(match &self.activation {
            Activation::AsIs => float_form(&self.panels, None),
            Activation::Dynamic {
                float8_dtype: Float8::E4m3fn,
                granularity,
                hp_value_lb: None,
                hp_value_ub: None,
            } => match granularity {
                Granularity::PerTensor => float_form(&self.panels, Some(Float8Scales::All)),
                row if *row == Granularity::PER_ROW => {
                    float_form(&self.panels, Some(Float8Scales::Rows))
                }
                _ => None,
            },
            _ => None,
        })
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = self.shape();
        check_linear(x, m, y, (n, k))?;
        if m == 0 {
            return Ok(());
        }
        match &self.activation {
            Activation::AsIs => {
                self.multiply(cpu, x, m, y);
                Ok(())
            }
            Activation::Dynamic { float8_dtype, granularity, hp_value_lb, hp_value_ub } => {
                let x = Tensor::new(x.to_vec(), &[m, k])?;
                let block = granularity.block_size(&[m, k])?;
                let bounds = (*hp_value_lb, *hp_value_ub);
                let scale = choose_scale_float8(&x, &block, *float8_dtype, bounds, false)?;
                self.multiply_float8(cpu, &x, (&block, &scale), *float8_dtype, y)
            }
            Activation::Static { float8_dtype, scale, output_scale } => {
                let x = Tensor::new(x.to_vec(), &[m, k])?;
                self.multiply_float8(cpu, &x, (&[m, k], &scalar(*scale)?), *float8_dtype, y)?;
                let Some(scale) = output_scale else { return Ok(()) };
                let results = Tensor::new(y.to_vec(), &[m, n])?;
                let kept = through_float8(&results, &[m, n], &scalar(*scale)?, *float8_dtype)?;
                y.iter_mut().zip(kept).for_each(|(y, kept)| *y = kept * scale);
                Ok(())
            }
        }
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        float_linear::kernel_name(cpu.isa(), self.panels.element(), m)
    }

    fn cost(&self, m: usize) -> Cost {
        float_linear::cost(&self.panels, m)
    }
}
