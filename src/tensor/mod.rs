//! The one tensor type: owned, row-major, its dtype known at run time, cheap to clone.

mod dtype;
mod storage;

use std::fmt;
use std::sync::Arc;

use aolab_kernels::buffers::Buffer;
pub use dtype::{DType, Element};
use half::{bf16, f16};
pub use storage::MappedBytes;
use storage::Storage;

use crate::error::{Error, Result};

/// An n-dimensional array. Clones share the data, which never changes once made.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Arc<Storage>,
}

/// From this size on [`Tensor::in_large_pages`] moves memory: two pages of 2 MiB, so that at least one is whole.
const IN_LARGE_PAGES: usize = 4 << 20;

impl Tensor {
    /// A tensor of `shape` that owns `data` (row-major). The number of elements must agree.
    pub fn new<T: Element>(data: Vec<T>, shape: &[usize]) -> Result<Tensor> {
        check_numel(data.len(), shape)?;
        Ok(Tensor { dtype: T::DTYPE, shape: shape.to_vec(), data: Arc::new(T::store(data)) })
    }

    /// A tensor of f32 in memory that is used again once nobody holds it.
    pub fn recycled(data: Buffer, shape: &[usize]) -> Result<Tensor> {
        check_numel(data.len(), shape)?;
        let data = Arc::new(Storage::Recycled(data));
        Ok(Tensor { dtype: DType::F32, shape: shape.to_vec(), data })
    }

    /// A tensor over a range of a mapped file. Bytes that are not aligned for `dtype` are copied.
    pub fn mapped(bytes: MappedBytes, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let wanted = numel_of(shape)?.checked_mul(dtype.size()).ok_or_else(|| too_large(shape))?;
        if bytes.len() != wanted {
            let got = bytes.len();
            return Err(Error::invalid(format!(
                "{dtype} {shape:?} takes {wanted} bytes, got {got}"
            )));
        }
        let data = if bytes.is_aligned_for(dtype) {
            Storage::Mapped(bytes)
        } else {
            Storage::from_bytes(bytes.bytes(), dtype)
        };
        Ok(Tensor { dtype, shape: shape.to_vec(), data: Arc::new(data) })
    }

    /// A tensor of zeros.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let nbytes = numel_of(shape)?.checked_mul(dtype.size()).ok_or_else(|| too_large(shape))?;
        let data = Arc::new(Storage::from_bytes(&vec![0; nbytes], dtype));
        Ok(Tensor { dtype, shape: shape.to_vec(), data })
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The length of each dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bytes of the elements.
    pub fn nbytes(&self) -> usize {
        self.numel() * self.dtype.size()
    }

    /// The elements as they lie in memory, little-endian on every machine we run on.
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }

    /// Says that the elements will not be read again soon: where they lie in a file, their memory is given back.
    pub fn done_with(&self) {
        if let Storage::Mapped(bytes) = &*self.data {
            bytes.done_with();
        }
    }

    /// Says that the elements will be read whole again and again, as a weight's are for every token: from
    /// 4 MiB on their memory is moved into large pages. What lies in a file stays there.
    pub fn in_large_pages(&self) {
        if self.nbytes() >= IN_LARGE_PAGES && !matches!(*self.data, Storage::Mapped(_)) {
            aolab_kernels::pages::gather(self.bytes());
        }
    }

    /// The elements, if they are of type `T`.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.data.elements::<T>().filter(|_| T::DTYPE == self.dtype).ok_or_else(|| {
            let (wanted, got) = (T::DTYPE, self.dtype);
            Error::invalid(format!("wanted a tensor of {wanted}, got {got} {:?}", self.shape))
        })
    }

    /// The elements as a vector: the tensor's own where nobody shares it, else a copy.
    pub fn into_vec<T: Element>(self) -> Result<Vec<T>> {
        self.as_slice::<T>()?;
        match Arc::try_unwrap(self.data) {
            Ok(storage) => Ok(T::take(storage)),
            Err(shared) => Ok(bytemuck::pod_collect_to_vec(shared.bytes())),
        }
    }

    /// The tensor after `f` changed its elements: in its own memory where nobody shares it, else in a copy.
    pub fn changed<T: Element>(mut self, f: impl FnOnce(&mut [T])) -> Result<Tensor> {
        self.as_slice::<T>()?;
        if let Some(elements) = Arc::get_mut(&mut self.data).and_then(Storage::elements_mut::<T>) {
            f(elements);
            return Ok(self);
        }
        let mut elements: Vec<T> = bytemuck::pod_collect_to_vec(self.bytes());
        f(&mut elements);
        Tensor::new(elements, &self.shape)
    }

    /// The (rows, columns) of a matrix.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self.shape[..] {
            [rows, columns] => Ok((rows, columns)),
            _ => Err(Error::invalid(format!("wanted a matrix, got shape {:?}", self.shape))),
        }
    }

    /// The same data under another shape with as many elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        check_numel(self.numel(), shape)?;
        Ok(Tensor { dtype: self.dtype, shape: shape.to_vec(), data: Arc::clone(&self.data) })
    }

    /// The same bytes read as another dtype, under a shape that takes as many of them.
    pub fn view_as(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let wanted = numel_of(shape)?.checked_mul(dtype.size()).ok_or_else(|| too_large(shape))?;
        if wanted != self.nbytes() {
            let got = self.nbytes();
            return Err(Error::invalid(format!(
                "{dtype} {shape:?} takes {wanted} bytes, got {got}"
            )));
        }
        let data = match &*self.data {
            Storage::Mapped(bytes) if bytes.is_aligned_for(dtype) => Storage::Mapped(bytes.clone()),
            other => Storage::from_bytes(other.bytes(), dtype),
        };
        Ok(Tensor { dtype, shape: shape.to_vec(), data: Arc::new(data) })
    }

    /// All elements as f32. Wider types are rounded to nearest, ties to even.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        self.data.to_f32(self.dtype)
    }

    /// The tensor in another floating-point dtype, rounded to nearest, ties to even.
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        let values = self.to_f32_vec();
        match dtype {
            DType::F32 => Tensor::new(values, &self.shape),
            DType::F64 => Tensor::new(values.into_iter().map(f64::from).collect(), &self.shape),
            DType::BF16 => {
                Tensor::new::<bf16>(values.into_iter().map(bf16::from_f32).collect(), &self.shape)
            }
            DType::F16 => {
                Tensor::new::<f16>(values.into_iter().map(f16::from_f32).collect(), &self.shape)
            }
            _ => Err(Error::invalid(format!(
                "cannot cast {} to {dtype}: wanted f32, f64, bf16 or f16; integers come from a quantizer",
                self.dtype
            ))),
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor {} {:?}", self.dtype, self.shape)?;
        let shown: Vec<String> =
            self.to_f32_vec().iter().take(6).map(|value| format!("{value:.4}")).collect();
        let rest = if self.numel() > 6 { ", …" } else { "" };
        write!(f, " [{}{rest}]", shown.join(", "))
    }
}

