//! Our arithmetic against ATen's, on random and on adversarial numbers: what `aolab verify torch` prints.
//!
//! A difference is the largest `|ours − ATen's|` of a case over the largest `|ATen's|` in it, so that 1e-7 is a last bit of f32. What is
//! allowed is 0 where both round alike, a few last bits where sums run in another order, and the kernel's own stated
//! error where it rounds its input. Gradients of attention, softmax and RMS norms are differences of nearly equal numbers and are measured
//! by the largest number of the whole case, its output and the other gradients included. A NaN or an infinity on one side only is an infinite difference.

mod casts;
mod gpu;
mod model;
mod operations;
mod optimizers;
mod quantized;

pub use self::gpu::verify_gpu;
use super::prepare;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Model;
use crate::rng::Rng;
use crate::table::{Cell, Table};

/// Told how many of the topics are done; `false` stops.
pub(crate) type Progress<'a> = dyn FnMut(usize, usize) -> bool + 'a;

/// The same function on both sides, over many cases.
pub(super) struct Check {
    ours: &'static str,
    aten: &'static str,
    allowed: f64,
    worst: f64,
    worst_case: String,
    cases: usize,
    /// Whether gradients are measured by the largest number of their whole case.
    together: bool,
}

/// Sums of up to some thousand products in f32, in another order; in gradients some of them cancel.
pub(super) const SUMS: f64 = 1e-5;
/// Functions of one number, whose exponential is another polynomial: the kernels state 2⁻²⁰.
pub(super) const FUNCTIONS: f64 = 2e-6;
/// Both sides give the same bits.
pub(super) const EXACT: f64 = 0.0;

impl Check {
    pub(super) fn new(ours: &'static str, aten: &'static str, allowed: f64) -> Check {
        Check {
            ours,
            aten,
            allowed,
            worst: 0.0,
            worst_case: String::new(),
            cases: 0,
            together: false,
        }
    }

    /// The same, for functions whose gradients may cancel to nearly nothing.
    pub(super) fn together(self) -> Check {
        Check { together: true, ..self }
    }

    /// Holds one case's numbers against each other.
    pub(super) fn compare(&mut self, case: &str, ours: &[f32], theirs: &[f32]) {
        self.compare_over(case, ours, theirs, 0.0);
    }

    /// The same, where a number of size `least` took part.
    pub(super) fn compare_over(&mut self, case: &str, ours: &[f32], theirs: &[f32], least: f64) {
        self.cases += 1;
        let difference = difference(ours, theirs, least);
        if difference > self.worst || (self.cases == 1 && self.worst_case.is_empty()) {
            self.worst = difference;
            case.clone_into(&mut self.worst_case);
        }
    }

    fn holds(&self) -> bool {
        self.cases > 0 && self.worst <= self.allowed
    }
}

/// The largest finite size.
fn size_of(values: &[f32]) -> f64 {
    let finite = values.iter().filter(|x| x.is_finite());
    finite.fold(0.0, |most, x| most.max(f64::from(x.abs())))
}

/// The largest difference over the largest number, which is `least` or more.
fn difference(ours: &[f32], theirs: &[f32], least: f64) -> f64 {
    if ours.len() != theirs.len() {
        return f64::INFINITY;
    }
    let (mut most, largest) = (0.0_f64, size_of(theirs).max(least));
    for (a, b) in ours.iter().zip(theirs) {
        if a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) {
            continue;
        }
        let apart = (f64::from(*a) - f64::from(*b)).abs();
        if !apart.is_finite() {
            return f64::INFINITY;
        }
        most = most.max(apart);
    }
    if most == 0.0 { 0.0 } else { most / largest.max(f64::from(f32::MIN_POSITIVE)) }
}

/// A topic: a group of functions that are verified together.
type Topic = fn(&Cpu, &mut Rng) -> Result<Vec<Check>>;

const TOPICS: [Topic; 4] =
    [operations::verify, casts::verify, quantized::verify, optimizers::verify];

