//! The K types: 256 numbers a block, in sub-blocks of 16 or 32 whose scales and minimums are small integers themselves.

use super::super::BlockType;
use super::super::fields::{Fields, write};
use super::half;
use super::search::{Steps, TINY, code, fit_3bit, fit_positive, fit_scale, fit_scale_min, nearest};

/// Scales and minimums of the sub-blocks before they are rounded; a minimum is what is taken away.
struct Sub {
    scales: [f32; 16],
    mins: [f32; 16],
}

pub(super) fn q2_k(w: &[f32; 256], b: &mut [u8; 84]) {
    let steps = Steps { from: -0.5, by: 0.1, count: 15, absolute: true };
    with_min(BlockType::Q2K, w, b, steps, |x, weights| {
        weights.iter_mut().zip(x).for_each(|(weight, x)| *weight = x.abs());
    });
}

pub(super) fn q4_k(w: &[f32; 256], b: &mut [u8; 144]) {
    let steps = Steps { from: -1.0, by: 0.1, count: 20, absolute: false };
    with_min(BlockType::Q4K, w, b, steps, by_size);
}

pub(super) fn q5_k(w: &[f32; 256], b: &mut [u8; 176]) {
    let steps = Steps { from: -0.5, by: 0.1, count: 15, absolute: false };
    with_min(BlockType::Q5K, w, b, steps, by_size);
}

/// Numbers weigh as their size, and all of a sub-block as its mean square besides.
fn by_size(x: &[f32], weights: &mut [f32]) {
    let sum = x.iter().fold(0.0_f32, |sum, x| sum + x * x);
    let mean = (sum / 32.0).sqrt();
    weights.iter_mut().zip(x).for_each(|(weight, x)| *weight = mean + x.abs());
}

/// The largest code of a number, and of a scale or minimum.
fn most(ty: BlockType) -> (u8, u8) {
    match ty {
        BlockType::Q2K => (3, 15),
        BlockType::Q4K => (15, 63),
        _ => (31, 63),
    }
}

fn with_min(
    ty: BlockType,
    w: &[f32; 256],
    block: &mut [u8],
    steps: Steps,
    weigh: fn(&[f32], &mut [f32]),
) {
    let (top, scale_top) = most(ty);
    let (len, count) = (ty.sub_len(), ty.sub_scales());
    let mut fields = Fields::ZERO;
    let mut sub = Sub { scales: [0.0; 16], mins: [0.0; 16] };
    for (j, (x, codes)) in w.chunks_exact(len).zip(fields.codes.chunks_exact_mut(len)).enumerate() {
        let mut weights = [0.0; 32];
        weigh(x, &mut weights[..len]);
        let (scale, min) = fit_scale_min(top, x, &weights[..len], codes, steps);
        (sub.scales[j], sub.mins[j]) = (scale, -min);
    }
    (fields.d, fields.scales) = against_largest(&sub.scales[..count], scale_top);
    (fields.m, fields.mins) = against_largest(&sub.mins[..count], scale_top);
    code_again(ty, w, &mut fields, 0, i32::from(top));
    write(ty, &fields, block);
}

/// Rounds numbers ≥ 0 to 0 ..= `top` against the largest, whose share of `top` is kept as f16.
fn against_largest(values: &[f32], top: u8) -> ([u8; 2], [i8; 16]) {
    let largest = values.iter().fold(0.0_f32, |max, v| if *v > max { *v } else { max });
    let mut codes = [0; 16];
    if largest > 0.0 {
        let inv_scale = f32::from(top) / largest;
        for (to, v) in codes.iter_mut().zip(values) {
            *to = code(nearest(inv_scale * v).min(i32::from(top)));
        }
    }
    (half(largest / f32::from(top)).0, codes)
}

/// Codes every number against the rounded scale and minimum of its sub-block; where the scale became 0, the codes of the
/// search stay. What is stored has the type's bias added.
fn code_again(ty: BlockType, w: &[f32; 256], fields: &mut Fields, low: i32, high: i32) {
    let d = half::f16::from_le_bytes(fields.d).to_f32();
    let m = half::f16::from_le_bytes(fields.m).to_f32();
    let len = ty.sub_len();
    for (j, (x, codes)) in w.chunks_exact(len).zip(fields.codes.chunks_exact_mut(len)).enumerate() {
        let d = d * f32::from(fields.scales[j]);
        if d == 0.0 {
            continue;
        }
        let m = m * f32::from(fields.mins[j]);
        for (to, x) in codes.iter_mut().zip(x) {
            *to = code(nearest((x + m) / d).clamp(low, high)) + ty.bias();
        }
    }
}

pub(super) fn q3_k(w: &[f32; 256], b: &mut [u8; 110]) {
    let mut fields = Fields::ZERO;
    let mut scales = [0.0; 16];
    for (j, (x, codes)) in w.chunks_exact(16).zip(fields.codes.chunks_exact_mut(16)).enumerate() {
        scales[j] = fit_3bit(x, codes);
    }
    let largest = scales.iter().fold(0.0_f32, |e, v| if v.abs() > e.abs() { *v } else { e });
    if largest == 0.0 {
        // llama.cpp writes the scale codes 0, which stand for −32; with d = 0 they change nothing.
        fields.scales = [-32; 16];
    } else {
        let inv_scale = -32.0 / largest;
        for (to, scale) in fields.scales.iter_mut().zip(&scales) {
            // Stored as a signed byte first: nothing within the range is changed by it.
            *to = code(nearest(inv_scale * scale).clamp(-32, 31));
        }
        fields.d = half(1.0 / inv_scale).0;
    }
    code_again(BlockType::Q3K, w, &mut fields, -4, 3);
    write(BlockType::Q3K, &fields, b);
}

