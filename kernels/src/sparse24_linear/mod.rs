//! `y[m, n] = Σ_k x[m, k] · w[n, k]`, where of each four neighbours of a row of w two are stored and two are zero.
//! x (M, K) f32 · values (N, K/2) f32, bf16 or i8, or (N, 32 · ⌈K/128⌉) u8 · codes (N, 6 · ⌈K/64⌉) u8 and 2 bytes → y (M, N) f32.
//! Which two of a four are stored is three bits: whether column 0, 1 and 2 are; column 3 is stored if that makes two. A row's 64 columns take
//! 6 bytes, the first four in the low bits, and rows end on whole 64s. Of int4, byte j of a row's 128 columns holds the stored number j in its low
//! nibble and 32 + j in its high one; codes 0 to 15 stand for `(q − 8) · scale + zero`.
//! Error: |y − f64 result| ≤ K · 2⁻²² · Σ|x·w|; integer weights on AVX-512 add Σ_blocks amax(x in block) / 64000 · Σ|w|, blocks of 512
//! (with more tokens than a GEMV takes: of 128 or 64), because x is rounded to 16-bit integers once a call. Dynamic: `acc · s_x[m] · s_w[n]` bit for bit.
//! Source: the pattern is NVIDIA's (Mishra et al. 2021, arXiv 2104.08378); the code of three bits, whose fourth is a parity, is our own.
//!
//! A row is spread to its columns in registers (`vpexpandb` by masks, eight of which four instructions make of the codes), so that memory moves 0.59
//! of what dense int8 moves and 0.69 of dense int4. From [`GEMV_MAX_M`] tokens on a dense GEMM takes what was spread: there the
//! processor multiplies zeros too, and nothing is gained but memory.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod dynamic;
#[cfg(target_arch = "x86_64")]
mod floats;
#[cfg(target_arch = "x86_64")]
mod gemm;
#[cfg(target_arch = "x86_64")]
mod masks;
mod names;
mod pack;
#[cfg(target_arch = "x86_64")]
mod params;
#[cfg(target_arch = "x86_64")]
mod planes;
#[cfg(target_arch = "x86_64")]
mod row;
#[cfg(target_arch = "x86_64")]
mod spread;

#[cfg(test)]
mod tests;

use half::bf16;

pub use names::{dynamic_kernel_name, kernel_name};
pub use pack::{
    are_codes, code_bytes, codes_of, expanded, int4_bytes, is_stored, kept_of, pack_int4,
    unpack_int4,
};

#[cfg(target_arch = "x86_64")]
use crate::isa::Avx512Vbmi2;
use crate::{Compute, Cost, Cpu, Isa, Shape, dense_linear, exact_f32};

/// The two stored numbers of each four.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// As they are.
    Bf16(&'a [bf16]),
    /// `q · scale`, one scale a row.
    Int8 {
        /// (N, K/2)
        q: &'a [i8],
        /// (N)
        scale: &'a [f32],
    },
    /// `(q − 8) · scale + zero`
    Int4 {
        /// See [`pack_int4`].
        q: &'a [u8],
        /// (N, K / group_size)
        scale: &'a [f32],
        /// (N, K / group_size), or none where all are 0.
        zero: Option<&'a [f32]>,
        /// Columns that share a scale: 32, 64 or a multiple of 128.
        group_size: usize,
    },
}

/// A weight (N, K), checked when it is used.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// What is stored.
    pub values: Values<'a>,
    /// Where it belongs; see [`codes_of`].
    pub codes: &'a [u8],
}

/// The shapes that tests and benches run: single fours, tails, odd rows, a decoder's layer.
pub const SHAPES: [Shape; 10] = [
    Shape { m: 1, n: 1, k: 4 },
    Shape { m: 2, n: 3, k: 60 },
    Shape { m: 1, n: 5, k: 64 },
    Shape { m: 3, n: 17, k: 132 },
    Shape { m: 1, n: 13, k: 512 },
    Shape { m: 4, n: 9, k: 320 },
    Shape { m: 7, n: 6, k: 640 },
    Shape { m: 9, n: 35, k: 388 },
    Shape { m: 37, n: 67, k: 256 },
    Shape { m: 64, n: 48, k: 1024 },
];

