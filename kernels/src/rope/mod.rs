//! Rotary position embedding: each pair (a, b) of a head turns by the angle `position · inv_freq[i]`:
//! `(a, b) → (a · cos − b · sin, b · cos + a · sin)`.
//! x (M, heads, head_dim) f32, in place · cos, sin (M, rotary / 2) f32. All row-major.
//! Pair i of the first `rotary` numbers of a head is (i, i + rotary / 2) in the order `Half` and
//! (2i, 2i + 1) in the order `Interleaved`; the numbers from `rotary` on stay.
//! Error: |y − f64 result of the same tables| ≤ 2⁻²³ · (|a · cos| + |b · sin|); the tables are rounded from f64.
//! Source: Su et al. 2021 (arXiv 2104.09864); `Half` is the order of transformers, `Interleaved` of the paper.

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::rows::over_rows;
use crate::{Cost, Cpu, Isa};
use std::ops::Range;

/// Which numbers of a head make a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// (i, i + rotary / 2): Hugging Face's checkpoints.
    Half,
    /// (2i, 2i + 1): Meta's and GGUF's Llama checkpoints.
    Interleaved,
}

/// The heads of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeShape {
    /// Tokens.
    pub m: usize,
    /// Heads of a token.
    pub heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
}

/// cos and sin of `position · inv_freq[i]`, (positions, `inv_freq.len()`), computed in f64. `scale`
/// multiplies both (YaRN's attention factor; 1 otherwise).
#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
pub fn tables(inv_freq: &[f64], positions: Range<usize>, scale: f64) -> (Vec<f32>, Vec<f32>) {
    let angles = || {
        let positions = positions.clone();
        positions.flat_map(|position| inv_freq.iter().map(move |f| position as f64 * f))
    };
    let cos = angles().map(|angle| (angle.cos() * scale) as f32).collect();
    let sin = angles().map(|angle| (angle.sin() * scale) as f32).collect();
    (cos, sin)
}

/// Turns the heads of `x` in place; row m of `cos` and `sin` belongs to token m.
pub fn apply(cpu: &Cpu, x: &mut [f32], shape: RopeShape, cos: &[f32], sin: &[f32], order: Order) {
    let RopeShape { m, heads, head_dim } = shape;
    assert_eq!(x.len(), m * heads * head_dim, "rope: x must be (M, heads, head_dim)");
    assert_eq!(cos.len(), sin.len(), "rope: cos and sin must have one shape");
    if x.is_empty() || cos.is_empty() {
        return;
    }
    let pairs = cos.len() / m;
    assert_eq!(cos.len(), m * pairs, "rope: cos and sin must be (M, rotary / 2)");
    assert!(2 * pairs <= head_dim, "rope: {pairs} pairs do not fit a head of {head_dim}");
    over_rows(cpu, x, heads * head_dim, |first, x| {
        let tokens = x.chunks_exact_mut(heads * head_dim);
        let tables = cos.chunks_exact(pairs).zip(sin.chunks_exact(pairs)).skip(first);
        for (x, (cos, sin)) in tokens.zip(tables) {
            match cpu.isa() {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(avx2) => x86::turn(avx2, x, head_dim, cos, sin, order),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(avx512) => x86::turn(avx512.avx2(), x, head_dim, cos, sin, order),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni(vnni) => {
                    x86::turn(vnni.avx512().avx2(), x, head_dim, cos, sin, order);
                }
                _ => turn_scalar(x, head_dim, cos, sin, order),
            }
        }
    });
}

/// What one call moves and computes: x read and written, the tables read.
pub fn cost(shape: RopeShape, rotary: usize) -> Cost {
    let RopeShape { m, heads, head_dim } = shape;
    Cost {
        bytes: 4 * (2 * m * heads * head_dim + m * rotary) as u64,
        flops: 3 * (m * heads * rotary) as u64,
    }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> &'static str {
    match isa {
        Isa::Scalar | Isa::Neon(_) => "scalar-rope-f32",
        Isa::Avx2(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_) => "x86-rope-f32-avx2",
    }
}

/// Shapes with their rotary dimensions, of tests and benches.
pub const SHAPES: &[(RopeShape, usize)] = &[
    (RopeShape { m: 1, heads: 1, head_dim: 2 }, 2),
    (RopeShape { m: 3, heads: 5, head_dim: 7 }, 6),
    (RopeShape { m: 2, heads: 3, head_dim: 80 }, 20),
    (RopeShape { m: 5, heads: 4, head_dim: 96 }, 48),
    (RopeShape { m: 1, heads: 9, head_dim: 64 }, 64),
    (RopeShape { m: 130, heads: 9, head_dim: 64 }, 64),
];

fn turn_scalar(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], order: Order) {
    let pairs = cos.len();
    for head in x.chunks_exact_mut(head_dim) {
        for (i, (&cos, &sin)) in cos.iter().zip(sin).enumerate() {
            let (a, b) = match order {
                Order::Half => (i, i + pairs),
                Order::Interleaved => (2 * i, 2 * i + 1),
            };
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "what does not turn is equal")]
mod tests {
    use super::*;
    use crate::sample::Sample;

    #[test]
    fn matches_f64_on_every_isa() {
        let mut sample = Sample(2);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            println!("rope on {}: {}", isa.name(), kernel_name(isa));
            for &(shape, rotary) in SHAPES {
                for order in [Order::Half, Order::Interleaved] {
                    check(&cpu, shape, rotary, order, &mut sample);
                }
            }
        }
    }

    fn check(cpu: &Cpu, shape: RopeShape, rotary: usize, order: Order, sample: &mut Sample) {
        let pairs = rotary / 2;
        let inv_freq: Vec<f64> =
            (0..pairs).map(|i| 10000f64.powf(-(i as f64) / pairs as f64)).collect();
        let (cos, sin) = tables(&inv_freq, 11..11 + shape.m, 1.0);
        assert_eq!(cos.len(), shape.m * pairs);
        let x = sample.vec(shape.m * shape.heads * shape.head_dim, 3.0);
        let mut y = x.clone();
        apply(cpu, &mut y, shape, &cos, &sin, order);
        for (at, &y) in y.iter().enumerate() {
            let (dim, head) = (at % shape.head_dim, at - at % shape.head_dim);
            let token = at / (shape.heads * shape.head_dim);
            let (i, is_b) = match order {
                Order::Half => (dim % pairs.max(1), dim >= pairs),
                Order::Interleaved => (dim / 2, dim % 2 == 1),
            };
            if dim >= rotary {
                assert_eq!(y, x[at], "beyond the rotary dimensions nothing turns");
                continue;
            }
            let (a, b) = match order {
                Order::Half => (x[head + i], x[head + i + pairs]),
                Order::Interleaved => (x[head + 2 * i], x[head + 2 * i + 1]),
            };
            let angle = (11 + token) as f64 * inv_freq[i];
            let (ac, bs) = if is_b { (b, a) } else { (a, -b) };
            let (ac, bs) = (f64::from(ac) * angle.cos(), f64::from(bs) * angle.sin());
            // The rounding of the tables (2⁻²⁴ of each) comes on top of the kernel's own error.
            let bound = 2f64.powi(-22) * (ac.abs() + bs.abs()) + 1e-7;
            let error = (f64::from(y) - (ac + bs)).abs();
            assert!(error <= bound, "{shape:?} {order:?} x[{at}]: {y}, not {}", ac + bs);
        }
    }
}
