//! An int8 weight that multiplies activations as integers.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{choose_activation, code_range};
use crate::error::{Error, Result};
use crate::kernels::{Cost, Cpu, Shape, int8_activation, int8_linear};
use crate::model::{DeviceForm, Weight, check_linear};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use crate::quantization::primitives::{Granularity, MappingType, quantize_affine};
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "Int8DynamicWeight";

/// How activations are quantized; torchao keeps it in the weight too (A15).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub(super) struct ActivationQuantizer {
    pub(super) granularity: Granularity,
    pub(super) mapping_type: MappingType,
    pub(super) reduce_range: bool,
}

/// Codes with one f32 scale for each row or for all.
#[derive(Clone, Debug)]
pub(super) struct Int8DynamicWeight {
    /// i8 `(N, K)`.
    qdata: Tensor,
    /// f32 `(N, 1)`, or `(1, 1)` for the tensor.
    scale: Tensor,
    dtype: DType,
    shape: (usize, usize),
    activation: ActivationQuantizer,
    /// Σ q of each row, for zero points; made from `qdata`, never stored.
    row_sums: Vec<i32>,
}

/// Activations `(M, K)` as integers.
struct Codes {
    q: Vec<i8>,
    scale: Vec<f32>,
    zero_point: Option<Vec<i32>>,
}

impl Int8DynamicWeight {
    pub(super) fn new(
        qdata: Tensor,
        scale: Tensor,
        dtype: DType,
        activation: ActivationQuantizer,
    ) -> Result<Int8DynamicWeight> {
        let (n, k) = qdata.dims2()?;
        if k > int8_linear::ROW_SUM_MAX_K {
            return Err(Error::invalid(format!("K = {k} is too long for 32-bit sums")));
        }
        let row_sums = int8_linear::row_sums(qdata.as_slice()?, k);
        qdata.in_large_pages();
        Ok(Int8DynamicWeight { qdata, scale, dtype, shape: (n, k), activation, row_sums })
    }

    pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<Int8DynamicWeight> {
        typed.check_version(1)?;
        let fields = ["dtype", "granularity", "act_quant_kwargs"];
        let data = typed.object()?;
        if let Some(key) = data.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(unknown_field(TYPE, key, &fields));
        }
        let field = |name: &str| data.get(name).cloned().unwrap_or(Json::Null);
        let wrong = |name: &str, error: &dyn std::fmt::Display| {
            Error::invalid(format!("{name} is {}: {error}", field(name)))
        };
        let dtype = dtype_from_dict(&field("dtype"))?;
        let granularity: Granularity = serde_json::from_value(field("granularity"))
            .map_err(|error| wrong("granularity", &error))?;
        super::check_granularity("weights", &granularity)?;
        let activation: ActivationQuantizer = serde_json::from_value(field("act_quant_kwargs"))
            .map_err(|error| wrong("act_quant_kwargs", &error))?;
        super::check_activation(&activation)?;
        let (n, k) = stored.shape();
        let rows = if granularity == Granularity::PerTensor { 1 } else { n };
        let qdata = stored.take("qdata", &[DType::I8], &[n, k])?;
        let scale = stored.take("scale", &[DType::F32], &[rows, 1])?;
        stored.finish()?;
        Int8DynamicWeight::new(qdata, scale, dtype, activation)
    }

    fn is_asymmetric(&self) -> bool {
        self.activation.mapping_type == MappingType::Asymmetric
    }

    /// Quantizes `x` `(M, K)`: one scale a row, or the one of the whole for every row.
    fn quantize_activation(&self, cpu: &Cpu, x: &[f32], m: usize) -> Result<Codes> {
        match self.activation.granularity {
            Granularity::PerTensor => self.quantize_whole_activation(x, m),
            _ => Ok(self.quantize_rows(cpu, x, m)),
        }
    }

    fn quantize_rows(&self, cpu: &Cpu, x: &[f32], m: usize) -> Codes {
        let range = if self.activation.reduce_range {
            int8_activation::Range::REDUCED
        } else {
            int8_activation::Range::FULL
        };
        let (mut q, mut scale) = (vec![0; x.len()], vec![0.0; m]);
        if !self.is_asymmetric() {
            int8_activation::symmetric(cpu, x, &mut q, &mut scale, range);
            return Codes { q, scale, zero_point: None };
        }
        let mut zero_point = vec![0; m];
        int8_activation::asymmetric(cpu, x, &mut q, &mut scale, &mut zero_point, range);
        Codes { q, scale, zero_point: Some(zero_point) }
    }

    fn quantize_whole_activation(&self, x: &[f32], m: usize) -> Result<Codes> {
        let (_, k) = self.shape;
        let x = Tensor::new(x.to_vec(), &[m, k])?;
        let (scale, zero) = choose_activation(&x, &[m, k], &self.activation)?;
        let range = code_range(self.activation.reduce_range)?;
        let q = quantize_affine(&x, &[m, k], &scale, &zero, range)?;
        let scale = vec![scale.to_f32_vec().first().copied().unwrap_or_default(); m];
        let zero = i32::from(zero.as_slice::<i8>()?.first().copied().unwrap_or_default());
        let zero_point = self.is_asymmetric().then(|| vec![zero; m]);
        Ok(Codes { q: q.as_slice()?.to_vec(), scale, zero_point })
    }
}

