//! Inputs for tests: a small seeded generator.

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Sample(pub(crate) u64);

impl Sample {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// Uniform below `end`.
    pub(crate) fn below(&mut self, end: usize) -> u32 {
        u32::try_from(self.bits() % end as u64).expect("`end` fits 32 bits")
    }

    /// `len` numbers, uniform in [-scale, scale).
    pub(crate) fn vec(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.unit() * scale).collect()
    }
}
