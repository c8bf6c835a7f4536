//! `y[m, n] = Σ_k x[m, k] · (v(u[n, k]) · scale[n, k / G] + offset[n, k / G])`, `v(u) = u − bias` or `v(u) = table[u]`.
//! x (M, K) f32, or integers with a scale a row · u (N, K) codes of 1 to 8 bits · scale (N, K/G) f32, bf16 or f16 · offset the
//! same, or `−zero · scale` of i8 zeros (N, K/G), or 0 → y (M, N) f32.
//! Sixteen rows lie side by side in a panel; `codes.rs` says how. G is a multiple of 32, or K.
//! Error: |y − f64 result| ≤ Σ_blocks amax(x in block) / R · Σ|v · scale| + K · 2⁻²² · Σ|x| · (|v · scale| + |offset|), blocks of 32, because
//! x is rounded to 16-bit integers once a call: R = 65000, 21800 for codes of one bit, or 13400 for tables, which are rounded too, to 1/20000 of their
//! largest value (those of NF4 need no rounding). Prepared integers ([`Activation::from_codes`]) are exact and have the second term only.
//! A block whose numbers are all smaller than 1e-30 counts as zeros; one with a NaN or an infinity makes its row NaN.
//! Other G: rows are dequantized one at a time and multiplied in f32, with the second term only.
//! Source: the panels of `ggml/linear`, for torchao's formats; integer dot products of pairs (`vpmaddwd`, `vpdpwssd`).

mod activation;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_stream;
mod codes;
mod scalar;
mod weight;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

pub use activation::{Activation, Tokens, through_tokens};
pub use codes::Codes;
pub use weight::{Floats, Offset, Table, Values, Weight};

use std::ops::Range;

use crate::parallel::Tile;
use crate::{Cost, Cpu, Isa, Shape, exact_f32};
use activation::Block;
use codes::LANES;

/// Up to this many rows of activations a panel is streamed, each code unpacked in registers; above, it is decoded once
/// and multiplied tile by tile.
const STREAM_ROWS: usize = 2;

/// Panels that are streamed together where the registers allow it; those that are left over are slower.
const SIDE_BY_SIDE: usize = 4;

/// Bytes of weights that are worth a share of their own when M is small.
const SHARE_NBYTES: usize = 32 << 10;

/// Shapes and group sizes of tests and benches: single rows, tails of rows and columns, group edges, a decoder's layer.
pub const SHAPES: [(Shape, usize); 12] = [
    (Shape { m: 1, n: 1, k: 1 }, 1),
    (Shape { m: 1, n: 3, k: 32 }, 32),
    (Shape { m: 2, n: 17, k: 96 }, 32),
    (Shape { m: 3, n: 16, k: 128 }, 64),
    (Shape { m: 1, n: 33, k: 100 }, 100),
    (Shape { m: 5, n: 7, k: 63 }, 63),
    (Shape { m: 2, n: 31, k: 256 }, 128),
    (Shape { m: 4, n: 5, k: 48 }, 12),
    (Shape { m: 13, n: 35, k: 2400 }, 2400),
    (Shape { m: 27, n: 47, k: 768 }, 32),
    (Shape { m: 1, n: 576, k: 576 }, 64),
    (Shape { m: 12, n: 18, k: 4480 }, 2240),
];

/// `y = x · dequantize(w)ᵀ`.
pub fn linear(cpu: &Cpu, w: &Weight, x: &[f32], y: &mut [f32], shape: Shape) {
    let Shape { m, n, k } = shape;
    assert!(w.n() == n && w.k() == k, "packed linear: the weight is {} × {}", w.n(), w.k());
    assert!(x.len() == m * k, "{} activations are not {m} × {k}", x.len());
    assert!(y.len() == m * n, "{} results are not {m} × {n}", y.len());
    if w.has_panels() {
        linear_prepared(cpu, w, &Activation::quantize(cpu, x, (m, k), w.x_max()), y);
        return;
    }
    exact_f32::linear(cpu, x, y, shape, |n, row| {
        w.dequantize_row(n, row);
        1.0
    });
}

