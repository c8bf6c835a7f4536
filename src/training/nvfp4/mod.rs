//! NVFP4 training (R10): the three matmuls of a linear layer with both factors in fp4, emulated.
//!
//! Blocks of 16 numbers have a scale in e4m3 and all of a factor one in f32 above them (M13).
//!
//! | matmul | left | right |
//! |---|---|---|
//! | y = x · Wᵀ | rows of x, to the nearest | tiles of W of 16 × 16, to the nearest |
//! | dx = dy · W | rows of dy, at random | the same tiles, the same codes |
//! | dW = dyᵀ · x | columns of dy, rotated, at random | columns of x, rotated, to the nearest |
//!
//! The rotation is a Hadamard matrix of 16 tokens behind one vector of signs: it spreads a token's outlier over its block,
//! and as both factors turn alike it cancels in their product. Rounding dy at random keeps the mean of the gradient.
//! Scales are factored out of the products: `code · e4m3` is a bf16 number, so that only sums are rounded, to f32.
//! torchao draws from Philox; here a draw is of the seed, the step, the layer and the place.

mod cast;

use std::sync::atomic::{AtomicU64, Ordering};

use cast::{Fp4, Rounding};

use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::hadamard::{self, Plan};
use crate::kernels::matmul::{Matrix, Precision, multiply};
use crate::quantization::primitives::NVFP4_BLOCK;
use crate::rng::Rng;
use crate::tensor::Tensor;
use crate::training::{LinearRule, Vars};

/// torchao's `NVFP4TrainingConfig`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NVFP4TrainingConfig {
    /// The signs of the rotation, ±1.
    pub rht_sign_vector: [f32; NVFP4_BLOCK],
    /// Where the draws of the rounding start.
    pub sr_seed: u64,
}

impl NVFP4TrainingConfig {
    /// Signs and draws of a seed.
    pub fn new(seed: u64) -> NVFP4TrainingConfig {
        let mut rng = Rng::new(seed);
        let mut sign = || if rng.next_u64() >> 63 == 0 { 1.0 } else { -1.0 };
        NVFP4TrainingConfig { rht_sign_vector: std::array::from_fn(|_| sign()), sr_seed: seed }
    }

    /// The columns of `x` (rows of `k`) as rows, each 16 of their numbers rotated.
    fn rotated_columns(&self, cpu: &Cpu, x: &[f32], k: usize) -> Result<Vec<f32>> {
        let plan = Plan::new(NVFP4_BLOCK)
            .ok_or_else(|| Error::invalid("there is no Hadamard matrix of 16"))?;
        let mut turned = cast::transposed(cpu, x, k);
        for block in turned.chunks_exact_mut(NVFP4_BLOCK) {
            block.iter_mut().zip(&self.rht_sign_vector).for_each(|(x, sign)| *x *= sign);
        }
        hadamard::transform(cpu, &plan, &mut turned);
        Ok(turned)
    }

    /// `y (…, N) = x (…, K) · Wᵀ`; `draw` tells this call's draws from others'.
    pub fn linear(&self, tape: &Tape, x: &Var, weight: &Var, draw: u64) -> Result<Var> {
        let (n, k) = weight.value().dims2()?;
        if x.shape().last() != Some(&k) || k == 0 {
            return Err(Error::invalid(format!("nvfp4: x {:?} · W ({n}, {k})ᵀ", x.shape())));
        }
        let m = x.value().numel() / k;
        check([m, n, k])?;
        let (config, cpu) = (*self, tape.cpu());
        let xs = x.value().clone();
        let low_x = Fp4::rows(cpu, xs.as_slice()?, Rounding::Nearest);
        let low_w = Fp4::tiles(cpu, weight.value().as_slice()?, k);
        let mut shape = x.shape().to_vec();
        shape.pop();
        shape.push(n);
        // (m, k) · (k, n)
        let b = Matrix::new(&low_w.values, n, k).transposed();
        let y = product(cpu, Matrix::new(&low_x.values, m, k), b, low_x.above * low_w.above);
        tape.custom("nvfp4_linear", &[x, weight], Tensor::new(y, &shape)?, move |up, dy| {
            let dy = dy.as_slice::<f32>()?;
            let seed = config.sr_seed.wrapping_add(draw.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let dx = up.wants(0, || {
                let dy = Fp4::rows(up.cpu, dy, Rounding::AtRandom(seed));
                // (m, n) · (n, k)
                let (a, b) = (Matrix::new(&dy.values, m, n), Matrix::new(&low_w.values, n, k));
                Tensor::new(product(up.cpu, a, b, dy.above * low_w.above), xs.shape())
            })?;
            let dw = up.wants(1, || {
                let dy = config.rotated_columns(up.cpu, dy, n)?;
                let dy = Fp4::rows(up.cpu, &dy, Rounding::AtRandom(seed ^ 1 << 63));
                let x = config.rotated_columns(up.cpu, xs.as_slice()?, k)?;
                let x = Fp4::rows(up.cpu, &x, Rounding::Nearest);
                // (n, m) · (m, k)
                let b = Matrix::new(&x.values, k, m).transposed();
                let dw = product(up.cpu, Matrix::new(&dy.values, n, m), b, dy.above * x.above);
                Tensor::new(dw, &[n, k])
            })?;
            Ok(vec![dx, dw])
        })
    }
}

impl Default for NVFP4TrainingConfig {
    fn default() -> NVFP4TrainingConfig {
        NVFP4TrainingConfig::new(0)
    }
}

/// Every dimension is whole blocks.
fn check([m, n, k]: [usize; 3]) -> Result<()> {
    if [m, n, k].iter().all(|size| size.is_multiple_of(NVFP4_BLOCK)) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "nvfp4: {m} tokens and a weight ({n}, {k}) are not whole blocks of {NVFP4_BLOCK}; choose batch · sequence a \
         multiple of it, and leave smaller layers as they are"
    )))
}

fn product(cpu: &Cpu, a: Matrix<'_, f32>, b: Matrix<'_, f32>, above: f32) -> Vec<f32> {
    let mut c = vec![0.0; a.rows() * b.cols()];
    multiply(cpu, Precision::Bf16, a, b, &mut c);
    cpu.threads().chunks_mut(&mut c, 1 << 16, |_, c| c.iter_mut().for_each(|c| *c *= above));
    c
}

/// Linear layers whose matmuls are NVFP4's; the output layer stays as it is.
#[derive(Debug, Default)]
pub struct NVFP4Rule {
    config: NVFP4TrainingConfig,
    step: AtomicU64,
}

impl NVFP4Rule {
    /// The rule of `config`.
    pub fn new(config: NVFP4TrainingConfig) -> NVFP4Rule {
        NVFP4Rule { config, step: AtomicU64::new(0) }
    }
}

impl LinearRule for NVFP4Rule {
    fn name(&self) -> String {
        "nvfp4".to_owned()
    }

    fn token_multiple(&self) -> usize {
        NVFP4_BLOCK
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, _own: &Vars) -> Result<Var> {
        if fqn == "lm_head" {
            return tape.linear(x, weight);
        }
        // FNV-1a, so that layers draw apart.
        let of_layer = fqn.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        let draw = of_layer ^ self.step.load(Ordering::Relaxed).wrapping_mul(0xD134_2543_DE82_EF95);
        self.config.linear(tape, x, weight, draw)
    }

    fn begin_step(&self, step: usize) {
        self.step.store(step as u64, Ordering::Relaxed);
    }
}
