//! float8: `dq = e4m3(clamp(x / s)) · s`, s = amax / 448 (N13). The gradient flows through the largest number, too, and on its
//! way through the float8 numbers is rounded to float8 itself, both as in torchao.

use super::config::Float8FakeQuantizeConfig;
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::dtypes;
use crate::quantization::primitives::Float8;
use crate::tensor::Tensor;

/// The fake-quantized numbers of `x (…, K)`.
pub(super) fn fake_quantize(
    tape: &Tape,
    config: &Float8FakeQuantizeConfig,
    x: &Var,
) -> Result<Var> {
    let round = rounding(config.dtype)?;
    let numel = x.value().numel();
    let block = if config.per_row { x.shape().last().copied().unwrap_or(0) } else { numel };
    let block = block.max(1);
    let config = *config;
    let kept = x.value().clone();
    let mut y = kept.as_slice::<f32>()?.to_vec();
    on_blocks(tape.cpu(), block, &mut y, |_, y| {
        let block = Block::of(&config, y);
        for y in y {
            *y = round(block.clamped(*y / block.scale)) * block.scale;
        }
    });
    let y = Tensor::new(y, x.shape())?;
    tape.custom("fake_quantize_float8", &[x], y, move |up, dy| {
        let x = kept.as_slice::<f32>()?;
        let dx = dy.changed::<f32>(|dx| {
            on_blocks(up.cpu, block, dx, |start, dx| {
                back(&config, round, &x[start..][..dx.len()], dx);
            });
        })?;
        Ok(vec![Some(dx)])
    })
}

/// To float8 and back.
pub(super) fn rounding(dtype: Float8) -> Result<fn(f32) -> f32> {
    match dtype {
        Float8::E4m3fn => Ok(|x| dtypes::e4m3fn_decode(dtypes::e4m3fn_encode_saturating(x))),
        Float8::E5m2 => Ok(|x| dtypes::e5m2_decode(dtypes::e5m2_encode(x))),
        other => Err(Error::invalid(format!("{other:?} is not trained with; wanted e4m3 or e5m2"))),
    }
}

struct Block {
    scale: f32,
    largest: f32,
    max: f32,
    /// Whether the largest number itself decided the scale, not a bound.
    free: bool,
}

impl Block {
    fn of(config: &Float8FakeQuantizeConfig, x: &[f32]) -> Block {
        let largest = x
            .iter()
            .fold(0.0_f32, |most, x| if x.abs() > most || x.is_nan() { x.abs() } else { most });
        let low = config.bounds.0.map_or(largest, |low| if largest < low { low } else { largest });
        let bounded = config.bounds.1.map_or(low, |high| if low > high { high } else { low });
        let max = config.dtype.max();
        let free = config.bounds.0.is_none_or(|low| largest >= low)
            && config.bounds.1.is_none_or(|high| largest <= high);
        Block { scale: bounded / max, largest, max, free }
    }

    fn clamped(&self, x: f32) -> f32 {
        super::affine::clamp(x, -self.max, self.max)
    }
}

/// Turns dy into dx.
fn back(config: &Float8FakeQuantizeConfig, round: fn(f32) -> f32, x: &[f32], dy: &mut [f32]) {
    let block = Block::of(config, x);
    let scale = block.scale;
    let mut along = 0.0_f64;
    for (x, dy) in x.iter().zip(dy.iter_mut()) {
        let scaled = x / scale;
        let code = round(block.clamped(scaled));
        along += f64::from(*dy * code);
        let inside = scaled >= -block.max && scaled <= block.max;
        // PyTorch keeps the gradient of a float8 tensor in float8.
        let through = if inside { round(block.clamped(*dy * scale)) } else { 0.0 };
        along -= f64::from(through * (scaled / scale));
        *dy = through / scale;
    }
    if !block.free {
        return;
    }
    // Numbers as large as the largest share its gradient.
    let ties = x.iter().filter(|x| x.abs().to_bits() == block.largest.to_bits()).count();
    #[expect(clippy::cast_precision_loss, reason = "a block is far shorter than 2⁵³")]
    let share = along / f64::from(block.max) / ties.max(1) as f64;
    #[expect(clippy::cast_possible_truncation, reason = "sums run in f64, gradients are f32")]
    for (x, dx) in x.iter().zip(dy) {
        if x.abs().to_bits() == block.largest.to_bits() && *x != 0.0 {
            *dx += (share * f64::from(x.signum())) as f32;
        }
    }
}

/// Runs `f(start, numbers)` on every block, some of them on each thread.
fn on_blocks(cpu: &Cpu, block: usize, values: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    super::affine::for_groups(cpu, block, values, |_, start, values| f(start, values));
}
