//! The types of elements that torch writes, and what a [`Tensor`] makes of them.

use aolab_kernels::dtypes;

use crate::error::Result;
use crate::tensor::{DType, MappedBytes, Tensor};

/// The type of a stored tensor's elements, by torch's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TorchType {
    /// One that a [`Tensor`] holds as it is.
    Same(DType),
    /// `torch.bool`, read as 0 and 1 of u8.
    Bool,
    /// `torch.uint16`, read as i32.
    U16,
    /// `torch.uint32`, read as i64.
    U32,
    /// `torch.uint64`, read as i64 where the values fit.
    U64,
    /// One of torch's 8-bit floats, read as f32.
    Float8(Float8),
    /// Two 4-bit floats in a byte, read as those bytes.
    Float4x2,
    /// `torch.complex32`, read as f16 with a last dimension of 2.
    Complex32,
    /// `torch.complex64`, read as f32 with a last dimension of 2.
    Complex64,
    /// `torch.complex128`, read as f64 with a last dimension of 2.
    Complex128,
}

/// The 8-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float8 {
    /// `torch.float8_e4m3fn`
    E4m3fn,
    /// `torch.float8_e5m2`
    E5m2,
    /// `torch.float8_e4m3fnuz`
    E4m3fnuz,
    /// `torch.float8_e5m2fnuz`
    E5m2fnuz,
    /// `torch.float8_e8m0fnu`: powers of two
    E8m0fnu,
}

impl TorchType {
    /// By the name of a dtype: `float8_e4m3fn` of `torch.float8_e4m3fn`.
    pub(super) fn of_dtype(name: &str) -> Option<TorchType> {
        Some(match name {
            "float64" | "double" => TorchType::Same(DType::F64),
            "float32" | "float" => TorchType::Same(DType::F32),
            "float16" | "half" => TorchType::Same(DType::F16),
            "bfloat16" => TorchType::Same(DType::BF16),
            "int64" | "long" => TorchType::Same(DType::I64),
            "int32" | "int" => TorchType::Same(DType::I32),
            "int16" | "short" => TorchType::Same(DType::I16),
            "int8" => TorchType::Same(DType::I8),
            "uint8" => TorchType::Same(DType::U8),
            "bool" => TorchType::Bool,
            "uint16" => TorchType::U16,
            "uint32" => TorchType::U32,
            "uint64" => TorchType::U64,
            "float8_e4m3fn" => TorchType::Float8(Float8::E4m3fn),
            "float8_e5m2" => TorchType::Float8(Float8::E5m2),
            "float8_e4m3fnuz" => TorchType::Float8(Float8::E4m3fnuz),
            "float8_e5m2fnuz" => TorchType::Float8(Float8::E5m2fnuz),
            "float8_e8m0fnu" => TorchType::Float8(Float8::E8m0fnu),
            "float4_e2m1fn_x2" => TorchType::Float4x2,
            "complex32" | "chalf" => TorchType::Complex32,
            "complex64" | "cfloat" => TorchType::Complex64,
            "complex128" | "cdouble" => TorchType::Complex128,
            _ => return None,
        })
    }

    /// By the name of a storage's class: `torch.FloatStorage`.
    pub(super) fn of_storage(class: &str) -> Option<TorchType> {
        TorchType::of_dtype(match class.strip_suffix("Storage")? {
            "Double" => "float64",
            "Float" => "float32",
            "Half" => "float16",
            "BFloat16" => "bfloat16",
            "Long" => "int64",
            "Int" => "int32",
            "Short" => "int16",
            "Char" => "int8",
            "Byte" | "Untyped" => "uint8",
            "Bool" => "bool",
            "ComplexFloat" => "complex64",
            "ComplexDouble" => "complex128",
            _ => return None,
        })
    }

