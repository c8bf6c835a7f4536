//! What a family's function works with: its inputs, and a place for what it computed.

use std::collections::{BTreeMap, BTreeSet};

use super::folder::Family;
use super::report::{FamilyReport, Outcome};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::quantization::primitives::compute_error;
use crate::tensor::{DType, Tensor};

/// How far a computed tensor may be from the golden one.
pub(super) enum Allowed {
    /// Not at all: dtype, shape and every bit, NaN for NaN.
    Nothing,
    /// `|got − golden|` of each element.
    Each(Vec<f64>),
    /// So large a part of the golden tensor's largest magnitude.
    OfLargest(f64),
    /// Codes: all but so large a part of them are equal.
    But(f64),
    /// The signal-to-noise ratio is above so many dB.
    SqnrDb(f64),
}

/// The inputs of a family, and what was found about the rest.
pub(super) struct Checks {
    pub(super) cpu: Cpu,
    family: Family,
    inputs: BTreeSet<String>,
    found: BTreeMap<String, Outcome>,
}

impl Checks {
    pub(super) fn new(cpu: &Cpu, family: Family) -> Checks {
        Checks { cpu: cpu.clone(), family, inputs: BTreeSet::new(), found: BTreeMap::new() }
    }

    /// A tensor that nothing computes.
    pub(super) fn input(&mut self, name: &str) -> Result<Tensor> {
        self.inputs.insert(name.to_owned());
        self.family.tensor(name)
    }

    pub(super) fn floats(&mut self, name: &str) -> Result<Vec<f32>> {
        Ok(self.input(name)?.to_f32_vec())
    }

    /// An input that is a matrix with `k` columns.
    pub(super) fn matrix_of(&mut self, name: &str, k: usize) -> Result<Tensor> {
        let tensor = self.input(name)?;
        if tensor.shape().last() == Some(&k) {
            return Ok(tensor);
        }
        let got = tensor.shape();
        Err(Error::invalid(format!("{name} is {got:?}; wanted rows of {k} as the others have")))
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.family.contains(name)
    }

    /// The golden tensor, to choose a tolerance by or to go on from.
    pub(super) fn golden(&self, name: &str) -> Result<Tensor> {
        self.family.tensor(name)
    }

    /// What stands before `suffix` in the names that end with it.
    pub(super) fn prefixes(&self, suffix: &str) -> Vec<String> {
        self.family
            .names()
            .filter_map(|name| name.strip_suffix(suffix))
            .map(str::to_owned)
            .collect()
    }

    /// Names that begin with `prefix`.
    pub(super) fn names_with(&self, prefix: &str) -> Vec<String> {
        self.family.names().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
    }

    /// `got` must be the golden tensor. One that the file does not hold is not asked for.
    pub(super) fn exact(&mut self, name: impl Into<String>, got: &Tensor) -> Result<()> {
        self.near(name, got, &Allowed::Nothing)
    }

    /// `got` must be near the golden tensor.
    pub(super) fn near(
        &mut self,
        name: impl Into<String>,
        got: &Tensor,
        allowed: &Allowed,
    ) -> Result<()> {
        let name = name.into();
        if !self.family.contains(&name) {
            return Ok(());
        }
        let wanted = self.family.tensor(&name)?;
        let outcome = compare(&wanted, got, allowed)?;
        // Computed in two ways, a tensor is as good as the worse of them.
        self.found.entry(name).and_modify(|known| known.join(&outcome)).or_insert(outcome);
        Ok(())
    }

    pub(super) fn report(&self, name: &str, fault: Option<Error>) -> FamilyReport {
        let missing = |name: &&str| !self.inputs.contains(*name) && !self.found.contains_key(*name);
        FamilyReport {
            family: name.to_owned(),
            found: self.found.clone(),
            inputs: self.inputs.iter().filter(|name| !self.found.contains_key(*name)).count(),
            not_computed: self.family.names().filter(missing).map(str::to_owned).collect(),
            fault: fault.map(|error| error.to_string()),
        }
    }
}

fn compare(wanted: &Tensor, got: &Tensor, allowed: &Allowed) -> Result<Outcome> {
    if wanted.shape() != got.shape() || wanted.dtype() != got.dtype() {
        return Ok(Outcome { equal: false, within: false, exact: false, largest: f64::INFINITY });
    }
    let size = wanted.dtype().size();
    let (a, b) = (wide(wanted), wide(got));
    let mut equal = true;
    let (mut largest, mut most, mut differ) = (0.0_f64, 0.0_f64, 0_usize);
    let mut each_within = true;
    let bytes = wanted.bytes().chunks_exact(size).zip(got.bytes().chunks_exact(size));
    for (at, (wanted, got)) in bytes.enumerate() {
        if a[at].is_finite() {
            most = most.max(a[at].abs());
        }
        if wanted == got || (a[at].is_nan() && b[at].is_nan()) {
            continue;
        }
        (equal, differ) = (false, differ + 1);
        let off = (a[at] - b[at]).abs();
        let off = if off.is_nan() { f64::INFINITY } else { off };
        largest = largest.max(off);
        if let Allowed::Each(bounds) = allowed {
            each_within &= bounds.get(at).is_some_and(|bound| off <= *bound);
        }
    }
    let part = if most > 0.0 { largest / most } else { largest };
    #[expect(clippy::cast_precision_loss, reason = "tensors have fewer than 2⁵³ elements")]
    let within = equal
        || match allowed {
            Allowed::Nothing => false,
            Allowed::Each(_) => each_within,
            Allowed::OfLargest(bound) => part <= *bound,
            Allowed::But(bound) => differ as f64 <= bound * a.len() as f64,
            Allowed::SqnrDb(bound) => compute_error(wanted, got)? > *bound,
        };
    let exact = matches!(allowed, Allowed::Nothing);
    Ok(Outcome { equal, within, exact, largest: if largest > 0.0 { part } else { 0.0 } })
}

/// Every element as f64, integers as they are.
fn wide(tensor: &Tensor) -> Vec<f64> {
    #[expect(clippy::cast_precision_loss, reason = "counts, far below 2⁵³")]
    let long = |values: &[i64]| values.iter().map(|value| *value as f64).collect();
    match (tensor.dtype(), tensor.as_slice::<i64>(), tensor.as_slice::<i32>()) {
        (DType::I64, Ok(values), _) => long(values),
        (DType::I32, _, Ok(values)) => values.iter().map(|value| f64::from(*value)).collect(),
        _ => tensor.to_f32_vec().into_iter().map(f64::from).collect(),
    }
}

/// Bounds that are `part` of each golden magnitude, or of `size` where that is larger.
pub(super) fn of_each(golden: &Tensor, part: f64, size: f64) -> Allowed {
    let values = golden.to_f32_vec();
    Allowed::Each(values.iter().map(|value| part * f64::from(value.abs()).max(size)).collect())
}

/// The number at the end of `word` behind `before`: 32 of `g32`.
pub(super) fn number_behind(word: &str, before: &str) -> Result<usize> {
    let digits = word.strip_prefix(before).and_then(|digits| digits.parse().ok());
    digits.ok_or_else(|| Error::invalid(format!("{word:?} is not {before}NUMBER")))
}

/// A name that the layout does not know.
pub(super) fn unknown(name: &str) -> Error {
    Error::invalid(format!("the layout knows no tensors called {name}…"))
}