pub(super) fn q6_k(w: &[f32; 256], b: &mut [u8; 210]) {
    q6_k_by(w, b, |x, _, codes| {
        let mut weights = [0.0; 16];
        weights.iter_mut().zip(x).for_each(|(weight, x)| *weight = x * x);
        fit_scale(32, x, &weights, codes)
    });
}

fn q6_k_by(w: &[f32; 256], block: &mut [u8], fit: impl Fn(&[f32], usize, &mut [i8]) -> f32) {
    let mut fields = Fields::ZERO;
    let mut scales = [0.0; 16];
    for (j, (x, codes)) in w.chunks_exact(16).zip(fields.codes.chunks_exact_mut(16)).enumerate() {
        scales[j] = fit(x, j, codes);
    }
    let largest = scales.iter().fold(0.0_f32, |e, v| if v.abs() > e.abs() { *v } else { e });
    if largest.abs() < TINY {
        block.fill(0);
        return;
    }
    let inv_scale = -128.0 / largest;
    fields.d = half(1.0 / inv_scale).0;
    for (to, scale) in fields.scales.iter_mut().zip(&scales) {
        *to = code(nearest(inv_scale * scale).min(127));
    }
    code_again(BlockType::Q6K, w, &mut fields, -32, 31);
    write(BlockType::Q6K, &fields, block);
}

/// A row whose columns matter as `importance` says.
pub(super) fn weighted_row(ty: BlockType, row: &[f32], importance: &[f32], blocks: &mut [u8]) {
    let (row, _) = row.as_chunks::<256>();
    let (importance, _) = importance.as_chunks::<256>();
    for ((w, importance), block) in
        row.iter().zip(importance).zip(blocks.chunks_exact_mut(ty.block_bytes()))
    {
        match ty {
            BlockType::Q6K => q6_k_by(w, block, |x, j, codes| {
                fit_scale(32, x, &importance[16 * j..][..16], codes)
            }),
            BlockType::Q3K => weighted_q3_k(w, importance, block),
            _ => weighted_with_min(ty, w, importance, block),
        }
    }
}

/// `importance · √(σ² + x²)`, and for each sub-block their sum.
fn weigh(x: &[f32], importance: &[f32], sigma2: f32, weights: &mut [f32]) -> f32 {
    let mut sum = 0.0;
    for ((weight, x), importance) in weights.iter_mut().zip(x).zip(importance) {
        *weight = importance * (sigma2 + x * x).sqrt();
        sum += *weight;
    }
    sum
}

fn sum_of_squares(w: &[f32; 256]) -> f32 {
    w.iter().fold(0.0_f32, |sum, x| sum + x * x)
}

fn weighted_q3_k(w: &[f32; 256], importance: &[f32; 256], block: &mut [u8]) {
    let sigma2 = 2.0 * sum_of_squares(w) / 256.0;
    let mut fields = Fields::ZERO;
    let (mut scales, mut sums) = ([0.0; 16], [0.0; 16]);
    for j in 0..16 {
        let at = 16 * j..16 * (j + 1);
        let mut weights = [0.0; 16];
        sums[j] = weigh(&w[at.clone()], &importance[at.clone()], sigma2, &mut weights);
        scales[j] = fit_scale(4, &w[at.clone()], &weights, &mut fields.codes[at]);
    }
    let d = fit_scale(32, &scales, &sums, &mut fields.scales);
    // The search gives stored codes; the fields hold them without their offset.
    fields.scales.iter_mut().for_each(|scale| *scale -= 32);
    fields.d = half(d).0;
    code_again(BlockType::Q3K, w, &mut fields, -4, 3);
    write(BlockType::Q3K, &fields, block);
}

fn weighted_with_min(ty: BlockType, w: &[f32; 256], importance: &[f32; 256], block: &mut [u8]) {
    let (top, scale_top) = most(ty);
    let (len, count) = (ty.sub_len(), ty.sub_scales());
    // llama.cpp doubles the mean square in all of these types but Q2_K.
    let doubled = if ty == BlockType::Q2K { 1.0 } else { 2.0 };
    let sigma2 = doubled * sum_of_squares(w) / 256.0;
    let mut fields = Fields::ZERO;
    let mut sub = Sub { scales: [0.0; 16], mins: [0.0; 16] };
    let mut sums = [0.0; 16];
    for (j, sum) in sums[..count].iter_mut().enumerate() {
        let at = len * j..len * (j + 1);
        let mut weights = [0.0; 32];
        *sum = weigh(&w[at.clone()], &importance[at.clone()], sigma2, &mut weights);
        let codes = &mut fields.codes[at.clone()];
        let (scale, min) = fit_scale_min(top, &w[at], &weights[..len], codes, Steps::WEIGHTED);
        (sub.scales[j], sub.mins[j]) = (scale, -min);
    }
    let sums = &sums[..count];
    let d = fit_positive(scale_top, &sub.scales[..count], sums, &mut fields.scales[..count]);
    let m = fit_positive(scale_top, &sub.mins[..count], sums, &mut fields.mins[..count]);
    (fields.d, fields.m) = (half(d).0, half(m).0);
    code_again(ty, w, &mut fields, 0, i32::from(top));
    write(ty, &fields, block);
}
