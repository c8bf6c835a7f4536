//! What a linear layer's weight can do.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aolab_kernels::{Compute, Cost, Cpu, Shape, dense_linear};
use serde_json::Value as Json;

use super::Sparse;
use super::device_form::{DeviceForm, dense_bf16};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// The weight `(N, K)` of a linear layer `y = x · Wᵀ`, in whatever format.
///
/// [`Weight::dequantize_rows`] defines the format; every kernel is tested against it. `linear` has a
/// slow right default, so that a new format works on its first day and gets a kernel later.
pub trait Weight: Any + Send + Sync + fmt::Debug {
    /// `(N, K)`: output features, input features.
    fn shape(&self) -> (usize, usize);

    /// The workflow's name as its command says it: `int4-weight-only`, or the dtype of a dense weight.
    fn workflow(&self) -> String;

    /// The options that matter to a reader: `group_size 32`. Empty for a dense weight.
    fn details(&self) -> String {
        String::new()
    }

    /// The dtype that the weight came in: scales that follow the weight's dtype follow this one.
    fn dtype(&self) -> DType {
        DType::F32
    }

    /// Writes rows `rows` as f32, row-major, into `out` (`rows.len() · K` values).
    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// The named tensors that `save` writes, enough to read the weight back bit for bit.
    fn tensors(&self) -> Vec<(String, Tensor)>;

    /// The format and its options as data: `{"_type": "Int4Weight", …}`; with [`Weight::tensors`] it is the
    /// whole weight. `Null` for a dense weight, which needs no description.
    fn meta(&self) -> Json {
        Json::Null
    }

    /// The bytes of everything that is kept in memory.
    fn nbytes(&self) -> usize {
        self.tensors().iter().map(|(_, tensor)| tensor.nbytes()).sum()
    }

    /// The whole weight as an f32 tensor `(N, K)`.
    fn dequantize(&self) -> Result<Tensor> {
        let (n, k) = self.shape();
        let mut values = vec![0.0; n * k];
        self.dequantize_rows(0..n, &mut values)?;
        Tensor::new(values, &[n, k])
    }

    /// `y (M, N) = x (M, K) · Wᵀ`. The default dequantizes a block of rows at a time.
    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        dequantize_then_multiply(self, cpu, x, m, y)
    }

    /// `y = x · Wᵀ` for every `(W, y)` of `jobs`, this weight the first of them: the layers that read the same x. A
    /// format that prepares x (quantizes it, say) does so once for all here; the default multiplies one by one.
    fn linear_many(&self, cpu: &Cpu, x: &[f32], m: usize, jobs: &mut [Job<'_>]) -> Result<()> {
        jobs.iter_mut().try_for_each(|(weight, y)| weight.linear(cpu, x, m, y))
    }

    /// The weight as a GPU kernel takes it; `None` for a format without one, which is then dequantized to bf16 once, and said so.
    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        Ok(None)
    }

    /// The name of the kernel that [`Weight::linear`] runs for `m` rows.
    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        dequantize_then_multiply_name(cpu, m)
    }

    /// The weight as one that changes its input and hands it to another, if it is such a one.
    fn as_transform(&self) -> Option<&dyn InputTransform> {
        None
    }

    /// The weight as one whose zeros have to stay, if it is such a one.
    fn as_sparse(&self) -> Option<&dyn Sparse> {
        None
    }

    /// What one call of [`Weight::linear`] moves and computes.
    fn cost(&self, m: usize) -> Cost {
        let (n, k) = self.shape();
        let activations = 4 * (m * k + m * n);
        Cost { bytes: (self.nbytes() + activations) as u64, flops: 2 * (m * n * k) as u64 }
    }
}

/// A weight `(N, K)` and the `(M, N)` values that it makes.
pub type Job<'a> = (&'a dyn Weight, &'a mut [f32]);

/// A weight around another one: `y = inner.linear(transform(x))`. Quantizing it quantizes what is inside, and
/// keeps the transform.
pub trait InputTransform: Weight {
    /// The weight that multiplies.
    fn inner(&self) -> &Arc<dyn Weight>;

    /// The input `(M, K)` as the inner weight gets it.
    fn transform(&self, cpu: &Cpu, x: &[f32]) -> Result<Vec<f32>>;

    /// The same transform around another weight of the same shape.
    fn around(&self, inner: Arc<dyn Weight>) -> Result<Arc<dyn Weight>>;
}

/// Rows of the weight that are expanded at once: few enough to stay in a core's L2 cache.
const ROWS_AT_ONCE: usize = 64;

