//! What values a weight may have: torchao's quantizers, bit for bit.

use std::fmt;

use super::lsbq;
use crate::error::{Error, Result};
use crate::quantization::primitives::torch_mean;
use crate::tensor::Tensor;

/// How the values are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantizer {
    /// 2ᵇ values, evenly between ± min(b · mean |w|, max |w|).
    Unif,
    /// 2ᵇ − 1 values, evenly between ± max |w|, zero among them.
    MaxUnif,
    /// −s, 0 and s with s = max |w| / 1.5.
    TernaryUnif,
    /// Sums of ± b numbers, each the mean of what the ones before it left over (least-square binary).
    Lsb {
        /// The best ternary and two-bit values of the whole weight, not the greedy ones.
        optimal: bool,
        /// −s, 0 and s with s so many times mean |w| where ternary values are not optimal.
        ternary_multiplier: f32,
    },
}

/// A weight at its values, and the values in ascending order: `(Q,)`, or `(N, Q)` a row.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The nearest values.
    pub values: Tensor,
    /// All values.
    pub grid: Tensor,
}

impl Quantizer {
    /// torchao's `LSBQuantizer()`.
    pub const LSB: Quantizer = Quantizer::Lsb { optimal: false, ternary_multiplier: 1.1 };

    pub(super) fn check(&self, bits: u32) -> Result<()> {
        let known = match self {
            Quantizer::Unif => 1..=8,
            Quantizer::MaxUnif => 2..=8,
            Quantizer::TernaryUnif => 0..=0,
            Quantizer::Lsb { optimal: true, .. } => 0..=2,
            Quantizer::Lsb { optimal: false, .. } => 0..=4,
        };
        if known.contains(&bits) {
            return Ok(());
        }
        let (low, high) = (known.start(), known.end());
        Err(Error::invalid(format!(
            "{self} with {bits} bits; wanted {low} to {high}, 0 being ternary"
        )))
    }

    /// `p (N, K)` at `2^bits` values, chosen for all of it or for each row.
    pub fn quantize(&self, p: &Tensor, bits: u32, per_channel: bool) -> Result<Quantized> {
        self.check(bits)?;
        let (rows, columns) = p.dims2()?;
        if p.numel() == 0 {
            return Err(Error::invalid("a weight without numbers has no values to be drawn to"));
        }
        let part = if per_channel { columns } else { p.numel() };
        let numbers = p.as_slice::<f32>()?;
        let (values, grid) = match self {
            Quantizer::Lsb { optimal: true, .. } if per_channel && bits == 0 => {
                lsbq::ternary_per_row(numbers, columns)?
            }
            Quantizer::Lsb { optimal: true, .. } if per_channel && bits == 2 => {
                lsbq::two_bits_per_row(numbers, columns)?
            }
            _ => self.quantize_parts(numbers, part, bits)?,
        };
        let size = if per_channel { grid.len() / rows } else { grid.len() };
        let shape = if per_channel { vec![rows, size] } else { vec![size] };
        Ok(Quantized { values: Tensor::new(values, p.shape())?, grid: Tensor::new(grid, &shape)? })
    }

