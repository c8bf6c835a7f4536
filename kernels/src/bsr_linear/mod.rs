//! `y[m, n] = Σ_k x[m, k] · w[n, k]`, where only some of w's blocks of B × B numbers are stored and the others are zero.
//! x (M, K) f32 · values (blocks, B, B) f32, bf16 or i8 · crow (N/B + 1), col (blocks) i32 → y (M, N) f32.
//! Blocks lie row of blocks by row of blocks, `col` ascending; `crow` says where each row of blocks begins (block compressed sparse rows). Within a
//! block the B numbers of one column k lie side by side. i8 stands for `q · scale[n]`, one scale a row. B is 16, 32 or 64.
//! Error: |y − f64 result| ≤ K' · 2⁻²² · Σ|x·w| over the K' stored columns (with `Compute::Bf16`, bf16 weights and more than
//! [`GEMV_MAX_M`] tokens: with x rounded to bf16).
//! Source: PyTorch's BSR tensors and torchao's `bsr_dense_addmm` (X04, X28); the order within a block is our own.
//!
//! A block's column is a vector of rows and x a scalar, so that no sum crosses lanes and a row of blocks stays in registers from its first
//! block to its last. What is read is what is stored: at 80 % zeros a fifth.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512f;

#[cfg(test)]
mod tests;

use half::bf16;

use crate::parallel::Tile;
use crate::real::wide;
use crate::{Compute, Cost, Cpu, Isa, Shape};

/// The numbers of the stored blocks.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// As they are.
    Bf16(&'a [bf16]),
    /// `q · scale`
    Int8 {
        /// (blocks, B, B)
        q: &'a [i8],
        /// (N)
        scale: &'a [f32],
    },
}

/// A weight (N, K), checked when it is used.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// What is stored.
    pub values: Values<'a>,
    /// Where each row of blocks begins, and the number of blocks.
    pub crow: &'a [i32],
    /// The column of blocks of each.
    pub col: &'a [i32],
    /// Rows and columns of a block: 16, 32 or 64.
    pub block: usize,
}

/// The shapes and block sizes that tests and benches run.
pub const SHAPES: [(Shape, usize); 9] = [
    (Shape { m: 1, n: 16, k: 16 }, 16),
    (Shape { m: 1, n: 64, k: 192 }, 64),
    (Shape { m: 3, n: 96, k: 64 }, 32),
    (Shape { m: 4, n: 128, k: 256 }, 64),
    (Shape { m: 7, n: 48, k: 160 }, 16),
    (Shape { m: 9, n: 64, k: 128 }, 32),
    (Shape { m: 13, n: 192, k: 128 }, 64),
    (Shape { m: 37, n: 64, k: 320 }, 32),
    (Shape { m: 70, n: 128, k: 192 }, 64),
];

/// Block sizes that there are kernels for.
pub const BLOCKS: [usize; 3] = [16, 32, 64];

/// Up to so many tokens blocks are widened where they are multiplied; with more they are widened once.
pub const GEMV_MAX_M: usize = 8;

/// `y = x · Wᵀ`.
pub fn linear(cpu: &Cpu, w: Weight<'_>, x: &[f32], y: &mut [f32], shape: Shape) {
    let Shape { m, n, k } = shape;
    w.check(shape);
    assert!(x.len() == m * k, "{} activations are not {m} × {k}", x.len());
    assert!(y.len() == m * n, "{} results are not {m} × {n}", y.len());
    if matches!(cpu.isa(), Isa::Scalar) {
        return scalar(w, x, y, shape);
    }
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512Vnni(isa), Values::Bf16(values), Compute::Bf16, true) =
        (cpu.isa(), w.values, cpu.compute(), m > GEMV_MAX_M)
    {
        return avx512::gemm_bf16(isa, cpu, (w, values), x, (y, shape));
    }
    // Enough rows of blocks for a part that its start costs nothing.
    let rows = cpu.threads().share(n.div_ceil(8), w.block);
    cpu.threads().tiles_mut(y, n, (m, rows), |_, mut tile| match w.block {
        16 => by_values::<16>(cpu.isa(), w, (x, k), &mut tile),
        32 => by_values::<32>(cpu.isa(), w, (x, k), &mut tile),
        _ => by_values::<64>(cpu.isa(), w, (x, k), &mut tile),
    });
}

/// What a call moves and computes; only what is stored is computed.
pub fn cost(w: Weight<'_>, shape: Shape) -> Cost {
    let (m, n, k) = (shape.m as u64, shape.n as u64, shape.k as u64);
    let values = match w.values {
        Values::F32(v) => size_of_val(v),
        Values::Bf16(v) => size_of_val(v),
        Values::Int8 { q, scale } => q.len() + size_of_val(scale),
    };
    let indices = size_of_val(w.crow) + size_of_val(w.col);
    let stored = (w.col.len() * w.block * w.block) as u64;
    Cost { bytes: (values + indices) as u64 + 4 * (m * k + m * n), flops: 2 * m * stored }
}

