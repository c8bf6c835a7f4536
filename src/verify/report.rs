//! What was found of a family, and all of them as a table.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::table::{Cell, Table};

/// What was found of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Every bit is the golden one's.
    pub equal: bool,
    /// It is equal, or within its tolerance.
    pub within: bool,
    /// Its tolerance is none: its arithmetic has one result.
    pub exact: bool,
    /// The largest difference, as a part of the golden tensor's largest magnitude; infinite for another shape or dtype.
    pub largest: f64,
}

impl Outcome {
    /// The worse of two.
    pub(super) fn join(&mut self, other: &Outcome) {
        self.equal &= other.equal;
        self.within &= other.within;
        self.exact |= other.exact;
        self.largest = self.largest.max(other.largest);
    }
}

/// What was found of one family.
#[derive(Clone, Debug, PartialEq)]
pub struct FamilyReport {
    /// Its name.
    pub family: String,
    /// Every tensor that was computed.
    pub found: BTreeMap<String, Outcome>,
    /// How many tensors are inputs.
    pub inputs: usize,
    /// Tensors that nothing here computes.
    pub not_computed: Vec<String>,
    /// Why it could not be gone through.
    pub fault: Option<String>,
}

impl FamilyReport {
    /// A family whose file says something else than it should.
    pub(super) fn of_fault(family: &str, words: &str) -> FamilyReport {
        FamilyReport {
            family: family.to_owned(),
            found: BTreeMap::new(),
            inputs: 0,
            not_computed: Vec::new(),
            fault: Some(words.to_owned()),
        }
    }

    /// Tensors other than inputs.
    pub fn total(&self) -> usize {
        self.found.len() + self.not_computed.len()
    }

    /// Tensors with every bit equal.
    pub fn equal(&self) -> usize {
        self.found.values().filter(|outcome| outcome.equal).count()
    }

    /// The names of those that are neither equal nor within their tolerance.
    pub fn off(&self) -> Vec<&str> {
        self.found
            .iter()
            .filter(|(_, found)| !found.within)
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Whether everything was computed and nothing is off.
    pub fn holds(&self) -> bool {
        self.fault.is_none() && self.not_computed.is_empty() && self.off().is_empty()
    }

    /// The largest difference of all.
    pub fn largest(&self) -> f64 {
        self.found.values().fold(0.0, |most, found| most.max(found.largest))
    }

    /// In words: `exact`, `within tolerance`, or what is wrong.
    pub fn verdict(&self) -> String {
        if let Some(fault) = &self.fault {
            return fault.clone();
        }
        let off = self.off();
        let some = |names: &[&str]| match names {
            [first, second, _, ..] => format!("{first}, {second} and {} more", names.len() - 2),
            few => few.join(", "),
        };
        if !off.is_empty() {
            return format!("DIFFERS: {}", some(&off));
        }
        let missing: Vec<&str> = self.not_computed.iter().map(String::as_str).collect();
        if self.found.is_empty() {
            return "not computed by this program".to_owned();
        }
        let word = match self.found.values().all(|found| found.exact) {
            true => "exact",
            false if self.equal() == self.found.len() => "exact, where a tolerance is allowed",
            false => "within tolerance",
        };
        match missing.len() {
            0 => word.to_owned(),
            _ => format!("{word}; not computed: {}", some(&missing)),
        }
    }
}

/// One row a family.
pub fn table(reports: &[FamilyReport]) -> Result<Table> {
    let mut table = Table::new("Golden vectors")
        .column("family")
        .column("equal")
        .column("total")
        .column("largest difference")
        .column("verdict")
        .with_note(
            "equal: tensors of which every bit is; total: all but inputs; the largest difference is a part of its \
             tensor's largest magnitude",
        );
    for report in reports {
        table.push([
            report.family.as_str().into(),
            report.equal().into(),
            report.total().into(),
            Cell::Float(report.largest()),
            report.verdict().into(),
        ])?;
    }
    let holding = reports.iter().filter(|report| report.holds()).count();
    table.note(format!("{holding} of {} families hold", reports.len()));
    Ok(table)
}
