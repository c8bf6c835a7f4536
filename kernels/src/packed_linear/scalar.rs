//! Scalar oracle: exact integer sums of a step, scaled and added in f64.

use super::activation::Block;
use super::codes::{LANES, STEP};
use super::weight::{Panel, Values};

/// One panel times some rows of activations.
#[expect(clippy::cast_possible_truncation, reason = "the result is f32")]
pub(super) fn panel(panel: &Panel<'_>, x: &[Block], y: &mut [[f32; LANES]]) {
    let steps = panel.groups * panel.steps_per_group;
    let weight = panel.weight;
    let first = panel.first_group / panel.groups.max(1) * LANES;
    let table_scale = f64::from(weight.table_scale());
    let mut codes = vec![0; weight.k()];
    for lane in 0..LANES.min(weight.n() - first) {
        weight.codes().row(first + lane, &mut codes);
        for (x, y) in x.chunks_exact(steps).zip(&mut *y) {
            let mut sum = 0.0;
            for (s, (x, codes)) in x.iter().zip(codes.chunks(STEP)).enumerate() {
                let integers = x.integers();
                let scale = panel.scale(s / panel.steps_per_group);
                let offset = panel.offset(s / panel.steps_per_group, &scale)[lane];
                let products = codes.iter().zip(integers).map(|(u, x)| value(panel, *u) * x);
                let dot: i32 = products.sum();
                let dot = f64::from(dot) * table_scale * f64::from(scale[lane]);
                let offset = f64::from(offset) * f64::from(x.sum);
                sum += (dot + if panel.has_offset() { offset } else { 0.0 }) * f64::from(x.scale);
            }
            y[lane] = sum as f32;
        }
    }
}

fn value(panel: &Panel<'_>, code: u8) -> i32 {
    match &panel.weight.values {
        Values::Integers { bias } => i32::from(code) - i32::from(*bias),
        Values::Table(table) => i32::from(table.integers[usize::from(code)]),
    }
}
