//! `y[m, n] = Σ_k x[m, k] · ((q[n, k] − 8) · scale[n, k / G] + zero[n, k / G])`
//! x (M, K) f32 · q (N, K/2) u8 · scale, zero (N, K/G) f32 or bf16 → y (M, N) f32.
//! Byte j of a row holds k = 2j in its low nibble and k = 2j + 1 in its high one, codes 0 to 15.
//! Error: |y − f64 result| ≤ Σ_blocks amax(x in block) / 64000 · Σ|(q − 8) · scale| + K · 2⁻²² · Σ|x| · (15 · |scale| + |zero|), blocks of
//! 128 (or what the group allows, 64 for groups of 32), because x is rounded to 16-bit integers once a call; rows under
//! 256, other groups, 16 tokens and more without VNNI, and x with NaN or infinity are multiplied in f32 and keep only the
//! second term.
//! Source: torchao's tinygemm numerics (`zero` is a float and stands for the code 8); the split of 16-bit
//! integers into two int8 planes for 8-bit multipliers is our own.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod planes;
#[cfg(target_arch = "x86_64")]
mod quads;

#[cfg(test)]
mod tests;

use std::ops::Range;

use half::bf16;

#[cfg(target_arch = "x86_64")]
use crate::block_int16::BlockInt16;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Avx2, Avx512Vnni};
use crate::{Cost, Cpu, Isa, Shape, dense_linear, exact_f32};
#[cfg(target_arch = "x86_64")]
use planes::Planes;
#[cfg(target_arch = "x86_64")]
use quads::Quads;

/// Scales or zeros as they are stored.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// As f32.
    F32(&'a [f32]),
    /// As bf16.
    Bf16(&'a [bf16]),
}

/// A weight (N, K), checked when it is used.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// (N, K/2), two codes a byte.
    pub qdata: &'a [u8],
    /// (N, K / group_size).
    pub scale: Floats<'a>,
    /// (N, K / group_size): the value of code 8.
    pub zero: Floats<'a>,
    /// How many columns share a scale and a zero; even.
    pub group_size: usize,
}

/// The shapes and group sizes that tests and benches run: group edges, odd groups, a decoder's layer.
pub const SHAPES: [(Shape, usize); 13] = [
    (Shape { m: 1, n: 1, k: 2 }, 2),
    (Shape { m: 2, n: 3, k: 64 }, 32),
    (Shape { m: 1, n: 5, k: 256 }, 128),
    (Shape { m: 3, n: 17, k: 288 }, 32),
    (Shape { m: 1, n: 7, k: 1056 }, 32),
    (Shape { m: 4, n: 9, k: 320 }, 64),
    (Shape { m: 5, n: 33, k: 768 }, 128),
    (Shape { m: 6, n: 31, k: 768 }, 256),
    (Shape { m: 8, n: 13, k: 576 }, 192),
    (Shape { m: 2, n: 5, k: 480 }, 96),
    (Shape { m: 13, n: 35, k: 660 }, 22),
    (Shape { m: 37, n: 67, k: 512 }, 32),
    (Shape { m: 64, n: 48, k: 2048 }, 128),
];

/// Rows shorter than this are multiplied in f32: making integers of x would cost as much as it saves.
const SHORTEST_INTEGER_K: usize = 256;

/// From this many rows on, a weight that f32 panels multiply is dequantized once; before, row by row.
const PANELS_FROM: usize = 16;

/// Up to so many rows VNNI multiplies the codes where they are; with more, unpacking them once, block by block, pays.
#[cfg(target_arch = "x86_64")]
const GEMV_MAX_M: usize = 8;

/// How a call is multiplied.
#[derive(Clone, Copy, Debug)]
enum Path {
    /// The oracle.
    Scalar,
    /// In integers, codes unpacked where they are: AVX2 and VNNI bodies.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2, usize),
    #[cfg(target_arch = "x86_64")]
    VnniGemv(Avx512Vnni, usize),
    /// In integers, codes unpacked once for all tokens.
    #[cfg(target_arch = "x86_64")]
    VnniGemm(Avx512Vnni, usize),
    /// In f32, panel by panel.
    Panels,
    /// In f32, row by row.
    Rows,
}

