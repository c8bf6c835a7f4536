//! A block-sparse weight of which only blocks that are not zero are stored: dense or int8.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use crate::error::{Error, Result};
use crate::kernels::bsr_linear::{self as kernel, Values};
use crate::kernels::{Cost, Cpu, Shape};
use crate::model::{DenseWeight, DeviceForm, Mask, Pattern, Sparse, Weight, check_linear};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict};
use crate::quantization::stored::Stored;
use crate::sparsity::sparse_weight;
use crate::tensor::{DType, Element, Tensor};

/// The name that files know the format by.
pub(crate) const TYPE: &str = "BlockSparseWeight";

/// Blocks in torch's BSR order; within one, a column's numbers lie side by side.
#[derive(Clone, Debug)]
pub(crate) struct BlockSparseWeight {
    /// f32, bf16 or i8 `(blocks, B, B)`: `[block][k][n]`.
    values: Tensor,
    /// f32 `(N)` of an int8 weight.
    scale: Option<Tensor>,
    /// i32 `(N / B + 1)` and `(blocks)`.
    crow: Tensor,
    col: Tensor,
    block: usize,
    dtype: DType,
    shape: (usize, usize),
}

impl BlockSparseWeight {
    /// The blocks of `weight` of which the mask keeps something; `None` for a format or a size that has no kernel. Numbers of a kept block that the
    /// mask leaves out are zero.
    pub(crate) fn of(
        weight: &dyn Weight,
        mask: &Mask,
        block: usize,
    ) -> Result<Option<BlockSparseWeight>> {
        let (n, k) = weight.shape();
        if !kernel::BLOCKS.contains(&block) {
            return Ok(None);
        }
        Pattern::Block { size: block }.check((n, k))?;
        let (crow, col) = indices(mask, block)?;
        let places = Places { mask, block, crow: &crow, col: &col, k };
        let any: &dyn Any = weight;
        let (values, scale) = if let Some(dense) = any.downcast_ref::<DenseWeight>() {
            let dense = dense.tensor();
            match dense.dtype() {
                DType::F32 => (places.gather(dense.as_slice::<f32>()?)?, None),
                DType::BF16 => (places.gather(dense.as_slice::<half::bf16>()?)?, None),
                _ => return Ok(None),
            }
        } else {
            match weight.device_form()? {
                Some(DeviceForm::Int8 { q, scale }) => {
                    (places.gather(&q)?, Some(Tensor::new(scale, &[n])?))
                }
                _ => return Ok(None),
            }
        };
        values.in_large_pages();
        let (rows, blocks) = (crow.len(), col.len());
        let (crow, col) = (Tensor::new(crow, &[rows])?, Tensor::new(col, &[blocks])?);
        let dtype = weight.dtype();
        Ok(Some(BlockSparseWeight { values, scale, crow, col, block, dtype, shape: (n, k) }))
    }

    /// Whether the values are as they came, not quantized.
    pub(crate) fn is_dense(&self) -> bool {
        self.scale.is_none()
    }

    fn weight(&self) -> Result<kernel::Weight<'_>> {
        let values = match (&self.scale, self.values.dtype()) {
            (Some(scale), _) => {
                Values::Int8 { q: self.values.as_slice()?, scale: scale.as_slice()? }
            }
            (None, DType::F32) => Values::F32(self.values.as_slice()?),
            (None, _) => Values::Bf16(self.values.as_slice()?),
        };
        let (crow, col) = (self.crow.as_slice()?, self.col.as_slice()?);
        Ok(kernel::Weight { values, crow, col, block: self.block })
    }

    fn at(&self, m: usize) -> Shape {
        Shape { m, n: self.shape.0, k: self.shape.1 }
    }

    /// The blocks of each row of blocks: where they lie and their first columns.
    fn blocks(&self, row: usize) -> Result<Vec<(usize, usize)>> {
        let index = |at: i32| usize::try_from(at).unwrap_or(0);
        let (crow, col) = (self.crow.as_slice::<i32>()?, self.col.as_slice::<i32>()?);
        let range = index(crow[row])..index(crow[row + 1]);
        Ok(range.map(|at| (at, index(col[at]) * self.block)).collect())
    }
}

