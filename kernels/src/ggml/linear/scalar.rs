//! The oracle: the same sums in the same order as the vector kernels, one number at a time.

use super::activation::Block;
use super::panels::{LANES, STEP, get_fields};
use crate::ggml::BlockType;
use crate::ggml::fields::Fields;
use half::f16;

/// One row of activations times one panel.
pub(super) fn row(ty: BlockType, panel: &[u8], x: &[Block], y: &mut [f32; LANES]) {
    let mut fields = Fields::ZERO;
    for (lane, y) in y.iter_mut().enumerate() {
        *y = 0.0;
        let units = panel.chunks_exact(ty.unit().nbytes);
        for (unit, x) in units.zip(x.chunks_exact(ty.unit().steps)) {
            get_fields(ty, unit, lane, &mut fields);
            *y = add_unit(ty, &fields, x, *y);
        }
    }
}

fn add_unit(ty: BlockType, fields: &Fields, x: &[Block], y: f32) -> f32 {
    let (d, m) = (f16::from_le_bytes(fields.d).to_f32(), f16::from_le_bytes(fields.m).to_f32());
    let sub_len = ty.sub_len();
    let subs = STEP / sub_len;
    fields.codes[..ty.block_len()].chunks(sub_len).enumerate().fold(y, |y, (j, codes)| {
        let (x, half) = (&x[j / subs], j % subs);
        let pairs = &x.pairs[half * sub_len / 2..][..sub_len / 2];
        let dot: i32 = pairs
            .iter()
            .zip(codes.as_chunks::<2>().0)
            .map(|(p, c)| {
                let [low, high] = c.map(|c| i32::from(c) - i32::from(ty.bias()));
                (p << 16 >> 16) * low + (p >> 16) * high
            })
            .sum();
        let (scale, min) = match ty.sub_scales() {
            0 => (d, m),
            _ => (d * f32::from(fields.scales[j]), -(m * f32::from(fields.mins[j]))),
        };
        let y = (dot as f32).mul_add(scale * x.scale, y);
        let scaled_sum = if subs == 1 { x.scaled_sums[2] } else { x.scaled_sums[half] };
        if ty.has_min() { min.mul_add(scaled_sum, y) } else { y }
    })
}