/// Columns whose codes are whole bytes, and whose numbers fill a vector of bytes.
#[cfg(target_arch = "x86_64")]
const STEP: usize = 64;

/// Up to so many tokens a row is spread in registers and multiplied with all of them; with more a dense GEMM pays.
pub const GEMV_MAX_M: usize = 8;

/// `y = x · Wᵀ`.
pub fn linear(cpu: &Cpu, w: Weight<'_>, x: &[f32], y: &mut [f32], shape: Shape) {
    let rows = Rows::new(w, shape);
    rows.check(x.len(), y.len());
    match cpu.isa() {
        Isa::Scalar => scalar(rows, x, y),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(_) if shape.m <= GEMV_MAX_M => match Avx512Vbmi2::detect() {
            Some(isa) if avx512::gemv(isa, cpu, rows, x, y) => {}
            _ => by_rows(cpu, rows, x, y),
        },
        _ if shape.m <= GEMV_MAX_M => by_rows(cpu, rows, x, y),
        isa if in_bf16(cpu, w) => {
            dense_linear::gemm_with_bf16_panels(cpu, shape, x, y, |block, panel| {
                for (n, panel) in block.n.zip(panel) {
                    rows.decode_bf16(isa, n, block.k.clone(), panel);
                }
            });
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(isa) => {
            let done = Avx512Vbmi2::detect()
                .is_some_and(|spread| gemm::linear((isa, spread), cpu, rows, x, y));
            if !done {
                by_panels(cpu, rows, x, y);
            }
        }
        _ => by_panels(cpu, rows, x, y),
    }
}

/// A GEMM in f32.
fn by_panels(cpu: &Cpu, rows: Rows<'_>, x: &[f32], y: &mut [f32]) {
    dense_linear::gemm_with_panels(cpu, rows.shape, x, y, |block, panel| {
        for (n, panel) in block.n.zip(panel) {
            rows.decode(cpu.isa(), n, block.k.clone(), panel.as_mut_slice());
        }
    });
}

/// Rows `n` of the weight in f32, zeros and all.
pub fn dequantize(w: Weight<'_>, shape: Shape, n: std::ops::Range<usize>, out: &mut [f32]) {
    let rows = Rows::new(w, shape);
    for (n, out) in n.zip(out.chunks_exact_mut(shape.k.max(1))) {
        rows.decode_plain(n, 0..shape.k, out);
    }
}

/// Activations quantized by rows, about zero; see [`crate::int8_activation`].
#[derive(Clone, Copy, Debug)]
pub struct Activation<'a> {
    /// The codes, (M, K).
    pub q: &'a [i8],
    /// (M)
    pub scale: &'a [f32],
}

/// `y[m, n] = (Σ_k a[m, k] · q[n, k]) · s_x[m] · s_w[n]` of an int8 weight, its sums exact.
pub fn dynamic(
    cpu: &Cpu,
    (q, scale, codes): (&[i8], &[f32], &[u8]),
    act: Activation<'_>,
    y: &mut [f32],
    shape: Shape,
) {
    let Shape { m, n, k } = shape;
    assert!(k <= crate::int8_linear::ROW_SUM_MAX_K, "sums of {k} products may not fit 32 bits");
    let rows = Rows::new(Weight { values: Values::Int8 { q, scale }, codes }, shape);
    rows.check(act.q.len(), y.len());
    assert!(act.scale.len() == m, "{} activation scales are not {m}", act.scale.len());
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512Vnni(isa), Some(spread)) = (cpu.isa(), Avx512Vbmi2::detect()) {
        if m <= GEMV_MAX_M {
            return dynamic::gemv(spread, cpu, rows, act, y);
        }
        return gemm::dynamic((isa, spread), cpu, rows, act, y);
    }
    // Rows are spread once, a few at a time, and the dense kernel multiplies them.
    const ROWS: usize = 64;
    let mut dense = vec![0; ROWS.min(n) * k];
    let mut part = vec![0.0; m * ROWS.min(n)];
    for start in (0..n).step_by(ROWS) {
        let count = ROWS.min(n - start);
        for (i, row) in dense.chunks_exact_mut(k.max(1)).take(count).enumerate() {
            rows.decode_int8(start + i, row);
        }
        let w = crate::int8_linear::Weight {
            qdata: &dense[..count * k],
            scale: &scale[start..start + count],
            row_sums: None,
        };
        let act = crate::int8_linear::Activation { q: act.q, scale: act.scale, zero_point: None };
        let part = &mut part[..m * count];
        crate::int8_linear::dynamic(cpu, w, act, part, Shape { m, n: count, k });
        for (y, part) in y.chunks_exact_mut(n).zip(part.chunks_exact(count)) {
            y[start..start + count].copy_from_slice(part);
        }
    }
}

