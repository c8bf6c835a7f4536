//! A run on several ranks: what each takes of a batch, and what they tell each other.

use std::time::Duration;

use super::Trainer;
use super::distributed::{Group, Launch};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

impl Trainer {
    /// Trains together with other ranks from here on: each takes its share of every batch. Comes after
    /// [`Trainer::resume`], since all must be at the same step.
    pub fn join(&mut self, launch: &Launch, within: Duration, answer: Duration) -> Result<()> {
        let (size, batch) = (launch.world_size, self.config.batch);
        if !batch.is_multiple_of(size) {
            return Err(Error::invalid(format!(
                "a batch of {batch} cannot be shared by {size} ranks; choose a multiple of {size}"
            )));
        }
        let run = serde_json::json!({
            "config": self.config, "rule": self.rule.name(), "step": self.step,
            "numbers": self.parameters.numel(),
        });
        self.group = Some(Group::connect(launch, &run.to_string(), within, answer)?);
        Ok(())
    }

    /// Which of how many ranks this is.
    pub(super) fn place(&self) -> (usize, usize) {
        self.group.as_ref().map_or((0, 1), |group| (group.rank(), group.world_size()))
    }

    /// Whether no rank was stopped.
    pub(super) fn all_go_on(&mut self, wanted: bool) -> Result<bool> {
        let Some(group) = &mut self.group else { return Ok(wanted) };
        let mut stopped = [if wanted { 0.0 } else { 1.0 }];
        group.all_reduce_sum(&mut stopped)?;
        Ok(stopped[0] == 0.0)
    }
}

/// The mean gradients and loss of all ranks, which have gradients of the same parameters.
pub(super) fn average(
    group: &mut Group,
    sums: &mut [Option<Tensor>],
    loss: &mut f64,
) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "ranks are few")]
    let share = 1.0 / group.world_size() as f32;
    #[expect(clippy::cast_possible_truncation, reason = "a loss is reported, not trained with")]
    let mut all = vec![*loss as f32];
    for gradient in sums.iter().flatten() {
        all.extend_from_slice(gradient.as_slice::<f32>()?);
    }
    group.all_reduce_sum(&mut all)?;
    all.iter_mut().for_each(|value| *value *= share);
    *loss = f64::from(all[0]);
    let mut rest = &all[1..];
    for gradient in sums.iter_mut().flatten() {
        let (own, others) = rest.split_at(gradient.numel());
        *gradient = Tensor::new(own.to_vec(), gradient.shape())?;
        rest = others;
    }
    Ok(())
}
