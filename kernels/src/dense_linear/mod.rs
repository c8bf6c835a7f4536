//! Linear layers whose weight is stored as plain numbers.
//!
//! `y[m, n] = Σ_k x[m, k] · w[n, k]`
//! x (M, K) f32 · w (N, K) f32, bf16 or f16 → y (M, N) f32.
//! All three are row-major and dense. A 16-bit weight is widened to f32, which is exact; only
//! [`bf16_bf16`] rounds x, to bf16, ties to even, and multiplies as bf16.
//! Error: |y − f64 result| ≤ 2⁻²² · K · Σ|x·w| (for `bf16_bf16` with x rounded first).
//! Source: Goto and van de Geijn 2008 (doi 10.1145/1356052.1356053) for the blocking of [`panels`].
//!
//! Up to [`GEMV_MAX_M`] tokens the weight is streamed once and every row is multiplied with all
//! tokens while it is in registers; with more tokens [`panels`] takes over.

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub mod panels;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod passes;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_avx2;
#[cfg(target_arch = "x86_64")]
mod x86_avx512;
#[cfg(target_arch = "x86_64")]
mod x86_bf16;

#[cfg(test)]
mod tests;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use crate::isa::Avx512;
use crate::parallel::Tile;
use crate::{Cost, Cpu, Isa, Shape};
pub(crate) use panels::fetch;
pub use panels::{Block, PANEL_K, gemm_with_bf16_panels, gemm_with_panels};
pub use scalar::oracle;

/// Up to so many tokens a call is bound by reading the weight, not by arithmetic.
pub const GEMV_MAX_M: usize = 8;

/// Shapes that tests and benches share: (M, N, K) of a decoder's layers, and of a prompt's.
pub const SHAPES: [Shape; 5] = [
    Shape { m: 1, n: 576, k: 576 },
    Shape { m: 1, n: 11008, k: 4096 },
    Shape { m: 4, n: 1536, k: 576 },
    Shape { m: 16, n: 4096, k: 1024 },
    Shape { m: 128, n: 1536, k: 4096 },
];

/// What the weight is stored as, and whether x is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// [`f32()`]
    F32,
    /// [`bf16()`]
    Bf16,
    /// [`f16()`]
    F16,
    /// [`bf16_bf16`]
    Bf16Bf16,
}

/// Rows of a weight.
#[derive(Clone, Copy, Debug)]
enum Weight<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

/// `y = x · Wᵀ` with an f32 weight.
pub fn f32(cpu: &Cpu, w: &[f32], x: &[f32], y: &mut [f32], shape: Shape) {
    linear(cpu, Weight::F32(w), x, y, shape);
}

/// `y = x · Wᵀ` with a bf16 weight and x as it is.
pub fn bf16(cpu: &Cpu, w: &[bf16], x: &[f32], y: &mut [f32], shape: Shape) {
    linear(cpu, Weight::Bf16(w), x, y, shape);
}

/// `y = x · Wᵀ` with an f16 weight and x as it is.
pub fn f16(cpu: &Cpu, w: &[f16], x: &[f32], y: &mut [f32], shape: Shape) {
    linear(cpu, Weight::F16(w), x, y, shape);
}

/// `y = x · Wᵀ` with a bf16 weight and x rounded to bf16 (ties to even), summed in f32.
///
/// With AVX-512 BF16 this is twice as fast as [`bf16()`]; that instruction takes subnormal numbers as
/// zero.
pub fn bf16_bf16(cpu: &Cpu, w: &[bf16], x: &[f32], y: &mut [f32], shape: Shape) {
    check(w.len(), x, y, shape);
    match cpu.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(isa) if shape.m <= GEMV_MAX_M => {
            let mut rounded = vec![bf16::ZERO; x.len()];
            round_to_bf16(x, &mut rounded);
            by_rows(cpu, y, shape, |rows, tile| {
                x86_bf16::gemv(isa, &w[rows], &rounded, tile, shape);
            });
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(_) => {
            let fill = |block: Block, panel: &mut [[bf16; PANEL_K]]| {
                for (row, n) in panel.iter_mut().zip(block.n) {
                    row[..block.k.len()].copy_from_slice(&w[n * shape.k..][block.k.clone()]);
                }
            };
            let ahead = |block| Weight::Bf16(w).fetch(&block, shape.k);
            panels::gemm_bf16(cpu, shape, x, y, &panels::Source { fill: &fill, ahead: &ahead });
        }
        _ => {
            let rounded: Vec<f32> = x.iter().map(|&v| nearest_bf16(v).to_f32()).collect();
            linear(cpu, Weight::Bf16(w), &rounded, y, shape);
        }
    }
}