/// Row starts and columns of the blocks that are not empty.
fn indices(mask: &Mask, block: usize) -> Result<(Vec<i32>, Vec<i32>)> {
    let (n, k) = mask.shape();
    let number = |at: usize| {
        i32::try_from(at).map_err(|_| Error::invalid("more blocks than 32-bit indices can count"))
    };
    let (mut crow, mut col) = (vec![0], Vec::new());
    for top in (0..n).step_by(block) {
        for left in (0..k).step_by(block) {
            let mut rows = top..top + block;
            if rows.any(|row| (left..left + block).any(|k| mask.keeps(row, k))) {
                col.push(number(left / block)?);
            }
        }
        crow.push(number(col.len())?);
    }
    Ok((crow, col))
}

struct Places<'a> {
    mask: &'a Mask,
    block: usize,
    crow: &'a [i32],
    col: &'a [i32],
    k: usize,
}

impl Places<'_> {
    /// The kept blocks of `dense (N, K)`, each turned.
    fn gather<T: Element + Default>(&self, dense: &[T]) -> Result<Tensor> {
        let b = self.block;
        let mut values = Vec::with_capacity(self.col.len() * b * b);
        for (row, range) in self.crow.windows(2).enumerate() {
            let range =
                usize::try_from(range[0]).unwrap_or(0)..usize::try_from(range[1]).unwrap_or(0);
            for col in &self.col[range] {
                let left = usize::try_from(*col).unwrap_or(0) * b;
                let places =
                    (left..left + b).flat_map(|k| (row * b..(row + 1) * b).map(move |n| (n, k)));
                values.extend(places.map(|(n, k)| match self.mask.keeps(n, k) {
                    true => dense[n * self.k + k],
                    false => T::default(),
                }));
            }
        }
        Tensor::new(values, &[self.col.len(), b, b])
    }
}

/// Reads what [`Weight::tensors`] and [`Weight::meta`] say.
pub(crate) fn read_weight(typed: &Typed<'_>, mut stored: Stored) -> Result<Arc<dyn Weight>> {
    typed.check_version(1)?;
    let data = typed.known_fields(&["blocksize", "blocks", "dtype", "shape"])?;
    let dtype = dtype_from_dict(data.get("dtype").unwrap_or(&Json::Null))?;
    let block: usize = typed.field("blocksize", 0)?;
    let blocks: usize = typed.field("blocks", 0)?;
    let (n, k) = stored.shape();
    let shape: [usize; 2] = typed.field("shape", [n, k])?;
    if shape != [n, k] {
        return Err(Error::invalid(format!(
            "shape is {shape:?}; wanted that of the layer, {n} × {k}"
        )));
    }
    if !kernel::BLOCKS.contains(&block) {
        return Err(Error::invalid(format!("blocksize is {block}; wanted 16, 32 or 64")));
    }
    Pattern::Block { size: block }.check((n, k))?;
    if blocks > n / block * (k / block) {
        return Err(Error::invalid(format!("{blocks} blocks of {block} do not fit {n} × {k}")));
    }
    let kinds = [DType::F32, DType::BF16, DType::I8];
    let values = stored.take("values", &kinds, &[blocks, block, block])?;
    let scale = (values.dtype() == DType::I8)
        .then(|| stored.take("scale", &[DType::F32], &[n]))
        .transpose()?;
    let crow = stored.take("crow_indices", &[DType::I32], &[n / block + 1])?;
    let col = stored.take("col_indices", &[DType::I32], &[blocks])?;
    stored.finish()?;
    check_indices(crow.as_slice()?, col.as_slice()?, k / block)?;
    values.in_large_pages();
    Ok(Arc::new(BlockSparseWeight { values, scale, crow, col, block, dtype, shape: (n, k) }))
}

