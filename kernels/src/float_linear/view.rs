//! One panel as the kernels see it.

use super::element::Element;
use super::panels::{LANES, Panels, STEP, Scales};

/// The codes and scales of sixteen rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) codes: &'a [u8],
    pub(super) scales: LaneScales<'a>,
    /// How many steps share a scale (the last run may be shorter).
    pub(super) run: usize,
    /// What all sums are multiplied by at the end.
    pub(super) factor: f32,
}

/// The scales of a panel, one run of steps after the other.
#[derive(Clone, Copy, Debug)]
pub(super) enum LaneScales<'a> {
    /// None but [`View::factor`].
    One,
    /// One for each row.
    Rows(&'a [[f32; LANES]]),
    /// One for all sixteen rows.
    Squares(&'a [f32]),
    /// Powers of two.
    E8m0(&'a [[u8; LANES]]),
    /// Two a step.
    E4m3(&'a [[u8; LANES]]),
}

impl Panels {
    /// Panel `p`, whose codes are multiples of `step`.
    pub(super) fn view(&self, p: usize, step: f32) -> View<'_> {
        let steps = self.k().div_ceil(STEP);
        let lanes = |groups: usize| p * groups..(p + 1) * groups;
        let (scales, run, factor) = match self.lanes() {
            Scales::Tensor(scale) => (LaneScales::One, steps, *scale),
            Scales::Groups { values, group_size } => {
                let groups = self.k() / (*group_size).max(1);
                let rows = &values.as_chunks::<LANES>().0[lanes(groups)];
                (LaneScales::Rows(rows), group_size.div_ceil(STEP), 1.0)
            }
            Scales::Blocks128(values) => {
                let groups = self.k().div_ceil(128);
                let row = p * LANES / 128;
                (LaneScales::Squares(&values[row * groups..(row + 1) * groups]), 128 / STEP, 1.0)
            }
            Scales::E8m0(codes) => {
                (LaneScales::E8m0(&codes.as_chunks::<LANES>().0[lanes(self.k() / 32)]), 1, 1.0)
            }
            Scales::E4m3 { codes, factor } => {
                let rows = &codes.as_chunks::<LANES>().0[lanes(self.k() / 16)];
                (LaneScales::E4m3(rows), 1, *factor)
            }
        };
        View { codes: self.panel(p), scales, run: run.max(1), factor: factor * step }
    }
}

impl Element {
    /// Bytes of a step of a panel.
    pub(super) const fn step_nbytes(self) -> usize {
        self.bits() * LANES * STEP / 8
    }

    /// The element of [`Element::ALL`] at `index`: kernels are compiled for each.
    pub(super) const fn from_index(index: usize) -> Element {
        Element::ALL[index]
    }
}
