//! The list of sparsifiers: from it come the reading of configurations and of sparse weights.

use std::sync::Arc;

use super::{
    activation_24, block_sparse, magnitude, marlin_24, masked, nearly_diagonal, semi_structured,
    sparse_gpt, structured, wanda, weight_norm,
};
use crate::error::Result;
use crate::model::Weight;
use crate::quantization::Recipe;
use crate::quantization::config::Typed;
use crate::quantization::stored::Stored;

/// What there is to know of a sparsifier.
#[derive(Clone, Copy, Debug)]
pub struct Sparsifier {
    /// Its command: `wanda`.
    pub name: &'static str,
    /// The ids of what it does in the list of torchao's features.
    pub ids: &'static [&'static str],
    /// The configuration's class.
    pub config_type: &'static str,
    pub(crate) config_from_dict: fn(&Typed<'_>) -> Result<Arc<dyn Recipe>>,
}

/// Every sparsifier.
pub const SPARSIFIERS: &[Sparsifier] = &[
    Sparsifier {
        name: "block-sparse-weight",
        ids: &["X04"],
        config_type: block_sparse::TYPE,
        config_from_dict: block_sparse::config_from_dict,
    },
    Sparsifier {
        name: "fpgm",
        ids: &["X08"],
        config_type: structured::FPGM_TYPE,
        config_from_dict: structured::fpgm_from_dict,
    },
    Sparsifier {
        name: "magnitude",
        ids: &["A06", "X03"],
        config_type: magnitude::TYPE,
        config_from_dict: magnitude::config_from_dict,
    },
    Sparsifier {
        name: "marlin-24",
        ids: &["X10"],
        config_type: marlin_24::TYPE,
        config_from_dict: marlin_24::config_from_dict,
    },
    Sparsifier {
        name: "nearly-diagonal",
        ids: &["X08"],
        config_type: nearly_diagonal::TYPE,
        config_from_dict: nearly_diagonal::config_from_dict,
    },
    Sparsifier {
        name: "saliency",
        ids: &["X08"],
        config_type: structured::SALIENCY_TYPE,
        config_from_dict: structured::saliency_from_dict,
    },
    Sparsifier {
        name: "semi-sparse-weight",
        ids: &["A06", "X03"],
        config_type: semi_structured::TYPE,
        config_from_dict: semi_structured::config_from_dict,
    },
    Sparsifier {
        name: "sparse-gpt",
        ids: &["X03"],
        config_type: sparse_gpt::TYPE,
        config_from_dict: sparse_gpt::config_from_dict,
    },
    Sparsifier {
        name: "wanda",
        ids: &["X05"],
        config_type: wanda::TYPE,
        config_from_dict: wanda::config_from_dict,
    },
    Sparsifier {
        name: "weight-norm",
        ids: &["X08"],
        config_type: weight_norm::TYPE,
        config_from_dict: weight_norm::config_from_dict,
    },
];

/// How a sparse format is read from a file.
pub(crate) type ReadWeight = fn(&Typed<'_>, Stored) -> Result<Arc<dyn Weight>>;

/// The sparse formats, by the `_type` of their weights in files.
pub(crate) const FORMATS: &[(&str, ReadWeight)] = &[
    (activation_24::TYPE, activation_24::read_weight),
    (block_sparse::weight::TYPE, block_sparse::weight::read_weight),
    (masked::TYPE, masked::read_weight),
    (semi_structured::weight::TYPE, semi_structured::weight::read_weight),
];
