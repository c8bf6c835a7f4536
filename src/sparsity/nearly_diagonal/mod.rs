//! A band around the diagonal stays (X08): torch.ao's `NearlyDiagonalSparsifier`, of which 1 is the diagonal itself.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::sparse_weight;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{Mask, Pattern, Weight};
use crate::quantization::Recipe;
use crate::quantization::config::{Typed, to_dict};

/// Keep a band around the diagonal
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct NearlyDiagonalSparsifier {
    /// How wide the band is: odd, 1 the diagonal alone
    #[arg(long, default_value_t = 1, value_name = "WIDTH")]
    pub nearliness: usize,
}

impl Default for NearlyDiagonalSparsifier {
    fn default() -> NearlyDiagonalSparsifier {
        NearlyDiagonalSparsifier { nearliness: 1 }
    }
}

pub(super) const TYPE: &str = "NearlyDiagonalSparsifier";

pub(super) fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: NearlyDiagonalSparsifier = typed.read(1)?;
    Ok(Arc::new(config))
}

impl NearlyDiagonalSparsifier {
    /// The band of a weight `(N, K)`.
    pub fn mask(&self, (n, k): (usize, usize)) -> Result<Mask> {
        self.check((n, k))?;
        let aside = self.nearliness / 2;
        let mut keep = vec![false; n * k];
        for (row, keep) in keep.chunks_exact_mut(k.max(1)).enumerate() {
            let (from, to) = (row.saturating_sub(aside).min(k), k.min(row + aside + 1));
            keep[from..to.max(from)].fill(true);
        }
        Mask::of(&keep, (n, k))
    }
}

impl Recipe for NearlyDiagonalSparsifier {
    fn name(&self) -> &'static str {
        "nearly-diagonal"
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, 1, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        let width = self.nearliness;
        if width.is_multiple_of(2) {
            return Err(Error::invalid(format!("nearliness is {width}; wanted an odd number")));
        }
        if width / 2 >= n.min(k) {
            return Err(Error::invalid(format!(
                "nearliness is {width}; a weight of {n} × {k} takes less than {}",
                2 * n.min(k)
            )));
        }
        Ok(())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        super::of_dense(self, cpu, weight)
    }

    fn quantize_shared(&self, _cpu: &Cpu, weight: &Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        let mask = self.mask(weight.shape())?;
        sparse_weight(Arc::clone(weight), mask, Pattern::Unstructured)
    }
}
