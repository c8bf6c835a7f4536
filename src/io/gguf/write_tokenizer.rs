//! A `tokenizer.json` as the keys that GGUF files have for it: the way back of `tokenizer.rs`.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::tokenizer::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, pre_of};
use super::write_head::Head;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// The score of tokens that no merge makes; below every other.
const NO_MERGE: f32 = -1e6;

/// Adds the tokenizer's keys.
pub(super) fn add(head: &mut Head, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<()> {
    let json: Json = serde_json::from_slice(tokenizer.json())
        .map_err(|error| Error::invalid(format!("tokenizer.json: {error}")))?;
    let model = &json["model"];
    if model["type"].as_str() != Some("BPE") {
        let got = &model["type"];
        return Err(Error::invalid(format!(
            "a tokenizer of type {got} has no form in GGUF files that we know; wanted BPE"
        )));
    }
    let (tokens, kinds) = tokens(&json, config.vocab_size)?;
    let merges = merges(model)?;
    if model["byte_fallback"].as_bool() == Some(true) {
        head.text("tokenizer.ggml.model", "llama");
        head.texts("tokenizer.ggml.tokens", &tokens);
        head.floats("tokenizer.ggml.scores", &scores(&tokens, &merges));
        head.flag("tokenizer.ggml.add_space_prefix", adds_space(&json));
    } else {
        head.text("tokenizer.ggml.model", "gpt2");
        head.text("tokenizer.ggml.pre", pre(&json)?);
        head.texts("tokenizer.ggml.tokens", &tokens);
        let joined: Vec<String> = merges.iter().map(|(l, r)| format!("{l} {r}")).collect();
        head.texts("tokenizer.ggml.merges", &joined);
    }
    head.ints("tokenizer.ggml.token_type", &kinds);
    let bos = config.bos_token_id.or(tokenizer.bos());
    if let Some(bos) = bos {
        head.uint("tokenizer.ggml.bos_token_id", bos as usize)?;
    }
    let eos = tokenizer.eos().or(config.eos_token_ids.first().copied());
    if let Some(eos) = eos {
        head.uint("tokenizer.ggml.eos_token_id", eos as usize)?;
    }
    // A chat model ends its turns with another token than its texts.
    if let Some(turn) = config.eos_token_ids.iter().find(|id| Some(**id) != eos) {
        head.uint("tokenizer.ggml.eot_token_id", *turn as usize)?;
    }
    let adds_bos = bos.is_some() && tokenizer.encode("", true)?.first().copied() == bos;
    head.flag("tokenizer.ggml.add_bos_token", adds_bos);
    if let Some(template) = tokenizer.chat_template() {
        head.text("tokenizer.chat_template", template);
    }
    Ok(())
}

/// Every row of the embedding as a token and its type; rows that the tokenizer does not know are paddings.
fn tokens(json: &Json, count: usize) -> Result<(Vec<String>, Vec<i32>)> {
    let mut tokens: Vec<String> = (0..count).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; count];
    let mut put = |token: &str, id: Option<u64>, kind: i32| -> Result<()> {
        let at = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < count);
        let at = at.ok_or_else(|| {
            Error::invalid(format!("token {token:?} has id {id:?}, but there are {count} rows"))
        })?;
        (tokens[at], kinds[at]) = (token.to_owned(), kind);
        Ok(())
    };
    let bytes = json["model"]["byte_fallback"].as_bool() == Some(true);
    for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        let byte = bytes && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        put(token, id.as_u64(), if byte { BYTE } else { NORMAL })?;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let token = added["content"].as_str().unwrap_or_default();
        let special = added["special"].as_bool().unwrap_or(false);
        let kind = match special {
            _ if json["model"]["unk_token"].as_str() == Some(token) => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        };
        put(token, added["id"].as_u64(), kind)?;
    }
    Ok((tokens, kinds))
}

fn merges(model: &Json) -> Result<Vec<(String, String)>> {
    let merges = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pair = |merge: &Json| match merge {
        Json::String(text) => text.split_once(' ').map(|(l, r)| (l.to_owned(), r.to_owned())),
        pair => pair[0].as_str().zip(pair[1].as_str()).map(|(l, r)| (l.to_owned(), r.to_owned())),
    };
    let pairs: Option<Vec<_>> = merges.iter().map(pair).collect();
    pairs.ok_or_else(|| Error::invalid("tokenizer.json: a merge is no pair of tokens"))
}

/// SentencePiece joins by the score of the joint token: the earlier its first merge, the higher.
fn scores(tokens: &[String], merges: &[(String, String)]) -> Vec<f32> {
    let mut ranks = HashMap::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |token: &String| ranks.get(token).map_or(NO_MERGE, |rank| -(*rank as f32));
    tokens.iter().map(score).collect()
}

fn steps<'a>(json: &'a Json, key: &str, list: &str) -> Vec<&'a Json> {
    match &json[key] {
        Json::Null => Vec::new(),
        one => match one[list].as_array() {
            Some(many) => many.iter().collect(),
            None => vec![one],
        },
    }
}

fn adds_space(json: &Json) -> bool {
    let prepends = |step: &&Json| step["type"].as_str() == Some("Prepend");
    let metaspace = |step: &&Json| {
        step["type"].as_str() == Some("Metaspace")
            && step["prepend_scheme"].as_str().is_none_or(|scheme| scheme != "never")
    };
    steps(json, "normalizer", "normalizers").iter().any(prepends)
        || steps(json, "pre_tokenizer", "pretokenizers").iter().any(metaspace)
}

/// llama.cpp's name for how a text is cut before merging.
fn pre(json: &Json) -> Result<&'static str> {
    let mut rules = Vec::new();
    for step in steps(json, "pre_tokenizer", "pretokenizers") {
        match step["type"].as_str() {
            Some("ByteLevel") if step["use_regex"].as_bool() == Some(false) => {}
            // Where nothing is said, the rule is GPT-2's.
            Some("ByteLevel") => rules.push(super::tokenizer::GPT2.to_owned()),
            Some("Digits") if step["individual_digits"].as_bool() == Some(true) => {
                rules.push(r"\p{N}".to_owned());
            }
            Some("Split") => match step["pattern"]["Regex"].as_str() {
                Some(rule) => rules.push(rule.to_owned()),
                None => return Err(no_name(step)),
            },
            _ => return Err(no_name(step)),
        }
    }
    let ignores = json["model"]["ignore_merges"].as_bool() == Some(true);
    pre_of(&rules, ignores).ok_or_else(|| no_name(&json["pre_tokenizer"]))
}

fn no_name(step: &Json) -> Error {
    let step: String = step.to_string().chars().take(200).collect();
    Error::invalid(format!(
        "llama.cpp has no name that we know for how this tokenizer cuts a text: {step}"
    ))
}
