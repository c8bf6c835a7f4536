//! `nll[m] = log Σ_n exp(x[m, n]) − x[m, target[m]]`; `argmax = the first n of the largest x[n]`.
//! logits x (M, N) f32 · targets (M) u32 → nll (M) f64, in nats. Row-major.
//! The maximum is taken out first, so that nothing overflows; the sum runs in f64.
//! Error: |nll − f64 result| ≤ 2⁻²¹ absolute (f32 exponentials of differences; scalar: all in f64).
//! Source: `torch.nn.functional.cross_entropy`; perplexity is exp of the mean nll.

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::{Cost, Cpu, Isa};

/// The negative log-likelihood of `targets[m]` under the softmax of row m, in nats.
pub fn nll(cpu: &Cpu, logits: &[f32], targets: &[u32], nll: &mut [f64]) {
    if targets.is_empty() {
        assert!(
            logits.is_empty() && nll.is_empty(),
            "nll: no targets, so no logits and no results"
        );
        return;
    }
    let n = logits.len() / targets.len();
    assert_eq!(logits.len(), n * targets.len(), "nll: logits must be (M, N)");
    assert_eq!(nll.len(), targets.len(), "nll: one result per target");
    let target = |m: usize| usize::try_from(targets[m]).unwrap_or(usize::MAX);
    assert!(
        (0..targets.len()).all(|m| target(m) < n),
        "nll: a target is beyond the N = {n} logits"
    );
    // One row of logits is thousands of numbers: worth a thread from the second row on.
    let rows = cpu.threads().share(nll.len(), 1);
    cpu.threads().chunks_mut(nll, rows, |part, nll| {
        for (m, nll) in (part * rows..).zip(nll) {
            let row = &logits[m * n..][..n];
            let (max, sum) = match cpu.isa() {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(avx2) => x86::max_and_sum(avx2, row),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(avx512) => x86::max_and_sum(avx512.avx2(), row),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni(vnni) => x86::max_and_sum(vnni.avx512().avx2(), row),
                _ => max_and_sum_scalar(row),
            };
            *nll = sum.ln() + (f64::from(max) - f64::from(row[target(m)]));
        }
    });
}

/// The index of the largest, the first of equals. NaN counts as the largest, as in PyTorch.
pub fn argmax(logits: &[f32]) -> usize {
    assert!(!logits.is_empty(), "argmax: there must be a logit");
    if let Some(nan) = logits.iter().position(|x| x.is_nan()) {
        return nan;
    }
    // Blocks of eight keep the search for the largest free of branches.
    let (blocks, rest) = logits.as_chunks::<8>();
    let mut lanes = [f32::NEG_INFINITY; 8];
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let max = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&x| x >= max).unwrap_or(0)
}

/// What one call of `nll` over `m` rows of `n` moves and computes; an exp counts as one operation.
pub fn cost(m: usize, n: usize) -> Cost {
    Cost { bytes: (m * (4 * n + 12)) as u64, flops: 3 * (m * n) as u64 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> &'static str {
    match isa {
        Isa::Scalar | Isa::Neon(_) => "scalar-nll-f32",
        Isa::Avx2(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_) => "x86-nll-f32-avx2",
    }
}

/// (M, N) of tests and benches.
pub const SHAPES: &[(usize, usize)] = &[(1, 1), (3, 7), (5, 31), (9, 512), (2, 4099), (3, 49152)];

/// The largest logit and Σ exp(x − largest).
fn max_and_sum_scalar(row: &[f32]) -> (f32, f64) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = row.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum();
    (max, sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    #[test]
    fn nll_matches_f64_on_every_isa() {
        let mut sample = Sample(6);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            println!("nll on {}: {}", isa.name(), kernel_name(isa));
            for &(m, n) in SHAPES {
                for scale in [0.0, 1.0, 30.0, 1e4] {
                    let logits = sample.vec(m * n, scale);
                    let targets: Vec<u32> = (0..m).map(|_| sample.below(n)).collect();
                    let mut y = vec![f64::NAN; m];
                    nll(&cpu, &logits, &targets, &mut y);
                    let rows = logits.chunks(n).zip(&targets);
                    y.iter().zip(rows).for_each(|(y, (row, target))| check(row, *target, *y));
                }
            }
        }
    }

    fn check(row: &[f32], target: u32, y: f64) {
        let (max, sum) = max_and_sum_scalar(row);
        let want = sum.ln() + f64::from(max) - f64::from(row[target as usize]);
        assert!((y - want).abs() <= 2f64.powi(-21), "N = {}: {y}, not {want}", row.len());
    }

    #[test]
    fn nll_of_masked_and_broken_rows() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            let mut logits = [0.0f32; 3 * 11];
            logits[3] = f32::NEG_INFINITY;
            logits[11 + 4] = f32::NAN;
            let mut y = [f64::NAN; 3];
            nll(&cpu, &logits, &[3, 0, 10], &mut y);
            assert!(y[0].is_infinite() && y[0] > 0.0);
            assert!(y[1].is_nan());
            assert!((y[2] - 11f64.ln()).abs() < 1e-6);
        }
    }

    #[test]
    fn argmax_takes_the_first_of_equals_and_nan() {
        for len in 1..40 {
            for at in 0..len {
                let mut x = vec![-1.0; len];
                x[at] = 2.0;
                x[len - 1] = 2.0;
                assert_eq!(argmax(&x), at);
            }
        }
        assert_eq!(argmax(&[1.0, f32::NAN, 3.0]), 1);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 9]), 0);
        assert_eq!(argmax(&[0.0, f32::INFINITY]), 1);
    }
}
