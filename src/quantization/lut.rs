//! A weight of codes with lookup tables for blocks of rows or columns: what the CoreML-style workflows put into a model.
//!
//! Files hold each row of codes as one stream of bits (L12) and the tables as torchao has them, `(N/r, K/c, 2ᵇ, 1)`.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::code_type::CodeType;
use super::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use super::primitives::{
    check_streams, kmeans1d, nearest_of_ascending, push_stream, read_stream, stream_nbytes,
};
use super::stored::Stored;
use crate::error::{Error, Result};
use crate::kernels::{Cost, Cpu, Isa, Shape, lut_linear};
use crate::model::{Weight, check_linear};
use crate::tensor::{DType, Tensor};

/// What a workflow's weights have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LutKind {
    /// The workflow's command.
    pub(crate) workflow: &'static str,
    /// The name that files know the format by.
    pub(crate) weight_type: &'static str,
}

/// A weight `(N, K)` of one of the workflows.
#[derive(Clone, Debug)]
pub(crate) struct LutWeight {
    kind: LutKind,
    weight: lut_linear::Weight,
    block: (usize, usize),
    dtype: DType,
}

/// What files keep beside the dtype.
#[derive(Serialize, Deserialize)]
struct Fields {
    code_dtype: CodeType,
    block_size: [usize; 2],
}

/// The rows and columns that share a table, of `[rows, columns]` where −1 stands for all.
pub(crate) fn table_block(size: [isize; 2], (n, k): (usize, usize)) -> Result<(usize, usize)> {
    let wrong = |why: &str| {
        let [rows, columns] = size;
        Err(Error::invalid(format!("a table for [{rows}, {columns}] of ({n}, {k}): {why}")))
    };
    let side = |size: isize, all: usize| match size {
        -1 => Some(all),
        size => usize::try_from(size).ok().filter(|size| *size > 0),
    };
    let (Some(rows), Some(columns)) = (side(size[0], n), side(size[1], k)) else {
        return wrong("wanted numbers from 1 on, or -1 for all");
    };
    if !n.is_multiple_of(rows) || !k.is_multiple_of(columns) {
        return wrong("wanted divisors of both");
    }
    if rows != n && columns != k {
        return wrong("wanted whole rows or whole columns, as [2, -1] or [-1, 64]");
    }
    Ok((rows, columns))
}

impl LutWeight {
    /// Quantizes `weight`: the best table for each block, and the code of the nearest value for each number.
    pub(crate) fn quantize(
        cpu: &Cpu,
        kind: LutKind,
        weight: &dyn Weight,
        bits: u32,
        block: (usize, usize),
    ) -> Result<LutWeight> {
        let (n, k) = weight.shape();
        let (rows, columns) = block;
        let across = k.checked_div(columns).unwrap_or(0);
        let count = n.checked_div(rows).unwrap_or(0) * across;
        // A table of columns is chosen from all rows: the whole weight is expanded once.
        let values = weight.dequantize()?;
        let values = values.as_slice::<f32>()?;
        let mut tables = vec![0.0; count << bits];
        cpu.threads().chunks_mut(&mut tables, 1 << bits, |i, table| {
            let (row, column) = (i / across * rows, i % across * columns);
            let lines = (row..row + rows).map(|row| &values[row * k + column..][..columns]);
            let numbers: Vec<f32> = lines.flatten().copied().collect();
            table.copy_from_slice(&kmeans1d(&numbers, 1 << bits));
        });
        let code_row = |n: usize, codes: &mut [u8]| {
            for (at, code) in codes.iter_mut().enumerate() {
                let table = n / rows * across + at / columns;
                *code =
                    nearest_of_ascending(&tables[table << bits..][..1 << bits], values[n * k + at]);
            }
        };
        let made = lut_linear::Weight::new(cpu, (n, k), bits, code_row, tables.clone(), block);
        Ok(LutWeight { kind, weight: made, block, dtype: weight.dtype() })
    }