/// The product of `shape`, or an error where it overflows.
fn numel_of(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1_usize, |product, dim| product.checked_mul(*dim))
        .ok_or_else(|| too_large(shape))
}

fn too_large(shape: &[usize]) -> Error {
    Error::invalid(format!("shape {shape:?} has more elements than memory can address"))
}

fn check_numel(got: usize, shape: &[usize]) -> Result<()> {
    let wanted = numel_of(shape)?;
    if got == wanted {
        return Ok(());
    }
    Err(Error::invalid(format!("shape {shape:?} wants {wanted} elements, got {got}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_back_and_wrong_types_are_refused() {
        let t = Tensor::new(vec![1.0_f32, 2.0, 3.0, 4.0], &[2, 2]).expect("four elements");
        assert_eq!(t.as_slice::<f32>().expect("f32"), &[1.0, 2.0, 3.0, 4.0]);
        let error = t.as_slice::<i8>().expect_err("not i8").to_string();
        assert!(error.contains("wanted a tensor of i8, got f32"), "{error}");
        assert!(Tensor::new(vec![1.0_f32], &[2, 2]).is_err());
        assert!(Tensor::zeros(DType::F32, &[usize::MAX, 2]).is_err());
    }

    #[test]
    fn what_is_changed_is_changed_for_nobody_else() {
        let buffer = aolab_kernels::buffers::Buffers::default().take(5000);
        let recycled = Tensor::recycled(buffer, &[5000]).expect("as many");
        for first in [recycled, Tensor::new(vec![0.0_f32; 5000], &[5000]).expect("as many")] {
            let shared = first.clone();
            let second = first.changed::<f32>(|x| x[1] = 2.0).expect("f32");
            assert_eq!((shared.to_f32_vec()[1], second.to_f32_vec()[1]), (0.0, 2.0));
            let place = second.bytes().as_ptr().addr();
            let third = second.changed::<f32>(|x| x[1] = 3.0).expect("f32");
            assert_eq!(third.bytes().as_ptr().addr(), place, "nobody shares it");
            assert_eq!(third.into_vec::<f32>().expect("f32")[1].to_bits(), 3.0_f32.to_bits());
        }
        assert!(Tensor::new(vec![0_u8], &[1]).expect("one").changed::<f32>(|_| {}).is_err());
    }

    #[test]
    fn casts_round_to_nearest_even() {
        // 1 + 2⁻⁸ lies half-way between two bf16 values: the even one is 1.
        let t = Tensor::new(vec![1.0 + 2.0_f32.powi(-8)], &[1]).expect("one element");
        let b = t.to_dtype(DType::BF16).expect("a float cast");
        assert_eq!(b.to_f32_vec(), [1.0]);
        assert!(t.to_dtype(DType::I8).is_err());
    }
}