/// Every topic, and the forward pass and gradients of `model`. `strict` makes a difference beyond what is allowed an error.
pub fn verify(
    cpu: &Cpu,
    model: &Model,
    seed: u64,
    strict: bool,
    progress: &mut Progress<'_>,
) -> Result<Table> {
    prepare(cpu)?;
    let mut rng = Rng::new(seed);
    let mut checks = Vec::new();
    for (done, topic) in TOPICS.iter().enumerate() {
        if !progress(done, TOPICS.len() + 1) {
            return Err(Error::Cancelled);
        }
        checks.extend(topic(cpu, &mut rng)?);
    }
    checks.extend(model::verify(cpu, model, &mut rng)?);
    told(&checks, seed, strict)
}

/// The table, or an error with it where `strict` asks for that.
fn told(checks: &[Check], seed: u64, strict: bool) -> Result<Table> {
    let table = table(checks, seed)?;
    let off: Vec<&str> = checks.iter().filter(|check| !check.holds()).map(|c| c.ours).collect();
    if strict && !off.is_empty() {
        return Err(Error::invalid(format!("{table}\nbeyond what is allowed: {}", off.join(", "))));
    }
    Ok(table)
}

fn table(checks: &[Check], seed: u64) -> Result<Table> {
    let mut table = Table::new("Against libtorch")
        .column("ours")
        .column("ATen")
        .column("cases")
        .column("largest difference")
        .column("allowed")
        .column("where")
        .column("verdict");
    for check in checks {
        table.push([
            check.ours.into(),
            check.aten.into(),
            check.cases.into(),
            Cell::Text(format!("{:.1e}", check.worst)),
            Cell::Text(format!("{:.1e}", check.allowed)),
            check.worst_case.as_str().into(),
            if check.holds() { "holds" } else { "off" }.into(),
        ])?;
    }
    let good = checks.iter().filter(|check| check.holds()).count();
    table.note(format!(
        "{good} of {} hold; differences over the largest number of their case; libtorch {}, seed {seed}",
        checks.len(),
        crate::kernels::libtorch::built_for()
    ));
    Ok(table)
}

/// Kinds of numbers that find mistakes, by name.
pub(super) const KINDS: [&str; 6] = ["normal", "zeros", "large", "tiny", "ties", "mixed"];

/// `len` numbers of a kind.
pub(super) fn numbers(rng: &mut Rng, kind: &str, len: usize) -> Vec<f32> {
    let mut one = |i: usize| -> f32 {
        let x = rng.normal();
        match kind {
            "zeros" => 0.0,
            "large" => 1e4 * x,
            "tiny" => 1e-30 * x,
            // Halves and whole numbers: what rounding to even decides.
            "ties" => (4.0 * x).round_ties_even() / 2.0,
            // Most are small, a few a thousand times larger, some exactly zero.
            "mixed" if i.is_multiple_of(17) => 1e3 * x,
            "mixed" if i.is_multiple_of(5) => 0.0,
            _ => x,
        }
    };
    (0..len).map(&mut one).collect()
}

#[cfg(test)]
mod tests {
    use super::{Check, EXACT, difference};

    #[test]
    fn a_difference_is_seen_and_so_is_a_number_that_is_none() {
        assert!(difference(&[1.0, 2.0], &[1.0, 2.0], 0.0) == 0.0);
        assert!((difference(&[1.0, 2.5], &[1.0, 2.0], 0.0) - 0.25).abs() < 1e-12);
        assert!((difference(&[1.0, 2.5], &[1.0, 2.0], 5.0) - 0.1).abs() < 1e-12);
        assert!(difference(&[f32::NAN], &[f32::NAN], 0.0) == 0.0);
        for (ours, theirs) in
            [(f32::NAN, 1.0), (1.0, f32::INFINITY), (f32::INFINITY, -f32::INFINITY)]
        {
            assert!(difference(&[ours], &[theirs], 9.0).is_infinite(), "{ours} {theirs}");
        }
        assert!(difference(&[1.0], &[], 0.0).is_infinite());
        let mut check = Check::new("a", "b", EXACT);
        assert!(!check.holds(), "nothing was compared");
        check.compare("same", &[1.0], &[1.0]);
        assert!(check.holds());
        check.compare("off by a bit", &[1.000_000_1], &[1.0]);
        assert!(!check.holds() && check.worst_case == "off by a bit");
    }
}