    pub(crate) fn read(typed: &Typed<'_>, mut stored: Stored, kind: LutKind) -> Result<LutWeight> {
        typed.check_version(1)?;
        let mut data = typed.object()?.clone();
        let known = ["dtype", "code_dtype", "block_size"];
        if let Some(key) = data.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(unknown_field(kind.weight_type, key, &known));
        }
        let dtype = dtype_from_dict(&data.remove("dtype").unwrap_or(Json::Null))?;
        let Fields { code_dtype, block_size } = serde_json::from_value(Json::Object(data))
            .map_err(|error| Error::invalid(format!("{}: {error}", kind.weight_type)))?;
        code_dtype.check_signed("code_dtype", false)?;
        let bits = code_dtype.bits();
        let (n, k) = stored.shape();
        let side = |size: usize| isize::try_from(size).unwrap_or(isize::MAX);
        let block = table_block(block_size.map(side), (n, k))?;
        let nbytes = stream_nbytes(k, bits)
            .ok_or_else(|| Error::invalid(format!("rows of {k} codes are too long")))?;
        let codes = stored.take("codes", &[DType::U8], &[n, nbytes])?;
        let shape = [n / block.0.max(1), k / block.1.max(1), 1 << bits, 1];
        let tables = stored.take("codebook", &[DType::F32], &shape)?;
        stored.finish()?;
        let bytes = codes.as_slice::<u8>()?;
        check_streams(bytes, k, bits)?;
        let row = |n: usize, row: &mut [u8]| read_stream(&bytes[n * nbytes..][..nbytes], bits, row);
        let cpu = Cpu::with_isa(Isa::Scalar, Some(1));
        let tables = tables.as_slice::<f32>()?.to_vec();
        let weight = lut_linear::Weight::new(&cpu, (n, k), bits, row, tables, block);
        Ok(LutWeight { kind, weight, block, dtype })
    }
}

impl Weight for LutWeight {
    fn shape(&self) -> (usize, usize) {
        (self.weight.n(), self.weight.k())
    }

    fn workflow(&self) -> String {
        self.kind.workflow.to_owned()
    }

    fn details(&self) -> String {
        let (rows, columns) = self.block;
        format!("uint{}, a table for {rows} × {columns}", self.weight.bits())
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (_, k) = self.shape();
        for (row, out) in rows.zip(out.chunks_mut(k.max(1))) {
            self.weight.dequantize(row, 0..k, out);
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let (n, k) = self.shape();
        let bits = self.weight.bits();
        let mut bytes = Vec::new();
        let mut row = vec![0; k];
        for n in 0..n {
            self.weight.codes(n, &mut row);
            push_stream(&row, bits, &mut bytes);
        }
        let nbytes = bytes.len().checked_div(n).unwrap_or(0);
        let (rows, columns) = self.block;
        let shape = [n / rows.max(1), k / columns.max(1), 1 << bits, 1];
        [
            ("codes", Tensor::new(bytes, &[n, nbytes])),
            ("codebook", Tensor::new(self.weight.tables().to_vec(), &shape)),
        ]
        .into_iter()
        .map(|(name, t)| (name.to_owned(), t.expect("a weight holds as many as its shape says")))
        .collect()
    }

    fn meta(&self) -> Json {
        let (rows, columns) = self.block;
        let code_dtype = CodeType::uint(self.weight.bits());
        let mut data = Map::new();
        data.insert("dtype".into(), dtype_to_dict(self.dtype));
        data.insert("code_dtype".into(), json!(code_dtype));
        data.insert("block_size".into(), json!([rows, columns]));
        json!({ "_type": self.kind.weight_type, "_version": 1, "_data": data })
    }

    fn nbytes(&self) -> usize {
        self.weight.nbytes()
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = self.shape();
        check_linear(x, m, y, (n, k))?;
        lut_linear::linear(cpu, &self.weight, x, y, Shape { m, n, k });
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        lut_linear::kernel_name(cpu.isa(), &self.weight, m)
    }

    fn cost(&self, m: usize) -> Cost {
        lut_linear::cost(&self.weight, m)
    }
}
