//! What is trained on: one stream of tokens, cut into windows in an order that the seed alone decides.

use std::sync::Arc;

use super::Batch;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::rng::Rng;

/// A stream of tokens. Clones share it.
#[derive(Clone, Debug)]
pub struct Corpus {
    ids: Arc<Vec<u32>>,
    bos: Option<u32>,
}

impl Corpus {
    /// The tokens of `texts`, one after another, with a beginning-of-text token between two of them.
    pub fn of_texts(tokenizer: &Tokenizer, bos: Option<u32>, texts: &[String]) -> Result<Corpus> {
        let mut ids = Vec::new();
        for text in texts {
            if !ids.is_empty() {
                ids.extend(bos);
            }
            ids.extend(tokenizer.encode(text, false)?);
        }
        Ok(Corpus::of_ids(ids, bos))
    }

    /// A stream of ids; `bos` is put before every window, where the model has one.
    pub fn of_ids(ids: Vec<u32>, bos: Option<u32>) -> Corpus {
        Corpus { ids: Arc::new(ids), bos }
    }

    /// How many tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The `tokens` inputs and targets that begin at `start`.
    fn window(&self, start: usize, tokens: usize, batch: &mut Batch) {
        match self.bos {
            Some(bos) => {
                batch.inputs.push(bos);
                batch.inputs.extend(&self.ids[start..start + tokens - 1]);
                batch.targets.extend(&self.ids[start..start + tokens]);
            }
            None => {
                batch.inputs.extend(&self.ids[start..start + tokens]);
                batch.targets.extend(&self.ids[start + 1..=start + tokens]);
            }
        }
    }
}

/// Windows of one length. In each epoch they begin at another offset and come in another order.
#[derive(Clone, Debug)]
pub struct Windows {
    corpus: Corpus,
    tokens: usize,
    seed: u64,
    count: usize,
    /// The epoch whose order is at hand.
    epoch: Option<(u64, usize, Vec<usize>)>,
}

impl Windows {
    /// Windows of `tokens` inputs.
    pub fn new(corpus: Corpus, tokens: usize, seed: u64) -> Result<Windows> {
        if tokens < 2 {
            return Err(Error::invalid(format!("windows of {tokens} tokens; wanted 2 or more")));
        }
        // Whatever the offset, so many fit behind it, with a target for the last token.
        let count = corpus.len().saturating_sub(tokens) / tokens;
        if count == 0 {
            return Err(Error::invalid(format!(
                "the text has {} tokens: too few for windows of {tokens} (two are the least); take a longer text or \
                 shorter windows",
                corpus.len()
            )));
        }
        Ok(Windows { corpus, tokens, seed, count, epoch: None })
    }

    /// How many windows an epoch has.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Windows `first..first + batch` of the endless sequence of epochs.
    pub fn batch(&mut self, first: u64, batch: usize) -> Batch {
        let len = batch * self.tokens;
        let mut found =
            Batch { batch, inputs: Vec::with_capacity(len), targets: Vec::with_capacity(len) };
        for index in first..first + batch as u64 {
            let (epoch, at) = (index / self.count as u64, index % self.count as u64);
            let corpus = self.corpus.clone();
            let tokens = self.tokens;
            let (offset, order) = self.order(epoch);
            let at = usize::try_from(at).expect("below the count");
            corpus.window(offset + order[at] * tokens, tokens, &mut found);
        }
        found
    }

    /// The offset and the order of `epoch`: Fisher and Yates' shuffle.
    fn order(&mut self, epoch: u64) -> (usize, &[usize]) {
        if self.epoch.as_ref().is_none_or(|(at, ..)| *at != epoch) {
            let mut rng = Rng::new(self.seed ^ epoch.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let below = |rng: &mut Rng, end: usize| {
                usize::try_from(rng.next_u64() % end as u64).expect("below a usize")
            };
            let offset = below(&mut rng, self.tokens);
            let mut order: Vec<usize> = (0..self.count).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, below(&mut rng, i + 1));
            }
            self.epoch = Some((epoch, offset, order));
        }
        let (_, offset, order) = self.epoch.as_ref().expect("it was made just now");
        (*offset, order)
    }

    /// The first `count` windows in the order of the text, for evaluation: at most as many as there are.
    pub fn in_order(&self, count: usize) -> Batch {
        let batch = count.min(self.count);
        let mut found = Batch { batch, inputs: Vec::new(), targets: Vec::new() };
        (0..batch).for_each(|i| self.corpus.window(i * self.tokens, self.tokens, &mut found));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_shows_each_window_once_and_the_seed_decides_the_order() {
        let corpus = Corpus::of_ids((100..177).collect(), Some(0));
        let all = |seed: u64, first: u64| {
            let mut windows = Windows::new(corpus.clone(), 8, seed).expect("long enough");
            assert_eq!(windows.count(), 8);
            windows.batch(first, 8)
        };
        let batch = all(3, 0);
        let mut targets = batch.targets.clone();
        targets.sort_unstable();
        targets.dedup();
        assert_eq!(targets.len(), 64, "no token is a target twice");
        assert!(
            batch
                .inputs
                .chunks(8)
                .zip(batch.targets.chunks(8))
                .all(|(inputs, targets)| { inputs[0] == 0 && inputs[1..] == targets[..7] })
        );
        assert_eq!(batch, all(3, 0));
        assert_ne!(batch, all(4, 0));
        assert_ne!(batch, all(3, 8), "the next epoch has another order");
        // A batch across epochs is the end of one and the beginning of the next.
        assert_eq!(all(3, 4).targets[..32], batch.targets[32..]);
        let error = Windows::new(corpus, 77, 0).expect_err("too short").to_string();
        assert!(error.contains("77 tokens: too few"), "{error}");
    }

    #[test]
    fn without_a_beginning_token_the_next_token_is_the_target() {
        let windows = Windows::new(Corpus::of_ids((0..30).collect(), None), 4, 0).expect("ok");
        let batch = windows.in_order(2);
        assert_eq!(batch.inputs, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(batch.targets, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