/// The one place that decides; blocks of activations have as many numbers as an integer path says.
fn path(isa: Isa, Shape { m, k, .. }: Shape, group_size: usize) -> Path {
    if matches!(isa, Isa::Scalar) {
        return Path::Scalar;
    }
    match (isa, block(group_size, k)) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Vnni(isa), Some(block)) if m <= GEMV_MAX_M => Path::VnniGemv(isa, block),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Vnni(isa), Some(block)) => Path::VnniGemm(isa, block.min(group_size)),
        _ if m >= PANELS_FROM => Path::Panels,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2(isa), Some(block)) => Path::Avx2(isa, block),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(isa), Some(block)) => Path::Avx2(isa.avx2(), block),
        _ => Path::Rows,
    }
}

/// `y = x · dequantize(w)ᵀ`.
pub fn weight_only(cpu: &Cpu, w: Weight<'_>, x: &[f32], y: &mut [f32], shape: Shape) {
    let Shape { m, n, k } = shape;
    let g = w.group_size;
    assert!(g > 0 && g.is_multiple_of(2), "groups of {g} are not of whole bytes");
    assert!(k.is_multiple_of(g), "groups of {g} do not divide K = {k}");
    assert!(w.qdata.len() == n * k / 2, "{} bytes are not a weight of {n} × {k}", w.qdata.len());
    assert!(w.scale.len() == n * (k / g), "{} scales are not {n} × {k} / {g}", w.scale.len());
    assert!(w.zero.len() == n * (k / g), "{} zeros are not {n} × {k} / {g}", w.zero.len());
    assert!(x.len() == m * k, "{} activations are not {m} × {k}", x.len());
    assert!(y.len() == m * n, "{} results are not {m} × {n}", y.len());
    let rows = Rows { w, k };
    if !rows.multiply_integers(cpu, x, y, shape) {
        rows.multiply_floats(cpu, x, y, shape);
    }
}

/// What a call moves and computes; a scale or a zero has `bytes_per_scale` bytes.
pub fn cost(shape: Shape, group_size: usize, bytes_per_scale: usize) -> Cost {
    let (m, n, k) = (shape.m as u64, shape.n as u64, shape.k as u64);
    let groups = n * k / group_size as u64;
    let bytes = n * k / 2 + 2 * groups * bytes_per_scale as u64 + 4 * (m * k + m * n);
    Cost { bytes, flops: 2 * m * n * k }
}

/// The kernel that multiplies finite activations with a weight of such groups on `isa`.
pub fn kernel_name(isa: Isa, shape: Shape, group_size: usize) -> &'static str {
    match (path(isa, shape, group_size), isa) {
        (Path::Scalar, _) => "scalar-int4xf32",
        #[cfg(target_arch = "x86_64")]
        (Path::Avx2(..), _) => "x86-int4xint16-avx2-gemv",
        #[cfg(target_arch = "x86_64")]
        (Path::VnniGemv(..), _) => "x86-int4xint16-avx512vnni-gemv",
        #[cfg(target_arch = "x86_64")]
        (Path::VnniGemm(..), _) => "x86-int4xint16-avx512vnni-gemm",
        (Path::Panels, Isa::Avx2(_)) => "x86-int4xf32-avx2-gemm",
        (Path::Panels, Isa::Neon(_)) => "aarch64-int4xf32-neon-gemm",
        (Path::Rows, Isa::Neon(_)) => "aarch64-int4xf32-neon-rows",
        (Path::Panels, _) => "x86-int4xf32-avx512-gemm",
        (Path::Rows, _) => "x86-int4xf32-avx2-rows",
    }
}

/// How many activations share a scale, if integers are used.
fn block(group_size: usize, k: usize) -> Option<usize> {
    match group_size {
        _ if k < SHORTEST_INTEGER_K => None,
        g if g.is_multiple_of(128) => Some(128),
        g if g.is_multiple_of(64) || g == 32 => Some(64),
        _ => None,
    }
}

impl Floats<'_> {
    fn len(&self) -> usize {
        match self {
            Floats::F32(v) => v.len(),
            Floats::Bf16(v) => v.len(),
        }
    }

    fn get(&self, at: usize) -> f32 {
        match self {
            Floats::F32(v) => v[at],
            Floats::Bf16(v) => v[at].to_f32(),
        }
    }

    /// Row `n` as f32, into `row`.
    #[inline]
    fn copy_row(&self, n: usize, row: &mut [f32]) {
        let range = n * row.len()..(n + 1) * row.len();
        match self {
            Floats::F32(v) => row.copy_from_slice(&v[range]),
            Floats::Bf16(v) => {
                for (to, from) in row.iter_mut().zip(&v[range]) {
                    // Written out so that it becomes a shift in registers; `to_f32` quiets NaNs first.
                    *to = f32::from_bits(u32::from(from.to_bits()) << 16);
                }
            }
        }
    }
}

