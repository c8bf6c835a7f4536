//! Where a tensor's elements lie: in a typed vector or in a mapped file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aolab_kernels::buffers::Buffer;
use aolab_kernels::mmap::Mapped;
use half::{bf16, f16};

use super::dtype::{DType, Element};

/// A range of the bytes of a mapped file, or of the program's own constants. Clones share them.
#[derive(Clone)]
pub struct MappedBytes {
    file: Backing,
    range: Range<usize>,
}

#[derive(Clone)]
enum Backing {
    File(Arc<Mapped>),
    Constant(&'static [u8]),
    Owned(Arc<dyn AsRef<[u8]> + Send + Sync>),
}

impl MappedBytes {
    /// The bytes `range` of `file`; `None` where the file is shorter.
    pub fn new(file: Arc<Mapped>, range: Range<usize>) -> Option<MappedBytes> {
        file.bytes().get(range.clone())?;
        Some(MappedBytes { file: Backing::File(file), range })
    }

    /// Bytes that are part of the program.
    pub fn constant(bytes: &'static [u8]) -> MappedBytes {
        MappedBytes { file: Backing::Constant(bytes), range: 0..bytes.len() }
    }

    /// All bytes of `owner`, which lives as long as they are shared: memory of another library, unpacked bytes.
    pub fn owned(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> MappedBytes {
        let range = 0..(*owner).as_ref().len();
        MappedBytes { file: Backing::Owned(owner), range }
    }

    /// The bytes `range` of these; `None` where there are fewer.
    pub fn slice(&self, range: Range<usize>) -> Option<MappedBytes> {
        self.bytes().get(range.clone())?;
        let start = self.range.start;
        let range = start + range.start..start + range.end;
        Some(MappedBytes { file: self.file.clone(), range })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        let all = match &self.file {
            Backing::File(file) => file.bytes(),
            Backing::Constant(bytes) => bytes,
            Backing::Owned(owner) => (**owner).as_ref(),
        };
        &all[self.range.clone()]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Gives back the memory of pages that come from a file, until they are read again.
    pub fn done_with(&self) {
        if let Backing::File(file) = &self.file {
            file.done_with(self.range.start, self.range.len());
        }
    }

    pub(super) fn is_aligned_for(&self, dtype: DType) -> bool {
        self.bytes().as_ptr().addr().is_multiple_of(dtype.size())
    }
}

impl fmt::Debug for MappedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedBytes({:?})", self.range)
    }
}

#[derive(Debug)]
pub(crate) enum Storage {
    F64(Vec<f64>),
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    I16(Vec<i16>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    /// f32 in memory that is used again.
    Recycled(Buffer),
    Mapped(MappedBytes),
}

impl Storage {
    /// A copy of `bytes`, whose length is a multiple of the element size.
    pub(super) fn from_bytes(bytes: &[u8], dtype: DType) -> Storage {
        fn collect<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
            bytemuck::pod_collect_to_vec(bytes)
        }
        match dtype {
            DType::F64 => Storage::F64(collect(bytes)),
            DType::F32 => Storage::F32(collect(bytes)),
            DType::F16 => Storage::F16(collect(bytes)),
            DType::BF16 => Storage::BF16(collect(bytes)),
            DType::I64 => Storage::I64(collect(bytes)),
            DType::I32 => Storage::I32(collect(bytes)),
            DType::I16 => Storage::I16(collect(bytes)),
            DType::I8 => Storage::I8(collect(bytes)),
            DType::U8 => Storage::U8(bytes.to_vec()),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Storage::F64(v) => bytemuck::cast_slice(v),
            Storage::F32(v) => bytemuck::cast_slice(v),
            Storage::F16(v) => bytemuck::cast_slice(v),
            Storage::BF16(v) => bytemuck::cast_slice(v),
            Storage::I64(v) => bytemuck::cast_slice(v),
            Storage::I32(v) => bytemuck::cast_slice(v),
            Storage::I16(v) => bytemuck::cast_slice(v),
            Storage::I8(v) => bytemuck::cast_slice(v),
            Storage::U8(v) => v,
            Storage::Recycled(v) => bytemuck::cast_slice(v),
            Storage::Mapped(m) => m.bytes(),
        }
    }

    /// The elements as `T`. The caller's tensor knows the dtype of mapped bytes.
    pub(super) fn elements<T: Element>(&self) -> Option<&[T]> {
        let same = match self {
            Storage::F64(_) => T::DTYPE == DType::F64,
            Storage::F32(_) | Storage::Recycled(_) => T::DTYPE == DType::F32,
            Storage::F16(_) => T::DTYPE == DType::F16,
            Storage::BF16(_) => T::DTYPE == DType::BF16,
            Storage::I64(_) => T::DTYPE == DType::I64,
            Storage::I32(_) => T::DTYPE == DType::I32,
            Storage::I16(_) => T::DTYPE == DType::I16,
            Storage::I8(_) => T::DTYPE == DType::I8,
            Storage::U8(_) => T::DTYPE == DType::U8,
            Storage::Mapped(_) => true,
        };
        if same { bytemuck::try_cast_slice(self.bytes()).ok() } else { None }
    }

    /// The elements of a result of training, to be changed; `None` for other storage.
    pub(super) fn elements_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        match self {
            Storage::F64(v) if T::DTYPE == DType::F64 => bytemuck::try_cast_slice_mut(v).ok(),
            Storage::F32(v) if T::DTYPE == DType::F32 => bytemuck::try_cast_slice_mut(v).ok(),
            Storage::Recycled(v) if T::DTYPE == DType::F32 => bytemuck::try_cast_slice_mut(v).ok(),
            _ => None,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest, as said")]
    #[expect(clippy::cast_precision_loss, reason = "integers wider than 24 bits round to nearest")]
    pub(super) fn to_f32(&self, dtype: DType) -> Vec<f32> {
        fn map<T: Element>(storage: &Storage, f: impl Fn(T) -> f32) -> Vec<f32> {
            storage.elements::<T>().unwrap_or_default().iter().map(|value| f(*value)).collect()
        }
        match dtype {
            DType::F64 => map::<f64>(self, |v| v as f32),
            DType::F32 => map::<f32>(self, |v| v),
            DType::F16 => map::<f16>(self, f16::to_f32),
            DType::BF16 => map::<bf16>(self, bf16::to_f32),
            DType::I64 => map::<i64>(self, |v| v as f32),
            DType::I32 => map::<i32>(self, |v| v as f32),
            DType::I16 => map::<i16>(self, f32::from),
            DType::I8 => map::<i8>(self, f32::from),
            DType::U8 => map::<u8>(self, f32::from),
        }
    }
}
