//! MX and NVFP4 (T06): numbers as their blocks hold them, with the gradient passed straight through, so that the two
//! matmuls of the backward pass see the rounded factors, as in torchao.

use super::config::{MXFakeQuantizeConfig, NVFP4FakeQuantizeConfig};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::kernels::dtypes::e4m3fn_decode;
use crate::kernels::float4_round;
use crate::quantization::primitives::{
    MxElement, NVFP4_BLOCK, mx_round_block, nvfp4_scale, per_tensor_amax_to_scale,
};
use crate::tensor::Tensor;

impl MXFakeQuantizeConfig {
    pub(super) fn check(&self, k: usize) -> Result<()> {
        whole_blocks("MX", k, self.block_size)
    }

    pub(super) fn fake_quantize(&self, tape: &Tape, x: &Var) -> Result<Var> {
        self.check(last(x))?;
        let (MxElement(element), mode) = (self.dtype, self.scaling_mode);
        straight_through(tape, x, self.block_size, |block| mx_round_block(block, element, mode))
    }
}

impl NVFP4FakeQuantizeConfig {
    pub(super) fn check(&self, k: usize) -> Result<()> {
        whole_blocks("NVFP4", k, NVFP4_BLOCK)
    }

    pub(super) fn fake_quantize(&self, tape: &Tape, x: &Var) -> Result<Var> {
        self.check(last(x))?;
        let above = self.use_per_tensor_scale.then(|| {
            let amax = largest(x.value().as_slice::<f32>().unwrap_or_default());
            per_tensor_amax_to_scale(amax)
        });
        straight_through(tape, x, NVFP4_BLOCK, |block| {
            let (code, factor) = nvfp4_scale(largest(block), above);
            let scale = above.unwrap_or(1.0) * e4m3fn_decode(code);
            block.iter_mut().for_each(|x| *x = float4_round::e2m1(*x * factor) * scale);
        })
    }
}

fn last(x: &Var) -> usize {
    x.shape().last().copied().unwrap_or(0)
}

fn whole_blocks(name: &str, k: usize, block: usize) -> Result<()> {
    if block > 0 && k > 0 && k.is_multiple_of(block) {
        return Ok(());
    }
    Err(Error::invalid(format!("K = {k} is not a multiple of {block}, {name}'s block")))
}

fn largest(x: &[f32]) -> f32 {
    let larger = |most: f32, x: f32| if x > most || x.is_nan() { x } else { most };
    x.iter().fold(0.0, |most, x| larger(most, x.abs()))
}

fn straight_through(
    tape: &Tape,
    x: &Var,
    block: usize,
    round: impl Fn(&mut [f32]) + Sync,
) -> Result<Var> {
    let mut y = x.value().as_slice::<f32>()?.to_vec();
    super::affine::for_groups(tape.cpu(), block, &mut y, |_, _, block| round(block));
    let y = Tensor::new(y, x.shape())?;
    tape.custom("fake_quantize_blocks", &[x], y, |_, dy| Ok(vec![Some(dy)]))
}