/// A weight with its row length.
#[derive(Clone, Copy)]
struct Rows<'a> {
    w: Weight<'a>,
    k: usize,
}

impl Rows<'_> {
    fn groups(&self) -> usize {
        self.k / self.w.group_size
    }

    fn codes(&self, n: usize) -> &[u8] {
        &self.w.qdata[n * self.k / 2..][..self.k / 2]
    }

    /// Scales and zeros of row `n`.
    fn params(&self, n: usize) -> (Vec<f32>, Vec<f32>) {
        let (mut scale, mut zero) = (vec![0.0; self.groups()], vec![0.0; self.groups()]);
        self.w.scale.copy_row(n, &mut scale);
        self.w.zero.copy_row(n, &mut zero);
        (scale, zero)
    }

    /// Multiplies in integers, if this call can be.
    fn multiply_integers(self, cpu: &Cpu, x: &[f32], y: &mut [f32], shape: Shape) -> bool {
        let isa = cpu.isa();
        let (k, g) = (self.k, self.w.group_size);
        let done: Option<()> = match path(isa, shape, g) {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(avx2, block) => Planes::new(isa, x, (k, g), block)
                .map(|x| avx2::weight_only(avx2, cpu, self, &x, y)),
            #[cfg(target_arch = "x86_64")]
            Path::VnniGemv(vnni, block) => {
                Quads::new(vnni, x, (k, g), block).map(|x| avx512vnni::gemv(vnni, cpu, self, &x, y))
            }
            #[cfg(target_arch = "x86_64")]
            Path::VnniGemm(vnni, block) => BlockInt16::new(isa, x, k, block)
                .map(|q| avx512vnni::gemm(vnni, cpu, self, (x, &q), (y, shape))),
            Path::Scalar | Path::Panels | Path::Rows => None,
        };
        done.is_some()
    }

    fn multiply_floats(self, cpu: &Cpu, x: &[f32], y: &mut [f32], shape: Shape) {
        match path(cpu.isa(), shape, self.w.group_size) {
            Path::Scalar => scalar(self, x, y, shape),
            _ if shape.m >= PANELS_FROM => {
                dense_linear::gemm_with_panels(cpu, shape, x, y, |block, panel| {
                    for (n, panel) in block.n.zip(panel) {
                        self.dequantize(n, block.k.clone(), panel.as_mut_slice());
                    }
                });
            }
            _ => exact_f32::linear(cpu, x, y, shape, |n, row| {
                self.dequantize(n, 0..self.k, row);
                1.0
            }),
        }
    }

    /// Columns `k` of row `n` in f32, to the start of `part`. `k.start` is even.
    fn dequantize(&self, n: usize, k: Range<usize>, part: &mut [f32]) {
        let g = self.w.group_size;
        let codes = self.codes(n);
        let mut at = k.start;
        while at < k.end {
            let group = n * self.groups() + at / g;
            let (scale, zero) = (self.w.scale.get(group), self.w.zero.get(group));
            // A group may begin before this panel and end behind it.
            let end = ((at / g + 1) * g).min(k.end);
            let pairs = part[at - k.start..end - k.start].as_chunks_mut::<2>().0;
            for (pair, &byte) in pairs.iter_mut().zip(&codes[at / 2..end / 2]) {
                *pair = nibbles(byte).map(|q| (f32::from(q) - 8.0) * scale + zero);
            }
            at = end;
        }
    }
}

/// The codes of k = 2j and k = 2j + 1.
fn nibbles(byte: u8) -> [u8; 2] {
    [byte & 15, byte >> 4]
}

/// Scalar oracle: the formula with sums in f64.
#[expect(clippy::cast_possible_truncation, reason = "the result is f32")]
fn scalar(w: Rows<'_>, x: &[f32], y: &mut [f32], Shape { n, k, .. }: Shape) {
    let g = w.w.group_size;
    for n_row in 0..n {
        let (scale, zero) = w.params(n_row);
        let codes = w.codes(n_row).iter().flat_map(|&byte| nibbles(byte));
        let row: Vec<f64> = codes
            .enumerate()
            .map(|(k, q)| (f64::from(q) - 8.0) * f64::from(scale[k / g]) + f64::from(zero[k / g]))
            .collect();
        for (m, y) in y.chunks_exact_mut(n).enumerate() {
            let x = &x[m * k..][..k];
            y[n_row] = x.iter().zip(&row).map(|(&x, w)| f64::from(x) * w).sum::<f64>() as f32;
        }
    }
}
