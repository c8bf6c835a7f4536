//! `loss[m] = Σ_n p[m, n] · (ln p[m, n] − ln q[m, n])` of a teacher's p = softmax(t) and a student's q = softmax(l): the
//! divergence of Kullback and Leibler; its gradient for the student's logits is `q[m, n] − p[m, n]`.
//! logits, teacher (M, N) f32 or f64, row-major → statistics (M) of (log Σ exp l, log Σ exp t, loss), gradient (M, N).
//! Error, with a the largest |l| or |t|: |loss − f64 result| ≤ 2⁻²² · (N / 16 + 8 + 8 · a + 4 · a²), since p's relative error of
//! some 2⁻²⁴ · 3 · a meets logarithms of up to 4 · a; |gradient − f64 result| ≤ 2⁻²¹ · (N / 16 + 8 + 8 · a).
//! The f64 instance is the scalar oracle. Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), at temperature 1.

use crate::real::{LANES, Real, sum_of, wide};
use crate::rows::over_rows;
use crate::{Cost, Cpu, Isa};

/// (M, N) of tests and benches.
pub const SHAPES: &[(usize, usize)] = &[(1, 1), (3, 7), (5, 16), (9, 130), (40, 4096)];

/// Writes both log Σ exp and the loss of every row.
pub fn forward<T: Real>(cpu: &Cpu, logits: &[T], teacher: &[T], statistics: &mut [[T; 3]]) {
    let n = columns(logits, teacher, statistics.len());
    let isa = cpu.isa();
    let rows = cpu.threads().share(statistics.len(), 1);
    cpu.threads().chunks_mut(statistics, rows, |part, statistics| {
        wide(isa, || {
            for (i, statistic) in statistics.iter_mut().enumerate() {
                let row = (part * rows + i) * n;
                *statistic = row_statistics(&logits[row..row + n], &teacher[row..row + n]);
            }
        });
    });
}

/// Writes the gradient of `scale · Σ loss` for every logit of the student.
pub fn backward<T: Real>(
    cpu: &Cpu,
    logits: &[T],
    teacher: &[T],
    statistics: &[[T; 3]],
    scale: T,
    gradient: &mut [T],
) {
    let n = columns(logits, teacher, statistics.len());
    assert_eq!(gradient.len(), logits.len(), "distillation: a gradient for each logit");
    let isa = cpu.isa();
    over_rows(cpu, gradient, n.max(1), |first, gradient| {
        for (i, gradient) in gradient.chunks_exact_mut(n).enumerate() {
            let row = first + i;
            let [student, above, _] = statistics[row];
            let both = logits[row * n..][..n].iter().zip(&teacher[row * n..][..n]);
            wide(isa, || {
                for (gradient, (l, t)) in gradient.iter_mut().zip(both) {
                    *gradient = ((*l - student).exp() - (*t - above).exp()) * scale;
                }
            });
        }
    });
}

