//! One step of Adam or AdamW over numbers whose two moments are kept in 32, 8 or 4 bits or in float8:
//! `m ← m + (1 − β₁)(g − m)`, `v ← v + (1 − β₂)(g² − v)`, `p ← p − lr · (m / c₁) / (√v / √c₂ + eps)`, cᵢ = 1 − βᵢᵗ;
//! AdamW first `p ← p − lr · wd · p`, Adam first `g ← g + wd · p`.
//! p, g f32, and per moment codes with a scale a block of B numbers: 8-bit and 4-bit codes count in a table, two 4-bit codes a byte,
//! the first in the high nibble; e4m3 codes are scaled by amax / 448.
//! Error: bit for bit torchao's eager step (PyTorch's lerp is a fused multiply-add) but for the root, which here is
//! correctly rounded and there MKL's; moments move by what their codec rounds.
//! All blocks are alike on every instruction set and thread. The codec of one number, the scalar oracle, is [`encode`].
//! Source: Loshchilov and Hutter 2019 (arXiv 1711.05101); Dettmers et al. 2022 (arXiv 2110.02861), 8 bits;
//! Li et al. 2023 (arXiv 2309.01507), 4 bits; torchao's optim.

mod codec;
#[cfg(test)]
mod tests;

pub use codec::{Codec, decode, dynamic_map, encode, linear_map};

use crate::real::wide;
use crate::rows::over_parts;
use crate::{Cost, Cpu, Isa};

/// What one step needs to know besides the numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// The learning rate.
    pub lr: f32,
    /// The decays of the moments.
    pub betas: (f64, f64),
    /// Keeps the root from zero.
    pub eps: f32,
    /// The decay of the numbers.
    pub weight_decay: f32,
    /// Whether the decay goes to the numbers (AdamW), not to the gradient (Adam).
    pub decoupled: bool,
    /// Which step this is, from 1.
    pub step: u32,
}

/// A moment as it is kept.
#[derive(Debug)]
pub enum Moment<'a> {
    /// As numbers.
    F32(&'a mut [f32]),
    /// As codes and a scale a block.
    Coded {
        /// How a number becomes a code.
        codec: &'a Codec,
        /// One byte a number, or half a byte.
        codes: &'a mut [u8],
        /// One a block.
        scales: &'a mut [f32],
    },
}

/// The moments of some numbers.
#[derive(Debug)]
pub struct Moments<'a> {
    /// m, the mean of the gradient.
    pub mean: Moment<'a>,
    /// v, the mean of its square.
    pub square: Moment<'a>,
    /// The largest v so far, for AMSGrad.
    pub largest: Option<Moment<'a>>,
}

/// Lengths and block sizes of tests and benches; 0 keeps f32 moments.
pub const SHAPES: &[(usize, usize)] = &[(1, 0), (100, 0), (4096, 256), (8192, 128), (65536, 256)];

/// Numbers without a block size are taken so many at a time.
const PLAIN_BLOCK: usize = 256;
/// Blocks of one part: a loop costs a microsecond to start.
const PART: usize = 32;

/// Moves `p` by one step along `g`.
pub fn step(cpu: &Cpu, p: &mut [f32], g: &[f32], moments: Moments<'_>, hyper: &Hyper) {
    assert_eq!(p.len(), g.len(), "adam: one gradient a number");
    let block = moments.block(p.len());
    let span = block * PART;
    let constants = Constants::new(hyper);
    let parts = moments.mean.parts(span, block).into_iter().zip(moments.square.parts(span, block));
    let largest: Vec<Option<Moment<'_>>> = match moments.largest {
        Some(largest) => largest.parts(span, block).into_iter().map(Some).collect(),
        None => p.chunks(span).map(|_| None).collect(),
    };
    let numbers = p.chunks_mut(span).zip(g.chunks(span));
    let parts = parts
        .zip(largest)
        .zip(numbers)
        .map(|(((mean, square), largest), (p, g))| (Moments { mean, square, largest }, p, g));
    let isa = cpu.isa();
    over_parts(
        cpu,
        parts.collect(),
        |_, (mut moments, p, g): (Moments<'_>, &mut [f32], &[f32])| {
            let mut space = [vec![0.0; block], vec![0.0; block], vec![0.0; block]];
            for (i, (p, g)) in p.chunks_mut(block).zip(g.chunks(block)).enumerate() {
                let [m, v, most] = space.each_mut().map(|s| &mut s[..p.len()]);
                moments.mean.read(i, block, m);
                moments.square.read(i, block, v);
                wide(isa, || update_moments(&constants, p, g, m, v));
                moments.mean.write(i, block, m);
                moments.square.write(i, block, v);
                let denominator = match &mut moments.largest {
                    None => v,
                    Some(largest) => {
                        largest.read(i, block, most);
                        most.iter_mut().zip(v.iter()).for_each(|(most, v)| *most = most.max(*v));
                        largest.write(i, block, most);
                        most
                    }
                };
                wide(isa, || move_numbers(&constants, p, m, denominator));
            }
        },
    );
}

