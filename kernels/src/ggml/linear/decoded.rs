//! What prefill makes of a panel once, for every row of activations to use.

use super::panels::{LANES, STEP};

/// 32 columns of a panel.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub(super) struct Decoded {
    /// Sixteen pairs of columns for sixteen rows.
    pub(super) codes: [[i16; 2 * LANES]; STEP / 2],
    /// Scales of the one or two sub-blocks.
    pub(super) scales: [[f32; LANES]; 2],
    /// What is added: minimums of the one or two sub-blocks.
    pub(super) mins: [[f32; LANES]; 2],
}

impl Decoded {
    pub(super) const ZERO: Decoded = Decoded {
        codes: [[0; 2 * LANES]; STEP / 2],
        scales: [[0.0; LANES]; 2],
        mins: [[0.0; LANES]; 2],
    };
}
