//! How latent weights become those that are seen, harder with every step.

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// torchao's proximal maps. Steps are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ProxMap {
    /// To the nearest value at once: the straight-through estimator.
    HardQuant,
    /// `(1 − θ) · p + θ · q`, θ from 0 to 1.
    BinaryRelax {
        /// The first step of the annealing.
        anneal_start: usize,
        /// From this step on values are hard.
        anneal_end: usize,
    },
    /// Between two values `clamp(c + (p − c) / inv_slope)` about their middle c, `inv_slope` from 1 to 0 along a sigmoid.
    Parq {
        /// The first step of the annealing.
        anneal_start: usize,
        /// From this step on values are hard.
        anneal_end: usize,
        /// Of the sigmoid.
        steepness: f64,
        /// Where its middle is, as a share of the way.
        anneal_center: f64,
    },
}

impl ProxMap {
    pub(super) fn check(&self) -> Result<()> {
        let (start, end) = match *self {
            ProxMap::HardQuant => return Ok(()),
            ProxMap::BinaryRelax { anneal_start, anneal_end }
            | ProxMap::Parq { anneal_start, anneal_end, .. } => (anneal_start, anneal_end),
        };
        if start >= end {
            return Err(Error::invalid(format!(
                "annealing from step {start} to {end}; wanted an end after the start"
            )));
        }
        match *self {
            ProxMap::Parq { steepness, .. } if steepness.is_nan() || steepness <= 0.0 => {
                Err(Error::invalid(format!("steepness is {steepness}; wanted a positive number")))
            }
            _ => Ok(()),
        }
    }

    /// What is seen of `p (N, K)` at `step`; the grid is `(Q,)` or `(N, Q)`, ascending.
    pub fn apply(&self, p: &Tensor, grid: &Tensor, step: usize) -> Result<Tensor> {
        let (rows, columns) = p.dims2()?;
        let size = grid.shape().last().copied().unwrap_or(0);
        let per_row = grid.shape().len() == 2;
        if size == 0 || (per_row && grid.shape() != [rows, size]) {
            return Err(Error::invalid(format!("a grid {:?} for {:?}", grid.shape(), p.shape())));
        }
        let Some(map) = self.at(step) else { return Ok(p.clone()) };
        let grid = grid.as_slice::<f32>()?;
        let mut seen = p.as_slice::<f32>()?.to_vec();
        for (row, seen) in seen.chunks_exact_mut(columns.max(1)).enumerate() {
            let grid = if per_row { &grid[row * size..][..size] } else { grid };
            seen.iter_mut().for_each(|p| *p = map.of(*p, grid));
        }
        Tensor::new(seen, p.shape())
    }

    /// `None` where nothing is changed yet.
    #[expect(clippy::cast_possible_truncation, reason = "torch multiplies by it in f32")]
    fn at(&self, step: usize) -> Option<Map> {
        match *self {
            ProxMap::HardQuant => Some(Map::Nearest),
            ProxMap::BinaryRelax { anneal_end, .. } | ProxMap::Parq { anneal_end, .. }
                if step >= anneal_end =>
            {
                Some(Map::Nearest)
            }
            ProxMap::BinaryRelax { anneal_start, .. } | ProxMap::Parq { anneal_start, .. }
                if step < anneal_start =>
            {
                None
            }
            ProxMap::BinaryRelax { anneal_start, anneal_end } => {
                Some(Map::Mixed(progress(step, anneal_start, anneal_end)))
            }
            ProxMap::Parq { anneal_start, anneal_end, .. } => {
                let done = progress(step, anneal_start, anneal_end);
                Some(Map::Affine(self.inv_slope_at(done) as f32))
            }
        }
    }

    /// 1 at the start of the annealing, 0 at its end.
    fn inv_slope_at(&self, done: f64) -> f64 {
        let ProxMap::Parq { steepness: s, anneal_center: c, .. } = *self else { return 0.0 };
        let sigmoid = |x: f64| 1.0 / (1.0 + x.exp());
        let (first, last) = (sigmoid(-0.5 * s), sigmoid(0.5 * s));
        (sigmoid(s * (done - c)) - last) / (first - last)
    }

    /// PARQ's `inv_slope` at `step`: 1 before the annealing, 0 after it.
    pub fn inv_slope(&self, step: usize) -> f64 {
        match *self {
            ProxMap::Parq { anneal_start, .. } if step < anneal_start => 1.0,
            ProxMap::Parq { anneal_start, anneal_end, .. } if step < anneal_end => {
                self.inv_slope_at(progress(step, anneal_start, anneal_end))
            }
            _ => 0.0,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "step counts are far below 2⁵³")]
fn progress(step: usize, start: usize, end: usize) -> f64 {
    (step - start) as f64 / (end - start) as f64
}

#[derive(Clone, Copy)]
enum Map {
    Nearest,
    Mixed(f64),
    Affine(f32),
}

impl Map {
    #[expect(clippy::cast_possible_truncation, reason = "torch multiplies by it in f32")]
    fn of(self, p: f32, grid: &[f32]) -> f32 {
        match self {
            Map::Nearest => nearest(p, grid),
            Map::Mixed(theta) => p * (1.0 - theta) as f32 + theta as f32 * nearest(p, grid),
            Map::Affine(inv_slope) => {
                // The first value that p does not exceed, and the one below.
                let at = grid.partition_point(|q| *q < p);
                let (low, high) = (grid[at.saturating_sub(1)], grid[at.min(grid.len() - 1)]);
                let center = (low + high) / 2.0;
                let steep = center + (p - center) / inv_slope;
                let steep = if steep < low { low } else { steep };
                if steep > high { high } else { steep }
            }
        }
    }
}

/// The nearest value, the lower one of two as near.
fn nearest(p: f32, grid: &[f32]) -> f32 {
    let at = grid.windows(2).take_while(|pair| (pair[0] + pair[1]) / 2.0 < p).count();
    grid[at]
}