/// The kernel that multiplies `m` tokens on `cpu`.
pub fn kernel_name(cpu: &Cpu, w: Weight<'_>, m: usize) -> String {
    let types = match w.values {
        Values::F32(_) => "f32",
        Values::Bf16(_) => "bf16xf32",
        Values::Int8 { .. } => "int8xf32",
    };
    let variant = if m <= GEMV_MAX_M { "gemv" } else { "gemm" };
    let block = w.block;
    match cpu.isa() {
        Isa::Scalar => format!("scalar-bsr{block}-{types}"),
        Isa::Neon(_) => format!("aarch64-bsr{block}-{types}-neon-{variant}"),
        Isa::Avx2(_) => format!("x86-bsr{block}-{types}-avx2-{variant}"),
        Isa::Avx512Vnni(_)
            if types == "bf16xf32" && cpu.compute() == Compute::Bf16 && variant == "gemm" =>
        {
            format!("x86-bsr{block}-bf16xbf16-avx512bf16-gemm")
        }
        _ => format!("x86-bsr{block}-{types}-avx512-{variant}"),
    }
}

impl Weight<'_> {
    fn check(&self, Shape { n, k, .. }: Shape) {
        let b = self.block;
        assert!(BLOCKS.contains(&b), "blocks of {b}; there are kernels for 16, 32 and 64");
        assert!(n.is_multiple_of(b) && k.is_multiple_of(b), "{n} × {k} has no whole blocks of {b}");
        let (values, blocks) = match self.values {
            Values::F32(v) => (v.len(), self.col.len()),
            Values::Bf16(v) => (v.len(), self.col.len()),
            Values::Int8 { q, scale } => {
                assert!(
                    scale.len() == n,
                    "{} scales are not one for each of {n} rows",
                    scale.len()
                );
                (q.len(), self.col.len())
            }
        };
        assert!(values == blocks * b * b, "{values} numbers are not {blocks} blocks of {b} × {b}");
        assert!(self.crow.len() == n / b + 1, "{} row starts for {} rows", self.crow.len(), n / b);
        let ends = self.crow.first() == Some(&0)
            && self.crow.last().is_some_and(|end| usize::try_from(*end) == Ok(blocks));
        assert!(ends, "rows of blocks must begin at 0 and end at {blocks}");
        assert!(self.crow.is_sorted(), "rows of blocks must not begin before the last one");
        let inside = |col: &i32| usize::try_from(*col).is_ok_and(|col| col < k / b);
        assert!(self.col.iter().all(inside), "a block lies outside of {k} columns");
    }

    /// The blocks of row `row`: where each is, and its first column.
    fn blocks(&self, row: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
        let index = |at: i32| usize::try_from(at).unwrap_or(0);
        let range = index(self.crow[row])..index(self.crow[row + 1]);
        let columns = self.col[range.clone()].iter().map(move |col| index(*col) * self.block);
        range.zip(columns)
    }
}

