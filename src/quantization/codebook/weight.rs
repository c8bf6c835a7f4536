//! A weight of codes of one codebook: `w = codebook[code] · scale`.

use std::ops::Range;

use serde_json::{Value as Json, json};

use super::check_blocks;
use crate::error::{Error, Result};
use crate::kernels::packed_linear::{self, Codes, Offset, Table, Values};
use crate::kernels::{Cost, Cpu, Isa, Shape};
use crate::model::{Weight, check_linear, dequantize_then_multiply, dequantize_then_multiply_name};
use crate::quantization::code_type::CodeType;
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use crate::quantization::packed::floats;
use crate::quantization::primitives::{
    Blocks, check_streams, push_stream, read_stream, stream_nbytes,
};
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "CodebookWeight";

/// Codes as they are multiplied.
#[derive(Clone, Debug)]
enum Held {
    /// Codes of single numbers, in panels.
    Panels(packed_linear::Weight),
    /// Codes of blocks, one a byte.
    Blocks(Vec<u8>),
}

/// Codes of one codebook with scales.
#[derive(Clone, Debug)]
pub(super) struct CodebookWeight {
    held: Held,
    /// `(entries, rows, columns)` in the weight's dtype.
    codebook: Tensor,
    /// `(N, K / scale_block_size, 1)`, as `codebook`.
    scales: Tensor,
    blocks: Blocks,
    bits: u32,
}

impl CodebookWeight {
    /// A weight from the codes of its blocks, one a byte.
    pub(super) fn new(
        cpu: &Cpu,
        (n, k): (usize, usize),
        codes: &[u8],
        codebook: Tensor,
        scales: Tensor,
    ) -> Result<CodebookWeight> {
        let (entries, rows, columns) = match codebook.shape() {
            [entries, rows, columns] => (*entries, *rows, *columns),
            other => {
                return Err(Error::invalid(format!("codebook is {other:?}; wanted 3 numbers")));
            }
        };
        let bits = entries.trailing_zeros();
        let values = codebook.to_f32_vec();
        let small = values.len() <= 32 && values.iter().all(|v| v.is_finite());
        let held = if (rows, columns) == (1, 1) && small {
            let row = |n: usize, row: &mut [u8]| row.copy_from_slice(&codes[n * k..][..k]);
            let packed = Codes::pack(cpu, (n, k), bits, row);
            let groups = scales.shape()[1];
            let group_size = k.checked_div(groups).unwrap_or(0);
            let table = Values::Table(Table::new(&values));
            let (scale, none) = (floats(&scales)?, Offset::None);
            Held::Panels(packed_linear::Weight::new(packed, table, group_size, &scale, &none))
        } else {
            Held::Blocks(codes.to_vec())
        };
        let blocks = Blocks { shape: (n, k), block: (rows, columns) };
        Ok(CodebookWeight { held, codebook, scales, blocks, bits })
    }

    pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<CodebookWeight> {
        typed.check_version(1)?;
        let fields = ["dtype", "code_dtype", "block_size", "scale_block_size"];
        let data = typed.object()?;
        if let Some(key) = data.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(unknown_field(TYPE, key, &fields));
        }
        let field = |name: &str| data.get(name).cloned().unwrap_or(Json::Null);
        let wrong = |name: &str, error: serde_json::Error| {
            Error::invalid(format!("{name} is {}: {error}", field(name)))
        };
        let dtype = dtype_from_dict(&field("dtype"))?;
        let code_dtype: CodeType = serde_json::from_value(field("code_dtype"))
            .map_err(|error| wrong("code_dtype", error))?;
        code_dtype.check_signed("code_dtype", false)?;
        let block: [usize; 2] = serde_json::from_value(field("block_size"))
            .map_err(|error| wrong("block_size", error))?;
        let scale_block: usize = serde_json::from_value(field("scale_block_size"))
            .map_err(|error| wrong("scale_block_size", error))?;
        let ((n, k), bits) = (stored.shape(), code_dtype.bits());
        check_blocks((n, k), block, scale_block)?;
        let [rows, columns] = block;
        let (down, across) = (n / rows, k / columns);
        let nbytes = stream_nbytes(across, bits)
            .ok_or_else(|| Error::invalid(format!("rows of {across} codes are too long")))?;
        let codes = stored.take("codes", &[DType::U8], &[down, nbytes])?;
        let codebook = stored.take("codebook", &[dtype], &[1 << bits, rows, columns])?;
        let scales = stored.take("scales", &[dtype], &[n, k / scale_block, 1])?;
        stored.finish()?;
        check_streams(codes.as_slice()?, across, bits)?;
        let mut bytes = vec![0; down * across];
        let streams = codes.as_slice::<u8>()?.chunks_exact(nbytes.max(1));
        for (row, stream) in bytes.chunks_exact_mut(across.max(1)).zip(streams) {
            read_stream(stream, bits, row);
        }
        let cpu = Cpu::with_isa(Isa::Scalar, Some(1));
        CodebookWeight::new(&cpu, (n, k), &bytes, codebook, scales)
    }

    fn scale_block(&self) -> usize {
        self.blocks.shape.1.checked_div(self.scales.shape()[1]).unwrap_or(1).max(1)
    }

    fn streams(&self) -> Result<Tensor> {
        let ((n, k), (rows, columns)) = (self.blocks.shape, self.blocks.block);
        let (down, across) = (n / rows, k / columns);
        let mut bytes = Vec::new();
        let mut row = vec![0; across];
        for i in 0..down {
            match &self.held {
                Held::Panels(weight) => weight.codes().row(i, &mut row),
                Held::Blocks(codes) => row.copy_from_slice(&codes[i * across..][..across]),
            }
            push_stream(&row, self.bits, &mut bytes);
        }
        Tensor::new(bytes, &[down, stream_nbytes(across, self.bits).unwrap_or(0)])
    }
}

