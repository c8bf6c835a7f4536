//! Softmax cross-entropy, and how far a softmax is from a teacher's.

use super::float::Float;
use super::{Tape, Var, check_shape, rows_of};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::cross_entropy::{self, IGNORE};
use crate::kernels::distillation;
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
            Ok(vec![Some(backward(up.cpu, kept, &dloss)?)])
        })
    }

    /// The mean over the rows of the divergence of `softmax(logits)` from `softmax(teacher)`, which gets no gradient. A
    /// scalar `[1]`.
    pub fn distillation(&self, logits: &Var, teacher: &Tensor) -> Result<Var> {
        rows_of("distillation", logits.shape())?;
        check_shape("distillation", logits.value(), teacher)?;
        let is_f64 = self.is_f64("distillation", &[logits])?;
        let (forward, backward) = if is_f64 {
            (taught::<f64> as Taught, taught_back::<f64> as TaughtBack)
        } else {
            (taught::<f32> as Taught, taught_back::<f32> as TaughtBack)
        };
        let both = [logits.value.clone(), teacher.clone()];
        let (loss, statistics) = forward(&self.cpu, &both)?;
        self.custom("distillation", &[logits], loss, move |up, dloss| {
            Ok(vec![Some(backward(up.cpu, &both, &statistics, &dloss)?)])
        })
    }
}

type Taught = fn(&Cpu, &[Tensor; 2]) -> Result<(Tensor, Tensor)>;
type TaughtBack = fn(&Cpu, &[Tensor; 2], &Tensor, &Tensor) -> Result<Tensor>;

#[expect(clippy::cast_precision_loss, reason = "row counts are far below 2⁵³")]
fn taught<T: Float>(cpu: &Cpu, [logits, teacher]: &[Tensor; 2]) -> Result<(Tensor, Tensor)> {
    let (rows, _) = rows_of("distillation", logits.shape())?;
    let mut statistics = vec![[T::default(); 3]; rows];
    distillation::forward(cpu, logits.as_slice::<T>()?, teacher.as_slice()?, &mut statistics);
    let sum: f64 = statistics.iter().map(|[.., loss]| loss.wide()).sum();
    let loss = Tensor::new(vec![T::of(sum / rows as f64)], &[1])?;
    Ok((loss, Tensor::new(statistics.into_iter().flatten().collect(), &[rows, 3])?))
}

#[expect(clippy::cast_precision_loss, reason = "row counts are far below 2⁵³")]
fn taught_back<T: Float>(
    cpu: &Cpu,
    [logits, teacher]: &[Tensor; 2],
    statistics: &Tensor,
    dloss: &Tensor,
) -> Result<Tensor> {
    let (statistics, _) = statistics.as_slice::<T>()?.as_chunks::<3>();
    let scale = T::of(dloss.as_slice::<T>()?[0].wide() / statistics.len() as f64);
    let mut gradient = T::room(cpu, logits.numel());
    let (l, t) = (logits.as_slice()?, teacher.as_slice()?);
    distillation::backward(cpu, l, t, statistics, scale, &mut gradient);
    T::tensor(gradient, logits.shape())
}

struct Kept {
    logits: Tensor,
    /// `(M, 3)`
    statistics: Tensor,
    targets: Vec<u32>,
    counted: usize,
}

type Ahead = fn(&Cpu, &Tensor, &[u32], usize) -> Result<(Tensor, Tensor)>;
type Back = fn(&Cpu, Kept, &Tensor) -> Result<Tensor>;

#[expect(clippy::cast_precision_loss, reason = "row counts are far below 2⁵³")]
fn forward<T: Float>(
    cpu: &Cpu,
    logits: &Tensor,
    targets: &[u32],
    counted: usize,
) -> Result<(Tensor, Tensor)> {
    let mut statistics = vec![[T::default(); 3]; targets.len()];
    cross_entropy::forward(cpu, logits.as_slice::<T>()?, targets, &mut statistics);
    let sum: f64 = statistics.iter().map(|[.., loss]| loss.wide()).sum();
    let loss = Tensor::new(vec![T::of(sum / counted as f64)], &[1])?;
    Ok((loss, Tensor::new(statistics.into_iter().flatten().collect(), &[targets.len(), 3])?))
}

#[expect(clippy::cast_precision_loss, reason = "row counts are far below 2⁵³")]
fn backward<T: Float>(cpu: &Cpu, kept: Kept, dloss: &Tensor) -> Result<Tensor> {
    let scale = T::of(dloss.as_slice::<T>()?[0].wide() / kept.counted as f64);
    let (statistics, _) = kept.statistics.as_slice::<T>()?.as_chunks::<3>();
    // In the logits' own memory where nobody looks at them any more.
    kept.logits.changed::<T>(|logits| {
        cross_entropy::backward(cpu, &kept.targets, statistics, scale, logits);
    })
}
