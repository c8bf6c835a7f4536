/// What one call of a kernel moves and computes, counted from the shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read or written at least once: weights, scales, activations and results.
    pub bytes: u64,
    /// Floating-point or integer operations; a multiply-add counts two.
    pub flops: u64,
}

impl Cost {
    /// Bytes per nanosecond.
    pub fn gb_per_s(self, seconds: f64) -> f64 {
        self.bytes as f64 / seconds * 1e-9
    }

    /// Operations per nanosecond.
    pub fn gflop_per_s(self, seconds: f64) -> f64 {
        self.flops as f64 / seconds * 1e-9
    }
}
