//! One pipeline with many settings: `quantize int4-weight-only --group-size {32,64,128} | eval perplexity`.
//!
//! [`Sweep::of`] makes the trials of templates, [`run`] runs them here, several at once where memory allows, and [`cluster`] on other
//! machines through an engine that is there already. Each trial that ends is in the run store at once, so that a sweep which was
//! stopped goes on where it was.

pub mod cluster;
mod local;
mod pareto;
mod results;
mod template;

pub use local::{jobs_that_fit, run};
pub use pareto::pareto;
pub use results::{Finished, finished_before, results};
pub use template::{Trial, trials};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The trials of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// The same templates, draws and model give the same name, by which a sweep is resumed.
    pub id: String,
    /// In the order in which they run.
    pub trials: Vec<Trial>,
}

/// How settings are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Every combination.
    Grid,
    /// So many random ones.
    Random {
        /// How many trials of each template.
        count: usize,
        /// Where draws start.
        seed: u64,
    },
}

/// More trials than this are a slip of the finger.
const MOST_TRIALS: usize = 100_000;

impl Sweep {
    /// The trials of `templates`. `about` goes into the sweep's name: what else decides its numbers, such as the model's hash.
    pub fn of(templates: &[String], choice: Choice, about: &str) -> Result<Sweep> {
        let mut all = Vec::new();
        for template in templates {
            all.extend(trials(template, choice)?);
            if all.len() > MOST_TRIALS {
                return Err(Error::usage(format!(
                    "these are more than {MOST_TRIALS} trials; draw some of them with --random COUNT"
                )));
            }
        }
        if all.is_empty() {
            return Err(Error::usage(
                "sweep what? A pipeline in quotes: sweep \"quantize int4-weight-only --group-size {32,64} | eval perplexity\"",
            ));
        }
        let described = format!("{templates:?} {choice:?} {about}");
        let id = blake3::hash(described.as_bytes()).to_hex()[..12].to_owned();
        Ok(Sweep { id, trials: all })
    }
}