fn by_values<const B: usize>(
    isa: Isa,
    w: Weight<'_>,
    x: (&[f32], usize),
    tile: &mut Tile<'_, f32>,
) {
    #[cfg(target_arch = "x86_64")]
    let avx512 = match isa {
        Isa::Avx512(isa) => Some(isa),
        Isa::Avx512Vnni(isa) => Some(isa.avx512()),
        _ => None,
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(isa) = avx512 {
        match w.values {
            Values::F32(v) => avx512f::rows(isa, w, v, x, tile),
            Values::Bf16(v) => avx512f::rows(isa, w, v, x, tile),
            Values::Int8 { q, .. } => avx512f::rows(isa, w, q, x, tile),
        }
        return scaled(w, tile);
    }
    match w.values {
        Values::F32(v) => wide(isa, || rows::<f32, B>(w, v, x, tile, |v| v)),
        Values::Bf16(v) => wide(isa, || {
            rows::<bf16, B>(w, v, x, tile, |v| f32::from_bits(u32::from(v.to_bits()) << 16));
        }),
        Values::Int8 { q, .. } => wide(isa, || rows::<i8, B>(w, q, x, tile, f32::from)),
    }
    scaled(w, tile);
}

/// Puts the scales of int8 rows on their sums.
fn scaled(w: Weight<'_>, tile: &mut Tile<'_, f32>) {
    let Values::Int8 { scale, .. } = w.values else { return };
    let scale = &scale[tile.cols()];
    for m in 0..tile.rows().len() {
        tile.row(m).iter_mut().zip(scale).for_each(|(y, s)| *y *= s);
    }
}

/// Rows of blocks; tokens four at a time, so that sums stay in registers.
#[inline(always)]
fn rows<T: Copy, const B: usize>(
    w: Weight<'_>,
    values: &[T],
    (x, k): (&[f32], usize),
    tile: &mut Tile<'_, f32>,
    widen: impl Fn(T) -> f32 + Copy,
) {
    let (first, m) = (tile.cols().start, tile.rows().len());
    let mut once: Vec<[f32; B]> = Vec::new();
    for row in first / B..tile.cols().end / B {
        let place = row * B - first;
        if m > GEMV_MAX_M {
            once.clear();
            for (at, _) in w.blocks(row) {
                let block = values[at * B * B..][..B * B].as_chunks::<B>().0;
                once.extend(block.iter().map(|column| widened(column, widen)));
            }
            let start = w.blocks(row).next().map_or(0, |(at, _)| at);
            let blocks = w.blocks(row).map(|(at, column)| (at - start, column));
            tokens::<f32, B>(&blocks, once.as_flattened(), (x, k), (tile, place), |v| v);
        } else {
            tokens::<T, B>(&w.blocks(row), values, (x, k), (tile, place), widen);
        }
    }
}

#[inline(always)]
fn widened<T: Copy, const B: usize>(column: &[T; B], widen: impl Fn(T) -> f32) -> [f32; B] {
    let mut wide = [0.0; B];
    wide.iter_mut().zip(column).for_each(|(to, from)| *to = widen(*from));
    wide
}

#[inline(always)]
fn tokens<T: Copy, const B: usize>(
    blocks: &(impl Iterator<Item = (usize, usize)> + Clone),
    values: &[T],
    (x, k): (&[f32], usize),
    (tile, place): (&mut Tile<'_, f32>, usize),
    widen: impl Fn(T) -> f32 + Copy,
) {
    let all = tile.rows();
    let mut m = all.start;
    while m < all.end {
        let count = (all.end - m).min(4);
        let mut sums = [[0.0_f32; B]; 4];
        match count {
            1 => products::<T, B, 1>(blocks.clone(), values, &x[m * k..], k, &mut sums, widen),
            2 => products::<T, B, 2>(blocks.clone(), values, &x[m * k..], k, &mut sums, widen),
            3 => products::<T, B, 3>(blocks.clone(), values, &x[m * k..], k, &mut sums, widen),
            _ => products::<T, B, 4>(blocks.clone(), values, &x[m * k..], k, &mut sums, widen),
        }
        for (i, sums) in sums.iter().enumerate().take(count) {
            tile.row(m - all.start + i)[place..][..B].copy_from_slice(sums);
        }
        m += count;
    }
}

/// `sums[m][n] = Σ w[k][n] · x[m][k]` over the blocks.
#[inline(always)]
fn products<T: Copy, const B: usize, const M: usize>(
    blocks: impl Iterator<Item = (usize, usize)>,
    values: &[T],
    x: &[f32],
    k: usize,
    to: &mut [[f32; B]; 4],
    widen: impl Fn(T) -> f32 + Copy,
) {
    let mut sums = [[0.0_f32; B]; M];
    for (at, column) in blocks {
        let block = values[at * B * B..][..B * B].as_chunks::<B>().0;
        let mut rows: [&[f32]; M] = [&[]; M];
        for (m, row) in rows.iter_mut().enumerate() {
            *row = &x[m * k + column..][..B];
        }
        for (j, w) in block.iter().enumerate() {
            let w = widened(w, widen);
            for m in 0..M {
                let x = rows[m][j];
                for n in 0..B {
                    sums[m][n] = w[n].mul_add(x, sums[m][n]);
                }
            }
        }
    }
    to[..M].copy_from_slice(&sums);
}

/// Scalar oracle: the formula with sums in f64.
#[expect(clippy::cast_possible_truncation, reason = "the result is f32")]
fn scalar(w: Weight<'_>, x: &[f32], y: &mut [f32], Shape { n, k, .. }: Shape) {
    let b = w.block;
    for (m, y) in y.chunks_exact_mut(n.max(1)).enumerate() {
        for (n, y) in y.iter_mut().enumerate() {
            let mut sum = 0.0;
            for (at, column) in w.blocks(n / b) {
                for j in 0..b {
                    let place = at * b * b + j * b + n % b;
                    let value = match w.values {
                        Values::F32(v) => f64::from(v[place]),
                        Values::Bf16(v) => v[place].to_f64(),
                        Values::Int8 { q, scale } => f64::from(q[place]) * f64::from(scale[n]),
                    };
                    sum += f64::from(x[m * k + column + j]) * value;
                }
            }
            *y = sum as f32;
        }
    }
}
