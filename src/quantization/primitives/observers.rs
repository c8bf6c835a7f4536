//! Observers (Q17): what watches values and then says their scale and zero point.
//!
//! Minima and maxima of blocks, running over everything seen (`MinMax`) or fading (`MovingAverage`); a scale that is given
//! (`FixedQParam`); or the range, of a hundred that shrink to nothing, that rounds with the least squared error (`MSE`).

use super::affine::{dequantize_affine, quantize_affine};
use super::blocks::BlockGrid;
use super::cast::{CodeRange, cast};
use super::granularity::Granularity;
use super::qparams::{
    MappingType, QParamsOptions, choose_qparams_affine_with_min_max, nan_max, nan_min,
};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// What an observer's scales are for.
#[derive(Clone, Debug)]
pub struct ObserverConfig {
    /// How a range is mapped onto codes.
    pub mapping: MappingType,
    /// The codes.
    pub range: CodeRange,
    /// What shares a scale.
    pub granularity: Granularity,
    /// eps and dtypes of scales and zero points.
    pub options: QParamsOptions,
}

/// How ranges come about.
#[derive(Clone, Debug)]
pub enum ObserverKind {
    /// The least and the largest value of each block seen so far.
    MinMax,
    /// They move towards those of each new input by this part of the distance; torch's constant is 0.01.
    MovingAverage(f32),
    /// A scale and a zero point that are given.
    FixedQParam(Tensor, Tensor),
    /// The best of `steps` shrunk ranges of the latest input, or of the first if `run_once`.
    Mse {
        /// How many ranges are tried; torchao tries 100.
        steps: u16,
        /// Look at the first input only.
        run_once: bool,
    },
}

/// Watches tensors of one shape of blocks.
#[derive(Clone, Debug)]
pub struct AffineQuantizedObserver {
    config: ObserverConfig,
    kind: ObserverKind,
    /// f32, a value for each block.
    extremes: Option<(Tensor, Tensor)>,
}

impl AffineQuantizedObserver {
    /// One that has seen nothing.
    pub fn new(config: ObserverConfig, kind: ObserverKind) -> AffineQuantizedObserver {
        AffineQuantizedObserver { config, kind, extremes: None }
    }

    /// Looks at `x`. Nothing is seen in an empty tensor.
    pub fn observe(&mut self, x: &Tensor) -> Result<()> {
        if x.numel() == 0 {
            return Ok(());
        }
        let seen = self.extremes.take();
        let mix = |a: &Tensor, b: &Tensor, f: &dyn Fn(f32, f32) -> f32| -> Result<Tensor> {
            if a.shape() != b.shape() {
                return Err(Error::invalid(format!(
                    "an observer that saw ranges {:?} cannot go on with {:?}; wanted inputs of one shape",
                    a.shape(),
                    b.shape()
                )));
            }
            let pairs = a.to_f32_vec().into_iter().zip(b.to_f32_vec());
            Tensor::new(pairs.map(|(a, b)| f(a, b)).collect::<Vec<f32>>(), a.shape())
        };
        self.extremes = match (&self.kind, seen) {
            (ObserverKind::FixedQParam(..), _) => None,
            (ObserverKind::Mse { run_once: true, .. }, Some(seen)) => Some(seen),
            (ObserverKind::Mse { steps, .. }, _) => Some(self.line_search(x, *steps)?),
            (_, None) => Some(block_extremes(x, &self.config.granularity)?),
            (ObserverKind::MinMax, Some((min, max))) => {
                let (low, high) = block_extremes(x, &self.config.granularity)?;
                Some((mix(&min, &low, &nan_min)?, mix(&max, &high, &nan_max)?))
            }
            (ObserverKind::MovingAverage(part), Some((min, max))) => {
                let (low, high) = block_extremes(x, &self.config.granularity)?;
                let towards = |old: f32, new: f32| old + part * (new - old);
                Some((mix(&min, &low, &towards)?, mix(&max, &high, &towards)?))
            }
        };
        Ok(())
    }

