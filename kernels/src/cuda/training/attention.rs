//! Causal attention with grouped queries and its gradient.

use super::super::launch::int;
use super::super::sources::{TRAIN_ATTENTION, TRAIN_ATTENTION_PLAIN};
use super::super::{Arg, Buffer, CudaError, CudaResult, Device, Grid};

/// Sequences of one length and their heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
}

/// Keys of a step of the forward loop, and keys that a block of threads owns.
const KEYS: usize = 64;

/// Whether heads of this size run by tensor cores.
pub fn has_tensor_cores(head_dim: usize) -> bool {
    [32, 64, 128].contains(&head_dim)
}

impl AttentionShape {
    /// Numbers of a token's queries, keys and values.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Numbers of a token's result.
    pub fn attended(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Tokens of all sequences.
    pub fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    /// Numbers of log-sum-exp and of delta.
    pub fn statistics(&self) -> usize {
        self.rows() * self.heads
    }

    fn check(&self) -> CudaResult<()> {
        let Self { batch, heads, kv_heads, head_dim, .. } = *self;
        let grid = heads < 65_536 && batch < 65_536;
        let divides = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        if divides && grid && (1..=256).contains(&head_dim) {
            return Ok(());
        }
        Err(CudaError::new(format!(
            "{heads} heads over {kv_heads} of {head_dim} numbers have no attention kernel; wanted whole groups of \
             up to 256 numbers"
        )))
    }

    #[expect(clippy::cast_precision_loss, reason = "head dimensions are far below 2²⁴")]
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Queries that a block of threads owns.
    fn queries(&self) -> usize {
        if self.head_dim <= 64 { 128 } else { 64 }
    }

    /// Queries of a step of the gradient of keys and values.
    fn kv_step(&self) -> usize {
        if self.head_dim <= 64 { 64 } else { 32 }
    }

    /// Bytes of a row in shared memory.
    fn row_nbytes(&self) -> usize {
        2 * self.head_dim + 16
    }

    fn defines(&self) -> [String; 1] {
        [format!("AO_HEAD_DIM={}", self.head_dim)]
    }

    fn tail(&self) -> Vec<Arg> {
        vec![int(self.tokens), int(self.heads), int(self.kv_heads), self.scale().into()]
    }

    fn blocks(&self, rows: usize, heads: usize) -> (usize, usize, usize) {
        (self.tokens.div_ceil(rows), heads, self.batch)
    }
}

/// `out (rows, heads, D)` of `qkv (rows, heads + 2 kv_heads, D)`, which is turned; `lse (batch, heads, tokens)` is kept for the gradient.
pub fn attention_forward(
    device: &Device,
    shape: &AttentionShape,
    qkv: &Buffer<u16>,
    out: &Buffer<u16>,
    lse: &Buffer<f32>,
) -> CudaResult<()> {
    shape.check()?;
    let rows = shape.rows();
    let wanted = (rows * shape.qkv(), rows * shape.attended(), shape.statistics());
    assert!((qkv.len(), out.len(), lse.len()) == wanted, "{shape:?} wants {wanted:?}");
    let mut arguments = vec![qkv.into(), out.into(), lse.into()];
    arguments.extend(shape.tail());
    if has_tensor_cores(shape.head_dim) {
        let blocks = shape.blocks(shape.queries(), shape.heads);
        let grid = Grid { blocks, threads: 128, shared: 4 * KEYS * shape.row_nbytes() };
        let kernel = device.kernel(&TRAIN_ATTENTION, &shape.defines(), "attention_forward")?;
        return kernel.launch(grid, &arguments);
    }
    arguments.push(int(shape.head_dim));
    let grid = Grid { blocks: shape.blocks(1, shape.heads), threads: 32, shared: 0 };
    device.kernel(&TRAIN_ATTENTION_PLAIN, &[], "plain_forward")?.launch(grid, &arguments)
}

/// What the gradient of attention is computed from and written to.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a> {
    /// As [`attention_forward`] read it.
    pub qkv: &'a Buffer<u16>,
    /// As it wrote it.
    pub out: &'a Buffer<u16>,
    /// As it wrote it.
    pub lse: &'a Buffer<f32>,
    /// The gradient of `out`.
    pub dout: &'a Buffer<u16>,
    /// The gradient of `qkv`.
    pub dqkv: &'a Buffer<u16>,
}

/// The gradient of [`attention_forward`], of turned queries and keys.
pub fn attention_backward(
    device: &Device,
    shape: &AttentionShape,
    of: &Gradient<'_>,
) -> CudaResult<()> {
    shape.check()?;
    let (qkv, out) = (shape.rows() * shape.qkv(), shape.rows() * shape.attended());
    let got = [of.qkv.len(), of.dqkv.len(), of.out.len(), of.dout.len(), of.lse.len()];
    assert!(got == [qkv, qkv, out, out, shape.statistics()], "{got:?} numbers of {shape:?}");
    let delta = device.uninit::<f32>(shape.statistics())?;
    let mut arguments =
        vec![of.qkv.into(), of.dout.into(), of.lse.into(), (&delta).into(), of.dqkv.into()];
    arguments.extend(shape.tail());
    let sums = [of.out.into(), of.dout.into(), (&delta).into()];
    let sizes = [int(shape.tokens), int(shape.heads)];
    if !has_tensor_cores(shape.head_dim) {
        return plain_backward(device, shape, [&sums[..], &sizes].concat(), arguments);
    }
    let kernel = |name| device.kernel(&TRAIN_ATTENTION, &shape.defines(), name);
    let all = shape.statistics();
    let grid = Grid::line((all * shape.head_dim / 8).div_ceil(128), 128);
    kernel("attention_delta")?.launch(grid, &[&sums[..], &sizes, &[int(all)]].concat())?;
    let (step, row) = (shape.kv_step(), shape.row_nbytes());
    // Two steps of queries and of gradients with their statistics, and for wide heads keys and values.
    let kept = if shape.head_dim <= 64 { 0 } else { 2 * KEYS * row };
    let grid = Grid {
        blocks: shape.blocks(KEYS, shape.kv_heads),
        threads: 128,
        shared: 4 * step * row + 16 * step + kept,
    };
    kernel("attention_backward_kv")?.launch(grid, &arguments)?;
    // Queries and their gradients first, then two steps of keys and of values.
    let blocks = shape.blocks(shape.queries(), shape.heads);
    let grid = Grid { blocks, threads: 128, shared: 2 * shape.queries() * row };
    kernel("attention_backward_q")?.launch(grid, &arguments)
}

fn plain_backward(
    device: &Device,
    shape: &AttentionShape,
    mut sums: Vec<Arg>,
    mut arguments: Vec<Arg>,
) -> CudaResult<()> {
    let kernel = |name| device.kernel(&TRAIN_ATTENTION_PLAIN, &[], name);
    let grid = |blocks| Grid { blocks, threads: 32, shared: 0 };
    sums.push(int(shape.head_dim));
    arguments.push(int(shape.head_dim));
    kernel("plain_delta")?.launch(grid((shape.rows(), shape.heads, 1)), &sums)?;
    let blocks = shape.blocks(1, shape.kv_heads);
    kernel("plain_backward_kv")?.launch(grid(blocks), &arguments)?;
    kernel("plain_backward_q")?.launch(grid(shape.blocks(1, shape.heads)), &arguments)
}
