//! Half-quadratic quantization: scales and zeros that are fitted to the weight alone, without data.
//!
//! N19 keeps the scale and moves the zero so that the error's 0.7-norm shrinks, which a few outliers do not dominate
//! (Badri and Shaji 2023); N20 has no zero and fits the scale by least squares. As in torchao on a processor, the
//! solvers work in f32.

use super::cast::{cast, check_float, round_to};
use super::granularity::check_group_size;
use super::parts::map_parts;
use super::qparams::{nan_max, nan_min};
use super::torch_sum::{torch_mean, torch_sum};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::tensor::{DType, Tensor};

/// How [`choose_qparams_and_quantize_affine_hqq`] works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HqqOptions {
    /// Codes are `0 ..= 2ⁿ − 1`, n 1 to 8.
    pub nbits: u32,
    /// How many neighbours of a row share a scale and a zero.
    pub group_size: usize,
    /// Fit the zeros; else they follow from the extremes.
    pub optimize: bool,
    /// What scales and zeros are rounded to at the end.
    pub compute_dtype: DType,
    /// `w = (q − zero) · scale`, as the HQQ library has it, instead of tinygemm's `w = (q − 2ⁿ⁻¹) · scale + zero`.
    pub raw_output: bool,
}

/// Codes with what they mean.
#[derive(Clone, Debug)]
pub struct HqqCodes {
    /// u8 `(N, K)`.
    pub codes: Tensor,
    /// `(N, K / group_size)` in the compute dtype.
    pub scale: Tensor,
    /// As the scale.
    pub zero: Tensor,
}

const LP_NORM: f32 = 0.7;
const BETA: f64 = 10.0;
const KAPPA: f64 = 1.01;
const ITERATIONS: usize = 20;

/// Codes, scales and zeros of groups along K (N19).
pub fn choose_qparams_and_quantize_affine_hqq(
    cpu: &Cpu,
    w: &Tensor,
    options: &HqqOptions,
) -> Result<HqqCodes> {
    check_float(w, "quantize")?;
    let (n, k) = w.dims2()?;
    check_group_size(k, options.group_size)?;
    let groups = k / options.group_size;
    if !(1..=8).contains(&options.nbits) {
        return Err(Error::invalid(format!("nbits is {}; wanted 1 to 8", options.nbits)));
    }
    let quant_max = f32::from(u8::MAX >> (8 - options.nbits));
    let values = w.to_f32_vec();
    let mut fits: Vec<Fit> =
        values.chunks_exact(options.group_size).map(|group| Fit::start(group, quant_max)).collect();
    if options.nbits == 4 {
        fits.iter_mut().for_each(|fit| fit.zero = fit.zero.round_ties_even());
    }
    if options.optimize {
        optimize(cpu, &values, &mut fits, quant_max);
    } else {
        for fit in &mut fits {
            fit.scale = round_to(options.compute_dtype, fit.scale);
            fit.zero = round_to(options.compute_dtype, fit.zero);
        }
    }
    let mut codes = vec![0.0; values.len()];
    let pairs = values.chunks_exact(options.group_size).zip(&fits);
    for (codes, (group, fit)) in codes.chunks_exact_mut(options.group_size).zip(pairs) {
        codes.iter_mut().zip(group).for_each(|(code, w)| *code = fit.code(*w, quant_max));
    }
    let solver = if options.optimize { DType::F32 } else { options.compute_dtype };
    let mid_point = (quant_max + 1.0) / 2.0;
    let inverse = |fit: &Fit| round_to(solver, 1.0 / fit.scale);
    let zero = |fit: &Fit| {
        let shifted = || round_to(solver, (mid_point - fit.zero) * inverse(fit));
        if options.raw_output { fit.zero } else { shifted() }
    };
    let shape = [n, groups];
    Ok(HqqCodes {
        codes: cast(codes, DType::U8, &[n, k])?,
        scale: cast(fits.iter().map(inverse).collect(), options.compute_dtype, &shape)?,
        zero: cast(fits.iter().map(zero).collect(), options.compute_dtype, &shape)?,
    })
}

/// A group's scale, by which weights are multiplied, and its zero.
#[derive(Clone, Copy, Debug)]
struct Fit {
    scale: f32,
    zero: f32,
}

impl Fit {
    fn start(group: &[f32], quant_max: f32) -> Fit {
        let min = group.iter().copied().fold(f32::INFINITY, nan_min);
        let max = group.iter().copied().fold(f32::NEG_INFINITY, nan_max);
        // torch divides a number by a tensor as the number times the reciprocals.
        // A constant group would divide by zero; torchao's bound keeps fp16 finite too.
        let scale = nan_min((1.0 / (max - min)) * quant_max, 2e4);
        Fit { scale, zero: -min * scale }
    }

    fn code(self, w: f32, quant_max: f32) -> f32 {
        nan_min(nan_max((w * self.scale + self.zero).round_ties_even(), 0.0), quant_max)
    }

    /// The zero that fits better, and the errors of this one.
    fn step(self, group: &[f32], beta: f64, quant_max: f32, errors: &mut [f32]) -> f32 {
        let targets: Vec<f32> = group
            .iter()
            .zip(errors)
            .map(|(w, error)| {
                let code = self.code(*w, quant_max);
                let left = w - (code - self.zero) / self.scale;
                *error = left.abs();
                code - (w - shrink(left, beta)) * self.scale
            })
            .collect();
        torch_mean(&targets)
    }
}

