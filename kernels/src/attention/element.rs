//! What a cache may be made of.

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
}

impl CacheElement for f32 {
    fn widen(self) -> f32 {
        self
    }
}

impl CacheElement for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl CacheElement for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}