/// Rounds to bf16, ties to even; NaN stays NaN.
pub fn round_to_bf16(x: &[f32], rounded: &mut [bf16]) {
    assert!(x.len() == rounded.len(), "{} numbers rounded into {}", x.len(), rounded.len());
    for (to, &from) in rounded.iter_mut().zip(x) {
        *to = nearest_bf16(from);
    }
}

/// What a call moves and computes.
pub fn cost(format: Format, shape: Shape) -> Cost {
    let nbytes = if format == Format::F32 { 4 } else { 2 };
    let (m, n, k) = (shape.m as u64, shape.n as u64, shape.k as u64);
    Cost { bytes: n * k * nbytes + 4 * (m * k + m * n), flops: 2 * m * n * k }
}

/// The kernel that runs for `m` tokens.
pub fn kernel_name(format: Format, isa: Isa, m: usize) -> String {
    let types = match format {
        Format::F32 => "f32",
        Format::Bf16 => "bf16xf32",
        Format::F16 => "f16xf32",
        Format::Bf16Bf16 => "bf16xbf16",
    };
    let variant = if m <= GEMV_MAX_M { "gemv" } else { "gemm" };
    match isa {
        Isa::Scalar => format!("any-{types}-scalar"),
        Isa::Neon(_) if format == Format::Bf16Bf16 => format!("aarch64-bf16xf32-neon-{variant}"),
        Isa::Neon(_) => format!("aarch64-{types}-neon-{variant}"),
        Isa::Avx512Vnni(_) if format == Format::Bf16Bf16 => {
            format!("x86-{types}-avx512bf16-{variant}")
        }
        Isa::Avx512Vnni(_) | Isa::Avx512(_) => format!("x86-{types}-avx512-{variant}"),
        Isa::Avx2(_) => format!("x86-{types}-avx2-{variant}"),
    }
}

