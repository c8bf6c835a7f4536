//! Linear layers whose weights are blocks of GGUF files.
//!
//! `y[m, n] = Σ_b x_scale[m, b] · scale[n, b] · Σ_{k in b} xq[m, k] · (q[n, k] − bias) + min[n, b] · x_scale[m, b] · Σ_{k in b} xq[m, k]`,
//! b running over the sub-blocks of 32 or 16 columns, and xq = round(x / x_scale), x_scale = amax of 32 columns / 32767.
//! x (M, K) f32 · weight (N, K) in [`Panels`] → y (M, N) f32; K is a multiple of the type's block length.
//! A panel holds sixteen rows: per block the f16 scales of all rows, then codes in which two neighbouring columns of one row are a 32-bit word.
//! Error: |y − f64 result| ≤ Σ_k |w|·amax(k)·2⁻¹⁶ + 2⁻²³·(K/16 + 4)·Σ_k (|scale·(q − bias)| + |min|)·|x|: activations keep 16 bits, where
//! llama.cpp keeps 8. A block of activations with |x| < 1e-30 counts as zeros; one with a NaN or an infinity makes its row NaN.
//! Source: formats as in `dequantize.rs`; integer dot products of pairs (`vpmaddwd`, `vpdpwssd`).
//!
//! Every instruction set adds in the same order, so that y has the same bits on each and for each M.

mod activation;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_codes;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod avx512vnni_tile;
mod decoded;
mod panels;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activation::Activation;
pub use panels::Panels;

use crate::parallel::Tile;
use crate::{Cost, Cpu, Isa, Shape};
use activation::Block;
use panels::{LANES, STEP};
use std::ops::Range;

/// Up to this many rows of activations a panel is streamed, each code unpacked in registers; above, it is
/// decoded once and multiplied tile by tile.
const STREAM_ROWS: usize = 2;

/// Bytes of weights that are worth a share of their own when M = 1: two microseconds' reading, and sixteen times
/// what is prefetched in vain behind its end.
const SHARE_NBYTES: usize = 32 << 10;

/// Shapes of tests and benches: SmolLM2's layers, and odd ones. K suits every type where it is a multiple of 256.
pub const SHAPES: [Shape; 9] = [
    Shape { m: 1, n: 576, k: 576 },
    Shape { m: 1, n: 192, k: 576 },
    Shape { m: 2, n: 1536, k: 576 },
    Shape { m: 1, n: 576, k: 1536 },
    Shape { m: 3, n: 1, k: 256 },
    Shape { m: 7, n: 33, k: 512 },
    Shape { m: 13, n: 47, k: 768 },
    Shape { m: 20, n: 17, k: 2304 },
    Shape { m: 1, n: 0, k: 256 },
];

/// `y = x · Wᵀ`.
pub fn linear(cpu: &Cpu, w: &Panels, x: &[f32], y: &mut [f32], shape: Shape) {
    assert!(w.n() == shape.n && w.k() == shape.k, "ggml linear: the weight must be (N, K)");
    linear_prepared(cpu, w, &Activation::quantize(cpu, x, shape.m, shape.k), y);
}

/// `y = x · Wᵀ` for activations that were quantized before.
pub fn linear_prepared(cpu: &Cpu, w: &Panels, x: &Activation, y: &mut [f32]) {
    assert!(x.k() == w.k(), "ggml linear: activation and weight must have the same K");
    assert!(y.len() == x.m() * w.n(), "ggml linear: y must be M rows of N numbers");
    if w.k() == 0 {
        y.fill(0.0);
    } else if x.m() == 1 {
        linear_many(cpu, &mut [(w, y)], x);
    } else if !y.is_empty() {
        // Four shares a thread even out cores that other programs slow down.
        let share = w.count().div_ceil(4 * cpu.threads().count());
        cpu.threads().tiles_mut(y, w.n(), (x.m(), share * LANES), |i, mut tile| {
            let panels = i * share..w.count().min((i + 1) * share);
            for rows in row_chunks(x) {
                multiply(cpu.isa(), (w, panels.clone()), (x, rows), &mut tile);
            }
        });
    }
}

/// Several weights times the same activations, `y = x · Wᵀ` each; for one row in one go of the threads.
pub fn linear_many(cpu: &Cpu, layers: &mut [(&Panels, &mut [f32])], x: &Activation) {
    if x.m() != 1 || x.k() == 0 {
        for (w, y) in layers {
            linear_prepared(cpu, w, x, y);
        }
        return;
    }
    for (w, y) in &*layers {
        assert!(x.k() == w.k(), "ggml linear: activation and weight must have the same K");
        assert!(y.len() == w.n(), "ggml linear: y must be a row of N numbers");
    }
    let nbytes: usize = layers.iter().map(|(w, _)| w.nbytes()).sum();
    let wanted = (nbytes / (8 * cpu.threads().count())).max(SHARE_NBYTES);
    let mut shares: Vec<Share<'_>> = layers.iter_mut().flat_map(|l| cut(l, wanted)).collect();
    cpu.threads().chunks_mut(&mut shares, 1, |_, share| {
        for Share { w, first, y } in share {
            for (p, y) in y.chunks_mut(LANES).enumerate() {
                let mut out = [[0.0; LANES]];
                stream(cpu.isa(), (w, *first + p), x.rows_from(0), &mut out);
                y.copy_from_slice(&out[0][..y.len()]);
            }
        }
    });
}

