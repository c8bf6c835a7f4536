//! Text to token ids and back.

mod check;
mod stream;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde_json::{Map, Value as Json};

pub use self::stream::TextStream;
use crate::error::{Error, Result};

/// A tokenizer as `tokenizer.json` describes it. Clones share it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    json: Vec<u8>,
    config: Map<String, Json>,
    bos: Option<u32>,
    eos: Option<u32>,
    chat_template: Option<String>,
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`, with the `tokenizer_config.json` that names the special tokens.
    pub fn from_json(json: &[u8], config: Option<&Json>) -> Result<Tokenizer> {
        let parsed: Json = serde_json::from_slice(json)
            .map_err(|error| Error::invalid(format!("tokenizer: not valid JSON: {error}")))?;
        check::check(&parsed).map_err(|words| Error::invalid(format!("tokenizer: {words}")))?;
        let mut tokenizer = guard(|| tokenizers::Tokenizer::from_bytes(json))?;
        // A file may ask for padding or cutting to a length: that is for batches, and not what we ask for.
        tokenizer.with_padding(None);
        guard(|| tokenizer.with_truncation(None).map(|_| ()))?;
        check_added_ids(&tokenizer, &parsed)?;
        let config = match config {
            None | Some(Json::Null) => Map::new(),
            Some(Json::Object(config)) => config.clone(),
            Some(_) => return Err(Error::invalid("tokenizer_config.json: wanted an object")),
        };
        let special = |key| {
            config.get(key).and_then(token_text).and_then(|token| tokenizer.token_to_id(token))
        };
        let (bos, eos) = (special("bos_token"), special("eos_token"));
        let chat_template = config.get("chat_template").and_then(default_template);
        let json = json.to_vec();
        Ok(Tokenizer {
            inner: Arc::new(Inner { tokenizer, json, config, bos, eos, chat_template }),
        })
    }

    /// The ids of `text`; with `add_special` also the tokens that the model wants around a text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guard(|| self.inner.tokenizer.encode_fast(text, add_special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids` without special tokens. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guard(|| self.inner.tokenizer.decode(ids, true))
    }

    /// Decodes tokens one after another.
    pub fn stream(&self) -> TextStream {
        TextStream::new(self.clone())
    }

    /// The token as it is written in the vocabulary: `Ġthe`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// The id of a token as the vocabulary writes it.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// How many tokens there are, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.tokenizer.get_vocab_size(true)
    }

    /// The token that begins a text, if the configuration names one.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// The token that ends a text, if the configuration names one.
    pub fn eos(&self) -> Option<u32> {
        self.inner.eos
    }

    /// The Jinja template that turns a conversation into a prompt.
    pub fn chat_template(&self) -> Option<&str> {
        self.inner.chat_template.as_deref()
    }

    /// The bytes of the `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        &self.inner.json
    }

    /// The `tokenizer_config.json`; empty where there was none.
    pub fn config(&self) -> &Map<String, Json> {
        &self.inner.config
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos())
            .field("eos", &self.eos())
            .finish_non_exhaustive()
    }
}

/// The crate behind has assertions about its own files; [`check`] refuses those we know of. One that
/// we do not know of must not take the program down either.
fn guard<T>(step: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(done) => done.map_err(|error| Error::invalid(format!("tokenizer: {error}"))),
        Err(_) => Err(Error::invalid("tokenizer: the tokenizer's file contradicts itself")),
    }
}

/// The crate gives an added token whose id is taken another one, and only logs it.
fn check_added_ids(tokenizer: &tokenizers::Tokenizer, json: &Json) -> Result<()> {
    let added = json.get("added_tokens").and_then(Json::as_array);
    for token in added.into_iter().flatten() {
        let content = token.get("content").and_then(Json::as_str).unwrap_or_default();
        let wanted = token.get("id").and_then(Json::as_u64);
        let got = tokenizer.token_to_id(content).map(u64::from);
        if wanted != got {
            return Err(Error::invalid(format!(
                "tokenizer: the added token {content:?} says id {wanted:?}, but the vocabulary gives it {got:?}"
            )));
        }
    }
    Ok(())
}

/// A special token is a text, or an object with its text as `content`.
fn token_text(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// One template, or a list of named ones of which `default` is meant.
fn default_template(template: &Json) -> Option<String> {
    if let Json::String(template) = template {
        return Some(template.clone());
    }
    let named = template.as_array()?;
    let default =
        named.iter().find(|one| one.get("name").and_then(Json::as_str) == Some("default"))?;
    default.get("template")?.as_str().map(str::to_owned)
}
