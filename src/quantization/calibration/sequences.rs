//! What a model reads for calibration: pieces of a text, drawn by a seed.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::rng::Rng;

/// How many pieces of which length, and where the draws start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequences {
    /// How many.
    pub count: usize,
    /// Tokens in each, with what the tokenizer puts in front.
    pub length: usize,
    /// Where the draws start.
    pub seed: u64,
}

impl Default for Sequences {
    /// 64 pieces of 256 tokens: for layers of a few thousand inputs enough to fill their second moments.
    fn default() -> Sequences {
        Sequences { count: 64, length: 256, seed: 0 }
    }
}

/// Draws `wanted.count` pieces of `text`, each behind a fresh BOS where the model has one. Starts are uniform over the text and
/// pieces may overlap.
pub fn draw(model: &Model, text: &str, wanted: &Sequences) -> Result<Vec<Vec<u32>>> {
    let tokenizer = model.tokenizer()?;
    let limit = model.config.max_position_embeddings;
    if wanted.count == 0 || wanted.length < 2 || wanted.length > limit {
        return Err(Error::invalid(format!(
            "calibration over {} sequences of {} tokens: wanted one sequence or more of 2 to {limit} tokens",
            wanted.count, wanted.length
        )));
    }
    let bos = tokenizer.encode("", true)?.first().copied();
    let ids = tokenizer.encode(text, false)?;
    let fresh = wanted.length - usize::from(bos.is_some());
    if ids.len() < fresh {
        return Err(Error::invalid(format!(
            "the calibration text has {} tokens: too few for one sequence of {}; take a longer text or a smaller length",
            ids.len(),
            wanted.length
        )));
    }
    let mut rng = Rng::new(wanted.seed);
    let starts = ids.len() - fresh + 1;
    let piece = |_| {
        let start = below(&mut rng, starts);
        bos.into_iter().chain(ids[start..start + fresh].iter().copied()).collect()
    };
    Ok((0..wanted.count).map(piece).collect())
}

/// Uniform below `end`, to a part in 2⁵³.
#[expect(clippy::cast_precision_loss, reason = "texts have far fewer than 2⁵³ tokens")]
#[expect(clippy::cast_possible_truncation, reason = "floor of a number below `end`")]
#[expect(clippy::cast_sign_loss, reason = "uniform draws are not negative")]
fn below(rng: &mut Rng, end: usize) -> usize {
    ((rng.uniform() * end as f64) as usize).min(end - 1)
}
