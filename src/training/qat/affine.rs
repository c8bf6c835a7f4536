//! Integers with a scale and a zero point a group: `dq = (clamp(round(x / scale) + zero) − zero) · scale` (N12).
//!
//! Scales are chosen anew at every call and take no gradient; where a code was clamped the gradient is 0.

use std::sync::Mutex;

use super::config::{IntxFakeQuantizeConfig, IntxGranularity};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::quantization::MappingType;
use crate::quantization::primitives::{
    CodeRange, QParamsOptions, ZeroPointDomain, choose_qparams_affine,
    choose_qparams_affine_tinygemm, get_group_qparams_symmetric,
};
use crate::tensor::{DType, Tensor};

/// Rows whose scales a thread chooses at a time.
const ROWS: usize = 32;

/// A scale and a zero point for each group, in the order of the numbers.
#[derive(Clone, Debug)]
pub(super) struct Scales {
    pub(super) scale: Vec<f32>,
    pub(super) zero: Vec<f32>,
}

/// How the codes of a group are counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codes {
    pub(super) group: usize,
    pub(super) min: f32,
    pub(super) max: f32,
    domain: ZeroPointDomain,
    /// bf16 scales have bf16 reciprocals.
    precision: DType,
}

impl Codes {
    #[expect(clippy::cast_precision_loss, reason = "codes have at most 8 bits")]
    pub(super) fn of(config: &IntxFakeQuantizeConfig, k: usize) -> Result<Codes> {
        let (min, max) = config.dtype.bounds()?;
        let (min, max) = (min as f32, max as f32);
        Ok(Codes {
            group: config.group(k)?,
            min,
            max,
            domain: config.zero_point_domain,
            precision: config.scale_precision,
        })
    }

    /// The number that `x` stands for, and the slope for the gradient before it is scaled back.
    fn at(&self, x: f32, scale: f32, zero: f32) -> (f32, bool) {
        if self.domain == ZeroPointDomain::Float {
            let mid = (self.max + self.min + 1.0) / 2.0;
            let code = ((x - (zero - scale * mid)) / scale).round_ties_even();
            return ((clamp(code, self.min, self.max) - mid) * scale + zero, self.holds(code));
        }
        let code = (x * self.inverse(scale)).round_ties_even() + zero;
        ((clamp(code, self.min, self.max) - zero) * scale, self.holds(code))
    }

    pub(super) fn inverse(&self, scale: f32) -> f32 {
        match self.precision {
            DType::BF16 => half::bf16::from_f32(1.0 / scale).to_f32(),
            DType::F16 => half::f16::from_f32(1.0 / scale).to_f32(),
            _ => 1.0 / scale,
        }
    }

    fn holds(&self, code: f32) -> bool {
        code >= self.min && code <= self.max
    }

    /// `dy` passed back through the two multiplications, as PyTorch rounds them.
    fn back(&self, dy: f32, scale: f32) -> f32 {
        if self.domain == ZeroPointDomain::Float {
            dy * scale / scale
        } else {
            dy * scale * self.inverse(scale)
        }
    }
}

/// As torch.clamp: NaN stays NaN.
pub(super) fn clamp(x: f32, min: f32, max: f32) -> f32 {
    if x < min {
        min
    } else if x > max {
        max
    } else {
        x
    }
}

/// The fake-quantized numbers of `x (…, K)`.
pub(super) fn fake_quantize(tape: &Tape, config: &IntxFakeQuantizeConfig, x: &Var) -> Result<Var> {
    config.check()?;
    let k = x.shape().last().copied().unwrap_or(0);
    let codes = Codes::of(config, k)?;
    let scales = choose(tape.cpu(), config, x.value())?;
    let y = quantized(tape.cpu(), &codes, &scales, x.value())?;
    let kept = x.value().clone();
    tape.custom("fake_quantize", &[x], y, move |up, dy| {
        Ok(vec![Some(passed(up.cpu, &codes, &scales, &kept, dy)?)])
    })
}

