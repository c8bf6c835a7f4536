//! `y[m, n] = Σ_k x[m, k] · table[n / R, k / C][u[n, k]]`: every R × C block of the weight has a table of its own.
//! x (M, K) f32 · u (N, K) codes of 1 to 8 bits · tables (N/R, K/C, 2ᵇ) f32 → y (M, N) f32.
//! Rows of codes are streams of 1, 2, 4 or 8 bits, the lowest first, filled up to 64 bytes; 3 bits take 4, 5 to 7 take 8.
//! Error: |y − f64 result| ≤ Σ_blocks amax(x in block) / 16000 · Σ|w| + amax(tables) / 16000 · Σ|x| + K · 2⁻²² · Σ|x·w|, blocks of 64
//! bytes of codes, because x and tables are rounded to integers; codes of more than 5 bits, tables that change within a
//! block (of 32 columns for three tokens and more), and x with NaN or infinity are multiplied in f32 and keep only the last
//! term.
//! Source: torchao's codebook_coreml and codebook_groupwise formats; tables in a register (`vpermw`, `vpshufb`) as in T-MAC.

mod activation;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_fill;

#[cfg(test)]
mod tests;

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use crate::block_int16::BlockInt16;
use crate::{Cost, Cpu, Isa, Shape, dense_linear, exact_f32};
use activation::Blocks;

/// Bytes of codes that are multiplied before they are scaled: a vector.
const BLOCK_NBYTES: usize = 64;

/// The largest integers of activations and of tables: 32 · 8191 · 8191 < 2³¹.
const INTEGER_MAX: f32 = 8_191.0;

/// From this many rows on, the weight is looked up once, a block at a time, and multiplied as a matrix.
const GEMM_FROM: usize = 3;

/// Columns that such a block has where tables are integers: more products of the largest would not fit 32 bits.
const GEMM_BLOCK: usize = 32;

/// Rows of one part of the work at least; there are eight parts a thread, which evens out cores that others slow down.
const PART_ROWS: usize = 16;

/// Shapes, bits and table blocks (rows, columns) of tests and benches; 0 stands for all.
pub const SHAPES: [(Shape, u32, (usize, usize)); 16] = [
    (Shape { m: 1, n: 1, k: 1 }, 4, (0, 0)),
    (Shape { m: 1, n: 4, k: 100 }, 4, (2, 0)),
    (Shape { m: 2, n: 6, k: 256 }, 4, (1, 0)),
    (Shape { m: 1, n: 8, k: 576 }, 3, (2, 0)),
    (Shape { m: 2, n: 5, k: 1024 }, 2, (5, 256)),
    (Shape { m: 1, n: 7, k: 1024 }, 1, (0, 512)),
    (Shape { m: 1, n: 7, k: 256 }, 4, (0, 128)),
    (Shape { m: 2, n: 9, k: 192 }, 4, (0, 64)),
    (Shape { m: 3, n: 130, k: 320 }, 4, (2, 0)),
    (Shape { m: 1, n: 4, k: 90 }, 6, (2, 0)),
    (Shape { m: 5, n: 3, k: 64 }, 8, (0, 32)),
    (Shape { m: 1, n: 7, k: 200 }, 5, (1, 0)),
    (Shape { m: 17, n: 21, k: 300 }, 3, (1, 0)),
    (Shape { m: 6, n: 50, k: 288 }, 2, (25, 32)),
    (Shape { m: 40, n: 13, k: 160 }, 1, (0, 0)),
    (Shape { m: 33, n: 14, k: 96 }, 5, (2, 48)),
];

/// A weight (N, K). Made by [`Weight::new`], which checks.
#[derive(Clone, Debug)]
pub struct Weight {
    n: usize,
    k: usize,
    bits: u32,
    bytes: Vec<u8>,
    tables: Vec<f32>,
    /// Rows and columns that share a table.
    block: (usize, usize),
    /// The tables' values as integers, each table 32 of them, its values repeated; empty for more than 5 bits.
    integers: Vec<[i16; 32]>,
    scale: f32,
}

