//! Adam's options.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::galore::GaloreConfig;
use crate::error::{Error, Result};
use crate::kernels::adam::Codec;

/// How moments are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StateBits {
    /// f32.
    #[default]
    #[value(name = "32")]
    F32,
    /// Codes of a table of 256 values (O10).
    #[value(name = "8")]
    Int8,
    /// Codes of a table of 16 values (O11).
    #[value(name = "4")]
    Int4,
    /// e4m3 (O12).
    #[value(name = "fp8")]
    Fp8,
}

impl StateBits {
    /// The codec of the mean (signed) or of the square.
    pub(super) fn codec(self, signed: bool) -> Option<Codec> {
        match self {
            StateBits::F32 => None,
            StateBits::Int8 => Some(Codec::table(8, signed)),
            StateBits::Int4 => Some(Codec::table(4, signed)),
            StateBits::Fp8 => Some(Codec::Float8),
        }
    }
}

/// Adam and AdamW (O01–O07).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamConfig {
    /// How moments are kept.
    pub state: StateBits,
    /// The decays of the two moments.
    pub betas: (f64, f64),
    /// Keeps the root from zero.
    pub eps: f32,
    /// The decay of parameters.
    pub weight_decay: f32,
    /// AdamW's decay of the parameter itself, not Adam's of the gradient.
    pub decoupled: bool,
    /// Divides by the largest square so far.
    pub amsgrad: bool,
    /// Numbers that share a scale; `None` is torchao's: 256, for 4 bits 128.
    pub block_size: Option<usize>,
    /// Rounds bf16 parameters at random (O13).
    pub bf16_stochastic_round: bool,
    /// Projects the gradients of matrices first (X26).
    pub galore: Option<GaloreConfig>,
}

impl Default for AdamConfig {
    /// torchao's AdamW with f32 moments.
    fn default() -> AdamConfig {
        AdamConfig {
            state: StateBits::F32,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 1e-2,
            decoupled: true,
            amsgrad: false,
            block_size: None,
            bf16_stochastic_round: false,
            galore: None,
        }
    }
}

impl AdamConfig {
    /// Refuses what cannot be.
    pub(super) fn check(&self) -> Result<()> {
        let decays = [self.betas.0, self.betas.1];
        if !decays.iter().all(|beta| (0.0..1.0).contains(beta)) {
            return Err(Error::invalid(format!("betas are {decays:?}; wanted 0 ≤ beta < 1")));
        }
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(Error::invalid(format!("eps is {}; wanted 0 or more", self.eps)));
        }
        if let Some(galore) = self.galore {
            galore.check()?;
            if !self.decoupled || self.amsgrad {
                return Err(Error::invalid("GaLore is AdamW's; wanted decoupled, without amsgrad"));
            }
        }
        match self.block_size {
            Some(size) if size < 2 || !size.is_multiple_of(2) => {
                Err(Error::invalid(format!("block_size is {size}; wanted an even number")))
            }
            _ => Ok(()),
        }
    }

    /// Numbers that share a scale.
    pub(super) fn block(&self) -> usize {
        self.block_size.unwrap_or(if self.state == StateBits::Int4 { 128 } else { 256 })
    }
}

impl fmt::Display for AdamConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = match self.state {
            StateBits::F32 => "",
            StateBits::Int8 => "8bit",
            StateBits::Int4 => "4bit",
            StateBits::Fp8 => "fp8",
        };
        write!(f, "{}{bits}", if self.decoupled { "adamw" } else { "adam" })?;
        self.galore.map_or(Ok(()), |galore| write!(f, ", {galore}"))
    }
}
