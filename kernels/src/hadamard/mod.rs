//! `y = x · H / √n`, H an n × n Hadamard matrix; [`inverse`] gives `y = x · Hᵀ / √n`, which takes it back.
//! x, y (M, n) f32, in place. n = K · 2^p, K one of 172 156 140 108 60 52 36 28 44 40 20 12 (the first that divides n), or 1.
//! A row is K runs of 2^p numbers: butterflies within each run, then K × K signs between the runs.
//! Error: |y − f64 result| ≤ 2⁻²² · (p + K) · max |x| · √n.
//! Source: Ashkboos et al. 2024 (QuaRot, arXiv 2404.00456) and Tseng et al. 2024 (QuIP#, arXiv 2402.04396), whose
//! tables of signs (Apache-2.0) `matrices.bin` holds: row-major, one bit a sign, 1 for +1, K in the order above.

mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use crate::rows::over_rows;
use crate::{Cost, Cpu, Isa};
pub use scalar::{oracle, oracle_inverse};

/// The stored sizes, in the order in which they are tried.
const STORED: [usize; 12] = [172, 156, 140, 108, 60, 52, 36, 28, 44, 40, 20, 12];

static SIGNS: &[u8] = include_bytes!("matrices.bin");

/// Row lengths of tests and benches, with how many rows.
pub const SHAPES: [(usize, usize); 9] =
    [(1, 1), (3, 2), (5, 12), (2, 28), (3, 64), (7, 768), (1, 1536), (64, 576), (2, 11008)];

/// How a row length comes apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// K.
    stored: usize,
    /// 2^p.
    run: usize,
    /// `(K, K)`: ±1.
    signs: Vec<f32>,
}

impl Plan {
    /// The plan for rows of `n`, or `None` where no stored matrix fits.
    pub fn new(n: usize) -> Option<Plan> {
        let at = STORED.iter().position(|stored| n > 0 && n.is_multiple_of(*stored));
        let stored = at.map_or(1, |at| STORED[at]);
        let run = n / stored;
        if !run.is_power_of_two() {
            return None;
        }
        let signs = match at {
            None => vec![1.0],
            Some(at) => {
                let bytes = |stored: &usize| (stored * stored).div_ceil(8);
                let start: usize = STORED[..at].iter().map(bytes).sum();
                let bit = |i: usize| SIGNS[start + i / 8] >> (i % 8) & 1;
                (0..stored * stored).map(|i| if bit(i) == 1 { 1.0 } else { -1.0 }).collect()
            }
        };
        Some(Plan { stored, run, signs })
    }

    /// The length of a row.
    #[expect(clippy::len_without_is_empty, reason = "no plan is of length 0")]
    pub fn len(&self) -> usize {
        self.stored * self.run
    }

    /// The plan of the transposed matrix of signs.
    fn transposed(&self) -> Plan {
        let k = self.stored;
        let signs = (0..k * k).map(|i| self.signs[i % k * k + i / k]).collect();
        Plan { signs, ..*self }
    }
}

/// `x ← x · H / √n`, row by row.
pub fn transform(cpu: &Cpu, plan: &Plan, x: &mut [f32]) {
    run(cpu, plan, x);
}

/// `x ← x · Hᵀ / √n`, row by row. Butterflies are symmetric and work on other axes than the signs do: only those turn.
pub fn inverse(cpu: &Cpu, plan: &Plan, x: &mut [f32]) {
    run(cpu, &plan.transposed(), x);
}

fn run(cpu: &Cpu, plan: &Plan, x: &mut [f32]) {
    let n = plan.len();
    assert!(x.len().is_multiple_of(n), "hadamard: {} numbers are no rows of {n}", x.len());
    over_rows(cpu, x, n, |_, x| match cpu.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(avx2) => x86::rows_avx2(avx2, plan, x),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(avx512) => x86::rows_avx512(avx512, plan, x),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(vnni) => x86::rows_avx512(vnni.avx512(), plan, x),
        _ => rows(plan, x),
    });
}

/// The body that every instruction set compiles for itself.
#[inline(always)]
fn rows(plan: &Plan, x: &mut [f32]) {
    let n = plan.len();
    let root = (n as f32).sqrt();
    let mut mixed = vec![0.0_f32; if plan.stored > 1 { n } else { 0 }];
    for row in x.chunks_exact_mut(n) {
        row.chunks_exact_mut(plan.run).for_each(butterflies);
        if plan.stored > 1 {
            mix(plan, row, &mut mixed);
            row.copy_from_slice(&mixed);
        }
        row.iter_mut().for_each(|value| *value /= root);
    }
}

#[inline(always)]
fn butterflies(run: &mut [f32]) {
    let mut half = 1;
    while half < run.len() {
        for pair in run.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

#[inline(always)]
fn mix(plan: &Plan, row: &[f32], mixed: &mut [f32]) {
    mixed.fill(0.0);
    let signs = plan.signs.chunks_exact(plan.stored);
    for (to, signs) in mixed.chunks_exact_mut(plan.run).zip(signs) {
        for (from, sign) in row.chunks_exact(plan.run).zip(signs) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += sign * from);
        }
    }
}

/// What transforming `m` rows of `n` moves and computes.
pub fn cost(m: usize, n: usize) -> Cost {
    let (stored, steps) =
        Plan::new(n).map_or((0, 0), |plan| (plan.stored as u64, u64::from(plan.run.ilog2())));
    let numbers = (m * n) as u64;
    let mixing = if stored > 1 { 2 * stored } else { 0 };
    Cost { bytes: 8 * numbers, flops: numbers * (steps + mixing + 1) }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> &'static str {
    match isa {
        Isa::Scalar | Isa::Neon(_) => "scalar-hadamard-f32",
        Isa::Avx2(_) => "x86-hadamard-f32-avx2",
        Isa::Avx512(_) | Isa::Avx512Vnni(_) => "x86-hadamard-f32-avx512",
    }
}
