//! The factor of an inverse that GPTQ runs on: upper triangular `U` with `H⁻¹ = Uᵀ · U`.
//!
//! torchao factors H, inverts it and factors the inverse. Factoring H from its last row backwards gives `H = R · Rᵀ`
//! with R upper triangular, and `U = R⁻¹` is the same matrix by a third of the work and without the inverse's
//! rounding. All of it in f64: Hessians of calibration data are badly conditioned.

use super::parts::map_parts;
use crate::error::{Error, Result};
use crate::kernels::Cpu;

/// Columns that are factored together: 64 rows of 1536 f64 fill three quarters of a 1 MiB L2.
const BLOCK: usize = 64;
/// Columns of the inverse that are solved together, so that the factor is read an eighth as often.
const SOLVED_AT_ONCE: usize = 8;

/// `U`, row-major `(k, k)`, of the symmetric positive definite `h (k, k)`; only one triangle of `h` is read.
#[expect(clippy::cast_possible_truncation, reason = "the factor is used in f32")]
pub fn inverse_cholesky_upper(cpu: &Cpu, h: &[f64], k: usize) -> Result<Vec<f32>> {
    if h.len() != k * k {
        let got = h.len();
        return Err(Error::invalid(format!(
            "a Hessian of {k} inputs has {k} × {k} values; got {got}"
        )));
    }
    // Backwards: row i of the reversed matrix is row k − 1 − i.
    let mut l: Vec<f64> = h.iter().rev().copied().collect();
    factor(cpu, &mut l, k)?;
    let parts = map_parts(cpu, k.div_ceil(SOLVED_AT_ONCE), |part| {
        inverse_columns(&l, k, part * SOLVED_AT_ONCE..k.min((part + 1) * SOLVED_AT_ONCE))
    });
    let mut upper = vec![0.0; k * k];
    for (j, column) in parts.into_iter().flatten().enumerate() {
        for (i, value) in column.into_iter().enumerate().skip(j) {
            upper[(k - 1 - i) * k + (k - 1 - j)] = value as f32;
        }
    }
    Ok(upper)
}

/// `L` with `L · Lᵀ = A` in place of A's lower triangle.
fn factor(cpu: &Cpu, a: &mut [f64], k: usize) -> Result<()> {
    for start in (0..k).step_by(BLOCK) {
        let end = k.min(start + BLOCK);
        let done: Vec<f64> =
            (start..end).flat_map(|j| a[j * k..j * k + start].iter().copied()).collect();
        let below = &mut a[start * k..];
        let rows = cpu.threads().share(below.len() / k.max(1), 1).min(32);
        cpu.threads().chunks_mut(below, rows * k, |_, rows| {
            for row in rows.chunks_exact_mut(k) {
                let (left, right) = row.split_at_mut(start);
                for (value, other) in right[..end - start].iter_mut().zip(chunks(&done, start)) {
                    *value -= dot(left, other);
                }
            }
        });
        for j in start..end {
            for i in start..j {
                let value =
                    a[j * k + i] - dot(&a[j * k + start..j * k + i], &a[i * k + start..i * k + i]);
                a[j * k + i] = value / a[i * k + i];
            }
            let row = &a[j * k + start..j * k + j];
            let pivot = a[j * k + j] - dot(row, row);
            // Also refuses NaN.
            if pivot.is_nan() || pivot <= 0.0 {
                return Err(Error::invalid(format!(
                    "the inputs' second moments are not positive definite (pivot {j} of {k} is {pivot:e}); \
                     raise percdamp or calibrate on more text"
                )));
            }
            a[j * k + j] = pivot.sqrt();
        }
        let (top, below) = a.split_at_mut(end * k);
        let rows = cpu.threads().share(below.len() / k.max(1), 1).min(32);
        cpu.threads().chunks_mut(below, rows * k, |_, rows| {
            for row in rows.chunks_exact_mut(k) {
                for j in start..end {
                    let value = row[j] - dot(&row[start..j], &top[j * k + start..j * k + j]);
                    row[j] = value / top[j * k + j];
                }
            }
        });
    }
    Ok(())
}

/// Rows of `width` numbers; as many empty ones as wanted where the width is 0.
fn chunks(values: &[f64], width: usize) -> impl Iterator<Item = &[f64]> {
    (0..usize::MAX).map(move |i| values.get(i * width..(i + 1) * width).unwrap_or(&[]))
}

/// Columns `columns` of `L⁻¹`, each as long as the matrix is high.
fn inverse_columns(l: &[f64], k: usize, columns: std::ops::Range<usize>) -> Vec<Vec<f64>> {
    let mut solved: Vec<Vec<f64>> = columns.clone().map(|_| vec![0.0; k]).collect();
    for i in columns.start..k {
        let row = &l[i * k..i * k + i + 1];
        for (j, column) in columns.clone().zip(&mut solved).filter(|(j, _)| *j <= i) {
            let one = if i == j { 1.0 } else { 0.0 };
            column[i] = (one - dot(&row[j..i], &column[j..i])) / row[i];
        }
    }
    solved
}

/// Eight sums side by side, which a compiler turns into vectors.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_eights, a_rest) = a.as_chunks::<8>();
    let (b_eights, b_rest) = b[..a.len()].as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a_eights.iter().zip(b_eights) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn the_factor_of_the_inverse_undoes_the_matrix_on_any_number_of_threads() {
        for k in [1, 2, 7, 63, 64, 65, 130] {
            let mut rng = Rng::new(k as u64);
            let x: Vec<f64> = (0..(k + 3) * k).map(|_| f64::from(rng.normal())).collect();
            let mut h = vec![0.0; k * k];
            for row in x.chunks_exact(k) {
                for i in 0..k {
                    (0..k).for_each(|j| h[i * k + j] += row[i] * row[j]);
                }
            }
            (0..k).for_each(|i| h[i * k + i] += 0.1);
            let one = inverse_cholesky_upper(&Cpu::new(Some(1)), &h, k).expect("positive definite");
            let three = inverse_cholesky_upper(&Cpu::new(Some(3)), &h, k).expect("the same");
            assert_eq!(one, three, "{k}");
            // U · H · Uᵀ = 1.
            let u = |i: usize, j: usize| f64::from(one[i * k + j]);
            for i in 0..k {
                assert!((0..i).all(|j| u(i, j) == 0.0), "{k}: row {i} is not upper triangular");
                for j in 0..k {
                    let hu = |a: usize| (0..k).map(|b| h[a * k + b] * u(j, b)).sum::<f64>();
                    let value: f64 = (0..k).map(|a| u(i, a) * hu(a)).sum();
                    let wanted = f64::from(u8::from(i == j));
                    assert!((value - wanted).abs() < 1e-3, "{k}: ({i}, {j}) is {value}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_refused() {
        let error = inverse_cholesky_upper(&Cpu::new(Some(1)), &[1.0, 2.0, 2.0, 1.0], 2);
        assert!(error.expect_err("indefinite").to_string().contains("percdamp"));
        assert!(inverse_cholesky_upper(&Cpu::new(Some(1)), &[f64::NAN], 1).is_err());
        assert!(inverse_cholesky_upper(&Cpu::new(Some(1)), &[1.0], 2).is_err());
    }
}
