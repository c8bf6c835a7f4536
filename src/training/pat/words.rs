//! Maps and groupers by words, as the command line says them.

use std::fmt;
use std::str::FromStr;

use super::{Grouper, Prox, Score};
use crate::error::{Error, Result};

impl fmt::Display for Prox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prox::Lasso => f.write_str("lasso"),
            Prox::GroupLasso => f.write_str("group-lasso"),
            Prox::NuclearNorm => f.write_str("nuclear-norm"),
            Prox::MinSparsity(share) => write!(f, "min-sparsity:{share}"),
            Prox::GlobalMinSparsity(share, score) => {
                let score = match score {
                    Score::Rms => "rms",
                    Score::L2 => "l2",
                    Score::ParamCost => "param-cost",
                };
                write!(f, "global-min-sparsity:{share}:{score}")
            }
            Prox::MinRank(share) => write!(f, "min-rank:{share}"),
            Prox::NMSparse(kept) => write!(f, "nm-sparse:{kept}"),
        }
    }
}

/// A word and what stands behind its colons.
fn parts(text: &str) -> (&str, Vec<&str>) {
    let mut parts = text.split(':');
    (parts.next().unwrap_or_default(), parts.collect())
}

fn number<T: FromStr>(text: &str, word: &str) -> Result<T> {
    word.parse().map_err(|_| Error::usage(format!("{text}: {word:?} is no number that fits")))
}

impl FromStr for Prox {
    type Err = Error;

    fn from_str(text: &str) -> Result<Prox> {
        let (word, rest) = parts(text);
        match (word, &rest[..]) {
            ("lasso", []) => Ok(Prox::Lasso),
            ("group-lasso", []) => Ok(Prox::GroupLasso),
            ("nuclear-norm", []) => Ok(Prox::NuclearNorm),
            ("min-sparsity", [share]) => number(text, share).map(Prox::MinSparsity),
            ("min-rank", [share]) => number(text, share).map(Prox::MinRank),
            ("nm-sparse", [kept]) => number(text, kept).map(Prox::NMSparse),
            ("global-min-sparsity", [share, score @ ..]) => {
                let score = match score {
                    [] | ["rms"] => Score::Rms,
                    ["l2"] => Score::L2,
                    ["param-cost"] => Score::ParamCost,
                    _ => return Err(Error::usage(format!("{text}: wanted rms, l2 or param-cost"))),
                };
                Ok(Prox::GlobalMinSparsity(number(text, share)?, score))
            }
            _ => Err(Error::usage(format!(
                "{text} is no way of pruning; wanted lasso, group-lasso, nuclear-norm, min-sparsity:SHARE, \
                 global-min-sparsity:SHARE[:rms|l2|param-cost], min-rank:SHARE or nm-sparse:COUNT"
            ))),
        }
    }
}

impl FromStr for Grouper {
    type Err = Error;

    fn from_str(text: &str) -> Result<Grouper> {
        let (word, rest) = parts(text);
        match (word, &rest[..]) {
            ("elem", []) => Ok(Grouper::Elem),
            ("layer", []) => Ok(Grouper::Layer),
            ("dim0", []) => Ok(Grouper::Dim0),
            ("dim1", []) => Ok(Grouper::Dim1),
            ("svd", []) => Ok(Grouper::Svd),
            ("k-element", [size]) => number(text, size).map(Grouper::KElement),
            ("head-rows", [size]) => number(text, size).map(Grouper::HeadRows),
            ("head-columns", [size]) => number(text, size).map(Grouper::HeadColumns),
            _ => Err(Error::usage(format!(
                "{text} are no groups; wanted elem, layer, dim0, dim1, k-element:SIZE, head-rows:SIZE, \
                 head-columns:SIZE or svd"
            ))),
        }
    }
}

impl Prox {
    /// The groups that it is mostly used with.
    pub fn usual_group(&self) -> Grouper {
        match self {
            Prox::Lasso => Grouper::Elem,
            Prox::NuclearNorm | Prox::MinRank(_) => Grouper::Svd,
            Prox::NMSparse(kept) => Grouper::KElement((2 * kept).max(1)),
            _ => Grouper::Dim0,
        }
    }
}
