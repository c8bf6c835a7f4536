//! How a text is cut into windows, and which tokens of each are predicted.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How perplexity is counted. Numbers of different conventions cannot be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Convention {
    /// The text is cut into blocks of context − 1 tokens, each read behind a fresh BOS; every token of the text is predicted exactly once.
    #[default]
    Window,
    /// As llama.cpp's perplexity tool: chunks of a whole context, the first token of each replaced by BOS, and only the second half counted.
    Llamacpp,
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Convention::Window => "window",
            Convention::Llamacpp => "llamacpp",
        })
    }
}

/// One window: what the model reads, and the first position that is a counted target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens read, at most one context.
    pub tokens: Vec<u32>,
    /// Targets are `tokens[first_target..]`; the logits at `first_target − 1` predict the first.
    pub first_target: usize,
}

impl Window {
    /// The tokens that are predicted and counted.
    pub fn targets(&self) -> &[u32] {
        &self.tokens[self.first_target..]
    }
}

/// Cuts `ids` (tokenized without BOS) into windows of at most `context` tokens.
///
/// Without a `bos` (models that were trained without one) nothing is put in front: a `Window` block then has `context`
/// tokens and its first is not predicted.
pub fn cut(
    ids: &[u32],
    bos: Option<u32>,
    context: usize,
    convention: Convention,
) -> Result<Vec<Window>> {
    if context < 4 {
        return Err(Error::invalid(format!(
            "a context of {context} tokens is too short; wanted ≥ 4"
        )));
    }
    let windows: Vec<Window> = match convention {
        Convention::Window => {
            let fresh = context - usize::from(bos.is_some());
            let whole = |block: &[u32]| bos.into_iter().chain(block.iter().copied()).collect();
            ids.chunks(fresh)
                .map(|block| Window { tokens: whole(block), first_target: 1 })
                .collect()
        }
        Convention::Llamacpp => {
            let all: Vec<u32> = bos.into_iter().chain(ids.iter().copied()).collect();
            let chunk = |chunk: &[u32]| {
                let mut tokens = chunk.to_vec();
                tokens[0] = bos.unwrap_or(tokens[0]);
                Window { tokens, first_target: context / 2 + 1 }
            };
            all.chunks_exact(context).map(chunk).collect()
        }
    };
    let windows: Vec<Window> =
        windows.into_iter().filter(|window| window.first_target < window.tokens.len()).collect();
    if windows.is_empty() {
        return Err(Error::invalid(format!(
            "the text has {} tokens: too few for one {convention} window of {context}; \
             take a longer text or a smaller --context",
            ids.len()
        )));
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_predicted_once_in_the_window_convention() {
        let ids: Vec<u32> = (10..30).collect();
        let windows = cut(&ids, Some(0), 8, Convention::Window).expect("enough tokens");
        let targets: Vec<u32> = windows.iter().flat_map(Window::targets).copied().collect();
        assert_eq!(targets, ids);
        assert!(windows.iter().all(|w| w.tokens[0] == 0 && w.tokens.len() <= 8));
    }

    #[test]
    fn llamacpp_counts_the_second_half_of_whole_chunks() {
        let ids: Vec<u32> = (10..30).collect();
        let windows = cut(&ids, Some(0), 8, Convention::Llamacpp).expect("enough tokens");
        assert_eq!(windows.len(), 2);
        assert_eq!(windows[0].targets(), [14, 15, 16]);
        assert_eq!(windows[1].tokens[0], 0);
        assert!(cut(&ids[..5], Some(0), 8, Convention::Llamacpp).is_err());
    }
}
