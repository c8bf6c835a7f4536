//! `loss[m] = max[m] − l[m, target[m]] + log Σ_n exp(l[m, n] − max[m])`, and its gradient `softmax(l[m])[n] − [n = target[m]]`.
//! logits (M, N) f32 or f64, row-major · targets (M) → statistics (M) of (max, log Σ exp(l − max), loss), gradient (M, N).
//! A target of [`IGNORE`] has loss and gradient 0.
//! Error: |loss − f64 result| ≤ 2⁻²³ · (N / 16 + 8 + 4 · max |l|), |gradient − f64 result| ≤ 2⁻²² · (8 + N / 16): max and log Σ
//! are never added, so that large logits cost the gradient no bits.
//! The f64 instance is the scalar oracle. Source: Goodfellow, Bengio and Courville 2016, §6.2.2.3.

use crate::real::{Real, largest_of, sum_of, wide};
use crate::rows::over_rows;
use crate::{Cost, Cpu, Isa};

/// A target that is not counted: padding.
pub const IGNORE: u32 = u32::MAX;

/// (M, N) of tests and benches.
pub const SHAPES: &[(usize, usize)] = &[(1, 1), (3, 7), (5, 16), (9, 130), (40, 4096)];

/// Writes the largest logit, log Σ exp of what lies below it, and the loss of every row.
pub fn forward<T: Real>(cpu: &Cpu, logits: &[T], targets: &[u32], statistics: &mut [[T; 3]]) {
    let n = columns(logits, targets);
    assert_eq!(statistics.len(), targets.len(), "cross_entropy: three statistics a row");
    let isa = cpu.isa();
    let rows = cpu.threads().share(targets.len(), 1);
    cpu.threads().chunks_mut(statistics, rows, |part, statistics| {
        wide(isa, || {
            for (i, statistic) in statistics.iter_mut().enumerate() {
                let row = part * rows + i;
                *statistic = row_statistics(&logits[row * n..][..n], targets[row]);
            }
        });
    });
}

/// Writes the gradient of `scale · Σ loss` for every logit in its place.
pub fn backward<T: Real>(
    cpu: &Cpu,
    targets: &[u32],
    statistics: &[[T; 3]],
    scale: T,
    logits: &mut [T],
) {
    let n = columns(logits, targets);
    assert_eq!(statistics.len(), targets.len(), "cross_entropy: three statistics a row");
    let isa = cpu.isa();
    over_rows(cpu, logits, n.max(1), |first, logits| {
        for (i, gradient) in logits.chunks_exact_mut(n).enumerate() {
            let row = first + i;
            if targets[row] == IGNORE {
                gradient.fill(T::default());
                continue;
            }
            let [max, log_sum, _] = statistics[row];
            wide(isa, || {
                for logit in gradient.iter_mut() {
                    *logit = (*logit - max - log_sum).exp() * scale;
                }
            });
            let at = targets[row] as usize;
            gradient[at] = gradient[at] - scale;
        }
    });
}

/// What a forward and a backward call over `m` rows of `n` move and compute; an exp counts as one.
pub fn cost(m: usize, n: usize) -> Cost {
    Cost { bytes: 4 * (3 * m * n) as u64, flops: 7 * (m * n) as u64 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> String {
    format!("any-cross-entropy-f32-{}", isa.name())
}

fn columns<T>(logits: &[T], targets: &[u32]) -> usize {
    let n = logits.len().checked_div(targets.len()).unwrap_or(0);
    assert_eq!(n * targets.len(), logits.len(), "cross_entropy: a target for each row of logits");
    let known = |target: &u32| *target == IGNORE || (*target as usize) < n;
    assert!(targets.iter().all(known), "cross_entropy: a target is beyond the {n} columns");
    n
}

#[inline(always)]
fn row_statistics<T: Real>(logits: &[T], target: u32) -> [T; 3] {
    // A NaN that it loses is found by the sum below.
    let max = largest_of(logits.len(), |i| logits[i]);
    let log_sum = sum_of(logits.len(), |i| (logits[i] - max).exp()).ln();
    let below = |target: u32| max - logits[target as usize];
    let loss = if target == IGNORE { T::default() } else { below(target) + log_sum };
    [max, log_sum, loss]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    fn run<T: Real>(cpu: &Cpu, logits: &[T], targets: &[u32]) -> (Vec<[T; 3]>, Vec<T>) {
        let nan = T::of(f64::NAN);
        let (mut statistics, mut gradient) = (vec![[nan; 3]; targets.len()], logits.to_vec());
        forward(cpu, logits, targets, &mut statistics);
        backward(cpu, targets, &statistics, T::of(0.5), &mut gradient);
        (statistics, gradient)
    }

    #[test]
    fn f32_matches_f64_on_every_isa_and_thread_count() {
        let mut sample = Sample(31);
        for &(m, n) in SHAPES {
            for scale in [0.0, 1.0, 40.0, 3000.0] {
                let logits = sample.vec(m * n, scale);
                let mut targets: Vec<u32> = (0..m).map(|_| sample.below(n)).collect();
                targets[m / 2] = IGNORE;
                let wide: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
                let (exact, slope) = run(&Cpu::new(Some(1)), &wide, &targets);
                let mut first = None;
                for (isa, threads) in Isa::available().into_iter().flat_map(|i| [(i, 1), (i, 3)]) {
                    let got = run(&Cpu::with_isa(isa, Some(threads)), &logits, &targets);
                    let first = first.get_or_insert_with(|| got.clone());
                    assert_eq!(*first, got, "{} with {threads} threads", isa.name());
                }
                let (statistics, gradient) = first.expect("a scalar run");
                let size = n as f64 / 16.0 + 8.0 + 4.0 * f64::from(scale);
                for (got, exact) in statistics.iter().zip(&exact) {
                    let error = (f64::from(got[2]) - exact[2]).abs();
                    assert!(error <= 2f64.powi(-23) * size, "{m} × {n} · {scale}: {error}");
                }
                let size = n as f64 / 16.0 + 8.0;
                for (got, exact) in gradient.iter().zip(&slope) {
                    let error = (f64::from(*got) - exact).abs();
                    assert!(error <= 2f64.powi(-22) * size, "{m} × {n} · {scale}: {error}");
                }
            }
        }
    }

    #[test]
    fn the_f64_gradient_is_the_central_difference_and_nan_is_seen() {
        let cpu = Cpu::new(Some(1));
        let mut logits = vec![0.3, -1.0, 2.0, 0.1, 0.7, -0.4];
        let targets = [2, 0];
        let (_, slope) = run(&cpu, &logits, &targets);
        for (i, slope) in slope.iter().enumerate() {
            let mut at = |h: f64| {
                logits[i] += h;
                run(&cpu, &logits, &targets).0.iter().map(|s| s[2]).sum::<f64>() * 0.5
            };
            let difference = (at(1e-5) - at(-2e-5)) / 2e-5;
            at(1e-5);
            assert!((slope - difference).abs() < 1e-9, "{i}: {slope} {difference}");
        }
        for at in 0..40 {
            let mut logits = [0.0_f32; 40];
            logits[at] = f32::NAN;
            assert!(run(&cpu, &logits, &[3]).0[0][2].is_nan(), "NaN at {at}");
        }
    }
}