/// What a call moves and computes; zeros count as computed, as a dense layer's would.
pub fn cost(w: Weight<'_>, shape: Shape) -> Cost {
    let (m, n, k) = (shape.m as u64, shape.n as u64, shape.k as u64);
    let values = match w.values {
        Values::F32(v) => size_of_val(v),
        Values::Bf16(v) => size_of_val(v),
        Values::Int8 { q, scale } => q.len() + size_of_val(scale),
        Values::Int4 { q, scale, zero, .. } => {
            q.len() + size_of_val(scale) + zero.map_or(0, size_of_val)
        }
    };
    let bytes = (values + w.codes.len()) as u64 + 4 * (m * k + m * n);
    Cost { bytes, flops: 2 * m * n * k }
}

/// A checked weight with its shape.
#[derive(Clone, Copy)]
struct Rows<'a> {
    w: Weight<'a>,
    shape: Shape,
}

impl<'a> Rows<'a> {
    fn new(w: Weight<'a>, shape: Shape) -> Rows<'a> {
        let Shape { n, k, .. } = shape;
        assert!(k.is_multiple_of(4), "K = {k} is not a multiple of 4");
        let codes = n * code_bytes(k) + 2;
        assert!(w.codes.len() == codes, "{} bytes of codes are not {codes}", w.codes.len());
        let (got, wanted) = match w.values {
            Values::F32(v) => (v.len(), n * k / 2),
            Values::Bf16(v) => (v.len(), n * k / 2),
            Values::Int8 { q, scale } => {
                assert!(
                    scale.len() == n,
                    "{} scales are not one for each of {n} rows",
                    scale.len()
                );
                (q.len(), n * k / 2)
            }
            Values::Int4 { q, scale, zero, group_size: g } => {
                let fits = matches!(g, 32 | 64) || (g > 0 && g.is_multiple_of(128));
                assert!(fits && k.is_multiple_of(g), "groups of {g} do not fit K = {k}");
                assert!(
                    scale.len() == n * (k / g),
                    "{} scales are not {n} × {k} / {g}",
                    scale.len()
                );
                assert!(
                    zero.is_none_or(|zero| zero.len() == scale.len()),
                    "zeros as many as scales"
                );
                (q.len(), n * int4_bytes(k))
            }
        };
        assert!(got == wanted, "{got} stored values are not those of {n} × {k}: {wanted}");
        Rows { w, shape }
    }

    fn check(&self, x: usize, y: usize) {
        let Shape { m, n, k } = self.shape;
        assert!(x == m * k, "{x} activations are not {m} × {k}");
        assert!(y == m * n, "{y} results are not {m} × {n}");
    }

    fn codes(&self, n: usize) -> &'a [u8] {
        let bytes = code_bytes(self.shape.k);
        // Two more, so that the last 6 bytes can be read as 8.
        &self.w.codes[n * bytes..(n + 1) * bytes + 2]
    }

