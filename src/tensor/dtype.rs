//! The types of a tensor's elements.

use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::storage::Storage;

/// The type of a tensor's elements. Sub-byte codes live in `U8`; their packing is the workflow's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each variant is named after the type it stands for")]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 | DType::I16 => 2,
            DType::I8 | DType::U8 => 1,
        }
    }

    /// Whether the elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// `f32`, `bf16`, `i8` …
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::I16 => "i16",
            DType::I8 => "i8",
            DType::U8 => "u8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

mod sealed {
    /// Keeps [`super::Element`] to the types that a tensor can store.
    #[expect(unnameable_types, reason = "what nobody can name, nobody can implement")]
    pub trait Sealed {}
}

/// A Rust type that tensors store.
pub trait Element: bytemuck::Pod + sealed::Sealed + Send + Sync {
    /// Its name at run time.
    const DTYPE: DType;
    #[doc(hidden)]
    #[allow(private_interfaces, reason = "sealed: nobody outside can name or call it")]
    fn store(data: Vec<Self>) -> Storage;
    #[doc(hidden)]
    #[allow(private_interfaces, reason = "sealed: nobody outside can name or call it")]
    fn take(storage: Storage) -> Vec<Self>;
}

macro_rules! elements {
    ($($ty:ty => $variant:ident),+) => {$(
        impl sealed::Sealed for $ty {}
        impl Element for $ty {
            const DTYPE: DType = DType::$variant;
            #[allow(private_interfaces, reason = "sealed: nobody outside can name or call it")]
            fn store(data: Vec<Self>) -> Storage {
                Storage::$variant(data)
            }
            #[allow(private_interfaces, reason = "sealed: nobody outside can name or call it")]
            fn take(storage: Storage) -> Vec<Self> {
                match storage {
                    Storage::$variant(data) => data,
                    Storage::Recycled(buffer) => bytemuck::try_cast_vec(buffer.into_vec())
                        .unwrap_or_else(|(_, data)| bytemuck::pod_collect_to_vec(&data)),
                    other => bytemuck::pod_collect_to_vec(other.bytes()),
                }
            }
        }
    )+};
}

elements!(f64 => F64, f32 => F32, f16 => F16, bf16 => BF16, i64 => I64, i32 => I32, i16 => I16, i8 => I8, u8 => U8);