/// The proximal operator of the 0.7-norm.
#[expect(clippy::cast_possible_truncation, reason = "torch rounds the factor to f32 too")]
fn shrink(x: f32, beta: f64) -> f32 {
    let size = x.abs();
    let less = size - (1.0 / beta) as f32 * size.powf(LP_NORM - 1.0);
    // 0 to a negative power is infinite, and nothing is left of it.
    if less > 0.0 { less.copysign(x) } else { 0.0 * x }
}

/// Moves the zeros of all groups until the mean error of the whole weight no longer falls.
fn optimize(cpu: &Cpu, values: &[f32], fits: &mut [Fit], quant_max: f32) {
    let group_size = values.len().checked_div(fits.len()).unwrap_or(0);
    let (mut beta, mut best) = (BETA, 1e4_f32);
    let mut errors = vec![0.0; values.len()];
    let at_once = cpu.threads().share(fits.len(), 1);
    for _ in 0..ITERATIONS {
        let parts = map_parts(cpu, fits.len().div_ceil(at_once), |part| {
            let fits = &fits[part * at_once..fits.len().min((part + 1) * at_once)];
            let values = &values[part * at_once * group_size..][..fits.len() * group_size];
            let mut errors = vec![0.0; values.len()];
            let groups = values.chunks_exact(group_size).zip(errors.chunks_exact_mut(group_size));
            let step = |(fit, (group, errors)): (&Fit, (&[f32], &mut [f32]))| {
                fit.step(group, beta, quant_max, errors)
            };
            let zeros: Vec<f32> = fits.iter().zip(groups).map(step).collect();
            (zeros, errors)
        });
        let mut at = 0;
        for (part, (zeros, part_errors)) in parts.into_iter().enumerate() {
            fits[part * at_once..].iter_mut().zip(zeros).for_each(|(fit, zero)| fit.zero = zero);
            errors[at..at + part_errors.len()].copy_from_slice(&part_errors);
            at += part_errors.len();
        }
        beta *= KAPPA;
        let error = torch_mean(&errors);
        // Not `>=`: a NaN stops too.
        if error < best {
            best = error;
        } else {
            break;
        }
    }
}

/// What [`choose_qparams_and_quantize_scale_only_hqq`] gives.
#[derive(Clone, Debug)]
pub struct ScaleOnlyCodes {
    /// i8 `(N, K)`.
    pub codes: Tensor,
    /// `(N, K / group_size)` in the weight's dtype.
    pub scale: Tensor,
}

/// Symmetric codes `quant_min ..= quant_max` and scales of groups along K (N20): in turn codes for a scale, and the
/// scale `Σ w·q / Σ q²` for the codes, until no scale moves by more than 10⁻⁵.
pub fn choose_qparams_and_quantize_scale_only_hqq(
    w: &Tensor,
    group_size: usize,
    (quant_min, quant_max): (i8, i8),
) -> Result<ScaleOnlyCodes> {
    check_float(w, "quantize")?;
    let (n, k) = w.dims2()?;
    check_group_size(k, group_size)?;
    let groups = k / group_size;
    let bounds = (f32::from(quant_min), f32::from(quant_max));
    if quant_min >= quant_max {
        return Err(Error::invalid(format!(
            "codes {quant_min}..={quant_max} are no range; wanted quant_min < quant_max"
        )));
    }
    let values = w.to_f32_vec();
    let largest_code = bounds.0.abs().max(bounds.1.abs());
    let mut scales: Vec<f32> = values
        .chunks_exact(group_size)
        .map(|group| {
            let amax = group.iter().fold(0.0, |amax, w| nan_max(amax, w.abs()));
            nan_max(amax / largest_code, f32::EPSILON)
        })
        .collect();
    for _ in 0..ITERATIONS {
        let mut moved = 0.0;
        for (group, scale) in values.chunks_exact(group_size).zip(&mut scales) {
            let next = least_squares(group, *scale, bounds);
            moved = nan_max(moved, (next - *scale).abs() / nan_max(*scale, f32::EPSILON));
            *scale = next;
        }
        if moved < 1e-5 {
            break;
        }
    }
    let pairs = values.chunks_exact(group_size).zip(&scales);
    let codes = pairs.flat_map(|(group, scale)| group.iter().map(|w| code(*w, *scale, bounds)));
    Ok(ScaleOnlyCodes {
        codes: cast(codes.collect(), DType::I8, &[n, k])?,
        scale: cast(scales, w.dtype(), &[n, groups])?,
    })
}

fn code(w: f32, scale: f32, (low, high): (f32, f32)) -> f32 {
    nan_min(nan_max((w / scale).round_ties_even(), low), high)
}

fn least_squares(group: &[f32], scale: f32, bounds: (f32, f32)) -> f32 {
    let codes: Vec<f32> = group.iter().map(|w| code(*w, scale, bounds)).collect();
    let products: Vec<f32> = group.iter().zip(&codes).map(|(w, code)| w * code).collect();
    let squares: Vec<f32> = codes.iter().map(|code| code * code).collect();
    let squares = torch_sum(&squares);
    let fitted = if squares > 0.0 { torch_sum(&products) / squares } else { scale };
    nan_max(fitted, f32::EPSILON)
}