    /// The storage's class of a dtype, for writing.
    pub(super) fn storage_of(dtype: DType) -> &'static str {
        match dtype {
            DType::F64 => "DoubleStorage",
            DType::F32 => "FloatStorage",
            DType::F16 => "HalfStorage",
            DType::BF16 => "BFloat16Storage",
            DType::I64 => "LongStorage",
            DType::I32 => "IntStorage",
            DType::I16 => "ShortStorage",
            DType::I8 => "CharStorage",
            DType::U8 => "ByteStorage",
        }
    }

    /// Torch's name: `float8_e4m3fn`.
    pub fn name(self) -> &'static str {
        match self {
            TorchType::Same(DType::F64) => "float64",
            TorchType::Same(DType::F32) => "float32",
            TorchType::Same(DType::F16) => "float16",
            TorchType::Same(DType::BF16) => "bfloat16",
            TorchType::Same(DType::I64) => "int64",
            TorchType::Same(DType::I32) => "int32",
            TorchType::Same(DType::I16) => "int16",
            TorchType::Same(DType::I8) => "int8",
            TorchType::Same(DType::U8) => "uint8",
            TorchType::Bool => "bool",
            TorchType::U16 => "uint16",
            TorchType::U32 => "uint32",
            TorchType::U64 => "uint64",
            TorchType::Float8(Float8::E4m3fn) => "float8_e4m3fn",
            TorchType::Float8(Float8::E5m2) => "float8_e5m2",
            TorchType::Float8(Float8::E4m3fnuz) => "float8_e4m3fnuz",
            TorchType::Float8(Float8::E5m2fnuz) => "float8_e5m2fnuz",
            TorchType::Float8(Float8::E8m0fnu) => "float8_e8m0fnu",
            TorchType::Float4x2 => "float4_e2m1fn_x2",
            TorchType::Complex32 => "complex32",
            TorchType::Complex64 => "complex64",
            TorchType::Complex128 => "complex128",
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            TorchType::Same(dtype) => dtype.size(),
            TorchType::Bool | TorchType::Float8(_) | TorchType::Float4x2 => 1,
            TorchType::U16 => 2,
            TorchType::U32 | TorchType::Complex32 => 4,
            TorchType::U64 | TorchType::Complex64 => 8,
            TorchType::Complex128 => 16,
        }
    }

    /// The tensor of these bytes. Every value is kept exactly; where a [`Tensor`] has no such type, the next wider one
    /// holds it, as the variants say.
    pub(super) fn read(self, bytes: MappedBytes, shape: &[usize]) -> Result<Tensor> {
        let pairs = || -> Vec<usize> { shape.iter().copied().chain([2]).collect() };
        match self {
            TorchType::Same(dtype) => Tensor::mapped(bytes, dtype, shape),
            TorchType::Float4x2 => Tensor::mapped(bytes, DType::U8, shape),
            TorchType::Complex32 => Tensor::mapped(bytes, DType::F16, &pairs()),
            TorchType::Complex64 => Tensor::mapped(bytes, DType::F32, &pairs()),
            TorchType::Complex128 => Tensor::mapped(bytes, DType::F64, &pairs()),
            TorchType::Bool => each(&bytes, shape, |[byte]| u8::from(byte != 0)),
            TorchType::U16 => each(&bytes, shape, |b| i32::from(u16::from_le_bytes(b))),
            TorchType::U32 => each(&bytes, shape, |b| i64::from(u32::from_le_bytes(b))),
            TorchType::U64 => {
                let wide = |b: [u8; 8]| i64::try_from(u64::from_le_bytes(b));
                let values: Result<Vec<i64>, _> =
                    bytes.bytes().as_chunks().0.iter().map(|chunk| wide(*chunk)).collect();
                let values = values.map_err(|_| {
                    crate::Error::invalid("a uint64 is larger than 2^63 - 1, which i64 cannot hold")
                })?;
                Tensor::new(values, shape)
            }
            TorchType::Float8(kind) => each(&bytes, shape, |[byte]| kind.decode(byte)),
        }
    }
}

impl Float8 {
    fn decode(self, byte: u8) -> f32 {
        match self {
            Float8::E4m3fn => dtypes::e4m3fn_decode(byte),
            Float8::E5m2 => dtypes::e5m2_decode(byte),
            Float8::E4m3fnuz => dtypes::fnuz_decode(byte, 3),
            Float8::E5m2fnuz => dtypes::fnuz_decode(byte, 2),
            Float8::E8m0fnu => dtypes::e8m0_decode(byte),
        }
    }
}

fn each<const N: usize, T: crate::tensor::Element>(
    bytes: &MappedBytes,
    shape: &[usize],
    decode: impl Fn([u8; N]) -> T,
) -> Result<Tensor> {
    let (chunks, _) = bytes.bytes().as_chunks::<N>();
    Tensor::new(chunks.iter().map(|chunk| decode(*chunk)).collect(), shape)
}
