//! What a training run is told.

use serde::{Deserialize, Serialize};

use super::optim::OptimizerConfig;
use crate::error::{Error, Result};
use crate::kernels::matmul::Precision;
use crate::tensor::DType;

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// In a straight line.
    Linear,
    /// As half a cosine.
    #[default]
    Cosine,
}

/// How matmuls of linear layers round their factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum MatmulPrecision {
    /// Not at all.
    #[default]
    F32,
    /// To bf16, sums in f32: PyTorch's autocast.
    Bf16,
}

impl From<MatmulPrecision> for Precision {
    fn from(precision: MatmulPrecision) -> Precision {
        match precision {
            MatmulPrecision::F32 => Precision::F32,
            MatmulPrecision::Bf16 => Precision::Bf16,
        }
    }
}

/// A training run. The same config, data and seed give the same bytes on any number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: usize,
    /// Sequences of a forward pass.
    pub batch: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Forward passes whose gradients are averaged for a step.
    pub accumulate: usize,
    /// The peak learning rate.
    pub lr: f64,
    /// Steps in which the learning rate rises to its peak.
    pub warmup: usize,
    /// How it falls afterwards.
    pub schedule: Schedule,
    /// Where it ends, as a share of the peak.
    pub min_lr: f64,
    /// The largest norm of the gradient; a longer one is shortened. 0 does not.
    pub clip: f64,
    /// Dropout on the embedding and on both residual branches.
    pub dropout: f64,
    /// How much of the loss is the distance from the logits of the model that training began with; the rest is the
    /// cross-entropy of the text.
    pub distill: f64,
    /// Which optimizer.
    pub optimizer: OptimizerConfig,
    /// How matmuls round their factors.
    pub precision: MatmulPrecision,
    /// What parameters are kept in: f32 or bf16.
    pub parameters: DType,
    /// Computes blocks again in the backward pass instead of keeping what is between.
    pub checkpoint_blocks: bool,
    /// Where random draws start.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> TrainConfig {
        TrainConfig {
            steps: 100,
            batch: 8,
            sequence: 256,
            accumulate: 1,
            lr: 1e-4,
            warmup: 10,
            schedule: Schedule::Cosine,
            min_lr: 0.1,
            clip: 1.0,
            dropout: 0.0,
            distill: 0.0,
            optimizer: OptimizerConfig::default(),
            precision: MatmulPrecision::F32,
            parameters: DType::F32,
            checkpoint_blocks: false,
            seed: 0,
        }
    }
}

impl TrainConfig {
    /// Refuses what cannot be.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("steps", self.steps),
            ("batch", self.batch),
            ("sequence", self.sequence),
            ("accumulate", self.accumulate),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(Error::invalid(format!("{name} is 0; wanted 1 or more")));
        }
        let positive = self.lr.is_finite() && self.lr > 0.0;
        let share = (0.0..=1.0).contains(&self.min_lr);
        if !positive || !share {
            return Err(Error::invalid(format!(
                "lr {} and min_lr {}; wanted a positive rate and a share from 0 to 1",
                self.lr, self.min_lr
            )));
        }
        if !(0.0..=1.0).contains(&self.distill) {
            return Err(Error::invalid(format!(
                "distill is {}; wanted a share of the loss from 0 to 1",
                self.distill
            )));
        }
        if !(self.clip.is_finite() && self.clip >= 0.0) {
            return Err(Error::invalid(format!("clip is {}; wanted 0 or more", self.clip)));
        }
        Ok(())
    }

    /// The learning rate of `step`, from 0.
    #[expect(clippy::cast_precision_loss, reason = "step counts are far below 2⁵³")]
    pub fn lr_at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        let whole = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / whole).min(1.0);
        let share = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => f64::midpoint(1.0, (std::f64::consts::PI * done).cos()),
        };
        self.lr * (self.min_lr + (1.0 - self.min_lr) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let config = TrainConfig {
            steps: 110,
            warmup: 10,
            lr: 1.0,
            min_lr: 0.1,
            schedule: Schedule::Linear,
            ..TrainConfig::default()
        };
        for (step, wanted) in [(0, 0.1), (9, 1.0), (10, 1.0), (60, 0.55), (110, 0.1), (500, 0.1)] {
            assert!((config.lr_at(step) - wanted).abs() < 1e-12, "{step}: {}", config.lr_at(step));
        }
        let cosine = TrainConfig { schedule: Schedule::Cosine, ..config.clone() };
        assert!((cosine.lr_at(60) - 0.55).abs() < 1e-12);
        let constant = TrainConfig { schedule: Schedule::Constant, ..config };
        assert!((constant.lr_at(100) - 1.0).abs() < 1e-12);
        for wrong in [
            TrainConfig { steps: 0, ..TrainConfig::default() },
            TrainConfig { lr: f64::NAN, ..TrainConfig::default() },
            TrainConfig { min_lr: 2.0, ..TrainConfig::default() },
            TrainConfig { clip: -1.0, ..TrainConfig::default() },
            TrainConfig { distill: 1.5, ..TrainConfig::default() },
        ] {
            assert!(wrong.check().is_err());
        }
    }
}
