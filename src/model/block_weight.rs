//! A weight kept in the blocks of a GGUF file.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

use aolab_kernels::ggml::linear::{self, Activation, Panels};
use aolab_kernels::ggml::{self, BlockType};
use aolab_kernels::{Cpu, Shape};
use serde_json::{Value as Json, json};

use super::{Job, Weight, check_linear};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// A weight `(N, K)` as rows of llama.cpp's blocks, which stay as they lie in the mapped file.
///
/// The first multiplication repacks them, without loss, as the kernels want them; from then on the file's
/// pages are not needed in memory.
pub struct BlockWeight {
    block_type: BlockType,
    k: usize,
    /// (N, bytes of a row) u8.
    blocks: Tensor,
    panels: OnceLock<Panels>,
}

impl BlockWeight {
    /// The `_type` under which a saved model says that a weight is one of these.
    pub const TYPE: &'static str = "GgufBlockWeight";

    /// A weight of rows of `k` numbers each from their blocks `(N, bytes of a row)` u8.
    pub fn new(block_type: BlockType, k: usize, blocks: Tensor) -> Result<BlockWeight> {
        let (n, row) = blocks.dims2()?;
        let name = block_type.name();
        if !block_type.is_quantized() {
            return Err(Error::invalid(format!("{name} has no blocks: it is a dense weight")));
        }
        if blocks.dtype() != DType::U8 || n == 0 || block_type.nbytes(k) != Some(row) {
            let wanted = block_type.nbytes(k);
            return Err(Error::invalid(format!(
                "rows of {k} numbers in {name} take {wanted:?} bytes of u8 each; got {} {:?}",
                blocks.dtype(),
                blocks.shape()
            )));
        }
        Ok(BlockWeight { block_type, k, blocks, panels: OnceLock::new() })
    }

    /// The format of the blocks.
    pub fn block_type(&self) -> BlockType {
        self.block_type
    }

    /// The blocks, row after row.
    pub fn blocks(&self) -> &[u8] {
        self.blocks.bytes()
    }

    /// The blocks as the kernels want them, repacked by the first caller.
    pub fn panels(&self, cpu: &Cpu) -> &Panels {
        self.panels.get_or_init(|| {
            let panels = Panels::pack(cpu, self.block_type, self.blocks(), self.shape().0, self.k);
            self.blocks.done_with();
            panels
        })
    }

    fn row_nbytes(&self) -> usize {
        self.blocks.shape()[1]
    }
}

impl Weight for BlockWeight {
    fn shape(&self) -> (usize, usize) {
        (self.blocks.shape()[0], self.k)
    }

    fn workflow(&self) -> String {
        self.block_type.name().to_owned()
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let row = self.row_nbytes();
        let blocks = self.blocks().get(rows.start * row..rows.end * row);
        match blocks.filter(|_| out.len() == rows.len() * self.k) {
            Some(blocks) => {
                ggml::dequantize(self.block_type, blocks, out);
                Ok(())
            }
            None => Err(Error::invalid(format!(
                "rows {rows:?} of {:?} cannot be written to {} values",
                self.shape(),
                out.len()
            ))),
        }
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        vec![("blocks".into(), self.blocks.clone())]
    }

    fn meta(&self) -> Json {
        let data = json!({ "block_type": self.block_type.name() });
        json!({ "_type": BlockWeight::TYPE, "_version": 1, "_data": data })
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = self.shape();
        check_linear(x, m, y, (n, k))?;
        linear::linear(cpu, self.panels(cpu), x, y, Shape { m, n, k });
        Ok(())
    }

    fn linear_many(&self, cpu: &Cpu, x: &[f32], m: usize, jobs: &mut [Job<'_>]) -> Result<()> {
        let k = self.k;
        let panels: Option<Vec<&Panels>> = jobs
            .iter()
            .map(|(weight, _)| {
                Some((*weight as &dyn Any).downcast_ref::<BlockWeight>()?.panels(cpu))
            })
            .collect();
        let Some(panels) = panels.filter(|all| all.iter().all(|panels| panels.k() == k)) else {
            return jobs.iter_mut().try_for_each(|(weight, y)| weight.linear(cpu, x, m, y));
        };
        for (weight, y) in &*jobs {
            check_linear(x, m, y, weight.shape())?;
        }
        let x = Activation::quantize(cpu, x, m, k);
        let outputs = jobs.iter_mut().map(|(_, y)| &mut **y);
        let mut layers: Vec<(&Panels, &mut [f32])> = panels.into_iter().zip(outputs).collect();
        linear::linear_many(cpu, &mut layers, &x);
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        linear::kernel_name(cpu.isa(), self.block_type, m)
    }
}

impl fmt::Debug for BlockWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockWeight {} {:?}", self.block_type.name(), self.shape())
    }
}
