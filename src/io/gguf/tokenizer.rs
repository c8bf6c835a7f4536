//! The tokenizer in GGUF metadata, as the `tokenizer.json` that the same model has at Hugging Face.
//!
//! Two models of text are known: `gpt2` (byte-level BPE with merges and a splitting rule that `pre` names)
//! and `llama` (SentencePiece BPE, whose merges follow from the scores of the tokens).

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::config::INTEGERS;
use super::reader::GgufFile;
use super::value::Kind;
use crate::data::Tokenizer;
use crate::error::{Error, Result};

/// GPT-2's rule; each of the others says how its model cuts a text before merging.
pub(super) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The longest token whose splits are tried: the tokens in use have at most some hundred bytes.
const MAX_SPM_TOKEN: usize = 1024;

/// The types of tokens in `tokenizer.ggml.token_type`.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// Builds the tokenizer, if the file has one.
pub(super) fn read(file: &GgufFile) -> Result<Option<Tokenizer>> {
    let Some(tokens) = texts(file, "tokenizer.ggml.tokens")? else { return Ok(None) };
    let kinds = file.array("tokenizer.ggml.token_type", &INTEGERS, |cursor, kind| {
        Ok(cursor.value(kind)?.as_u64().and_then(|id| i32::try_from(id).ok()).unwrap_or(0))
    })?;
    let kinds = kinds.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if kinds.len() != tokens.len() {
        return Err(file.wrong(format!("{} tokens but {} token types", tokens.len(), kinds.len())));
    }
    let mut json = match file.text("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level(file, &tokens)?,
        Some("llama") => sentence_piece(file, &tokens)?,
        other => {
            let got = other.unwrap_or("none");
            return Err(file
                .wrong(format!("tokenizer model {got:?} is not supported; wanted gpt2 or llama")));
        }
    };
    json.insert("version".into(), "1.0".into());
    json.insert("added_tokens".into(), added_tokens(&tokens, &kinds));
    let special = |key: &str| -> Result<Option<&String>> {
        let Some(id) = file.uint(key)? else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        token.map(Some).ok_or_else(|| {
            file.wrong(format!("{key} is {id}, but there are {} tokens", tokens.len()))
        })
    };
    let bos = special("tokenizer.ggml.bos_token_id")?;
    let eos = special("tokenizer.ggml.eos_token_id")?;
    let add_bos = file.flag("tokenizer.ggml.add_bos_token")?;
    let add_bos = add_bos.unwrap_or_else(|| adds_bos_by_default(file));
    if let Some(bos) = bos.filter(|_| add_bos) {
        json.insert("post_processor".into(), begin_with(bos, &tokens));
    }
    let mut config = Map::new();
    config.insert("add_bos_token".into(), add_bos.into());
    for (key, token) in [("bos_token", bos), ("eos_token", eos)] {
        if let Some(token) = token {
            config.insert(key.into(), token.as_str().into());
        }
    }
    if let Some(template) = file.text("tokenizer.chat_template")? {
        config.insert("chat_template".into(), template.into());
    }
    let bytes = Json::Object(json).to_string().into_bytes();
    Tokenizer::from_json(&bytes, Some(&Json::Object(config))).map(Some)
}

fn texts(file: &GgufFile, key: &str) -> Result<Option<Vec<String>>> {
    file.array(key, &[Kind::Text], |cursor, _| {
        let text = cursor.bytes()?;
        let text =
            std::str::from_utf8(text).map_err(|_| format!("{key}: a token that is not UTF-8"))?;
        Ok(text.to_owned())
    })
}

/// What llama.cpp does where the metadata does not say.
fn adds_bos_by_default(file: &GgufFile) -> bool {
    let model = file.text("tokenizer.ggml.model").ok().flatten();
    let pre = file.text("tokenizer.ggml.pre").ok().flatten();
    model == Some("llama") || matches!(pre, Some("llama3" | "llama-v3" | "llama-bpe"))
}

/// Ids by token. A token that is there twice (paddings may be) keeps its first id.
fn vocabulary(tokens: &[String]) -> Map<String, Json> {
    let mut vocab = Map::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        vocab.entry(token.clone()).or_insert_with(|| id.into());
    }
    vocab
}

/// Control tokens are special; user-defined ones are only never split.
fn added_tokens(tokens: &[String], kinds: &[i32]) -> Json {
    let mut seen = HashMap::new();
    let entries = tokens.iter().zip(kinds).enumerate().filter(|(id, (token, kind))| {
        let first = *seen.entry(token.as_str()).or_insert(*id) == *id;
        first && !token.is_empty() && [UNKNOWN, CONTROL, USER_DEFINED].contains(*kind)
    });
    let entries: Vec<Json> = entries
        .map(|(id, (token, kind))| {
            json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": *kind != USER_DEFINED,
            })
        })
        .collect();
    Json::Array(entries)
}

/// A post-processor that puts the token `bos` before a text.
fn begin_with(bos: &str, tokens: &[String]) -> Json {
    let id = tokens.iter().position(|token| token == bos);
    let first = json!({ "SpecialToken": { "id": bos, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    json!({
        "type": "TemplateProcessing",
        "single": [first, text("A")],
        "pair": [first, text("A"), first, text("B")],
        "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } },
    })
}

/// A way of cutting texts: llama.cpp's names for it, the rules applied one after another, and whether a word that is a
/// token is taken as it is, without merging (Llama 3).
struct Splitting(&'static [&'static str], &'static [&'static str], bool);

const SPLITTINGS: [Splitting; 5] = [
    Splitting(&["gpt-2", "gpt2", "olmo", "mpt"], &[GPT2], false),
    Splitting(&["smollm", "starcoder", "command-r", "refact"], &[r"\p{N}", GPT2], false),
    Splitting(&["llama-bpe", "llama3", "llama-v3"], &[LLAMA3], true),
    Splitting(&["qwen2"], &[QWEN2], false),
    Splitting(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], false),
];