/// What one step over `len` numbers with moments of `bits` moves and computes.
pub fn cost(len: usize, bits: usize) -> Cost {
    Cost { bytes: (len * (12 + bits / 2)) as u64, flops: 14 * len as u64 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> String {
    format!("any-adam-f32-{}", isa.name())
}

/// The step's constants as PyTorch has them: scalars in f64 rounded to f32, tensors of one number in f32.
struct Constants {
    lr: f32,
    decay: f32,
    coupled: f32,
    weights: [f32; 2],
    eps: f32,
    first: f32,
    root_second: f32,
    powers: bool,
}

impl Constants {
    #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as PyTorch does")]
    #[expect(clippy::cast_precision_loss, reason = "step counts are far below 2²⁴")]
    fn new(hyper: &Hyper) -> Constants {
        let (beta1, beta2) = hyper.betas;
        let correction = |beta: f64| 1.0 - (beta as f32).powf(hyper.step as f32);
        let (decay, coupled) = match hyper.decoupled {
            true => (hyper.lr * hyper.weight_decay, 0.0),
            false => (0.0, hyper.weight_decay),
        };
        Constants {
            lr: hyper.lr,
            decay,
            coupled,
            weights: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
            eps: hyper.eps,
            first: correction(beta1),
            root_second: correction(beta2).sqrt(),
            powers: hyper.decoupled,
        }
    }
}

/// PyTorch's lerp, whose vector form is a fused multiply-add from the nearer end.
#[inline(always)]
fn lerp(start: f32, end: f32, weight: f32) -> f32 {
    let near_start = weight.abs() < 0.5;
    let (coefficient, base) = if near_start { (weight, start) } else { (weight - 1.0, end) };
    coefficient.mul_add(end - start, base)
}

#[inline(always)]
fn update_moments(c: &Constants, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let len = p.len();
    let (g, m, v) = (&g[..len], &mut m[..len], &mut v[..len]);
    for i in 0..len {
        let gradient = if c.powers { g[i] } else { g[i] + c.coupled * p[i] };
        if c.powers {
            p[i] -= c.decay * p[i];
        }
        m[i] = lerp(m[i], gradient, c.weights[0]);
        v[i] = lerp(v[i], gradient * gradient, c.weights[1]);
    }
}

#[inline(always)]
fn move_numbers(c: &Constants, p: &mut [f32], m: &[f32], v: &[f32]) {
    let len = p.len();
    let (m, v) = (&m[..len], &v[..len]);
    for i in 0..len {
        let denominator = v[i].sqrt() / c.root_second + c.eps;
        p[i] -= c.lr * (m[i] / c.first) / denominator;
    }
}

impl Moments<'_> {
    /// Numbers that share a scale.
    fn block(&self, len: usize) -> usize {
        let all = [Some(&self.mean), Some(&self.square), self.largest.as_ref()];
        let blocks: Vec<usize> = all.into_iter().flatten().filter_map(|m| m.block(len)).collect();
        let block = blocks.first().copied().unwrap_or(PLAIN_BLOCK);
        assert!(blocks.iter().all(|b| *b == block), "adam: one block size, got {blocks:?}");
        block
    }
}

impl<'a> Moment<'a> {
    /// The block size; `None` for plain numbers.
    fn block(&self, len: usize) -> Option<usize> {
        match self {
            Moment::F32(values) => {
                assert_eq!(values.len(), len, "adam: one moment a number");
                None
            }
            Moment::Coded { codec, codes, scales } => {
                let block = len.checked_div(scales.len()).unwrap_or(0);
                let fits = block * scales.len() == len && codes.len() == len / codec.per_byte();
                assert!(fits && block.is_multiple_of(2), "adam: codes and scales of {len} numbers");
                Some(block)
            }
        }
    }

    /// Cut into pieces of `span` numbers.
    fn parts(self, span: usize, block: usize) -> Vec<Moment<'a>> {
        match self {
            Moment::F32(values) => values.chunks_mut(span).map(Moment::F32).collect(),
            Moment::Coded { codec, codes, scales } => codes
                .chunks_mut(span / codec.per_byte())
                .zip(scales.chunks_mut(span / block))
                .map(|(codes, scales)| Moment::Coded { codec, codes, scales })
                .collect(),
        }
    }

    /// Block `i` as numbers.
    fn read(&self, i: usize, block: usize, to: &mut [f32]) {
        match self {
            Moment::F32(values) => to.copy_from_slice(&values[i * block..][..to.len()]),
            Moment::Coded { codec, codes, scales } => {
                let bytes = block / codec.per_byte();
                decode(codec, &codes[i * bytes..][..bytes], scales[i], to);
            }
        }
    }

    /// Keeps block `i`.
    fn write(&mut self, i: usize, block: usize, from: &[f32]) {
        match self {
            Moment::F32(values) => values[i * block..][..from.len()].copy_from_slice(from),
            Moment::Coded { codec, codes, scales } => {
                let bytes = block / codec.per_byte();
                scales[i] = encode(codec, from, &mut codes[i * bytes..][..bytes]);
            }
        }
    }
}