/// The scales and zero points of every group, on all threads.
pub(super) fn choose(cpu: &Cpu, config: &IntxFakeQuantizeConfig, x: &Tensor) -> Result<Scales> {
    let k = x.shape().last().copied().unwrap_or(0);
    let values = x.as_slice::<f32>()?;
    let chunk = ROWS * k.max(1);
    let parts: Vec<Mutex<Option<Result<Scales>>>> =
        values.chunks(chunk).map(|_| Mutex::new(None)).collect();
    cpu.threads().run(parts.len(), |i| {
        let rows = &values[i * chunk..values.len().min((i + 1) * chunk)];
        let found = choose_rows(config, rows, k);
        *parts[i].lock().unwrap_or_else(|broken| broken.into_inner()) = Some(found);
    });
    let mut all = Scales { scale: Vec::new(), zero: Vec::new() };
    for part in parts {
        let part = part.into_inner().unwrap_or_else(|broken| broken.into_inner());
        let part = part.ok_or_else(|| Error::invalid("a part of the scales was not chosen"))??;
        all.scale.extend(part.scale);
        all.zero.extend(part.zero);
    }
    Ok(all)
}

fn choose_rows(config: &IntxFakeQuantizeConfig, rows: &[f32], k: usize) -> Result<Scales> {
    let x = Tensor::new(rows.to_vec(), &[rows.len() / k, k])?;
    let group = config.group(k)?;
    let (bits, (min, max)) = (bits(config), config.dtype.bounds()?);
    let (scale, zero) = match (config.granularity, config.mapping_type) {
        (IntxGranularity::PerToken, _) => {
            let options = QParamsOptions {
                eps: config.eps,
                scale_dtype: Some(config.scale_precision),
                zero_point_dtype: Some(config.zero_point_precision),
                keepdim: false,
            };
            let range = CodeRange::new(config.dtype, min, max)?;
            choose_qparams_affine(&x, MappingType::Asymmetric, &[1, k], range, options)?
        }
        (_, MappingType::Symmetric) => get_group_qparams_symmetric(
            &x,
            bits,
            group,
            config.scale_precision,
            MappingType::Symmetric,
        )?,
        // torchao asks for tinygemm's float zeros whatever the domain, and rounds them towards 0 for the integer one.
        _ => {
            let options = QParamsOptions {
                eps: Some(config.eps.unwrap_or(1e-6)),
                scale_dtype: Some(config.scale_precision),
                zero_point_dtype: Some(config.scale_precision),
                keepdim: false,
            };
            let wide = crate::quantization::primitives::IntType::UInt(bits);
            let range = CodeRange::new(wide, 0, (1 << bits) - 1)?;
            choose_qparams_affine_tinygemm(&x, &[1, group], range, options)?
        }
    };
    let whole = config.zero_point_precision == DType::I32;
    let cast = |zero: f32| if whole { zero.trunc() } else { zero };
    Ok(Scales {
        scale: scale.to_f32_vec(),
        zero: zero.to_f32_vec().into_iter().map(cast).collect(),
    })
}

fn bits(config: &IntxFakeQuantizeConfig) -> u32 {
    match config.dtype {
        crate::quantization::primitives::IntType::Int(bits)
        | crate::quantization::primitives::IntType::UInt(bits) => bits,
    }
}

/// `dq` of every number.
pub(super) fn quantized(cpu: &Cpu, codes: &Codes, scales: &Scales, x: &Tensor) -> Result<Tensor> {
    let values = x.as_slice::<f32>()?;
    let mut y = vec![0.0; values.len()];
    for_groups(cpu, codes.group, &mut y, |group, start, y| {
        let (scale, zero) = (scales.scale[group], scales.zero[group]);
        for (y, x) in y.iter_mut().zip(&values[start..]) {
            *y = codes.at(*x, scale, zero).0;
        }
    });
    Tensor::new(y, x.shape())
}

/// The gradient for x.
pub(super) fn passed(
    cpu: &Cpu,
    codes: &Codes,
    scales: &Scales,
    x: &Tensor,
    dy: Tensor,
) -> Result<Tensor> {
    let values = x.as_slice::<f32>()?;
    dy.changed::<f32>(|dx| {
        for_groups(cpu, codes.group, dx, |group, start, dx| {
            let (scale, zero) = (scales.scale[group], scales.zero[group]);
            for (dx, x) in dx.iter_mut().zip(&values[start..]) {
                let inside = codes.at(*x, scale, zero).1;
                *dx = if inside { codes.back(*dx, scale) } else { 0.0 };
            }
        });
    })
}

/// Runs `f(group, start, numbers)` on every group, some of them on each thread.
pub(super) fn for_groups(
    cpu: &Cpu,
    group: usize,
    values: &mut [f32],
    f: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let share = (1 << 14) / group.max(1) + 1;
    cpu.threads().chunks_mut(values, share * group, |part, values| {
        for (i, values) in values.chunks_mut(group).enumerate() {
            let at = part * share + i;
            f(at, at * group, values);
        }
    });
}