/// `y = x · dequantize(weight)ᵀ`, a block of rows at a time: what [`Weight::linear`] does by default.
pub fn dequantize_then_multiply<W: Weight + ?Sized>(
    weight: &W,
    cpu: &Cpu,
    x: &[f32],
    m: usize,
    y: &mut [f32],
) -> Result<()> {
    let (n, k) = weight.shape();
    check_linear(x, m, y, (n, k))?;
    let mut block = vec![0.0; ROWS_AT_ONCE.min(n) * k];
    let mut part = vec![0.0; m * ROWS_AT_ONCE.min(n)];
    for start in (0..n).step_by(ROWS_AT_ONCE) {
        let rows = ROWS_AT_ONCE.min(n - start);
        weight.dequantize_rows(start..start + rows, &mut block[..rows * k])?;
        let part = &mut part[..m * rows];
        dense_linear::f32(cpu, &block[..rows * k], x, part, Shape { m, n: rows, k });
        for (row, values) in part.chunks_exact(rows).enumerate() {
            y[row * n + start..][..rows].copy_from_slice(values);
        }
    }
    Ok(())
}

/// The name of [`dequantize_then_multiply`] for `m` rows.
pub fn dequantize_then_multiply_name(cpu: &Cpu, m: usize) -> String {
    let dense = dense_linear::kernel_name(dense_linear::Format::F32, cpu.isa(), m);
    format!("dequantize + {dense}")
}

/// Checks the lengths of a linear layer's call, once, at the door.
pub fn check_linear(x: &[f32], m: usize, y: &[f32], (n, k): (usize, usize)) -> Result<()> {
    if x.len() == m * k && y.len() == m * n {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a linear layer of weight ({n}, {k}) wants x ({m}, {k}) and y ({m}, {n}): {} and {} values; got {} and {}",
        m * k,
        m * n,
        x.len(),
        y.len()
    )))
}

/// A weight in f32, bf16 or f16, multiplied with f32 activations. They are rounded only where the [`Cpu`] computes in
/// bf16 and the weight is bf16.
#[derive(Clone, Debug)]
pub struct DenseWeight {
    tensor: Tensor,
}

impl DenseWeight {
    /// A weight from a float matrix; other float types than f32, bf16 and f16 are rounded to f32.
    pub fn new(tensor: Tensor) -> Result<DenseWeight> {
        tensor.dims2()?;
        let tensor = match tensor.dtype() {
            DType::F32 | DType::BF16 | DType::F16 => tensor,
            other if other.is_float() => tensor.to_dtype(DType::F32)?,
            other => {
                return Err(Error::invalid(format!(
                    "a dense weight is f32, bf16 or f16; got {other} {:?}",
                    tensor.shape()
                )));
            }
        };
        tensor.in_large_pages();
        Ok(DenseWeight { tensor })
    }

    /// The same behind the pointer that layers hold.
    pub fn shared(tensor: Tensor) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(DenseWeight::new(tensor)?))
    }

    /// The matrix.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}

impl Weight for DenseWeight {
    fn shape(&self) -> (usize, usize) {
        (self.tensor.shape()[0], self.tensor.shape()[1])
    }

    fn workflow(&self) -> String {
        self.tensor.dtype().to_string()
    }

    fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let k = self.shape().1;
        let range = rows.start * k..rows.end * k;
        match self.tensor.dtype() {
            DType::F32 => out.copy_from_slice(&self.tensor.as_slice::<f32>()?[range]),
            DType::BF16 => {
                let row = &self.tensor.as_slice::<half::bf16>()?[range];
                out.iter_mut().zip(row).for_each(|(to, from)| *to = from.to_f32());
            }
            _ => {
                let row = &self.tensor.as_slice::<half::f16>()?[range];
                out.iter_mut().zip(row).for_each(|(to, from)| *to = from.to_f32());
            }
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        vec![("weight".into(), self.tensor.clone())]
    }

    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        Ok(Some(DeviceForm::Bf16(dense_bf16(&self.tensor)?)))
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = self.shape();
        check_linear(x, m, y, (n, k))?;
        let shape = Shape { m, n, k };
        match self.tensor.dtype() {
            DType::F32 => dense_linear::f32(cpu, self.tensor.as_slice()?, x, y, shape),
            DType::BF16 if cpu.compute() == Compute::Bf16 => {
                dense_linear::bf16_bf16(cpu, self.tensor.as_slice()?, x, y, shape);
            }
            DType::BF16 => dense_linear::bf16(cpu, self.tensor.as_slice()?, x, y, shape),
            _ => dense_linear::f16(cpu, self.tensor.as_slice()?, x, y, shape),
        }
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        let format = match self.tensor.dtype() {
            DType::F32 => dense_linear::Format::F32,
            DType::BF16 if cpu.compute() == Compute::Bf16 => dense_linear::Format::Bf16Bf16,
            DType::BF16 => dense_linear::Format::Bf16,
            _ => dense_linear::Format::F16,
        };
        dense_linear::kernel_name(format, cpu.isa(), m)
    }
}
