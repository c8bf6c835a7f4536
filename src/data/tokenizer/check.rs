//! What a tokenizer.json must be before the `tokenizers` crate sees it.
//!
//! The crate trusts its files: some make it panic, expand a text a million times or compile a regular
//! expression of gigabytes. Each rule here stands for one of these; honest files of Llama-family models pass.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};

/// Token ids are at most this: more than sixty times the largest vocabulary in use.
const MAX_ID: u64 = 1 << 24;

/// The most that repetition counts of one regular expression may multiply to.
const MAX_REPETITIONS: u64 = 10_000;

/// The most that all replacements together may lengthen a text.
const MAX_GROWTH: usize = 4096;

/// Checks a parsed tokenizer.json; the error is words.
pub(super) fn check(json: &Json) -> Result<(), String> {
    let Json::Object(top) = json else {
        return Err("wanted an object".into());
    };
    let Some(Json::Object(model)) = top.get("model") else {
        return Err("there is no model in it".into());
    };
    check_bpe(model)?;
    check_added(top.get("added_tokens"))?;
    let mut growth = 1;
    for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        if let Some(step) = top.get(part) {
            check_step(step, &mut growth).map_err(|words| format!("{part}: {words}"))?;
        }
    }
    Ok(())
}

fn check_bpe(model: &Map<String, Json>) -> Result<(), String> {
    match model.get("type").and_then(Json::as_str) {
        Some("BPE") => {}
        // Files from before the field was introduced.
        None if model.contains_key("merges") => {}
        other => {
            let got = other.unwrap_or("none");
            return Err(format!("model type {got:?} is not supported; wanted BPE"));
        }
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        // Some files say "" where others say null.
        if model.get(key).is_some_and(|value| !value.is_null() && value.as_str() != Some("")) {
            return Err(format!("model.{key} is not supported; wanted null"));
        }
    }
    if model.get("dropout").and_then(Json::as_f64).is_some_and(|dropout| dropout > 0.0) {
        return Err(
            "model.dropout is not 0: the same text would give other tokens each time".into()
        );
    }
    let Some(Json::Object(vocab)) = model.get("vocab") else {
        return Err("model.vocab is missing".into());
    };
    let mut names = HashMap::with_capacity(vocab.len());
    for (token, id) in vocab {
        let id = id.as_u64().filter(|id| *id <= MAX_ID);
        let id = id.ok_or_else(|| format!("model.vocab: the id of {token:?} is no token id"))?;
        if let Some(other) = names.insert(id, token) {
            return Err(format!("model.vocab: {token:?} and {other:?} share the id {id}"));
        }
    }
    let Some(Json::Array(merges)) = model.get("merges") else {
        return Err("model.merges is missing".into());
    };
    merges.iter().enumerate().try_for_each(|(rank, merge)| check_merge(rank, merge, vocab))
}

fn check_merge(rank: usize, merge: &Json, vocab: &Map<String, Json>) -> Result<(), String> {
    let pair = match merge {
        Json::String(pair) => pair.split_once(' '),
        Json::Array(pair) => match &pair[..] {
            [Json::String(left), Json::String(right)] => Some((left.as_str(), right.as_str())),
            _ => None,
        },
        _ => None,
    };
    let (left, right) =
        pair.ok_or_else(|| format!("model.merges[{rank}] is {merge}; wanted a pair of tokens"))?;
    for token in [left, right, &format!("{left}{right}")] {
        if !vocab.contains_key(token) {
            return Err(format!("model.merges[{rank}]: {token:?} is not in the vocabulary"));
        }
    }
    Ok(())
}

fn check_added(added: Option<&Json>) -> Result<(), String> {
    let Some(Json::Array(added)) = added else { return Ok(()) };
    for token in added {
        if token.get("content").and_then(Json::as_str).is_none_or(str::is_empty) {
            return Err(format!("added_tokens: {token} has no content"));
        }
    }
    Ok(())
}

/// Checks a normalizer, pre-tokenizer, decoder or post-processor and all that is nested in it.
fn check_step(step: &Json, growth: &mut usize) -> Result<(), String> {
    match step {
        Json::Array(steps) => steps.iter().try_for_each(|step| check_step(step, growth)),
        Json::Object(step) => {
            let kind = step.get("type").and_then(Json::as_str).unwrap_or_default();
            if ["Precompiled", "FixedLength"].contains(&kind) {
                return Err(format!("{kind} is not supported"));
            }
            if let Some(Json::String(regex)) = step.get("Regex") {
                check_regex(regex)?;
            }
            for key in ["content", "prepend"] {
                let text = step.get(key).and_then(Json::as_str).unwrap_or_default();
                *growth = growth.saturating_mul(text.len().max(1));
            }
            if *growth > MAX_GROWTH {
                return Err(format!("its replacements could make a text {growth} times as long"));
            }
            step.values().try_for_each(|inner| check_step(inner, growth))
        }
        _ => Ok(()),
    }
}

/// Bounds the program that a regular expression compiles to: its length times its repetitions.
fn check_regex(regex: &str) -> Result<(), String> {
    if regex.len() > 4096 {
        return Err(format!(
            "a regular expression of {} bytes; the most allowed is 4096",
            regex.len()
        ));
    }
    let mut product = 1_u64;
    for counts in regex.split('{').skip(1) {
        let numbers = counts.split('}').next().unwrap_or_default().split(',');
        let largest = numbers.filter_map(|number| number.trim().parse::<u64>().ok()).max();
        product = product.saturating_mul(largest.unwrap_or(1).max(1));
    }
    if product > MAX_REPETITIONS {
        return Err(format!("the regular expression {regex:?} repeats up to {product} times"));
    }
    Ok(())
}