impl Weight for CodebookWeight {
    fn shape(&self) -> (usize, usize) {
        self.blocks.shape
    }

    fn workflow(&self) -> String {
        super::WORKFLOW.name.to_owned()
    }

    fn details(&self) -> String {
        let (rows, columns) = self.blocks.block;
        let bits = self.bits;
        format!("uint{bits} for {rows} × {columns}, scale_block_size {}", self.scale_block())
    }

    fn dtype(&self) -> DType {
        self.codebook.dtype()
    }

    /// Products are rounded to the dtype, as torch rounds them; the kernel does not round them.
    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (_, k) = self.blocks.shape;
        match &self.held {
            Held::Panels(weight) => {
                for (row, out) in rows.zip(out.chunks_mut(k.max(1))) {
                    weight.dequantize_row(row, out);
                }
            }
            Held::Blocks(codes) => {
                let (codebook, scales) = (self.codebook.to_f32_vec(), self.scales.to_f32_vec());
                let ((block_rows, block_columns), dim) = (self.blocks.block, self.blocks.dim());
                let (across, scale_block) = (k / block_columns, self.scale_block());
                for (row, out) in rows.zip(out.chunks_mut(k.max(1))) {
                    for (at, value) in out.iter_mut().enumerate() {
                        let code = codes[row / block_rows * across + at / block_columns];
                        let within = row % block_rows * block_columns + at % block_columns;
                        let scale = scales[row * (k / scale_block) + at / scale_block];
                        *value = codebook[usize::from(code) * dim + within] * scale;
                    }
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
        let codes = self.streams().expect("a weight holds as many codes as its shape says");
        vec![
            ("codes".into(), codes),
            ("codebook".into(), self.codebook.clone()),
            ("scales".into(), self.scales.clone()),
        ]
    }

    fn meta(&self) -> Json {
        let (rows, columns) = self.blocks.block;
        let data = json!({
            "dtype": dtype_to_dict(self.dtype()),
            "code_dtype": CodeType::uint(self.bits),
            "block_size": [rows, columns],
            "scale_block_size": self.scale_block(),
        });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn nbytes(&self) -> usize {
        self.codebook.nbytes()
            + match &self.held {
                Held::Panels(weight) => weight.nbytes(),
                Held::Blocks(codes) => codes.len() + self.scales.nbytes(),
            }
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = self.blocks.shape;
        check_linear(x, m, y, (n, k))?;
        match &self.held {
            Held::Panels(weight) => {
                packed_linear::linear(cpu, weight, x, y, Shape { m, n, k });
                Ok(())
            }
            Held::Blocks(_) => dequantize_then_multiply(self, cpu, x, m, y),
        }
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        match &self.held {
            Held::Panels(weight) => packed_linear::kernel_name(cpu.isa(), weight, m),
            Held::Blocks(_) => dequantize_then_multiply_name(cpu, m),
        }
    }

    fn cost(&self, m: usize) -> Cost {
        let (n, k) = self.blocks.shape;
        match &self.held {
            Held::Panels(weight) => packed_linear::cost(weight, m),
            Held::Blocks(_) => {
                let bytes = self.nbytes() + 4 * (m * k + m * n);
                Cost { bytes: bytes as u64, flops: 2 * (m * n * k) as u64 }
            }
        }
    }
}