    /// The minima and maxima, if any were seen.
    pub fn extremes(&self) -> Option<&(Tensor, Tensor)> {
        self.extremes.as_ref()
    }

    /// Scale and zero point for what was seen.
    pub fn calculate_qparams(&self) -> Result<(Tensor, Tensor)> {
        if let ObserverKind::FixedQParam(scale, zero_point) = &self.kind {
            return Ok((scale.clone(), zero_point.clone()));
        }
        let (min, max) = self.extremes.as_ref().ok_or_else(|| {
            Error::invalid("the observer has seen nothing; run it on inputs before it is asked")
        })?;
        self.qparams(min, max)
    }

    fn qparams(&self, min: &Tensor, max: &Tensor) -> Result<(Tensor, Tensor)> {
        let ObserverConfig { mapping, range, options, .. } = self.config;
        choose_qparams_affine_with_min_max(min, max, mapping, range, options)
    }

    /// The range ±t, t in equal steps up to the largest magnitude, with the least mean squared error.
    fn line_search(&self, x: &Tensor, steps: u16) -> Result<(Tensor, Tensor)> {
        let block = self.config.granularity.block_size(x.shape())?;
        let grid = BlockGrid::new(x.shape(), &block)?;
        let (min, max) = block_extremes(x, &self.config.granularity)?;
        let (shape, values) = (min.shape().to_vec(), x.to_f32_vec());
        let (mut min, mut max) = (min.to_f32_vec(), max.to_f32_vec());
        let range: Vec<f32> = min.iter().zip(&max).map(|(a, b)| nan_max(a.abs(), *b)).collect();
        let mut least = vec![1e9_f64; range.len()];
        for step in 1..=steps {
            let at = |range: &f32| range / f32::from(steps) * f32::from(step);
            let ends: Vec<f32> = range.iter().map(at).collect();
            let high = Tensor::new(ends.clone(), &shape)?;
            let low = Tensor::new(ends.iter().map(|end| -end).collect::<Vec<f32>>(), &shape)?;
            let (scale, zero) = self.qparams(&low, &high)?;
            let codes = quantize_affine(x, &block, &scale, &zero, self.config.range)?;
            let rounded = dequantize_affine(&codes, &block, &scale, &zero, DType::F32)?;
            for (i, loss) in
                block_losses(&grid, &values, &rounded.to_f32_vec()).into_iter().enumerate()
            {
                if loss < least[i] {
                    (least[i], min[i], max[i]) = (loss, -ends[i], ends[i]);
                }
            }
        }
        Ok((Tensor::new(min, &shape)?, Tensor::new(max, &shape)?))
    }
}

/// The mean squared difference of each block.
#[expect(clippy::cast_precision_loss, reason = "blocks have far fewer than 2⁵³ values")]
fn block_losses(grid: &BlockGrid, a: &[f32], b: &[f32]) -> Vec<f64> {
    let mut sums = vec![0.0_f64; grid.len()];
    grid.for_each_run(|block, run| {
        let pairs = a[run.clone()].iter().zip(&b[run]);
        sums[block] += pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    });
    let size = (a.len() / grid.len().max(1)) as f64;
    sums.into_iter().map(|sum| sum / size).collect()
}

/// The minimum and the maximum of every block, as f32.
fn block_extremes(x: &Tensor, granularity: &Granularity) -> Result<(Tensor, Tensor)> {
    let grid = BlockGrid::new(x.shape(), &granularity.block_size(x.shape())?)?;
    let values = x.to_f32_vec();
    let mut min = vec![f32::INFINITY; grid.len()];
    let mut max = vec![f32::NEG_INFINITY; grid.len()];
    grid.for_each_run(|block, run| {
        for value in &values[run] {
            min[block] = nan_min(min[block], *value);
            max[block] = nan_max(max[block], *value);
        }
    });
    let shape = grid.reduced_shape();
    Ok((cast(min, DType::F32, &shape)?, cast(max, DType::F32, &shape)?))
}
