//! A ternary weight: `w = q · scale`.

use std::ops::Range;

use serde_json::{Value as Json, json};

use crate::error::{Error, Result};
use crate::kernels::packed_linear::{self, Activation, Codes, Floats, Offset, Tokens, Values};
use crate::kernels::{Cost, Cpu, Isa};
use crate::model::{Weight, check_linear};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use crate::quantization::primitives::{pack_i2_in_i8, unpack_i2_in_i8};
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "BitNetPacked2bitLinearWeight";

/// How tokens are quantized: `absmax / 127`, at least 1e-5.
const TOKENS: Tokens = Tokens { qmin: -127, qmax: 127, asymmetric: false, eps: 1e-5 };

/// Codes −1, 0 and 1 with one scale.
#[derive(Clone, Debug)]
pub(super) struct BitNetWeight {
    weight: packed_linear::Weight,
    scale: f32,
    dtype: DType,
}

impl BitNetWeight {
    /// A weight from i8 codes `(N, K)`.
    pub(super) fn new(cpu: &Cpu, codes: &Tensor, scale: f32, dtype: DType) -> Result<BitNetWeight> {
        let (n, k) = codes.dims2()?;
        let values = codes.as_slice::<i8>()?;
        if let Some(code) = values.iter().find(|code| !(-1..=1).contains(*code)) {
            return Err(Error::invalid(format!("a ternary code is {code}; wanted -1, 0 or 1")));
        }
        let row = |n: usize, row: &mut [u8]| {
            let codes = values[n * k..][..k].iter();
            row.iter_mut().zip(codes).for_each(|(to, q)| *to = (q + 1).cast_unsigned());
        };
        let codes = Codes::pack(cpu, (n, k), 2, row);
        let groups = if k == 0 { 0 } else { n };
        let scales = Floats::F32(vec![scale; groups]);
        let values = Values::Integers { bias: 1 };
        let weight = packed_linear::Weight::new(codes, values, k, &scales, &Offset::None);
        Ok(BitNetWeight { weight, scale, dtype })
    }

    pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<BitNetWeight> {
        typed.check_version(1)?;
        let data = typed.object()?;
        if let Some(key) = data.keys().find(|key| *key != "dtype") {
            return Err(unknown_field(TYPE, key, &["dtype"]));
        }
        let dtype = dtype_from_dict(data.get("dtype").unwrap_or(&Json::Null))?;
        let (n, k) = stored.shape();
        if !k.is_multiple_of(4) {
            return Err(Error::invalid(format!("K = {k}; wanted a multiple of 4")));
        }
        let packed = stored.take("int_data", &[DType::I8], &[n, k / 4])?;
        let scale = stored.take("scale", &[DType::F32], &[1])?;
        stored.finish()?;
        let codes = unpack_i2_in_i8(&packed)?;
        let scale = scale.as_slice::<f32>()?[0];
        BitNetWeight::new(&Cpu::with_isa(Isa::Scalar, Some(1)), &codes, scale, dtype)
    }

    fn codes(&self) -> Result<Tensor> {
        let (n, k) = self.shape();
        let mut codes = vec![0_u8; n * k];
        for (n, row) in codes.chunks_exact_mut(k.max(1)).enumerate() {
            self.weight.codes().row(n, row);
        }
        let signed = codes.into_iter().map(|code| code.cast_signed() - 1);
        Tensor::new(signed.collect::<Vec<i8>>(), &[n, k])
    }
}

impl Weight for BitNetWeight {
    fn shape(&self) -> (usize, usize) {
        (self.weight.n(), self.weight.k())
    }

    fn workflow(&self) -> String {
        super::WORKFLOW.name.to_owned()
    }

    fn details(&self) -> String {
        "ternary, one scale, activations int8".to_owned()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (_, k) = self.shape();
        for (row, out) in rows.zip(out.chunks_mut(k.max(1))) {
            self.weight.dequantize_row(row, out);
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let packed = self.codes().and_then(|codes| pack_i2_in_i8(&codes));
        let scale = Tensor::new(vec![self.scale], &[1]);
        [("int_data", packed), ("scale", scale)]
            .into_iter()
            .map(|(name, t)| {
                (name.to_owned(), t.expect("K is a multiple of 4, by `new`'s callers"))
            })
            .collect()
    }

    fn meta(&self) -> Json {
        json!({ "_type": TYPE, "_version": 1, "_data": { "dtype": dtype_to_dict(self.dtype) } })
    }

    fn nbytes(&self) -> usize {
        self.weight.nbytes()
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        check_linear(x, m, y, self.shape())?;
        let x = Activation::quantize_tokens(cpu, x, (m, self.shape().1), TOKENS);
        packed_linear::linear_prepared(cpu, &self.weight, &x, y);
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        packed_linear::kernel_name(cpu.isa(), &self.weight, m)
    }

    fn cost(&self, m: usize) -> Cost {
        packed_linear::cost(&self.weight, m)
    }
}