/// Some neighbouring panels of a weight and the part of one row that they make.
struct Share<'a> {
    w: &'a Panels,
    first: usize,
    y: &'a mut [f32],
}

/// Cuts a weight into shares of about `nbytes`.
fn cut<'a>((w, y): &'a mut (&Panels, &mut [f32]), nbytes: usize) -> Vec<Share<'a>> {
    let panels = (nbytes * w.count()).div_ceil(w.nbytes().max(1)).max(1);
    let shares = y.chunks_mut(panels * LANES).enumerate();
    shares.map(|(i, y)| Share { w, first: i * panels, y }).collect()
}

/// Rows of activations that stay in the second-level cache while panel after panel passes; each pass decodes all panels.
fn row_chunks(x: &Activation) -> impl Iterator<Item = Range<usize>> {
    const CACHE_NBYTES: usize = 640 << 10;
    let row_nbytes = x.k() / STEP * size_of::<Block>();
    let rows = (CACHE_NBYTES / row_nbytes.max(1) / 12 * 12).max(24);
    (0..x.m()).step_by(rows).map(move |first| first..x.m().min(first + rows))
}

/// Some panels times some rows of activations.
fn multiply(
    isa: Isa,
    (w, panels): (&Panels, Range<usize>),
    (x, rows): (&Activation, Range<usize>),
    y: &mut Tile<'_, f32>,
) {
    let steps = w.k() / STEP;
    let x = &x.rows_from(rows.start)[..rows.len() * steps];
    let at_once = if rows.len() > STREAM_ROWS { panels_at_once(isa) } else { 1 };
    let mut out = vec![[0.0; LANES]; at_once * rows.len()];
    let mut scratch = Vec::new();
    for first in panels.clone().step_by(at_once) {
        let some = first..panels.end.min(first + at_once);
        let out = &mut out[..some.len() * rows.len()];
        out.fill([0.0; LANES]);
        if rows.len() <= STREAM_ROWS {
            stream(isa, (w, first), x, out);
        } else {
            decode_and_multiply(isa, (w, some.clone()), x, out, &mut scratch);
        }
        for (p, out) in some.zip(out.chunks_exact(rows.len())) {
            for (row, out) in rows.clone().zip(out) {
                let y = &mut y.row(row)[(p - panels.start) * LANES..];
                let len = y.len().min(LANES);
                y[..len].copy_from_slice(&out[..len]);
            }
        }
    }
}

/// Panels that [`decode_and_multiply`] takes together.
fn panels_at_once(isa: Isa) -> usize {
    if matches!(isa, Isa::Avx512Vnni(_)) { 2 } else { 1 }
}

/// One panel times one or two rows of activations.
fn stream(isa: Isa, (w, panel): (&Panels, usize), x: &[Block], y: &mut [[f32; LANES]]) {
    let panel = w.panel(panel);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(avx2) => x86::stream_avx2(avx2, w.ty(), panel, x, y),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(avx512) => x86::stream_avx2(avx512.avx2(), w.ty(), panel, x, y),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(vnni) => x86::stream_avx512vnni(vnni, w.ty(), panel, x, y),
        _ => {
            for (x, y) in x.chunks_exact(w.k() / STEP).zip(y) {
                scalar::row(w.ty(), panel, x, y);
            }
        }
    }
}

/// One panel, or [`panels_at_once`], times many rows of activations.
fn decode_and_multiply(
    isa: Isa,
    (w, panels): (&Panels, Range<usize>),
    x: &[Block],
    y: &mut [[f32; LANES]],
    scratch: &mut Vec<decoded::Decoded>,
) {
    let w = (w, panels.start);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(avx2) => x86::tiles_avx2(avx2, w, x, y, scratch),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(avx512) => x86::tiles_avx2(avx512.avx2(), w, x, y, scratch),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(vnni) => match panels.len() {
            2 => x86::tiles_avx512vnni::<2>(vnni, w, x, y, scratch),
            _ => x86::tiles_avx512vnni::<1>(vnni, w, x, y, scratch),
        },
        _ => stream(isa, w, x, y),
    }
}

/// Bytes and operations of one call.
pub fn cost(w: &Panels, m: usize) -> Cost {
    let (n, k) = (w.n(), w.k());
    Cost { bytes: (w.nbytes() + 4 * m * (n + k)) as u64, flops: 2 * (m * n * k) as u64 }
}

/// The kernel that [`linear`] runs, such as `x86-q4_1xi16-avx2-stream`.
pub fn kernel_name(isa: Isa, ty: super::BlockType, m: usize) -> String {
    let ty = ty.name().to_lowercase();
    let (arch, isa) = match isa {
        Isa::Avx2(_) | Isa::Avx512(_) => ("x86", "avx2"),
        Isa::Avx512Vnni(_) => ("x86", "avx512vnni"),
        Isa::Scalar | Isa::Neon(_) => return format!("any-{ty}xi16-scalar"),
    };
    let variant = if m <= STREAM_ROWS { "stream" } else { "tiles" };
    format!("{arch}-{ty}xi16-{isa}-{variant}")
}