/// The splitting rules of the `pre` that the metadata names.
fn rules(file: &GgufFile) -> Result<(&'static [&'static str], bool)> {
    let pre = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let found = SPLITTINGS.iter().find(|Splitting(names, ..)| names.contains(&pre));
    found.map(|Splitting(_, rules, ignores)| (*rules, *ignores)).ok_or_else(|| {
        file.wrong(format!(
            "tokenizer.ggml.pre {pre:?} is not supported; wanted default, gpt-2, llama-bpe, qwen2 or smollm"
        ))
    })
}

/// llama.cpp's name for these rules.
pub(super) fn pre_of(rules: &[String], ignores_merges: bool) -> Option<&'static str> {
    let same = |Splitting(_, known, ignores): &&Splitting| {
        known.iter().eq(rules.iter()) && *ignores == ignores_merges
    };
    SPLITTINGS.iter().find(same).map(|Splitting(names, ..)| names[0])
}

fn byte_level(file: &GgufFile, tokens: &[String]) -> Result<Map<String, Json>> {
    let merges = texts(file, "tokenizer.ggml.merges")?;
    let merges = merges.ok_or_else(|| file.wrong("tokenizer.ggml.merges is missing"))?;
    let merges: Vec<Json> =
        merges.iter().map(|merge| split_merge(file, merge)).collect::<Result<_>>()?;
    let (rules, ignore_merges) = rules(file)?;
    let mut steps: Vec<Json> = rules
        .iter()
        .map(|rule| json!({ "type": "Split", "pattern": { "Regex": rule }, "behavior": "Isolated", "invert": false }))
        .collect();
    steps.push(json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }));
    let decoder = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    let mut json = Map::new();
    json.insert("pre_tokenizer".into(), json!({ "type": "Sequence", "pretokenizers": steps }));
    json.insert("decoder".into(), decoder);
    let mut model = bpe(tokens, merges);
    model.insert("ignore_merges".into(), ignore_merges.into());
    json.insert("model".into(), Json::Object(model));
    Ok(json)
}

/// Both halves of a merge may begin with a space only in the second place: it is cut at the first one after its first character.
fn split_merge(file: &GgufFile, merge: &str) -> Result<Json> {
    let cut = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
    let cut = cut.ok_or_else(|| {
        file.wrong(format!("tokenizer.ggml.merges: {merge:?} is no pair of tokens"))
    })?;
    Ok(json!([merge[..cut], merge[cut + 1..]]))
}

fn sentence_piece(file: &GgufFile, tokens: &[String]) -> Result<Map<String, Json>> {
    let scores = file.array("tokenizer.ggml.scores", &[Kind::F32], |cursor, kind| {
        Ok(cursor.value(kind)?.as_f64().unwrap_or_default())
    })?;
    let scores = scores.ok_or_else(|| file.wrong("tokenizer.ggml.scores is missing"))?;
    if scores.len() != tokens.len() {
        return Err(file.wrong(format!("{} tokens but {} scores", tokens.len(), scores.len())));
    }
    let prefix = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers =
        vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let mut model = bpe(tokens, merges_of_scores(tokens, &scores)?);
    model.insert("byte_fallback".into(), true.into());
    model.insert("fuse_unk".into(), true.into());
    let unknown = file.uint("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
    let unknown = usize::try_from(unknown).ok().and_then(|id| tokens.get(id));
    model.insert("unk_token".into(), json!(unknown));
    let mut json = Map::new();
    json.insert("normalizer".into(), json!({ "type": "Sequence", "normalizers": normalizers }));
    json.insert("decoder".into(), json!({ "type": "Sequence", "decoders": decoders }));
    json.insert("model".into(), Json::Object(model));
    Ok(json)
}

fn bpe(tokens: &[String], merges: Vec<Json>) -> Map<String, Json> {
    let mut model = Map::new();
    model.insert("type".into(), "BPE".into());
    model.insert("vocab".into(), Json::Object(vocabulary(tokens)));
    model.insert("merges".into(), Json::Array(merges));
    model
}

/// SentencePiece joins the neighbours whose joint token has the best score. As a list of merges: every way
/// to cut a token into two tokens, in the order of the scores of the tokens that they make.
fn merges_of_scores(tokens: &[String], scores: &[f64]) -> Result<Vec<Json>> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        ids.entry(token.as_str()).or_insert(id);
    }
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        if token.len() > MAX_SPM_TOKEN {
            let got = token.len();
            return Err(Error::invalid(format!(
                "a token of {got} bytes; the most allowed is {MAX_SPM_TOKEN}"
            )));
        }
        if score.is_nan() {
            return Err(Error::invalid(format!("the score of token {token:?} is not a number")));
        }
        let cuts = token.char_indices().skip(1).map(|(cut, _)| token.split_at(cut));
        let pairs = cuts.filter_map(|(l, r)| Some((*ids.get(l)?, *ids.get(r)?, l, r)));
        merges.extend(pairs.map(|(l_id, r_id, l, r)| (*score, l_id, r_id, l, r)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    Ok(merges.into_iter().map(|(_, _, _, l, r)| json!([l, r])).collect())
}