fn linear(cpu: &Cpu, w: Weight<'_>, x: &[f32], y: &mut [f32], shape: Shape) {
    check(w.len(), x, y, shape);
    match cpu.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(isa) if shape.m <= GEMV_MAX_M => by_rows(cpu, y, shape, |rows, tile| {
            x86_avx2::gemv(isa, w.slice(rows), x, tile, shape);
        }),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) if shape.m <= GEMV_MAX_M => gemv_avx512(isa, cpu, w, x, (y, shape)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(isa) if shape.m <= GEMV_MAX_M => {
            gemv_avx512(isa.avx512(), cpu, w, x, (y, shape));
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(isa) if shape.m <= GEMV_MAX_M => by_rows(cpu, y, shape, |rows, tile| {
            aarch64::gemv(isa, w.slice(rows), x, tile, shape);
        }),
        Isa::Scalar => by_rows(cpu, y, shape, |rows, tile| {
            scalar::gemv(w.slice(rows), x, tile, shape);
        }),
        isa => {
            let fill = |block: Block, panel: &mut [[f32; PANEL_K]]| {
                w.widen(isa, &block, shape.k, panel);
            };
            let ahead = |block| w.fetch(&block, shape.k);
            panels::gemm_f32(cpu, shape, x, y, &panels::Source { fill: &fill, ahead: &ahead });
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn gemv_avx512(isa: Avx512, cpu: &Cpu, w: Weight<'_>, x: &[f32], (y, shape): (&mut [f32], Shape)) {
    let reordered: Vec<f32>;
    let x = match w {
        Weight::Bf16(_) => {
            reordered = x86_avx512::even_before_odd(x, shape.k);
            &reordered
        }
        _ => x,
    };
    by_rows(cpu, y, shape, |rows, tile| x86_avx512::gemv(isa, w.slice(rows), x, tile, shape));
}

fn check(w_len: usize, x: &[f32], y: &[f32], shape: Shape) {
    let Shape { m, n, k } = shape;
    assert!(
        Some(w_len) == n.checked_mul(k) && x.len() == m * k && y.len() == m * n,
        "{shape:?} wants w of n · k, x of m · k and y of m · n numbers, got {w_len}, {} and {}",
        x.len(),
        y.len()
    );
}

/// Gives every thread some rows of the weight, as a range of its numbers, and their columns of y.
fn by_rows(
    cpu: &Cpu,
    y: &mut [f32],
    shape: Shape,
    f: impl Fn(std::ops::Range<usize>, Tile<'_, f32>) + Sync,
) {
    if shape.k == 0 {
        return y.fill(0.0);
    }
    // Four shares a thread even out what other programs take; more would cost starts.
    let rows = cpu.threads().share(shape.n.div_ceil(4), 12);
    cpu.threads().tiles_mut(y, shape.n, (shape.m, rows), |_, tile| {
        let rows = tile.cols();
        f(rows.start * shape.k..rows.end * shape.k, tile);
    });
}

/// As the hardware rounds: to nearest, ties to even, and NaN to a quiet NaN.
fn nearest_bf16(v: f32) -> bf16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let bits = if v.is_nan() { bits >> 16 | 0x40 } else { rounded };
    #[expect(clippy::cast_possible_truncation, reason = "shifted right by 16, it has 16 bits")]
    bf16::from_bits(bits as u16)
}

impl<'a> Weight<'a> {
    fn len(self) -> usize {
        match self {
            Weight::F32(w) => w.len(),
            Weight::Bf16(w) => w.len(),
            Weight::F16(w) => w.len(),
        }
    }

    fn slice(self, range: std::ops::Range<usize>) -> Weight<'a> {
        match self {
            Weight::F32(w) => Weight::F32(&w[range]),
            Weight::Bf16(w) => Weight::Bf16(&w[range]),
            Weight::F16(w) => Weight::F16(&w[range]),
        }
    }

    /// Asks for a block to be brought near.
    fn fetch(self, block: &Block, k: usize) {
        for n in block.n.clone() {
            let (start, len) = (n * k + block.k.start, block.k.len());
            match self {
                Weight::F32(w) => fetch(w, start, len),
                Weight::Bf16(w) => fetch(w, start, len),
                Weight::F16(w) => fetch(w, start, len),
            }
        }
    }

    /// Writes a block of the weight, as f32, to the panel's rows.
    fn widen(self, isa: Isa, block: &Block, k: usize, panel: &mut [[f32; PANEL_K]]) {
        for (to, n) in panel.iter_mut().zip(block.n.clone()) {
            let to = &mut to[..block.k.len()];
            let row = n * k + block.k.start..n * k + block.k.end;
            match self {
                Weight::F32(w) => to.copy_from_slice(&w[row]),
                Weight::Bf16(w) => {
                    to.iter_mut().zip(&w[row]).for_each(|(to, w)| *to = bf16_to_f32(*w))
                }
                Weight::F16(w) => widen_f16(isa, &w[row], to),
            }
        }
    }
}

/// bf16 is the upper half of an f32. Unlike `half`'s this has no branch for NaN, so that it becomes
/// vector instructions.
fn bf16_to_f32(v: bf16) -> f32 {
    f32::from_bits(u32::from(v.to_bits()) << 16)
}

fn widen_f16(isa: Isa, from: &[f16], to: &mut [f32]) {
    match isa {
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(isa) => aarch64::widen_f16(isa, from, to),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(isa) => x86_avx2::widen_f16(isa, from, to),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) => x86_avx2::widen_f16(isa.avx2(), from, to),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(isa) => x86_avx2::widen_f16(isa.avx512().avx2(), from, to),
        _ => to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32()),
    }
}