    /// Columns `k` (from a multiple of 4 on) of row `n` in f32, to the start of `out`.
    fn decode(&self, isa: Isa, n: usize, k: std::ops::Range<usize>, out: &mut [f32]) {
        let out = &mut out[..k.len()];
        #[cfg(target_arch = "x86_64")]
        if let (Isa::Avx512Vnni(_), Some(isa), true) =
            (isa, Avx512Vbmi2::detect(), k.start.is_multiple_of(64))
        {
            return spread::decode(isa, *self, n, k, out);
        }
        let _ = isa;
        self.decode_plain(n, k, out);
    }

    /// The same of a bf16 weight, as it is.
    fn decode_bf16(&self, isa: Isa, n: usize, k: std::ops::Range<usize>, out: &mut [bf16]) {
        #[cfg(target_arch = "x86_64")]
        if let (Isa::Avx512Vnni(_), Some(isa), Values::Bf16(v)) =
            (isa, Avx512Vbmi2::detect(), self.w.values)
        {
            return spread::decode_bf16(isa, (*self, v), n, k, out);
        }
        let mut wide = [0.0; dense_linear::PANEL_K];
        self.decode(isa, n, k, &mut wide);
        dense_linear::round_to_bf16(&wide, out);
    }

    fn decode_plain(&self, n: usize, k: std::ops::Range<usize>, out: &mut [f32]) {
        out.fill(0.0);
        let value = |at: usize, column: usize| match self.w.values {
            Values::F32(v) => v[n * self.shape.k / 2 + at],
            Values::Bf16(v) => {
                f32::from_bits(u32::from(v[n * self.shape.k / 2 + at].to_bits()) << 16)
            }
            Values::Int8 { q, scale } => f32::from(q[n * self.shape.k / 2 + at]) * scale[n],
            Values::Int4 { q, scale, zero, group_size } => {
                let row = &q[n * int4_bytes(self.shape.k)..];
                let group = n * (self.shape.k / group_size) + column / group_size;
                let code = f32::from(pack::int4_at(row, at)) - 8.0;
                code * scale[group] + zero.map_or(0.0, |zero| zero[group])
            }
        };
        let codes = self.codes(n);
        for (i, four) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let at = k.start / 4 + i;
            let [first, second] = pack::places(codes, at);
            four[first] = value(2 * at, 4 * at + first);
            four[second] = value(2 * at + 1, 4 * at + second);
        }
    }

    /// Row `n` of an int8 weight as codes.
    fn decode_int8(&self, n: usize, out: &mut [i8]) {
        let Values::Int8 { q, .. } = self.w.values else { return };
        out.fill(0);
        let codes = self.codes(n);
        let stored = q[n * self.shape.k / 2..][..self.shape.k / 2].as_chunks::<2>().0;
        for (at, (four, stored)) in out.as_chunks_mut::<4>().0.iter_mut().zip(stored).enumerate() {
            let [first, second] = pack::places(codes, at);
            (four[first], four[second]) = (stored[0], stored[1]);
        }
    }
}

/// Whether x is rounded to bf16 for many tokens, as of a dense layer of bf16 weights.
fn in_bf16(cpu: &Cpu, w: Weight<'_>) -> bool {
    matches!(w.values, Values::Bf16(_)) && cpu.compute() == Compute::Bf16
}

fn by_rows(cpu: &Cpu, rows: Rows<'_>, x: &[f32], y: &mut [f32]) {
    let k = rows.shape.k;
    exact_f32::linear(cpu, x, y, rows.shape, |n, row| {
        rows.decode(cpu.isa(), n, 0..k, row);
        1.0
    });
}

/// Scalar oracle: the formula with sums in f64.
#[expect(clippy::cast_possible_truncation, reason = "the result is f32")]
fn scalar(rows: Rows<'_>, x: &[f32], y: &mut [f32]) {
    let Shape { n, k, .. } = rows.shape;
    let mut row = vec![0.0; k];
    for n_row in 0..n {
        rows.decode_plain(n_row, 0..k, &mut row);
        for (m, y) in y.chunks_exact_mut(n).enumerate() {
            let products = x[m * k..][..k].iter().zip(&row);
            y[n_row] = products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32;
        }
    }
}