/// What a forward and a backward call over `m` rows of `n` move and compute; an exp counts as one.
pub fn cost(m: usize, n: usize) -> Cost {
    Cost { bytes: 4 * (7 * m * n) as u64, flops: 16 * (m * n) as u64 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> String {
    format!("any-distillation-f32-{}", isa.name())
}

fn columns<T>(logits: &[T], teacher: &[T], rows: usize) -> usize {
    assert_eq!(logits.len(), teacher.len(), "distillation: as many logits of both");
    let n = logits.len().checked_div(rows).unwrap_or(0);
    assert_eq!(n * rows, logits.len(), "distillation: three statistics a row");
    n
}

#[inline(always)]
fn row_statistics<T: Real>(logits: &[T], teacher: &[T]) -> [T; 3] {
    let (student, above) = (log_sum_exp(logits), log_sum_exp(teacher));
    let loss = sum_of(logits.len(), |i| {
        let p = teacher[i] - above;
        p.exp() * (p - (logits[i] - student))
    });
    [student, above, loss]
}

#[inline(always)]
fn log_sum_exp<T: Real>(logits: &[T]) -> T {
    let mut largest = [logits[0]; LANES];
    for chunk in logits.chunks(LANES) {
        // `larger` keeps a NaN on its left, and a NaN on its right is found by the sum below.
        largest.iter_mut().zip(chunk).for_each(|(most, x)| *most = most.larger(*x));
    }
    let max = largest.into_iter().fold(logits[0], |most, x| most.larger(x));
    max + sum_of(logits.len(), |i| (logits[i] - max).exp()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    type Ran<T> = (Vec<[T; 3]>, Vec<T>);

    fn run<T: Real>(cpu: &Cpu, logits: &[T], teacher: &[T], rows: usize) -> Ran<T> {
        let nan = T::of(f64::NAN);
        let (mut statistics, mut gradient) = (vec![[nan; 3]; rows], vec![nan; logits.len()]);
        forward(cpu, logits, teacher, &mut statistics);
        backward(cpu, logits, teacher, &statistics, T::of(0.5), &mut gradient);
        (statistics, gradient)
    }

    #[test]
    fn f32_matches_f64_on_every_isa_and_thread_count() {
        let mut sample = Sample(32);
        for &(m, n) in SHAPES {
            for scale in [0.0, 1.0, 40.0] {
                let (logits, teacher) = (sample.vec(m * n, scale), sample.vec(m * n, scale));
                let [l, t] = [&logits, &teacher]
                    .map(|all| all.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>());
                let (exact, slope) = run(&Cpu::new(Some(1)), &l, &t, m);
                let mut first = None;
                for (isa, threads) in Isa::available().into_iter().flat_map(|i| [(i, 1), (i, 3)]) {
                    let got = run(&Cpu::with_isa(isa, Some(threads)), &logits, &teacher, m);
                    let first = first.get_or_insert_with(|| got.clone());
                    assert_eq!(*first, got, "{} with {threads} threads", isa.name());
                }
                let (statistics, gradient) = first.expect("a scalar run");
                let size = n as f64 / 16.0 + 8.0 + 8.0 * f64::from(scale);
                let square = 4.0 * f64::from(scale * scale);
                for (got, exact) in statistics.iter().zip(&exact) {
                    let error = (f64::from(got[2]) - exact[2]).abs();
                    assert!(
                        error <= 2f64.powi(-22) * (size + square),
                        "{m} × {n} · {scale}: {error}"
                    );
                    assert!(exact[2] >= -1e-12, "a divergence is not negative: {}", exact[2]);
                }
                for (got, exact) in gradient.iter().zip(&slope) {
                    let error = (f64::from(*got) - exact).abs();
                    assert!(error <= 2f64.powi(-21) * size, "{m} × {n} · {scale}: {error}");
                }
            }
        }
    }

    #[test]
    fn the_f64_gradient_is_the_central_difference_and_equals_diverge_by_nothing() {
        let cpu = Cpu::new(Some(1));
        let mut logits = vec![0.3, -1.0, 2.0, 0.1, 0.7, -0.4];
        let teacher = [1.0, 0.2, -0.3, 0.0, 0.0, 5.0];
        let (_, slope) = run(&cpu, &logits, &teacher, 2);
        for (i, slope) in slope.iter().enumerate() {
            let mut at = |h: f64| {
                logits[i] += h;
                run(&cpu, &logits, &teacher, 2).0.iter().map(|s| s[2]).sum::<f64>() * 0.5
            };
            let difference = (at(1e-5) - at(-2e-5)) / 2e-5;
            at(1e-5);
            assert!((slope - difference).abs() < 1e-9, "{i}: {slope} {difference}");
        }
        let (same, slope) = run(&cpu, &teacher, &teacher, 2);
        assert!(same.iter().all(|s| s[2] == 0.0) && slope.iter().all(|g| *g == 0.0));
        for at in 0..40 {
            let (mut logits, teacher) = ([0.0_f32; 40], [0.0_f32; 40]);
            logits[at] = f32::NAN;
            assert!(run(&cpu, &logits, &teacher, 1).0[0][2].is_nan(), "NaN at {at}");
        }
    }
}
