//! The int4 weights of `Int4WeightOnlyConfig` (T04, Q01): `scale = (max − min) / 15`, `code = round((w − min) / scale)`,
//! `dq = (code − 8) · scale + (min + 8 · scale)`; with float8 activations (Q05) the weight goes through float8 rows first and
//! `scale = amax / 8`. The gradient flows through the scales, too, as in torchao.

use super::config::{Float8FakeQuantizeConfig, Int4Activation, Int4WeightFakeQuantizeConfig};
use super::{affine, float8};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::quantization::primitives::Float8;
use crate::tensor::Tensor;

/// The least range of a group.
const EPS: f32 = 1e-6;

/// How many groups a row of `k` has.
pub(super) fn groups(config: &Int4WeightFakeQuantizeConfig, k: usize) -> Result<usize> {
    let group = config.group_size;
    if group > 1 && k.is_multiple_of(group) {
        return Ok(k / group);
    }
    Err(Error::invalid(format!(
        "K = {k} is not a multiple of group_size {group}; wanted a divisor above 1"
    )))
}

/// The fake-quantized numbers of a weight `(N, K)`.
pub(super) fn fake_quantize(
    tape: &Tape,
    config: &Int4WeightFakeQuantizeConfig,
    w: &Var,
) -> Result<Var> {
    let (_, k) = w.value().dims2()?;
    groups(config, k)?;
    match config.activation {
        Int4Activation::Bf16 => by_groups(tape, config.group_size, w, ranged, back_ranged),
        Int4Activation::Fp8 => {
            let rows = Float8FakeQuantizeConfig {
                dtype: Float8::E4m3fn,
                per_row: true,
                bounds: (Some(1e-12), None),
            };
            let w = float8::fake_quantize(tape, &rows, w)?;
            by_groups(tape, config.group_size, &w, scaled, back_scaled)
        }
    }
}

fn by_groups(
    tape: &Tape,
    group: usize,
    w: &Var,
    forward: fn(&mut [f32]),
    backward: fn(&[f32], &mut [f32]),
) -> Result<Var> {
    let kept = w.value().clone();
    let mut y = kept.as_slice::<f32>()?.to_vec();
    affine::for_groups(tape.cpu(), group, &mut y, |_, _, y| forward(y));
    let y = Tensor::new(y, w.shape())?;
    tape.custom("fake_quantize_int4", &[w], y, move |up, dy| {
        let w = kept.as_slice::<f32>()?;
        let dw = dy.changed::<f32>(|dw| {
            affine::for_groups(up.cpu, group, dw, |_, start, dw| {
                backward(&w[start..][..dw.len()], dw);
            });
        })?;
        Ok(vec![Some(dw)])
    })
}

/// The least and the largest of a group, NaN where there is one.
fn extremes(w: &[f32]) -> (f32, f32) {
    w.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), w| {
        (
            if *w < min || w.is_nan() { *w } else { min },
            if *w > max || w.is_nan() { *w } else { max },
        )
    })
}

fn ranged(w: &mut [f32]) {
    let (min, max) = extremes(w);
    let range = max - min;
    let scale = (if range < EPS { EPS } else { range }) / 15.0;
    let zero = min + scale * 8.0;
    for w in w {
        let code = affine::clamp(((*w - min) / scale).round_ties_even(), 0.0, 15.0) - 8.0;
        *w = code * scale + zero;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "sums run in f64, gradients are f32")]
fn back_ranged(w: &[f32], dy: &mut [f32]) {
    let (min, max) = extremes(w);
    let range = max - min;
    let scale = (if range < EPS { EPS } else { range }) / 15.0;
    let (mut dscale, mut dmin) = (0.0_f64, 0.0_f64);
    for (w, dy) in w.iter().zip(dy.iter_mut()) {
        let scaled = (w - min) / scale;
        let code = scaled.round_ties_even();
        dscale += f64::from(*dy * (affine::clamp(code, 0.0, 15.0) - 8.0));
        // The zero point, min + 8 · scale, is added to every number.
        dscale += f64::from(*dy * 8.0);
        dmin += f64::from(*dy);
        let through = if (0.0..=15.0).contains(&code) { *dy * scale } else { 0.0 };
        dscale -= f64::from(through * (scaled / scale));
        let down = through / scale;
        dmin -= f64::from(down);
        *dy = down;
    }
    let drange = if range >= EPS { dscale / 15.0 } else { 0.0 };
    share(w, dy, min, (dmin - drange) as f32);
    share(w, dy, max, drange as f32);
}

fn scaled(w: &mut [f32]) {
    let (scale, _, _) = symmetric(w);
    for w in w {
        *w = affine::clamp((*w * (1.0 / scale)).round_ties_even(), -8.0, 7.0) * scale;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "sums run in f64, gradients are f32")]
fn back_scaled(w: &[f32], dy: &mut [f32]) {
    let (scale, largest, free) = symmetric(w);
    let inverse = 1.0 / scale;
    let mut dscale = 0.0_f64;
    for (w, dy) in w.iter().zip(dy.iter_mut()) {
        let code = (w * inverse).round_ties_even();
        dscale += f64::from(*dy * affine::clamp(code, -8.0, 7.0));
        let through = if (-8.0..=7.0).contains(&code) { *dy * scale } else { 0.0 };
        dscale -= f64::from(through * w) * f64::from(inverse) * f64::from(inverse);
        *dy = through * inverse;
    }
    if free {
        let both = w.iter().filter(|w| w.abs().to_bits() == largest.to_bits()).count().max(1);
        #[expect(clippy::cast_precision_loss, reason = "a group is far shorter than 2⁵³")]
        let part = dscale / 8.0 / both as f64;
        for (w, dy) in w.iter().zip(dy) {
            if w.abs().to_bits() == largest.to_bits() && *w != 0.0 {
                *dy += (part * f64::from(w.signum())) as f32;
            }
        }
    }
}

/// The scale, the largest |w|, and whether that one decided.
fn symmetric(w: &[f32]) -> (f32, f32, bool) {
    let largest =
        w.iter().fold(0.0_f32, |most, w| if w.abs() > most || w.is_nan() { w.abs() } else { most });
    let scale = largest / 8.0;
    if scale < EPS { (EPS, largest, false) } else { (scale, largest, true) }
}

/// Adds `gradient` to the numbers that are `extreme`, shared evenly.
fn share(w: &[f32], dy: &mut [f32], extreme: f32, gradient: f32) {
    // Not by bits: −0 is as large as 0.
    let is_extreme = |w: &f32| w.partial_cmp(&extreme).is_some_and(std::cmp::Ordering::is_eq);
    let ties = w.iter().filter(|w| is_extreme(w)).count().max(1);
    #[expect(clippy::cast_precision_loss, reason = "a group is far shorter than 2²⁴")]
    let part = gradient / ties as f32;
    w.iter().zip(dy).filter(|(w, _)| is_extreme(w)).for_each(|(_, dy)| *dy += part);
}