fn check_indices(crow: &[i32], col: &[i32], across: usize) -> Result<()> {
    let ends = crow.first() == Some(&0)
        && crow.last().is_some_and(|end| usize::try_from(*end) == Ok(col.len()));
    if !ends || !crow.is_sorted() {
        return Err(Error::invalid("crow_indices: wanted numbers that rise from 0 to all blocks"));
    }
    for range in crow.windows(2) {
        // Sorted from 0 on: they are not negative.
        let row =
            &col[usize::try_from(range[0]).unwrap_or(0)..usize::try_from(range[1]).unwrap_or(0)];
        let inside = row.iter().all(|col| usize::try_from(*col).is_ok_and(|col| col < across));
        if !inside || !row.is_sorted_by(|a, b| a < b) {
            return Err(Error::invalid(format!(
                "col_indices: wanted rising numbers below {across} in each row of blocks"
            )));
        }
    }
    Ok(())
}

impl Weight for BlockSparseWeight {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn workflow(&self) -> String {
        match self.scale {
            Some(_) => format!("block:{}·int8-weight-only", self.block),
            None => format!("block:{}·{}", self.block, self.values.dtype()),
        }
    }

    fn details(&self) -> String {
        let all = self.shape.0 / self.block * (self.shape.1 / self.block);
        format!("{} of {all} blocks", self.col.numel())
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (b, k) = (self.block, self.shape.1);
        out.fill(0.0);
        let scale = self.scale.as_ref().map(Tensor::as_slice::<f32>).transpose()?;
        let kind = self.weight()?.values;
        for (n, out) in rows.zip(out.chunks_exact_mut(k.max(1))) {
            for (at, left) in self.blocks(n / b)? {
                for (j, out) in out[left..left + b].iter_mut().enumerate() {
                    let place = at * b * b + j * b + n % b;
                    let scale = scale.map_or(1.0, |scale| scale[n]);
                    *out = match kind {
                        Values::F32(v) => v[place],
                        Values::Bf16(v) => v[place].to_f32(),
                        Values::Int8 { q, .. } => f32::from(q[place]) * scale,
                    };
                }
            }
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let named = |name: &str, tensor: &Tensor| (name.to_owned(), tensor.clone());
        let mut all = vec![
            named("values", &self.values),
            named("crow_indices", &self.crow),
            named("col_indices", &self.col),
        ];
        all.extend(self.scale.iter().map(|scale| named("scale", scale)));
        all
    }

    fn meta(&self) -> Json {
        let data = json!({
            "dtype": dtype_to_dict(self.dtype),
            "blocksize": self.block,
            "blocks": self.col.numel(),
            "shape": [self.shape.0, self.shape.1],
        });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    /// Blocks of 64 of dense numbers have a kernel there.
    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        if self.block != 64 || !self.is_dense() {
            return Ok(None);
        }
        let bits = |values: Vec<f32>| -> Vec<u16> {
            values.into_iter().map(|v| half::bf16::from_f32(v).to_bits()).collect()
        };
        Ok(Some(DeviceForm::Blocks {
            values: bits(self.values.to_f32_vec()),
            crow: self.crow.as_slice::<i32>()?.into(),
            col: self.col.as_slice::<i32>()?.into(),
        }))
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        check_linear(x, m, y, self.shape)?;
        kernel::linear(cpu, self.weight()?, x, y, self.at(m));
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        match self.weight() {
            Ok(w) => kernel::kernel_name(cpu, w, m),
            Err(error) => error.to_string(),
        }
    }

    fn as_sparse(&self) -> Option<&dyn Sparse> {
        Some(self)
    }

    fn cost(&self, m: usize) -> Cost {
        self.weight().map_or(Cost::default(), |w| kernel::cost(w, self.at(m)))
    }
}

impl Sparse for BlockSparseWeight {
    /// All of a stored block.
    fn mask(&self) -> Result<Mask> {
        let (n, k) = self.shape;
        let b = self.block;
        let mut keep = vec![false; n * k];
        for row in 0..n / b {
            for (_, left) in self.blocks(row)? {
                for n in row * b..(row + 1) * b {
                    keep[n * k + left..][..b].fill(true);
                }
            }
        }
        Mask::of(&keep, self.shape)
    }

    fn pattern(&self) -> Pattern {
        Pattern::Block { size: self.block }
    }

    fn around(&self, weight: Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        sparse_weight(weight, self.mask()?, self.pattern())
    }
}
