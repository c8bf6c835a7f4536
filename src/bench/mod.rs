//! Speed and memory, with the ceiling of this machine beside every number.

mod ceilings;
pub mod cuda;
mod decode;
mod linear;
mod memory;
mod report;

use std::time::Instant;

pub use ceilings::{Peaks, ceilings};
pub use decode::{DecodeConfig, DecodeResult, PrefillConfig, PrefillResult, decode, prefill};
pub use linear::{LinearCase, LinearResult, Rival, linear, linear_against};
pub use memory::{peak_rss_bytes, reset_peak_rss};

/// Times of repeated calls, in seconds.
#[derive(Clone, Debug)]
pub struct Times {
    sorted: Vec<f64>,
}

impl Times {
    /// Runs `call` at least `least` times and until `seconds` are over; `between` runs untimed before each.
    pub fn of(
        least: usize,
        seconds: f64,
        mut between: impl FnMut(),
        mut call: impl FnMut(),
    ) -> Times {
        let begin = Instant::now();
        let mut sorted = Vec::new();
        while sorted.len() < least || begin.elapsed().as_secs_f64() < seconds {
            between();
            let start = Instant::now();
            call();
            sorted.push(start.elapsed().as_secs_f64());
        }
        Times::from_samples(sorted)
    }

    /// From times measured elsewhere.
    pub fn from_samples(mut seconds: Vec<f64>) -> Times {
        seconds.sort_by(f64::total_cmp);
        Times { sorted: seconds }
    }

    /// How many calls were timed.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.quantile(1, 2)
    }

    /// The value that `part` of `of` samples do not exceed.
    pub fn quantile(&self, part: usize, of: usize) -> f64 {
        let at = (self.sorted.len() * part / of).min(self.sorted.len().saturating_sub(1));
        self.sorted.get(at).copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::Times;

    #[test]
    fn quantiles_are_of_the_sorted_samples() {
        let times = Times::from_samples(vec![3.0, 1.0, 2.0]);
        assert!((times.median() - 2.0).abs() < 1e-12);
        assert!((times.quantile(9, 10) - 3.0).abs() < 1e-12);
        let runs = Times::of(5, 0.0, || (), || ());
        assert_eq!(runs.count(), 5);
    }
}
