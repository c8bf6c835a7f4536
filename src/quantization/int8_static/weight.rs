//! An int8 weight that multiplies activations of one fixed int8 grid.

use std::ops::Range;

use serde_json::{Value as Json, json};

use crate::error::{Error, Result};
use crate::kernels::{Cost, Cpu, Shape, int8_linear};
use crate::model::{Weight, check_linear};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict};
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "Int8StaticWeight";

/// `a = clamp(round(x / scale) + zero_point, −128, 127)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Activation {
    pub(super) scale: f32,
    pub(super) zero_point: i32,
}

/// Codes with one f32 scale for each row or for all.
#[derive(Clone, Debug)]
pub(super) struct Int8StaticWeight {
    /// i8 `(N, K)`.
    qdata: Tensor,
    /// f32 `(N, 1)`, or `(1, 1)` for the tensor.
    scale: Tensor,
    dtype: DType,
    shape: (usize, usize),
    activation: Activation,
    /// Σ q of each row, for zero points; made from `qdata`, never stored.
    row_sums: Vec<i32>,
}

impl Int8StaticWeight {
    pub(super) fn new(
        qdata: Tensor,
        scale: Tensor,
        dtype: DType,
        activation: Activation,
    ) -> Result<Int8StaticWeight> {
        let (n, k) = qdata.dims2()?;
        if k > int8_linear::ROW_SUM_MAX_K {
            return Err(Error::invalid(format!("K = {k} is too long for 32-bit sums")));
        }
        let sound = activation.scale > 0.0 && activation.scale.is_finite();
        if !sound || !(-128..=127).contains(&activation.zero_point) {
            return Err(Error::invalid(format!(
                "activations have scale {} and zero point {}; wanted a finite scale over 0, and −128 to 127",
                activation.scale, activation.zero_point
            )));
        }
        let row_sums = int8_linear::row_sums(qdata.as_slice()?, k);
        Ok(Int8StaticWeight { qdata, scale, dtype, shape: (n, k), activation, row_sums })
    }

    pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<Int8StaticWeight> {
        typed.check_version(1)?;
        typed.known_fields(&["dtype", "per_tensor"])?;
        let dtype = dtype_from_dict(&typed.field("dtype", Json::Null)?)?;
        let (n, k) = stored.shape();
        let rows = if typed.field("per_tensor", false)? { 1 } else { n };
        let qdata = stored.take("qdata", &[DType::I8], &[n, k])?;
        let scale = stored.take("scale", &[DType::F32], &[rows, 1])?;
        let act_scale = stored.take("act_quant_scale", &[DType::F32], &[1])?.to_f32_vec();
        let act_zero = stored.take("act_quant_zero_point", &[DType::I8], &[1])?;
        stored.finish()?;
        let activation = Activation {
            scale: act_scale.first().copied().unwrap_or_default(),
            zero_point: act_zero.as_slice::<i8>()?.first().copied().map_or(0, i32::from),
        };
        Int8StaticWeight::new(qdata, scale, dtype, activation)
    }

    /// The codes of `x`, as N06 has them: times the reciprocal, rounded, shifted, clamped.
    #[expect(clippy::cast_possible_truncation, reason = "clamped to a code; NaN becomes 0")]
    #[expect(clippy::cast_precision_loss, reason = "zero points are small")]
    fn codes(&self, cpu: &Cpu, x: &[f32]) -> Vec<i8> {
        let (inv_scale, zero) = (1.0 / self.activation.scale, self.activation.zero_point as f32);
        let mut codes = vec![0_i8; x.len()];
        // 64 KiB of input a part: less is done before another thread wakes.
        let part = cpu.threads().share(x.len(), 64).max(1 << 14);
        cpu.threads().chunks_mut(&mut codes, part, |i, codes| {
            for (code, x) in codes.iter_mut().zip(&x[i * part..]) {
                let steps = (x * inv_scale).round_ties_even() + zero;
                *code = steps.clamp(-128.0, 127.0) as i8;
            }
        });
        codes
    }
}

impl Weight for Int8StaticWeight {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn workflow(&self) -> String {
        super::WORKFLOW.name.to_owned()
    }

    fn details(&self) -> String {
        let weights = if self.scale.numel() == 1 { "per-tensor" } else { "per-row" };
        let Activation { scale, zero_point } = self.activation;
        format!("{weights}, activations × {scale:.3e}, zero point {zero_point}")
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let k = self.shape.1.max(1);
        let codes = &self.qdata.as_slice::<i8>()?[rows.start * k..rows.end * k];
        let scale = self.scale.as_slice::<f32>()?;
        for ((row, values), codes) in rows.zip(out.chunks_mut(k)).zip(codes.chunks(k)) {
            let scale = if let [one] = scale { *one } else { scale[row] };
            values.iter_mut().zip(codes).for_each(|(to, code)| *to = f32::from(*code) * scale);
        }
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "checked to be a code when it was made")]
    fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all = vec![
            ("qdata".to_owned(), self.qdata.clone()),
            ("scale".to_owned(), self.scale.clone()),
        ];
        all.extend(
            Tensor::new(vec![self.activation.scale], &[1])
                .map(|t| ("act_quant_scale".to_owned(), t)),
        );
        let zero = Tensor::new(vec![self.activation.zero_point as i8], &[1]);
        all.extend(zero.map(|t| ("act_quant_zero_point".to_owned(), t)));
        all
    }

    fn meta(&self) -> Json {
        let data = json!({
            "dtype": dtype_to_dict(self.dtype),
            "per_tensor": self.scale.numel() == 1 && self.shape.0 != 1,
        });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn nbytes(&self) -> usize {
        self.qdata.nbytes() + self.scale.nbytes() + size_of_val(self.row_sums.as_slice()) + 5
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        check_linear(x, m, y, self.shape)?;
        let (n, k) = self.shape;
        let codes = self.codes(cpu, x);
        let weight = int8_linear::Weight {
            qdata: self.qdata.as_slice()?,
            scale: self.scale.as_slice()?,
            row_sums: Some(&self.row_sums),
        };
        let zero_point = vec![self.activation.zero_point; m];
        let activation = int8_linear::Activation {
            q: &codes,
            scale: &vec![self.activation.scale; m],
            zero_point: (self.activation.zero_point != 0).then_some(&zero_point),
        };
        int8_linear::dynamic(cpu, weight, activation, y, Shape { m, n, k });
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        int8_linear::dynamic_kernel_name(cpu.isa(), m).to_owned()
    }

    fn cost(&self, m: usize) -> Cost {
        let (n, k) = self.shape;
        let multiply = int8_linear::dynamic_cost(Shape { m, n, k });
        Cost { bytes: multiply.bytes + 5 * (m * k) as u64, flops: multiply.flops }
    }
}