impl Weight for Int8DynamicWeight {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn workflow(&self) -> String {
        super::WORKFLOW.name.to_owned()
    }

    fn details(&self) -> String {
        let weights = if self.scale.numel() == 1 { "per-tensor" } else { "per-row" };
        let ActivationQuantizer { granularity, mapping_type, reduce_range } = &self.activation;
        let reduced = if *reduce_range { ", reduce_range" } else { "" };
        format!("{weights}, activations {granularity} {mapping_type}{reduced}")
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (_, k) = self.shape;
        let codes = &self.qdata.as_slice::<i8>()?[rows.start * k..rows.end * k];
        let scale = self.scale.as_slice::<f32>()?;
        for ((row, values), codes) in rows.zip(out.chunks_mut(k.max(1))).zip(codes.chunks(k.max(1)))
        {
            let scale = if let [one] = scale { *one } else { scale[row] };
            values.iter_mut().zip(codes).for_each(|(to, code)| *to = f32::from(*code) * scale);
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        vec![("qdata".into(), self.qdata.clone()), ("scale".into(), self.scale.clone())]
    }

    fn meta(&self) -> Json {
        let granularity =
            if self.scale.numel() == 1 { Granularity::PerTensor } else { Granularity::PER_ROW };
        let data = json!({
            "dtype": dtype_to_dict(self.dtype),
            "granularity": granularity,
            "act_quant_kwargs": self.activation,
        });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn nbytes(&self) -> usize {
        self.qdata.nbytes() + self.scale.nbytes() + size_of_val(self.row_sums.as_slice())
    }

    /// Only activations by token, symmetric, of all of int8 have a kernel.
    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        let ActivationQuantizer { granularity, reduce_range, .. } = &self.activation;
        if self.is_asymmetric() || *reduce_range || *granularity == Granularity::PerTensor {
            return Ok(None);
        }
        let q = self.qdata.as_slice()?;
        let scale = match self.scale.as_slice::<f32>()? {
            [one] => vec![*one; self.shape.0],
            rows => rows.to_vec(),
        };
        Ok(Some(DeviceForm::Int8Dynamic { q, scale }))
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        check_linear(x, m, y, self.shape)?;
        let (n, k) = self.shape;
        let codes = self.quantize_activation(cpu, x, m)?;
        let weight = int8_linear::Weight {
            qdata: self.qdata.as_slice()?,
            scale: self.scale.as_slice()?,
            row_sums: Some(&self.row_sums),
        };
        let activation = int8_linear::Activation {
            q: &codes.q,
            scale: &codes.scale,
            zero_point: codes.zero_point.as_deref(),
        };
        int8_linear::dynamic(cpu, weight, activation, y, Shape { m, n, k });
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        int8_linear::dynamic_kernel_name(cpu.isa(), m).to_owned()
    }

    fn cost(&self, m: usize) -> Cost {
        let (n, k) = self.shape;
        let (quantize, multiply) =
            (int8_activation::cost(m, k), int8_linear::dynamic_cost(Shape { m, n, k }));
        Cost { bytes: quantize.bytes + multiply.bytes, flops: quantize.flops + multiply.flops }
    }
}