    /// Each `part` of the numbers with values of its own.
    fn quantize_parts(&self, p: &[f32], part: usize, bits: u32) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut values, mut grid) = (Vec::with_capacity(p.len()), Vec::new());
        for part in p.chunks_exact(part) {
            let (q, found) = self.quantize_part(part, bits)?;
            values.extend(q);
            grid.extend(found);
        }
        Ok((values, grid))
    }

    fn quantize_part(&self, p: &[f32], bits: u32) -> Result<(Vec<f32>, Vec<f32>)> {
        match *self {
            Quantizer::Unif => {
                let range = mean_range(p, bits);
                Ok(uniform(p, range, half_range(bits) - 0.5, 0.5))
            }
            Quantizer::MaxUnif => Ok(uniform(p, largest(p), half_range(bits) - 1.0, 0.0)),
            Quantizer::TernaryUnif => {
                let s = at_least_tiny(largest(p)) / 1.5;
                let q = p.iter().map(|x| (x / s).round_ties_even().clamp(-1.0, 1.0) * s);
                Ok((q.collect(), vec![-s, 0.0 * s, s]))
            }
            Quantizer::Lsb { optimal: true, .. } if bits == 0 => lsbq::optimal_ternary(p),
            Quantizer::Lsb { optimal: true, .. } if bits == 2 => lsbq::optimal_two_bits(p),
            Quantizer::Lsb { ternary_multiplier, .. } if bits == 0 => {
                Ok(lsbq::ternary(p, ternary_multiplier * mean_abs(p)))
            }
            Quantizer::Lsb { .. } => Ok(lsbq::greedy(p, bits)),
        }
    }
}

impl fmt::Display for Quantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Quantizer::Unif => "unif",
            Quantizer::MaxUnif => "max-unif",
            Quantizer::TernaryUnif => "ternary-unif",
            Quantizer::Lsb { optimal: false, .. } => "lsb",
            Quantizer::Lsb { optimal: true, .. } => "lsb-optimal",
        })
    }
}

/// The scale of `Stretched` values (b bits, codes up to `largest_code`): `min(b · mean |w|, max |w|) / largest_code`, as
/// torchao's `choose_qparams_stretched_affine`.
#[expect(clippy::cast_precision_loss, reason = "at most 8")]
pub fn stretched_scale(group: &[f32], bits: u32, largest_code: f32) -> f32 {
    let mean = bits as f32 * mean_abs(group);
    let most = largest(group);
    let range = if mean < most || mean.is_nan() { mean } else { most };
    (if range < f32::EPSILON { f32::EPSILON } else { range }) / largest_code
}

/// The code of a number on a grid whose zero lies between two codes: `round(w / scale − ½)`, as torchao's
/// `quantize_stretched_affine`.
#[expect(clippy::cast_possible_truncation, reason = "within ± 2⁷; NaN becomes 0")]
pub fn stretched_code(w: f32, scale: f32, largest_code: f32) -> i8 {
    let range = scale * largest_code;
    (w.clamp(-range, range) / scale - 0.5).round_ties_even() as i8
}

/// `2^(b − 1)`
#[expect(clippy::cast_precision_loss, reason = "at most 2⁷")]
fn half_range(bits: u32) -> f32 {
    (1_u32 << (bits - 1)) as f32
}

#[expect(clippy::cast_precision_loss, reason = "at most 8")]
fn mean_range(p: &[f32], bits: u32) -> f32 {
    (bits as f32 * mean_abs(p)).min(largest(p))
}

pub(super) fn mean_abs(p: &[f32]) -> f32 {
    torch_mean(&p.iter().map(|x| x.abs()).collect::<Vec<f32>>())
}

fn largest(p: &[f32]) -> f32 {
    p.iter().fold(0.0, |most: f32, x| if x.abs() > most || x.is_nan() { x.abs() } else { most })
}

fn at_least_tiny(range: f32) -> f32 {
    if range < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { range }
}

/// Numbers clamped to ± `range`, at steps of `range / steps` that are `zero` off whole numbers.
fn uniform(p: &[f32], range: f32, steps: f32, zero: f32) -> (Vec<f32>, Vec<f32>) {
    let range = at_least_tiny(range);
    let s = range / steps;
    let nearest = |x: &f32| {
        let x = if *x < -range { -range } else { *x };
        let x = if x > range { range } else { x };
        ((x / s - zero).round_ties_even() + zero) * s
    };
    let count = 1 + float_to_count(2.0 * steps);
    let grid = (0..count).map(|i| (f32::from(i) - steps) * s).collect();
    (p.iter().map(nearest).collect(), grid)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 255")]
fn float_to_count(x: f32) -> u16 {
    x as u16
}
