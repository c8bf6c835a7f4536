//! The int4 product of one token in steps, from the simplest kernel up; the last steps are `few_tokens.cu` and `one_token.cu`.

use crate::cuda::launch::int;
use crate::cuda::sources::LADDER;
use crate::cuda::{Buffer, CudaResult, Device, Grid};

/// A first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// A thread a row, a byte at a time.
    ThreadARow,
    /// A warp a row, lanes side by side.
    WarpARow,
    /// Sixteen bytes a lane, asked for ahead; x in shared memory.
    WideLoads,
}

/// A weight as the first rungs read it, `(q − 8) · scale`.
#[derive(Debug)]
pub struct PlainInt4 {
    /// (N, K / 2), the even column in the low nibble.
    pub q: Buffer<u8>,
    /// (N, K / 128) bf16.
    pub scale: Buffer<u16>,
    /// Rows.
    pub n: usize,
    /// Columns, a multiple of 1024.
    pub k: usize,
}

/// `y (N) = x (K) · Wᵀ` by a first rung.
pub fn run_rung(
    device: &Device,
    rung: Rung,
    w: &PlainInt4,
    x: &Buffer<u16>,
    y: &Buffer<f32>,
) -> CudaResult<()> {
    let (n, k) = (w.n, w.k);
    let got = (w.q.len(), w.scale.len(), x.len(), y.len());
    assert!(got == (n * k / 2, n * k / 128, k, n) && k.is_multiple_of(1024), "{got:?}");
    let (name, rows) = match rung {
        Rung::ThreadARow => ("rung_1", 128),
        Rung::WarpARow => ("rung_2", 4),
        Rung::WideLoads => ("rung_3", 4),
    };
    let arguments = [(&w.q).into(), (&w.scale).into(), x.into(), y.into(), int(n), int(k)];
    // x in shared memory, 80 bytes for 32 columns.
    let shared = if rung == Rung::WideLoads { k / 32 * 80 } else { 0 };
    let grid = Grid::line(n.div_ceil(rows), 128).shared(shared);
    device.kernel(&LADDER, &[], name)?.launch(grid, &arguments)
}
