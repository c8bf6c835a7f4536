//! The end of a step.

use super::super::launch::int;
use super::super::sources::TRAIN_STEP;
use super::super::{Arg, Buffer, CudaResult, Device, Grid};
use crate::adam::Hyper;

/// Blocks that add up squares.
const BLOCKS: usize = 1024;

/// The norm of a gradient, and what the gradient is multiplied by, in device memory.
#[derive(Debug)]
pub struct Norm {
    parts: Buffer<f64>,
    /// The norm, then the factor.
    pub values: Buffer<f32>,
}

impl Norm {
    /// Room for one.
    pub fn new(device: &Device) -> CudaResult<Norm> {
        Ok(Norm { parts: device.uninit(BLOCKS)?, values: device.zeros(2)? })
    }
}

/// The norm of `share · gradient`, and `share`, shortened where the norm is above `clip`; a `clip` of 0 shortens nothing. The host
/// is not waited for. The length is a multiple of 4.
pub fn gradient_norm(
    device: &Device,
    gradient: &Buffer<f32>,
    (share, clip): (f32, f32),
    norm: &Norm,
) -> CudaResult<()> {
    assert!(gradient.len().is_multiple_of(4), "fours");
    let kernel = device.kernel(&TRAIN_STEP, &[], "sum_squares")?;
    let arguments = [gradient.into(), (&norm.parts).into(), (gradient.len() as u64).into()];
    kernel.launch(Grid::line(BLOCKS, 256), &arguments)?;
    let kernel = device.kernel(&TRAIN_STEP, &[], "clip_scale")?;
    let arguments =
        [(&norm.parts).into(), (&norm.values).into(), int(BLOCKS), share.into(), clip.into()];
    kernel.launch(Grid::line(1, 256), &arguments)
}

/// All parameters, one behind the other; all of one length, a multiple of 4.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep<'a> {
    /// The parameters.
    pub p: &'a Buffer<f32>,
    /// Their gradient.
    pub gradient: &'a Buffer<f32>,
    /// The two moments.
    pub moments: [&'a Buffer<f32>; 2],
    /// The parameters in bf16.
    pub copy: &'a Buffer<u16>,
    /// The first so many decay; a multiple of 4.
    pub decayed: usize,
}

/// One step of Adam or AdamW along `gradient · norm`'s factor; none where the norm is not finite.
pub fn adam_step(device: &Device, of: &AdamStep<'_>, norm: &Norm, hyper: &Hyper) -> CudaResult<()> {
    let n = of.p.len();
    let lens = [of.gradient.len(), of.moments[0].len(), of.moments[1].len(), of.copy.len()];
    assert!(lens.iter().all(|len| *len == n), "{lens:?} beside {n} parameters");
    assert!(n.is_multiple_of(4) && of.decayed.is_multiple_of(4) && of.decayed <= n, "fours");
    let mut arguments: Vec<Arg> = vec![
        of.p.into(),
        of.gradient.into(),
        of.moments[0].into(),
        of.moments[1].into(),
        of.copy.into(),
        (&norm.values).into(),
        (n as u64).into(),
        (of.decayed as u64).into(),
    ];
    arguments.extend(constants(hyper).map(Arg::from));
    let kernel = device.kernel(&TRAIN_STEP, &[], "adam_step")?;
    kernel.launch(Grid::line(n.div_ceil(1024), 256), &arguments)
}

/// lr, decay, coupled decay, weights of the new moments, eps, corrections: as the CPU's step has them.
#[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as PyTorch does")]
#[expect(clippy::cast_precision_loss, reason = "step counts are far below 2²⁴")]
fn constants(hyper: &Hyper) -> [f32; 8] {
    let (beta1, beta2) = hyper.betas;
    let correction = |beta: f64| 1.0 - (beta as f32).powf(hyper.step as f32);
    let (decay, coupled) = match hyper.decoupled {
        true => (hyper.lr * hyper.weight_decay, 0.0),
        false => (0.0, hyper.weight_decay),
    };
    [
        hyper.lr,
        decay,
        coupled,
        (1.0 - beta1) as f32,
        (1.0 - beta2) as f32,
        hyper.eps,
        correction(beta1),
        correction(beta2).sqrt(),
    ]
}

/// `copy = x` in bf16; a multiple of 4.
pub fn round_to_bf16(device: &Device, x: &Buffer<f32>, copy: &Buffer<u16>) -> CudaResult<()> {
    let n = x.len();
    assert!(copy.len() == n && n.is_multiple_of(4), "{n} numbers");
    let kernel = device.kernel(&TRAIN_STEP, &[], "round_to_bf16")?;
    let arguments = [x.into(), copy.into(), (n as u64).into()];
    kernel.launch(Grid::line(n.div_ceil(1024), 256), &arguments)
}
