//! Rows put below each other, and rows that count more or less.

use super::float::Float;
use super::{Tape, Var};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::tensor::Tensor;

impl Tape {
    /// The rows of all `parts (…, K)`, one part below the other.
    pub fn concat_rows(&self, parts: &[&Var]) -> Result<Var> {
        let Some(first) = parts.first() else {
            return Err(Error::invalid("concat_rows: there is nothing to put together"));
        };
        let (_, k) = first.value.dims2()?;
        let mut rows = Vec::with_capacity(parts.len());
        for part in parts {
            let (m, columns) = part.value.dims2()?;
            if columns != k {
                return Err(Error::invalid(format!("concat_rows: rows of {k} and of {columns}")));
            }
            rows.push(m);
        }
        let is_f64 = self.is_f64("concat_rows", parts)?;
        let (join, cut) = if is_f64 {
            (join::<f64> as Join, cut::<f64> as Cut)
        } else {
            (join::<f32> as Join, cut::<f32> as Cut)
        };
        let values: Vec<Tensor> = parts.iter().map(|part| part.value.clone()).collect();
        let y = join(&self.cpu, &values, [rows.iter().sum(), k])?;
        self.custom("concat_rows", parts, y, move |up, dy| {
            let mut first = 0;
            let mut all = Vec::with_capacity(rows.len());
            for (i, rows) in rows.iter().enumerate() {
                all.push(up.wants(i, || cut(up.cpu, &dy, first * k, [*rows, k]))?);
                first += rows;
            }
            Ok(all)
        })
    }

    /// Row m of `x (M, K)` times `w[m]`; w is `(M, 1)`.
    pub fn scale_rows(&self, x: &Var, w: &Var) -> Result<Var> {
        let (m, k) = x.value.dims2()?;
        if w.shape() != [m, 1] {
            return Err(Error::invalid(format!("scale_rows: {:?} for {m} rows", w.shape())));
        }
        let is_f64 = self.is_f64("scale_rows", &[x, w])?;
        let (scaled, along) = if is_f64 {
            (scaled::<f64> as Both, along::<f64> as Both)
        } else {
            (scaled::<f32> as Both, along::<f32> as Both)
        };
        let (rows, factors) = (x.value.clone(), w.value.clone());
        let y = scaled(&self.cpu, &rows, &factors, [m, k])?;
        self.custom("scale_rows", &[x, w], y, move |up, dy| {
            let dx = up.wants(0, || scaled(up.cpu, &dy, &factors, [m, k]))?;
            let dw = up.wants(1, || along(up.cpu, &dy, &rows, [m, k]))?;
            Ok(vec![dx, dw])
        })
    }
}

type Join = fn(&Cpu, &[Tensor], [usize; 2]) -> Result<Tensor>;
type Cut = fn(&Cpu, &Tensor, usize, [usize; 2]) -> Result<Tensor>;
type Both = fn(&Cpu, &Tensor, &Tensor, [usize; 2]) -> Result<Tensor>;

fn join<T: Float>(cpu: &Cpu, parts: &[Tensor], shape: [usize; 2]) -> Result<Tensor> {
    let mut y = T::room(cpu, shape[0] * shape[1]);
    let mut first = 0;
    for part in parts {
        let part = part.as_slice::<T>()?;
        y[first..first + part.len()].copy_from_slice(part);
        first += part.len();
    }
    T::tensor(y, &shape)
}

fn cut<T: Float>(cpu: &Cpu, x: &Tensor, first: usize, shape: [usize; 2]) -> Result<Tensor> {
    let mut y = T::room(cpu, shape[0] * shape[1]);
    let len = y.len();
    y.copy_from_slice(&x.as_slice::<T>()?[first..first + len]);
    T::tensor(y, &shape)
}

fn scaled<T: Float>(cpu: &Cpu, x: &Tensor, w: &Tensor, shape: [usize; 2]) -> Result<Tensor> {
    let k = shape[1].max(1);
    let mut y = T::room(cpu, shape[0] * shape[1]);
    let rows = y.chunks_exact_mut(k).zip(x.as_slice::<T>()?.chunks_exact(k));
    for ((y, x), w) in rows.zip(w.as_slice::<T>()?) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = *x * *w);
    }
    T::tensor(y, &shape)
}

/// `Σ_k a · b` of each row.
fn along<T: Float>(cpu: &Cpu, a: &Tensor, b: &Tensor, [m, k]: [usize; 2]) -> Result<Tensor> {
    let mut sums = T::room(cpu, m);
    let rows =
        a.as_slice::<T>()?.chunks_exact(k.max(1)).zip(b.as_slice::<T>()?.chunks_exact(k.max(1)));
    sums.fill(T::default());
    for (sum, (a, b)) in sums.iter_mut().zip(rows) {
        a.iter().zip(b).for_each(|(a, b)| *sum += *a * *b);
    }
    T::tensor(sums, &[m, 1])
}
