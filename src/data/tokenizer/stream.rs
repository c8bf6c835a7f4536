//! Text that appears token by token.

use super::Tokenizer;
use crate::error::Result;

/// A character has at most 4 bytes, and a token at least one: if so many tokens later the text still
/// ends in an unfinished character, it never becomes one.
const MAX_HELD_TOKENS: usize = 8;

/// Turns tokens into text as they come, whole characters only.
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    /// The tokens of the last text given out (a decoder may treat a first token differently), then those held back.
    ids: Vec<u32>,
    given: usize,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer) -> TextStream {
        TextStream { tokenizer, ids: Vec::new(), given: 0 }
    }

    /// The text that `id` completes; empty while a character is unfinished.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.pending()?;
        let held = self.ids.len() - self.given;
        if text.is_empty() || (text.ends_with('\u{FFFD}') && held < MAX_HELD_TOKENS) {
            return Ok(String::new());
        }
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Ok(text)
    }

    /// What was held back when the tokens end: an unfinished character becomes U+FFFD.
    pub fn finish(mut self) -> Result<String> {
        let text = self.pending()?;
        self.ids.clear();
        Ok(text)
    }

    fn pending(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.given])?;
        let all = self.tokenizer.decode(&self.ids)?;
        match all.strip_prefix(before.as_str()) {
            Some(text) => Ok(text.to_owned()),
            // A decoder that rewrites what it gave before: show the new tokens by themselves.
            None => self.tokenizer.decode(&self.ids[self.given..]),
        }
    }
}
