//! Eigenvalues of symmetric matrices, and through them the singular value decomposition, in f64.
//!
//! Householder's reflections make the matrix tridiagonal, implicit QL steps make it diagonal (Golub and Van Loan 2013, §8.3;
//! the procedures `tred2` and `tql2` of Wilkinson and Reinsch 1971). Errors are of the order of n · 2⁻⁵³ · the largest eigenvalue.

use crate::error::{Error, Result};

/// `A = Σ value[i] · vector[i] · vector[i]ᵀ`.
#[derive(Clone, Debug)]
pub struct Eigen {
    /// Largest first.
    pub values: Vec<f64>,
    /// `(n, n)`: a row is a vector of length 1.
    pub vectors: Vec<f64>,
}

/// Steps of QL for one eigenvalue; two or three are usual.
const MOST_STEPS: usize = 60;

/// The eigenvalues and eigenvectors of the symmetric `a (n, n)`.
pub fn symmetric_eigen(a: &[f64], n: usize) -> Result<Eigen> {
    if a.len() != n * n {
        return Err(Error::invalid(format!("{} numbers are no {n} × {n} matrix", a.len())));
    }
    if a.iter().any(|x| !x.is_finite()) {
        return Err(Error::invalid("a matrix with numbers that are not finite has no eigenvalues"));
    }
    let mut v = a.to_vec();
    let (mut d, mut e) = tridiagonal(&mut v, n);
    diagonal(&mut v, &mut d, &mut e, n)?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| d[*b].total_cmp(&d[*a]));
    let vectors = order.iter().flat_map(|i| v[i * n..(i + 1) * n].iter().copied()).collect();
    Ok(Eigen { values: order.iter().map(|i| d[*i]).collect(), vectors })
}

/// Turns `v` into the rows of Q, `A = Qᵀ · T · Q`; gives the diagonal and what lies beside it, from 1 on.
fn tridiagonal(v: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut beside = vec![0.0; n];
    // What each step's reflection divides by; 0 where there was none.
    let mut halves = vec![0.0; n];
    for i in (1..n).rev() {
        let (rows, row) = v.split_at_mut(i * n);
        let u = &mut row[..i];
        let size: f64 = u[..i - 1].iter().map(|x| x.abs()).sum();
        if i == 1 || size == 0.0 {
            beside[i] = u[i - 1];
            continue;
        }
        let size = size + u[i - 1].abs();
        u.iter_mut().for_each(|x| *x /= size);
        let square: f64 = u.iter().map(|x| x * x).sum();
        let root = if u[i - 1] >= 0.0 { -square.sqrt() } else { square.sqrt() };
        beside[i] = size * root;
        let half = square - u[i - 1] * root;
        u[i - 1] -= root;
        halves[i] = half;
        // p = A · u / half, from the lower triangle.
        let mut p = vec![0.0; i];
        for j in 0..i {
            let row = &rows[j * n..][..=j];
            let (mut sum, x) = (0.0, u[j]);
            for k in 0..j {
                sum += row[k] * u[k];
                p[k] += row[k] * x;
            }
            p[j] += sum + row[j] * x;
        }
        let mut along = 0.0;
        for (p, u) in p.iter_mut().zip(u.iter()) {
            *p /= half;
            along += *p * u;
        }
        let share = along / (half + half);
        p.iter_mut().zip(u.iter()).for_each(|(p, u)| *p -= share * u);
        for j in 0..i {
            let row = &mut rows[j * n..][..=j];
            row.iter_mut().zip(u.iter().zip(&p)).for_each(|(a, (u_k, p_k))| {
                *a -= u[j] * p_k + p[j] * u_k;
            });
        }
    }
    (reflections(v, &halves, n), beside)
}

/// Multiplies the reflections, whose vectors are the rows of `v`, into the rows of Q; gives the diagonal of T.
fn reflections(v: &mut [f64], halves: &[f64], n: usize) -> Vec<f64> {
    let diagonal: Vec<f64> = (0..n).map(|i| v[i * n + i]).collect();
    let vectors = v.to_vec();
    v.fill(0.0);
    (0..n).for_each(|i| v[i * n + i] = 1.0);
    for i in (1..n).filter(|i| halves[*i] != 0.0) {
        let u = &vectors[i * n..][..i];
        // Every row that is made already: x ← x − u · (u · x) / half, on its first i numbers.
        for row in v.chunks_exact_mut(n).take(i) {
            let along: f64 = row.iter().zip(u).map(|(x, u)| x * u).sum();
            let share = along / halves[i];
            row.iter_mut().zip(u).for_each(|(x, u)| *x -= share * u);
        }
    }
    diagonal
}