impl Weight {
    /// A weight from the codes that `row(n, codes)` writes, and its tables, a block of (rows, columns) after the other.
    pub fn new(
        cpu: &Cpu,
        (n, k): (usize, usize),
        bits: u32,
        row: impl Fn(usize, &mut [u8]) + Sync,
        tables: Vec<f32>,
        block: (usize, usize),
    ) -> Weight {
        assert!((1..=8).contains(&bits), "codes of {bits} bits: wanted 1 to 8");
        let (rows, columns) = block;
        let even = rows > 0 && columns > 0 && n.is_multiple_of(rows) && k.is_multiple_of(columns);
        assert!(even || n * k == 0, "blocks of {rows} × {columns} do not cut {n} × {k}");
        let count = n.checked_div(rows).unwrap_or(0) * k.checked_div(columns).unwrap_or(0);
        assert!(tables.len() == count << bits, "{} values are not {count} tables", tables.len());
        let amax = tables
            .iter()
            .fold(0.0_f32, |amax, v| if v.is_finite() { amax.max(v.abs()) } else { f32::INFINITY });
        let scale = if amax.is_finite() && amax > 1e-30 { amax / INTEGER_MAX } else { 0.0 };
        let small = bits <= 5 && amax.is_finite();
        let tables_of = if small { tables.chunks_exact(1 << bits) } else { [].chunks_exact(1) };
        let integers = tables_of.map(|table| integers(table, scale)).collect();
        let width = width(bits);
        let row_nbytes = (k * width).div_ceil(8 * BLOCK_NBYTES) * BLOCK_NBYTES;
        let mut bytes = vec![0; n * row_nbytes];
        cpu.threads().chunks_mut(&mut bytes, row_nbytes.max(1), |n, bytes| {
            let mut codes = vec![0; k];
            row(n, &mut codes);
            for (codes, byte) in codes.chunks(8 / width).zip(bytes) {
                let joined =
                    codes.iter().rev().fold(0_u32, |all, code| all << width | u32::from(*code));
                *byte = joined.to_le_bytes()[0];
            }
        });
        crate::pages::gather(&bytes);
        Weight { n, k, bits, bytes, tables, block, integers, scale }
    }

    /// Rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The tables.
    pub fn tables(&self) -> &[f32] {
        &self.tables
    }

    /// Bytes that are kept in memory.
    pub fn nbytes(&self) -> usize {
        self.bytes.len() + 4 * self.tables.len() + size_of_val(self.integers.as_slice())
    }

    /// Writes the codes of row `n`.
    pub fn codes(&self, n: usize, codes: &mut [u8]) {
        self.each_code(n, 0..codes.len().min(self.k), |j, code| codes[j] = code);
    }

    /// Calls `f(k − k.start, code)` for columns of row `n`.
    #[inline(always)]
    fn each_code(&self, n: usize, k: Range<usize>, f: impl FnMut(usize, u8)) {
        let row = self.row(n);
        // The width is a constant in each, so that finding a code is a shift.
        match width(self.bits) {
            1 => each_code::<1>(row, k, f),
            2 => each_code::<2>(row, k, f),
            4 => each_code::<4>(row, k, f),
            _ => each_code::<8>(row, k, f),
        }
    }

    fn row(&self, n: usize) -> &[u8] {
        let row_nbytes = self.bytes.len() / self.n;
        &self.bytes[n * row_nbytes..][..row_nbytes]
    }

    /// Tables in a row of blocks.
    fn across(&self) -> usize {
        self.k / self.block.1
    }

    /// Columns `k` of row `n` in f32, to the start of `part`.
    pub fn dequantize(&self, n: usize, k: Range<usize>, part: &mut [f32]) {
        let first = n / self.block.0 * self.across();
        let mut at = k.start;
        while at < k.end {
            let table = &self.tables[(first + at / self.block.1) << self.bits..][..1 << self.bits];
            let end = ((at / self.block.1 + 1) * self.block.1).min(k.end);
            let part = &mut part[at - k.start..end - k.start];
            self.each_code(n, at..end, |j, code| part[j] = table[usize::from(code)]);
            at = end;
        }
    }

    /// Whether tables are small, and none changes within a block of codes.
    fn has_integers(&self) -> bool {
        self.has_integers_for(BLOCK_NBYTES * 8 / width(self.bits))
    }

    /// Whether tables are small, and none changes within so many columns.
    fn has_integers_for(&self, columns: usize) -> bool {
        !self.integers.is_empty()
            && (self.block.1 == self.k || self.block.1.is_multiple_of(columns))
    }
}

#[inline(always)]
fn each_code<const WIDTH: usize>(row: &[u8], k: Range<usize>, mut f: impl FnMut(usize, u8)) {
    let (mask, per_byte) = (0xff_u8 >> (8 - WIDTH), 8 / WIDTH);
    let first = k.start / per_byte;
    let mut at = first * per_byte;
    for byte in &row[first..k.end.div_ceil(per_byte)] {
        for j in 0..per_byte {
            if k.contains(&at) {
                f(at - k.start, byte >> (j * WIDTH) & mask);
            }
            at += 1;
        }
    }
}

/// Bits that a code takes.
fn width(bits: u32) -> usize {
    match bits {
        1 => 1,
        2 => 2,
        3 | 4 => 4,
        _ => 8,
    }
}

