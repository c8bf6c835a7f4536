//! An NF4 weight: `w = table[code] · (q8 / factor + mean)`.

use std::ops::Range;

use serde_json::{Value as Json, json};

use crate::error::{Error, Result};
use crate::kernels::packed_linear::{self, Codes, Offset, Table, Values};
use crate::kernels::{Cost, Cpu, Isa, Shape};
use crate::model::{
    DeviceForm, Weight, check_linear, dequantize_then_multiply, dequantize_then_multiply_name,
    packed_form,
};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use crate::quantization::packed::floats;
use crate::quantization::primitives::{
    Nf4Scalers, nf4_check, nf4_dequantize_scalers, nf4_pack, nf4_unpack, nf4_values,
};
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "NF4Weight";

/// Codes as they are multiplied.
#[derive(Clone, Debug)]
enum Held {
    /// In panels, where blocks are parts of rows.
    Panels(packed_linear::Weight),
    /// As files have them, with the blocks' scales in f32, where blocks straddle rows.
    Flat(Tensor, Vec<f32>),
}

/// Blocks of codes with doubly quantized scales.
#[derive(Clone, Debug)]
pub(super) struct Nf4Weight {
    held: Held,
    scalers: Nf4Scalers,
    shape: (usize, usize),
    block_size: usize,
}

impl Nf4Weight {
    /// A weight from its codes, one a byte.
    pub(super) fn new(
        cpu: &Cpu,
        (n, k): (usize, usize),
        codes: &[u8],
        scalers: Nf4Scalers,
        block_size: usize,
    ) -> Result<Nf4Weight> {
        let scales = nf4_dequantize_scalers(&scalers)?;
        let held = if k.is_multiple_of(block_size) {
            let row = |n: usize, row: &mut [u8]| row.copy_from_slice(&codes[n * k..][..k]);
            let values = Values::Table(Table::new(&nf4_values(scales.dtype())));
            let codes = Codes::pack(cpu, (n, k), 4, row);
            let (scales, none) = (floats(&scales)?, Offset::None);
            Held::Panels(packed_linear::Weight::new(codes, values, block_size, &scales, &none))
        } else {
            let packed = nf4_pack(codes);
            let len = packed.len();
            Held::Flat(Tensor::new(packed, &[len])?, scales.to_f32_vec())
        };
        Ok(Nf4Weight { held, scalers, shape: (n, k), block_size })
    }

    pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<Nf4Weight> {
        typed.check_version(1)?;
        let fields = ["dtype", "block_size", "scaler_block_size"];
        let data = typed.object()?;
        if let Some(key) = data.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(unknown_field(TYPE, key, &fields));
        }
        let dtype = dtype_from_dict(data.get("dtype").unwrap_or(&Json::Null))?;
        if ![DType::F32, DType::BF16, DType::F16].contains(&dtype) {
            return Err(Error::invalid(format!("dtype is {dtype}; wanted f32, bf16 or f16")));
        }
        let size = |name: &str| {
            let got = data.get(name).cloned().unwrap_or_default();
            let size = got.as_u64().and_then(|size| usize::try_from(size).ok());
            size.ok_or_else(|| Error::invalid(format!("{name} is {got}; wanted a whole number")))
        };
        let (block_size, scaler_block_size) = (size("block_size")?, size("scaler_block_size")?);
        let (n, k) = stored.shape();
        let numel = n
            .checked_mul(k)
            .ok_or_else(|| Error::invalid(format!("a weight of {n} × {k} is too large")))?;
        nf4_check(numel, block_size, scaler_block_size)?;
        let blocks = numel / block_size;
        let qdata = stored.take("quantized_data", &[DType::U8], &[numel / 2])?;
        let quantized_scalers = stored.take("quantized_scalers", &[DType::I8], &[blocks])?;
        let quantization_factor =
            stored.take("quantization_factor", &[dtype], &[blocks / scaler_block_size])?;
        let scaler_mean = stored.take("scaler_mean", &[dtype], &[1])?;
        stored.finish()?;
        let scalers = Nf4Scalers { quantized_scalers, quantization_factor, scaler_mean };
        let codes = nf4_unpack(qdata.as_slice()?);
        let cpu = Cpu::with_isa(Isa::Scalar, Some(1));
        Nf4Weight::new(&cpu, (n, k), &codes, scalers, block_size)
    }

    fn scaler_block_size(&self) -> usize {
        let Nf4Scalers { quantized_scalers, quantization_factor, .. } = &self.scalers;
        quantized_scalers.numel().checked_div(quantization_factor.numel()).unwrap_or(1)
    }

    fn packed_codes(&self) -> Result<Tensor> {
        let Held::Panels(weight) = &self.held else {
            let Held::Flat(packed, _) = &self.held else { return Tensor::zeros(DType::U8, &[0]) };
            return Ok(packed.clone());
        };
        let (n, k) = self.shape;
        let mut bytes = Vec::with_capacity(n * k / 2);
        let mut row = vec![0; k];
        for n in 0..n {
            weight.codes().row(n, &mut row);
            bytes.extend(nf4_pack(&row));
        }
        Tensor::new(bytes, &[n * k / 2])
    }
}

