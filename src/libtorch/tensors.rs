//! `Tensor` and `tch::Tensor` over the same memory where nobody could see the other's writes, else a copy.

use std::sync::Arc;

use aolab_kernels::libtorch::{Lent, from_vec};
use half::{bf16, f16};
use tch::Kind;

use super::wrong;
use crate::error::{Error, Result};
use crate::tensor::{DType, MappedBytes, Tensor};

/// The tensor as torch's. Its memory goes along where this was the only owner of it; a tensor that others share, or that lies
/// in a file, is copied, because torch may write to what it is given.
pub fn into_torch(tensor: Tensor) -> Result<tch::Tensor> {
    let shape: Vec<i64> =
        tensor.shape().iter().map(|dim| i64::try_from(*dim).unwrap_or(-1)).collect();
    let moved = match tensor.dtype() {
        DType::F64 => from_vec(tensor.into_vec::<f64>()?, &shape),
        DType::F32 => from_vec(tensor.into_vec::<f32>()?, &shape),
        DType::F16 => from_vec(tensor.into_vec::<f16>()?, &shape),
        DType::BF16 => from_vec(tensor.into_vec::<bf16>()?, &shape),
        DType::I64 => from_vec(tensor.into_vec::<i64>()?, &shape),
        DType::I32 => from_vec(tensor.into_vec::<i32>()?, &shape),
        DType::I16 => from_vec(tensor.into_vec::<i16>()?, &shape),
        DType::I8 => from_vec(tensor.into_vec::<i8>()?, &shape),
        DType::U8 => from_vec(tensor.into_vec::<u8>()?, &shape),
    };
    moved.map_err(wrong)
}

/// A copy of the tensor as torch's.
pub fn to_torch(tensor: &Tensor) -> Result<tch::Tensor> {
    into_torch(tensor.clone())
}

/// The tensor of torch as ours. Memory that nothing else of torch refers to is taken as it is; all else (views, what needs a
/// gradient, what lies on a GPU) is copied. Booleans come as u8; dtypes that [`Tensor`] lacks are errors.
pub fn from_torch(tensor: tch::Tensor) -> Result<Tensor> {
    let dtype = dtype_of(tensor.f_kind().map_err(wrong)?)?;
    let shape: Vec<usize> =
        tensor.size().iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
    let lent = Lent::new(tensor).or_else(|tensor| {
        let plain = tensor.detach().to_device(tch::Device::Cpu).contiguous();
        // A contiguous tensor is its own contiguous form: only a copy is alone.
        Lent::new(plain).or_else(|shared| Lent::new(shared.copy()))
    });
    let lent = lent.map_err(|tensor| {
        Error::invalid(format!("a tensor of {:?} has no memory to read", tensor.f_kind()))
    })?;
    Tensor::mapped(MappedBytes::owned(Arc::new(lent)), dtype, &shape)
}

fn dtype_of(kind: Kind) -> Result<DType> {
    Ok(match kind {
        Kind::Double => DType::F64,
        Kind::Float => DType::F32,
        Kind::Half => DType::F16,
        Kind::BFloat16 => DType::BF16,
        Kind::Int64 => DType::I64,
        Kind::Int => DType::I32,
        Kind::Int16 => DType::I16,
        Kind::Int8 => DType::I8,
        Kind::Uint8 | Kind::Bool => DType::U8,
        other => {
            return Err(Error::invalid(format!(
                "a tensor of {other:?} has no counterpart here; convert it in torch first"
            )));
        }
    })
}
