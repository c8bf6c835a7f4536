//! Linear layers and matmuls.

use super::float::Float;
use super::{Tape, Upstream, Var, rows_of};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::matmul::{Matrix, Precision};
use crate::tensor::Tensor;

impl Tape {
    /// `y (…, N) = x (…, K) · Wᵀ` with a weight `(N, K)`.
    pub fn linear(&self, x: &Var, weight: &Var) -> Result<Var> {
        let (m, k) = rows_of("linear", x.shape())?;
        let (n, columns) = weight.value.dims2()?;
        if columns != k {
            return Err(Error::invalid(format!(
                "linear: x {:?} does not fit a weight {:?}; wanted K = {columns}",
                x.shape(),
                weight.shape()
            )));
        }
        let is_f64 = self.is_f64("linear", &[x, weight])?;
        let product = if is_f64 { product::<f64> } else { product::<f32> };
        let mut shape = x.shape().to_vec();
        shape.pop();
        shape.push(n);
        let (w, a) = (weight.value.clone(), x.value.clone());
        // (m, k) · (k, n)
        let y = product(&self.cpu, self.precision, (&a, [m, k], false), (&w, [n, k], true))?;
        self.custom("linear", &[x, weight], y.reshape(&shape)?, move |up, dy| {
            let product = |a, b| product(up.cpu, up.precision, a, b);
            // (m, n) · (n, k)
            let dx = up.wants(0, || product((&dy, [m, n], false), (&w, [n, k], false)))?;
            let dx = dx.map(|dx| dx.reshape(a.shape())).transpose()?;
            // (n, m) · (m, k)
            let dw = up.wants(1, || product((&dy, [m, n], true), (&a, [m, k], false)))?;
            Ok(vec![dx, dw])
        })
    }

    /// `c (M, N) = a (M, K) · b (K, N)`.
    pub fn matmul(&self, a: &Var, b: &Var) -> Result<Var> {
        let ((m, k), (rows, n)) = (a.value.dims2()?, b.value.dims2()?);
        if rows != k {
            return Err(Error::invalid(format!("matmul: {:?} · {:?}", a.shape(), b.shape())));
        }
        let is_f64 = self.is_f64("matmul", &[a, b])?;
        let product = if is_f64 { product::<f64> } else { product::<f32> };
        let (x, y) = (a.value.clone(), b.value.clone());
        let c = product(&self.cpu, self.precision, (&x, [m, k], false), (&y, [k, n], false))?;
        self.custom("matmul", &[a, b], c, move |up, dc| {
            let product = |a, b| product(up.cpu, up.precision, a, b);
            let da = up.wants(0, || product((&dc, [m, n], false), (&y, [k, n], true)))?;
            let db = up.wants(1, || product((&x, [m, k], true), (&dc, [m, n], false)))?;
            Ok(vec![da, db])
        })
    }
}

impl Upstream<'_> {
    /// `f()` where the gradient of input `i` is wanted.
    pub fn wants(&self, i: usize, f: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
        if self.needs.get(i) == Some(&true) { f().map(Some) } else { Ok(None) }
    }
}

/// A row-major tensor read as a matrix, or as its transpose.
type Side<'a> = (&'a Tensor, [usize; 2], bool);

/// `a · b`.
fn product<T: Float>(cpu: &Cpu, precision: Precision, a: Side<'_>, b: Side<'_>) -> Result<Tensor> {
    let (a, b) = (matrix::<T>(a)?, matrix::<T>(b)?);
    let shape = [a.rows(), b.cols()];
    let mut c = T::room(cpu, shape[0] * shape[1]);
    T::multiply(cpu, precision, a, b, &mut c);
    T::tensor(c, &shape)
}

fn matrix<T: Float>((tensor, [rows, cols], turned): Side<'_>) -> Result<Matrix<'_, T>> {
    let matrix = Matrix::new(tensor.as_slice::<T>()?, rows, cols);
    Ok(if turned { matrix.transposed() } else { matrix })
}
