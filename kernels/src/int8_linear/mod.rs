//! Weight-only: `y[m, n] = Σ_k x[m, k] · q[n, k] · scale[n, k / G]` (one scale a tensor, a row or a group of G).
//! Dynamic: `y[m, n] = (acc · s_x[m] − (zp[m] · s_x[m]) · Σ_k q[n, k]) · s_w[n]` with
//! `acc = Σ_k a[m, k] · q[n, k]`, exact in 32 bits.
//! x (M, K) f32 or codes a (M, K) i8 · q (N, K) i8 · scale (1), (N) or (N, K/G) f32 → y (M, N) f32.
//! Rows are contiguous.
//! Error: weight-only |y − f64 result| ≤ Σ_blocks amax(x in block) / 64000 · Σ|w| + K · 2⁻²³ · Σ|x·w|, blocks of 128 (or what the
//! group allows), because x is rounded to 16-bit integers once a call; rows under 256, groups that 32 does not divide,
//! and x with NaN or infinity are multiplied in f32 and keep only the second term. Dynamic: the formula
//! in f32 in that order, bit for bit.
//! Source: torchao `Int8Tensor` (weight-only and dynamic activation); integer products as in gemmlowp.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod avx512vnni_dynamic;
mod dynamic;
#[cfg(target_arch = "x86_64")]
pub(crate) mod gemm;

#[cfg(test)]
mod tests;

pub use dynamic::{
    Activation, ROW_SUM_MAX_K, Weight, dynamic, dynamic_cost, dynamic_kernel_name, row_sums,
};

use crate::block_int16::BlockInt16;
use crate::{Cost, Cpu, Isa, Shape, exact_f32};

/// The scales of a weight (N, K).
#[derive(Clone, Copy, Debug)]
pub enum Scale<'a> {
    /// One for all.
    Tensor(f32),
    /// One a row: (N).
    Row(&'a [f32]),
    /// One a group of a row: (N, K / group_size).
    Group {
        /// The scales.
        scale: &'a [f32],
        /// How many columns share one.
        group_size: usize,
    },
}

/// The shapes that tests and benches run: single rows, tails, primes, group edges, a decoder's layer.
pub const SHAPES: [Shape; 12] = [
    Shape { m: 1, n: 1, k: 1 },
    Shape { m: 1, n: 3, k: 255 },
    Shape { m: 2, n: 5, k: 256 },
    Shape { m: 3, n: 17, k: 288 },
    Shape { m: 1, n: 64, k: 1024 },
    Shape { m: 4, n: 31, k: 321 },
    Shape { m: 5, n: 33, k: 640 },
    Shape { m: 8, n: 7, k: 1531 },
    Shape { m: 13, n: 35, k: 512 },
    Shape { m: 16, n: 16, k: 384 },
    Shape { m: 37, n: 67, k: 771 },
    Shape { m: 64, n: 48, k: 2048 },
];

/// Rows shorter than this are multiplied in f32: making integers of x would cost as much as it saves.
const SHORTEST_INTEGER_K: usize = 256;

/// Up to so many tokens a row of weights is multiplied with all of them where it is; with more the GEMM pays.
const GEMV_MAX_M: usize = 8;

/// `y = x · (q · scale)ᵀ`.
pub fn weight_only(
    cpu: &Cpu,
    qdata: &[i8],
    scale: Scale<'_>,
    x: &[f32],
    y: &mut [f32],
    shape: Shape,
) {
    let Shape { m, n, k } = shape;
    assert!(qdata.len() == n * k, "{} codes are not a weight of {n} × {k}", qdata.len());
    assert!(x.len() == m * k, "{} activations are not {m} × {k}", x.len());
    assert!(y.len() == m * n, "{} results are not {m} × {n}", y.len());
    scale.check(shape);
    let w = Rows { qdata, scale, k };
    // NEON multiplies rows in f32, which its compiler makes vectors of.
    let in_integers = |_: &usize| !matches!(cpu.isa(), Isa::Neon(_));
    let blocks = scale
        .block(k)
        .filter(in_integers)
        .and_then(|block| BlockInt16::new(cpu.isa(), x, k, block));
    match (cpu.isa(), blocks) {
        (Isa::Scalar, _) => scalar(w, x, y, shape),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2(avx2), Some(x)) => avx2::weight_only(avx2, cpu, w, &x, (y, shape)),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(avx512), Some(x)) => avx2::weight_only(avx512.avx2(), cpu, w, &x, (y, shape)),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Vnni(vnni), Some(x)) => {
            avx512vnni::weight_only(vnni, cpu, w, &x, (y, shape));
        }
        _ => exact_f32::linear(cpu, x, y, shape, |n, row| w.dequantize(n, row)),
    }
}

/// What a weight-only call of `shape` with `scales` scales moves and computes.
pub fn weight_only_cost(shape: Shape, scales: usize) -> Cost {
    let (m, n, k) = (shape.m as u64, shape.n as u64, shape.k as u64);
    Cost { bytes: n * k + 4 * (scales as u64 + m * k + m * n), flops: 2 * m * n * k }
}