impl Weight for Nf4Weight {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn workflow(&self) -> String {
        super::WORKFLOW.name.to_owned()
    }

    fn details(&self) -> String {
        format!("block_size {}, scaler_block_size {}", self.block_size, self.scaler_block_size())
    }

    fn dtype(&self) -> DType {
        self.scalers.quantization_factor.dtype()
    }

    /// Products are rounded to the dtype, as torch's `get_original_weight` rounds them; the kernel does not round them.
    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (_, k) = self.shape;
        match &self.held {
            Held::Panels(weight) => {
                for (row, out) in rows.zip(out.chunks_mut(k.max(1))) {
                    weight.dequantize_row(row, out);
                }
            }
            Held::Flat(packed, scales) => {
                let (table, bytes) = (nf4_values(self.dtype()), packed.as_slice::<u8>()?);
                for (at, value) in (rows.start * k..rows.end * k).zip(&mut *out) {
                    let byte = bytes[at / 2];
                    let code = if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                    *value = table[usize::from(code)] * scales[at / self.block_size];
                }
            }
        }
        match self.dtype() {
            DType::BF16 => out.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32()),
            DType::F16 => out.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32()),
            _ => {}
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let packed = self.packed_codes().expect("a weight holds as many codes as its shape says");
        let Nf4Scalers { quantized_scalers, quantization_factor, scaler_mean } = &self.scalers;
        vec![
            ("quantized_data".into(), packed),
            ("quantized_scalers".into(), quantized_scalers.clone()),
            ("quantization_factor".into(), quantization_factor.clone()),
            ("scaler_mean".into(), scaler_mean.clone()),
        ]
    }

    fn meta(&self) -> Json {
        let data = json!({
            "dtype": dtype_to_dict(self.dtype()),
            "block_size": self.block_size,
            "scaler_block_size": self.scaler_block_size(),
        });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn nbytes(&self) -> usize {
        let Nf4Scalers { quantized_scalers, quantization_factor, scaler_mean } = &self.scalers;
        let scalers =
            quantized_scalers.nbytes() + quantization_factor.nbytes() + scaler_mean.nbytes();
        scalers
            + match &self.held {
                Held::Panels(weight) => weight.nbytes(),
                Held::Flat(packed, scales) => packed.nbytes() + size_of_val(scales.as_slice()),
            }
    }

    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        Ok(match &self.held {
            Held::Panels(weight) => packed_form(weight, false),
            Held::Flat(..) => None,
        })
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = self.shape;
        check_linear(x, m, y, (n, k))?;
        match &self.held {
            Held::Panels(weight) => {
                packed_linear::linear(cpu, weight, x, y, Shape { m, n, k });
                Ok(())
            }
            Held::Flat(..) => dequantize_then_multiply(self, cpu, x, m, y),
        }
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        match &self.held {
            Held::Panels(weight) => packed_linear::kernel_name(cpu.isa(), weight, m),
            Held::Flat(..) => dequantize_then_multiply_name(cpu, m),
        }
    }

    fn cost(&self, m: usize) -> Cost {
        let (n, k) = self.shape;
        match &self.held {
            Held::Panels(weight) => packed_linear::cost(weight, m),
            Held::Flat(..) => {
                let bytes = self.nbytes() + 4 * (m * k + m * n);
                Cost { bytes: bytes as u64, flops: 2 * (m * n * k) as u64 }
            }
        }
    }
}
