//! Tokenizers and texts.

pub mod texts;
mod tokenizer;

pub use tokenizer::{TextStream, Tokenizer};