/// A table of at most 32 values as 32 integers: each value in every place whose low bits are its code.
#[expect(clippy::cast_possible_truncation, reason = "at most ±8191")]
fn integers(table: &[f32], scale: f32) -> [i16; 32] {
    let inv_scale = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    std::array::from_fn(|i| (table[i % table.len()] * inv_scale).round_ties_even() as i16)
}

/// `y = x · dequantize(w)ᵀ`.
pub fn linear(cpu: &Cpu, w: &Weight, x: &[f32], y: &mut [f32], shape: Shape) {
    let Shape { m, n, k } = shape;
    assert!(w.n == n && w.k == k, "lut linear: the weight is {} × {}", w.n, w.k);
    assert!(x.len() == m * k, "{} activations are not {m} × {k}", x.len());
    assert!(y.len() == m * n, "{} results are not {m} × {n}", y.len());
    if y.is_empty() || k == 0 {
        y.fill(0.0);
        return;
    }
    if matches!(cpu.isa(), Isa::Scalar | Isa::Neon(_)) {
        scalar(w, x, y, shape);
        return;
    }
    if m >= GEMM_FROM {
        #[cfg(target_arch = "x86_64")]
        if let Isa::Avx512Vnni(vnni) = cpu.isa()
            && w.has_integers_for(GEMM_BLOCK)
            && let Some(x) = BlockInt16::up_to(cpu.isa(), x, (k, GEMM_BLOCK), INTEGER_MAX)
        {
            return avx512_fill::gemm(vnni, cpu, w, &x, (y, shape));
        }
        dense_linear::gemm_with_panels(cpu, shape, x, y, |block, panel| {
            for (n, panel) in block.n.zip(panel) {
                w.dequantize(n, block.k.clone(), panel.as_mut_slice());
            }
        });
        return;
    }
    let in_integers = w.has_integers() && has_lookup(cpu.isa(), w.bits);
    let blocks = if in_integers { Blocks::new(x, k, width(w.bits)) } else { None };
    let Some(x) = blocks else {
        exact_f32::linear(cpu, x, y, shape, |n, row| {
            w.dequantize(n, 0..k, row);
            1.0
        });
        return;
    };
    let part = n.div_ceil(8 * cpu.threads().count()).max(PART_ROWS);
    cpu.threads().tiles_mut(y, n, (m, part), |_, mut tile| {
        #[cfg(target_arch = "x86_64")]
        if let Isa::Avx512Vnni(vnni) = cpu.isa() {
            return avx512::tile(vnni, w, &x, &mut tile);
        }
        for (i, n) in tile.cols().enumerate() {
            for m in 0..m {
                tile.row(m)[i] = match cpu.isa() {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(avx2) => avx2::row(avx2, w, n, &x, m),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(avx512) => avx2::row(avx512.avx2(), w, n, &x, m),
                    _ => f32::NAN,
                };
            }
        }
    });
}

/// Whether one look-up reaches every code: 32 values with AVX-512, 16 with AVX2.
fn has_lookup(isa: Isa, bits: u32) -> bool {
    bits <= 4 || matches!(isa, Isa::Avx512Vnni(_))
}

/// What a call with `m` rows moves and computes.
pub fn cost(w: &Weight, m: usize) -> Cost {
    let bytes = w.nbytes() + 4 * m * (w.n + w.k);
    Cost { bytes: bytes as u64, flops: 2 * (m * w.n * w.k) as u64 }
}

/// The kernel that multiplies `m` rows of finite activations on `isa`.
pub fn kernel_name(isa: Isa, w: &Weight, m: usize) -> String {
    let bits = w.bits;
    match isa {
        Isa::Scalar | Isa::Neon(_) => format!("scalar-lut{bits}xf32"),
        Isa::Avx512Vnni(_) if m >= GEMM_FROM && w.has_integers_for(GEMM_BLOCK) => {
            format!("x86-lut{bits}xi16-avx512vnni-gemm")
        }
        _ if m >= GEMM_FROM => format!("x86-lut{bits}xf32-gemm"),
        _ if !w.has_integers() || !has_lookup(isa, bits) => format!("x86-lut{bits}xf32-rows"),
        Isa::Avx512Vnni(_) => format!("x86-lut{bits}xi16-avx512vnni"),
        _ => format!("x86-lut{bits}xi16-avx2"),
    }
}

/// Scalar oracle: the formula with sums in f64.
#[expect(clippy::cast_possible_truncation, reason = "the result is f32")]
fn scalar(w: &Weight, x: &[f32], y: &mut [f32], Shape { n, k, .. }: Shape) {
    let mut row = vec![0.0; k];
    for n_row in 0..n {
        w.dequantize(n_row, 0..k, &mut row);
        for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(n)) {
            let products = x.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w));
            y[n_row] = products.sum::<f64>() as f32;
        }
    }
}