/// The kernel that multiplies finite activations with a weight of such scales on `isa`.
pub fn kernel_name(isa: Isa, scale: Scale<'_>, shape: Shape) -> &'static str {
    let is_integer = scale.block(shape.k).is_some();
    match isa {
        Isa::Scalar => "scalar-int8xf32",
        Isa::Neon(_) => "aarch64-int8xf32-neon-rows",
        _ if !is_integer => "x86-int8xf32-avx2-rows",
        Isa::Avx512Vnni(_) if shape.m <= GEMV_MAX_M => "x86-int8xint16-avx512vnni-gemv",
        Isa::Avx512Vnni(_) => "x86-int8xint16-avx512vnni-gemm",
        Isa::Avx2(_) | Isa::Avx512(_) if shape.m <= GEMV_MAX_M => "x86-int8xint16-avx2-gemv",
        Isa::Avx2(_) | Isa::Avx512(_) => "x86-int8xint16-avx2-gemm",
    }
}

impl Scale<'_> {
    fn check(self, Shape { n, k, .. }: Shape) {
        match self {
            Scale::Tensor(_) => {}
            Scale::Row(scale) => {
                assert!(
                    scale.len() == n,
                    "{} scales are not one for each of {n} rows",
                    scale.len()
                );
            }
            Scale::Group { scale, group_size: g } => {
                assert!(g > 0 && k.is_multiple_of(g), "groups of {g} do not divide K = {k}");
                assert!(
                    scale.len() == n * (k / g),
                    "{} scales are not {n} × {k} / {g}",
                    scale.len()
                );
            }
        }
    }

    /// The longest block of activations that lies within one group, if integers pay at all.
    fn block(self, k: usize) -> Option<usize> {
        let group_size = match self {
            Scale::Tensor(_) | Scale::Row(_) => 128,
            Scale::Group { group_size, .. } => group_size,
        };
        let fits = |block: &usize| group_size.is_multiple_of(*block);
        if k < SHORTEST_INTEGER_K { None } else { [128, 64, 32].into_iter().find(fits) }
    }
}

/// A weight-only weight, checked.
#[derive(Clone, Copy)]
struct Rows<'a> {
    qdata: &'a [i8],
    scale: Scale<'a>,
    k: usize,
}

impl Rows<'_> {
    fn codes(&self, n: usize) -> &[i8] {
        &self.qdata[n * self.k..][..self.k]
    }

    /// How many columns share a scale.
    fn group_size(&self) -> usize {
        match self.scale {
            Scale::Tensor(_) | Scale::Row(_) => self.k,
            Scale::Group { group_size, .. } => group_size,
        }
    }

    /// The scales of row `n` and how many columns share one.
    fn scales(&self, n: usize) -> (&[f32], usize) {
        match &self.scale {
            Scale::Tensor(scale) => (std::slice::from_ref(scale), self.k),
            Scale::Row(scale) => (&scale[n..=n], self.k),
            Scale::Group { scale, group_size } => {
                let groups = self.k / group_size;
                (&scale[n * groups..][..groups], *group_size)
            }
        }
    }

    /// Row `n` in f32, and the factor that is still to be applied to its sums: torch multiplies by a row's
    /// or tensor's scale after the sum, by a group's before.
    fn dequantize(&self, n: usize, row: &mut [f32]) -> f32 {
        let codes = self.codes(n);
        match self.scales(n) {
            ([factor], _) if !matches!(self.scale, Scale::Group { .. }) => {
                row.iter_mut().zip(codes).for_each(|(w, &q)| *w = f32::from(q));
                *factor
            }
            (scales, group_size) => {
                let groups = row.chunks_mut(group_size).zip(codes.chunks(group_size));
                for ((row, codes), scale) in groups.zip(scales) {
                    row.iter_mut().zip(codes).for_each(|(w, &q)| *w = f32::from(q) * scale);
                }
                1.0
            }
        }
    }
}

/// Scalar oracle: the formula with sums in f64.
#[expect(clippy::cast_possible_truncation, reason = "the result is f32")]
fn scalar(w: Rows<'_>, x: &[f32], y: &mut [f32], Shape { n, k, .. }: Shape) {
    for (m, y) in y.chunks_exact_mut(n.max(1)).enumerate() {
        let x = &x[m * k..][..k];
        for (n, y) in y.iter_mut().enumerate() {
            let (scales, group_size) = w.scales(n);
            let mut sum = 0.0;
            let groups = x.chunks(group_size.max(1)).zip(w.codes(n).chunks(group_size.max(1)));
            for ((x, q), &scale) in groups.zip(scales) {
                let products = x.iter().zip(q).map(|(&x, &q)| f64::from(x) * f64::from(q));
                sum += products.sum::<f64>() * f64::from(scale);
            }
            *y = sum as f32;
        }
    }
}
