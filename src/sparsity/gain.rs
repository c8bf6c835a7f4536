//! What zeros can gain at most, said before anything is timed.
//!
//! With few tokens a layer takes as long as its bytes take to arrive, with many as long as its products take. A pattern gains only where its format
//! moves less or skips products; anything else can only lose.

use std::any::Any;

use super::semi_structured::weight::SemiStructuredWeight;
use crate::model::Weight;

/// How much faster a weight can be than another at most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gain {
    /// With one token: the bytes of the one over those of the other.
    pub one_token: f64,
    /// With many: products over products.
    pub many_tokens: f64,
    /// Layers whose sparse kernel is known to take longer than the dense one.
    pub slower: usize,
}

/// Bytes and products of layers, summed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    bytes: u64,
    flops: u64,
    slower: usize,
}

/// Tokens of a call that is bound by its products.
const MANY: usize = 128;

impl Work {
    /// Adds a layer; `sparse_cores` says whether a GPU multiplies it that skips the zeros of 2:4.
    pub fn add(&mut self, weight: &dyn Weight, sparse_cores: bool) {
        self.bytes += weight.cost(1).bytes;
        let any: &dyn Any = weight;
        let (mut flops, compressed) =
            (weight.cost(MANY).flops, any.downcast_ref::<SemiStructuredWeight>());
        if compressed.is_some() && sparse_cores {
            flops /= 2;
        }
        self.flops += flops;
        self.slower += usize::from(compressed.is_some_and(SemiStructuredWeight::has_zero_points));
    }

    /// What `after` can gain over this.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
    pub fn gain(self, after: Work) -> Gain {
        let ratio = |a: u64, b: u64| a as f64 / (b as f64).max(1.0);
        Gain {
            one_token: ratio(self.bytes, after.bytes),
            many_tokens: ratio(self.flops, after.flops),
            slower: after.slower,
        }
    }
}

/// Bytes and products are not times.
const BOUND: &str = "that is a bound: `bench linear` times what is reached on this machine";

impl Gain {
    /// In words, with a warning where nothing can be gained.
    pub fn words(self) -> String {
        let Gain { one_token, many_tokens, slower } = self;
        let both = format!(
            "at most {one_token:.2} × as fast with one token (bytes), {many_tokens:.2} × with {MANY} (products)"
        );
        if slower > 0 {
            return format!(
                "warning: {both}; but {slower} layers have int4 codes with zero points, whose 2:4 kernel takes longer than the \
                 dense one: it computes more than it saves. `sparsify marlin-24` of the unquantized model has symmetric \
                 codes and is faster"
            );
        }
        match (one_token > 1.02, many_tokens > 1.02) {
            (true, true) => format!("{both}; {BOUND}"),
            (true, false) => format!(
                "{both}; prompts gain nothing here: the processor multiplies these zeros too; {BOUND}"
            ),
            _ => format!(
                "warning: {both}; these zeros can only lose: they save neither bytes nor products. \
                 Take 2:4 (bytes) or block:64 (both)"
            ),
        }
    }
}