/// `y = x · dequantize(w)ᵀ` for activations that are integers already; the weight must have panels.
pub fn linear_prepared(cpu: &Cpu, w: &Weight, x: &Activation, y: &mut [f32]) {
    assert!(w.has_panels(), "packed linear: groups of {} have no panels", w.group_size());
    assert!(x.k() == w.k(), "packed linear: activation and weight must have the same K");
    assert!(x.m() * w.n() == y.len(), "packed linear: y must be M rows of N numbers");
    if w.k() == 0 {
        y.fill(0.0);
    }
    if y.is_empty() || w.k() == 0 {
        return;
    }
    let panels = w.n().div_ceil(LANES);
    // Eight shares a thread even out cores that other programs slow down.
    let shares = 8 * cpu.threads().count();
    let least = SHARE_NBYTES.div_ceil(w.nbytes().div_ceil(panels).max(1));
    let mut share = panels.div_ceil(shares).max(least.min(panels.div_ceil(cpu.threads().count())));
    if share >= 4 * SIDE_BY_SIDE {
        share = share.next_multiple_of(SIDE_BY_SIDE);
    }
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512Vnni(isa), 1..=STREAM_ROWS) = (cpu.isa(), x.m()) {
        let streamed = x86::Streamed::new(w, x.rows(0..x.m()));
        return cpu.threads().tiles_mut(y, w.n(), (x.m(), share * LANES), |i, mut tile| {
            let part = i * share..panels.min((i + 1) * share);
            x86::stream_avx512(isa, w, part.clone(), (&streamed, x.m()), |panel, row, out| {
                put(&mut tile, row, panel - part.start, out);
            });
        });
    }
    cpu.threads().tiles_mut(y, w.n(), (x.m(), share * LANES), |i, mut tile| {
        let panels = i * share..panels.min((i + 1) * share);
        for rows in row_chunks(x) {
            multiply(cpu.isa(), (w, panels.clone()), (x, rows), &mut tile);
        }
    });
}

/// Rows of activations that stay in the second-level cache while panel after panel passes.
fn row_chunks(x: &Activation) -> impl Iterator<Item = Range<usize>> + use<> {
    const CACHE_NBYTES: usize = 512 << 10;
    let rows = (CACHE_NBYTES / (x.steps() * size_of::<Block>()).max(1)).max(24);
    let m = x.m();
    (0..m).step_by(rows).map(move |first| first..m.min(first + rows))
}

/// Some panels times some rows of activations.
fn multiply(
    isa: Isa,
    (w, panels): (&Weight, Range<usize>),
    (x, rows): (&Activation, Range<usize>),
    y: &mut Tile<'_, f32>,
) {
    let x = x.rows(rows.clone());
    let mut out = vec![[0.0; LANES]; rows.len()];
    #[cfg(target_arch = "x86_64")]
    let mut scratch = Vec::new();
    for (p, panel) in panels.enumerate() {
        out.fill([0.0; LANES]);
        let panel = w.panel(panel);
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) if rows.len() <= STREAM_ROWS => {
                x86::stream_avx2(avx2, &panel, x, &mut out)
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) if rows.len() <= STREAM_ROWS => {
                x86::stream_avx2(avx512.avx2(), &panel, x, &mut out);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => x86::tiles_avx2(avx2, &panel, x, &mut out, &mut scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => {
                x86::tiles_avx2(avx512.avx2(), &panel, x, &mut out, &mut scratch);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(vnni) => x86::tiles_avx512(vnni, &panel, x, &mut out, &mut scratch),
            _ => scalar::panel(&panel, x, &mut out),
        }
        for (row, out) in rows.clone().zip(&out) {
            put(y, row, p, out);
        }
    }
}

/// The results of a tile's panel `p` for one row of activations; the last panel may have less than sixteen rows.
fn put(y: &mut Tile<'_, f32>, row: usize, p: usize, out: &[f32; LANES]) {
    let y = &mut y.row(row)[p * LANES..];
    let len = y.len().min(LANES);
    y[..len].copy_from_slice(&out[..len]);
}

/// What a call with `m` rows moves and computes.
pub fn cost(w: &Weight, m: usize) -> Cost {
    let (n, k) = (w.n(), w.k());
    Cost { bytes: (w.nbytes() + 4 * m * (n + k)) as u64, flops: 2 * (m * n * k) as u64 }
}

/// The kernel that multiplies `m` rows on `isa`, such as `x86-int3xi16-avx512vnni-stream`.
pub fn kernel_name(isa: Isa, w: &Weight, m: usize) -> String {
    let kind = if w.is_table() { "lut" } else { "int" };
    let bits = w.bits();
    if !w.has_panels() {
        return format!("any-{kind}{bits}xf32-rows");
    }
    let (arch, isa) = match isa {
        Isa::Avx2(_) | Isa::Avx512(_) => ("x86", "avx2"),
        Isa::Avx512Vnni(_) => ("x86", "avx512vnni"),
        Isa::Scalar | Isa::Neon(_) => return format!("any-{kind}{bits}xi16-scalar"),
    };
    let variant = if m <= STREAM_ROWS { "stream" } else { "tiles" };
    format!("{arch}-{kind}{bits}xi16-{isa}-{variant}")
}
