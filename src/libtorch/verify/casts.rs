//! Casts to narrow floats, bit for bit: every upper half of an f32 with several lower halves, all halves and ties among them.

use tch::{Kind, Tensor as Torch};

use super::super::{from_torch, wrong};
use super::{Check, EXACT};
use crate::error::Result;
use crate::kernels::{Cpu, dtypes};
use crate::rng::Rng;

/// Lower halves: exact, one above, just below and at the tie, just above it, the last.
const LOW: [u32; 6] = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];

pub(super) fn verify(_cpu: &Cpu, _rng: &mut Rng) -> Result<Vec<Check>> {
    let high = (0..=u32::from(u16::MAX)).map(|high| high << 16);
    let values: Vec<f32> =
        high.flat_map(|high| LOW.map(|low| f32::from_bits(high | low))).collect();
    let torch = Torch::from_slice(&values);
    let mut checks = Vec::new();
    let mut check = |ours, aten, kind, cast: &dyn Fn(f32) -> f32| -> Result<()> {
        let mut check = Check::new(ours, aten, EXACT);
        let theirs = torch.f_to_kind(kind).and_then(|t| t.f_to_kind(Kind::Float));
        let ours: Vec<f32> = values.iter().map(|x| cast(*x)).collect();
        check.compare("393216 numbers", &ours, from_torch(theirs.map_err(wrong)?)?.as_slice()?);
        checks.push(check);
        Ok(())
    };
    // Up to PyTorch 2.11 what rounds beyond 448 is NaN; 2.13 gives 448, for infinity too.
    let nan_beyond = crate::kernels::libtorch::built_for().starts_with("2.11");
    let e4m3fn = if nan_beyond { dtypes::e4m3fn_encode } else { dtypes::e4m3fn_encode_saturating };
    check("cast to e4m3fn", "to(float8_e4m3fn)", Kind::Float8e4m3fn, &|x| {
        dtypes::e4m3fn_decode(e4m3fn(x))
    })?;
    check("cast to e5m2", "to(float8_e5m2)", Kind::Float8e5m2, &|x| {
        dtypes::e5m2_decode(dtypes::e5m2_encode(x))
    })?;
    check("cast to bf16", "to(bfloat16)", Kind::BFloat16, &|x| half::bf16::from_f32(x).to_f32())?;
    check("cast to f16", "to(float16)", Kind::Half, &|x| half::f16::from_f32(x).to_f32())?;
    Ok(checks)
}
