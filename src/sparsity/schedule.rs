//! How sparse to be at which step (X08): torch.ao's `CubicSL` and `LambdaSL`.

/// Rises along a cubic from `initial` to `target` in `steps` updates of `every` steps, from step `start` on (Zhu and Gupta 2017, arXiv
/// 1710.01878).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CubicSchedule {
    /// Where it begins.
    pub initial: f64,
    /// Where it ends.
    pub target: f64,
    /// Its first step.
    pub start: usize,
    /// Steps between updates.
    pub every: usize,
    /// Updates.
    pub steps: usize,
    /// 0 before the first step, not `initial`.
    pub initially_zero: bool,
}

impl Default for CubicSchedule {
    /// torch's: from 0 at step 0, every 10 steps, 100 times.
    fn default() -> CubicSchedule {
        CubicSchedule {
            initial: 0.0,
            target: 0.5,
            start: 0,
            every: 10,
            steps: 100,
            initially_zero: false,
        }
    }
}

impl CubicSchedule {
    /// The level at `step`.
    #[expect(clippy::cast_precision_loss, reason = "steps are far below 2⁵³")]
    pub fn level(&self, step: usize) -> f64 {
        if self.initially_zero && step < self.start {
            return 0.0;
        }
        let span = (self.every * self.steps).max(1) as f64;
        let left = 1.0 - (step as f64 - self.start as f64) / span;
        let level = self.target + (self.initial - self.target) * left.powi(3);
        level.clamp(self.initial.min(self.target), self.initial.max(self.target))
    }
}

/// `base · factor(step)`.
pub struct LambdaSchedule {
    base: f64,
    factor: Box<dyn Fn(usize) -> f64 + Send + Sync>,
}

impl LambdaSchedule {
    /// The factor of each step.
    pub fn new(base: f64, factor: impl Fn(usize) -> f64 + Send + Sync + 'static) -> LambdaSchedule {
        LambdaSchedule { base, factor: Box::new(factor) }
    }

    /// The level at `step`, between 0 and 1.
    pub fn level(&self, step: usize) -> f64 {
        (self.base * (self.factor)(step)).clamp(0.0, 1.0)
    }
}

impl std::fmt::Debug for LambdaSchedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LambdaSchedule").field("base", &self.base).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "ends are given, not computed")]
    fn cubic_is_the_formula_and_stays_at_its_ends() {
        let schedule =
            CubicSchedule { target: 0.8, start: 5, every: 2, steps: 10, ..Default::default() };
        assert!(schedule.level(0) == 0.0 && schedule.level(5) == 0.0);
        assert!((schedule.level(15) - (0.8 - 0.8 * 0.125)).abs() < 1e-12);
        assert!(schedule.level(25) == 0.8 && schedule.level(1000) == 0.8);
        let falling = CubicSchedule { initial: 0.9, target: 0.1, ..schedule };
        assert!(falling.level(5) == 0.9 && falling.level(99) == 0.1);
        let late = CubicSchedule { initial: 0.3, initially_zero: true, ..schedule };
        assert!(late.level(4) == 0.0 && (late.level(5) - 0.3).abs() < 1e-12);
        let lambda = LambdaSchedule::new(0.5, |step| if step < 3 { 0.5 } else { 9.0 });
        assert!(lambda.level(0) == 0.25 && lambda.level(3) == 1.0);
    }
}
