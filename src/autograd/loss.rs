//! Softmax cross-entropy.

use super::float::Float;
use super::{Tape, Var, rows_of};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::cross_entropy::{self, IGNORE};
use crate::tensor::Tensor;

impl Tape {
    /// The mean of `−log softmax(logits)[target]` over the rows; a target of [`IGNORE`] is not counted. A scalar `[1]`.
    pub fn cross_entropy(&self, logits: &Var, targets: &[u32]) -> Result<Var> {
        let (m, n) = rows_of("cross_entropy", logits.shape())?;
        if targets.len() != m {
            let got = targets.len();
            return Err(Error::invalid(format!("cross_entropy: {got} targets for {m} rows")));
        }
        let beyond =
            |target: &&u32| **target != IGNORE && usize::try_from(**target).is_ok_and(|t| t >= n);
        if let Some(target) = targets.iter().find(beyond) {
            return Err(Error::invalid(format!("cross_entropy: target {target} of {n} classes")));
        }
        let counted = targets.iter().filter(|target| **target != IGNORE).count();
        if counted == 0 {
            return Err(Error::invalid("cross_entropy: no target is counted"));
        }
        let is_f64 = self.is_f64("cross_entropy", &[logits])?;
        let (forward, backward) = if is_f64 {
            (forward::<f64> as Ahead, backward::<f64> as Back)
        } else {
            (forward::<f32> as Ahead, backward::<f32> as Back)
        };
        let (logits_value, targets) = (logits.value.clone(), targets.to_vec());
        let (loss, statistics) = forward(&self.cpu, &logits_value, &targets, counted)?;
        self.custom("cross_entropy", &[logits], loss, move |up, dloss| {
            let kept = Kept { logits: logits_value, statistics, targets, counted };
            Ok(vec![Some(backward(up.cpu, &kept, &dloss)?)])
        })
    }
}

struct Kept {
    logits: Tensor,
    /// `(M, 2)`
    statistics: Tensor,
    targets: Vec<u32>,
    counted: usize,
}

type Ahead = fn(&Cpu, &Tensor, &[u32], usize) -> Result<(Tensor, Tensor)>;
type Back = fn(&Cpu, &Kept, &Tensor) -> Result<Tensor>;

#[expect(clippy::cast_precision_loss, reason = "row counts are far below 2⁵³")]
fn forward<T: Float>(
    cpu: &Cpu,
    logits: &Tensor,
    targets: &[u32],
    counted: usize,
) -> Result<(Tensor, Tensor)> {
    let mut statistics = vec![[T::default(); 2]; targets.len()];
    cross_entropy::forward(cpu, logits.as_slice::<T>()?, targets, &mut statistics);
    let sum: f64 = statistics.iter().map(|[_, loss]| loss.wide()).sum();
    let loss = Tensor::new(vec![T::of(sum / counted as f64)], &[1])?;
    Ok((loss, Tensor::new(statistics.into_iter().flatten().collect(), &[targets.len(), 2])?))
}

#[expect(clippy::cast_precision_loss, reason = "row counts are far below 2⁵³")]
fn backward<T: Float>(cpu: &Cpu, kept: &Kept, dloss: &Tensor) -> Result<Tensor> {
    let scale = T::of(dloss.as_slice::<T>()?[0].wide() / kept.counted as f64);
    let (statistics, _) = kept.statistics.as_slice::<T>()?.as_chunks::<2>();
    let mut gradient = vec![T::default(); kept.logits.numel()];
    let logits = kept.logits.as_slice()?;
    cross_entropy::backward(cpu, logits, &kept.targets, statistics, scale, &mut gradient);
    Tensor::new(gradient, kept.logits.shape())
}