/// QL steps until T is diagonal; `v`'s rows turn along.
fn diagonal(v: &mut [f64], d: &mut [f64], e: &mut [f64], n: usize) -> Result<()> {
    e.rotate_left(1.min(n));
    if let Some(last) = e.last_mut() {
        *last = 0.0;
    }
    for l in 0..n {
        for step in 0.. {
            // The first place from l on where T falls apart.
            let splits = |m: &usize| e[*m].abs() <= f64::EPSILON * (d[*m].abs() + d[m + 1].abs());
            let m = (l..n - 1).find(splits).unwrap_or(n - 1);
            if m == l {
                break;
            }
            if step == MOST_STEPS {
                return Err(Error::invalid("eigenvalues were not found in 60 steps"));
            }
            ql_step(v, d, e, (l, m), n);
        }
    }
    Ok(())
}

/// One implicit QL step on rows `l..=m`.
fn ql_step(v: &mut [f64], d: &mut [f64], e: &mut [f64], (l, m): (usize, usize), n: usize) {
    let g = (d[l + 1] - d[l]) / (2.0 * e[l]);
    let root = g.hypot(1.0);
    let mut g = d[m] - d[l] + e[l] / (g + if g >= 0.0 { root } else { -root });
    let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
    for i in (l..m).rev() {
        let (f, b) = (s * e[i], c * e[i]);
        let r = f.hypot(g);
        e[i + 1] = r;
        if r == 0.0 {
            d[i + 1] -= p;
            e[m] = 0.0;
            return;
        }
        (s, c) = (f / r, g / r);
        g = d[i + 1] - p;
        let r = (d[i] - g) * s + 2.0 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        let (upper, lower) = v.split_at_mut((i + 1) * n);
        for (x, y) in upper[i * n..].iter_mut().zip(&mut lower[..n]) {
            let next = *y;
            *y = s * *x + c * next;
            *x = c * *x - s * next;
        }
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0.0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn check(a: &[f64], n: usize) {
        let Eigen { values, vectors } = symmetric_eigen(a, n).expect("finite");
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]), "largest first");
        let largest = values.iter().fold(1e-300_f64, |most, x| most.max(x.abs()));
        let dot = |i: usize, j: usize| -> f64 {
            (0..n).map(|k| vectors[i * n + k] * vectors[j * n + k]).sum()
        };
        for i in 0..n {
            for j in 0..n {
                let wanted = if i == j { 1.0 } else { 0.0 };
                assert!((dot(i, j) - wanted).abs() < 1e-12, "{n}: vectors {i} and {j}");
                let product: f64 = (0..n).map(|k| a[i * n + k] * vectors[j * n + k]).sum();
                let error = (product - values[j] * vectors[j * n + i]).abs();
                assert!(error < 1e-12 * largest, "{n}: A · v[{j}], row {i}: {error}");
            }
        }
    }

    #[test]
    fn vectors_are_orthonormal_and_are_stretched_by_their_values() {
        let mut rng = Rng::new(5);
        for n in [1, 2, 3, 7, 16, 45] {
            let x: Vec<f64> = (0..n * n).map(|_| f64::from(rng.normal())).collect();
            let sum = |i: usize, j: usize| x[i * n + j] + x[j * n + i];
            let a: Vec<f64> = (0..n * n).map(|at| sum(at / n, at % n)).collect();
            check(&a, n);
            // Of low rank: x · xᵀ of two columns.
            let low = |i: usize, j: usize| x[i] * x[j] + x[n - 1 - i] * x[n - 1 - j];
            check(&(0..n * n).map(|at| low(at / n, at % n)).collect::<Vec<f64>>(), n);
        }
        check(&[0.0; 25], 5);
        check(&(0..16).map(|at| if at % 5 == 0 { 2.0 } else { 0.0 }).collect::<Vec<f64>>(), 4);
        assert!(symmetric_eigen(&[1.0, f64::NAN, f64::NAN, 1.0], 2).is_err());
        assert!(symmetric_eigen(&[1.0; 3], 2).is_err());
        assert_eq!(symmetric_eigen(&[], 0).expect("nothing").values.len(), 0);
    }
}
