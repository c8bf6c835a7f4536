//! What a cache may be made of.

#[cfg(target_arch = "x86_64")]
use crate::{dtypes, isa::Avx2};
use half::{bf16, f16};

mod sealed {
    #[expect(unnameable_types, reason = "that is what seals `CacheElement`")]
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// f32, f16 or bf16: the elements of a key and value cache.
pub trait CacheElement: Copy + Send + Sync + sealed::Sealed {
    /// The element as f32, exactly.
    fn widen(self) -> f32;

    /// The elements as f32, exactly: in `room`, or where they are.
    #[cfg(target_arch = "x86_64")]
    #[doc(hidden)]
    fn widen_all<'a>(avx2: Avx2, x: &'a [Self], room: &'a mut Vec<f32>) -> &'a [f32];
}

impl CacheElement for f32 {
    fn widen(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    fn widen_all<'a>(_: Avx2, x: &'a [f32], _: &'a mut Vec<f32>) -> &'a [f32] {
        x
    }
}

impl CacheElement for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    fn widen_all<'a>(avx2: Avx2, x: &'a [f16], room: &'a mut Vec<f32>) -> &'a [f32] {
        room.resize(x.len(), 0.0);
        dtypes::float16::x86::f16_to_f32(avx2, x, room);
        room
    }
}

impl CacheElement for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    fn widen_all<'a>(avx2: Avx2, x: &'a [bf16], room: &'a mut Vec<f32>) -> &'a [f32] {
        room.resize(x.len(), 0.0);
        dtypes::float16::x86::bf16_to_f32(avx2, x, room);
        room
    }
}
