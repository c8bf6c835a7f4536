//! Hugging Face folders: the built-in model, round trips, and what damaged folders are told.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use aolab::data::{Tokenizer, texts};
use aolab::io::{self, Checkpoint, LoadOptions, Parts};
use aolab::model::{DenseWeight, Weight};
use aolab::tensor::{DType, Tensor};
use aolab::{Error, Result};
use serde_json::{Value as Json, json};

/// Reads the one quantized format of these tests: int8 codes with a scale for each row.
#[expect(clippy::needless_pass_by_value, reason = "the signature of `ReadWeight`")]
fn read_rows_int8(
    meta: &Json,
    tensors: Vec<(String, Tensor)>,
    shape: (usize, usize),
) -> Result<Arc<dyn Weight>> {
    if meta.get("_type").and_then(Json::as_str) != Some("RowsInt8") {
        return Err(Error::invalid(format!("unknown format {meta}")));
    }
    let named = |name: &str| {
        let found = tensors.iter().find(|(key, _)| key == name);
        found.map(|(_, t)| t.clone()).ok_or_else(|| Error::invalid(format!("there is no {name}")))
    };
    let (qdata, scale) = (named("qdata")?, named("scale")?);
    if qdata.shape() != [shape.0, shape.1]
        || qdata.dtype() != DType::I8
        || scale.shape() != [shape.0]
    {
        return Err(Error::invalid("qdata and scale do not fit the shape"));
    }
    Ok(Arc::new(RowsInt8 { qdata, scale }))
}

#[derive(Debug)]
struct RowsInt8 {
    qdata: Tensor,
    scale: Tensor,
}

impl Weight for RowsInt8 {
    fn shape(&self) -> (usize, usize) {
        (self.qdata.shape()[0], self.qdata.shape()[1])
    }
    fn workflow(&self) -> String {
        "rows-int8".into()
    }
    fn dequantize_rows(&self, rows: std::ops::Range<usize>, out: &mut [f32]) -> Result<()> {
        let k = self.shape().1;
        let (codes, scales) = (self.qdata.as_slice::<i8>()?, self.scale.as_slice::<f32>()?);
        for (i, value) in out.iter_mut().enumerate() {
            let at = rows.start * k + i;
            *value = f32::from(codes[at]) * scales[at / k];
        }
        Ok(())
    }
    fn tensors(&self) -> Vec<(String, Tensor)> {
        vec![("qdata".into(), self.qdata.clone()), ("scale".into(), self.scale.clone())]
    }
    fn meta(&self) -> Json {
        json!({ "_type": "RowsInt8" })
    }
}

fn options() -> LoadOptions {
    LoadOptions::new(read_rows_int8)
}

fn tiny() -> Checkpoint {
    io::open("tiny", &options()).expect("the built-in model")
}

/// All parameters of a checkpoint, read one by one.
fn parts(from: &Checkpoint) -> Parts<'_> {
    let (c, p) = (&from.config, &from.parameters);
    let (h, f) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let mut modules = vec![
        ("model.embed_tokens".to_owned(), (c.vocab_size, h)),
        ("lm_head".to_owned(), (c.vocab_size, h)),
    ];
    let mut vectors = vec![("model.norm.weight".to_owned(), h)];
    for i in 0..c.num_hidden_layers {
        let layer = format!("model.layers.{i}");
        for (name, shape) in [
            ("self_attn.q_proj", (q, h)),
            ("self_attn.k_proj", (kv, h)),
            ("self_attn.v_proj", (kv, h)),
            ("self_attn.o_proj", (h, q)),
            ("mlp.gate_proj", (f, h)),
            ("mlp.up_proj", (f, h)),
            ("mlp.down_proj", (h, f)),
        ] {
            modules.push((format!("{layer}.{name}"), shape));
        }
        vectors.push((format!("{layer}.input_layernorm.weight"), h));
        vectors.push((format!("{layer}.post_attention_layernorm.weight"), h));
    }
    Parts {
        name: "little",
        config: c,
        weights: modules
            .into_iter()
            .map(|(m, s)| (m.clone(), p.weight(&m, s).expect(&m)))
            .collect(),
        vectors: vectors
            .into_iter()
            .map(|(v, n)| (v.clone(), p.vector(&v, n).expect(&v)))
            .collect(),
        tokenizer: from.tokenizer.as_ref(),
        stop: None,
    }
}

/// Asserts that both hold the same bits in the same formats.
fn assert_same(a: &Parts<'_>, b: &Parts<'_>) {
    assert_eq!(a.weights.len(), b.weights.len());
    for ((name, x), (_, y)) in a.weights.iter().zip(&b.weights) {
        assert_eq!(x.workflow(), y.workflow(), "{name}");
        assert_eq!(x.meta(), y.meta(), "{name}");
        for ((key, s), (other, t)) in x.tensors().iter().zip(&y.tensors()) {
            assert_eq!((key, s.dtype(), s.shape()), (other, t.dtype(), t.shape()), "{name}");
            assert_eq!(s.bytes(), t.bytes(), "{name}.{key}");
        }
    }
    for ((name, s), (_, t)) in a.vectors.iter().zip(&b.vectors) {
        assert_eq!(s.bytes(), t.bytes(), "{name}");
    }
}

#[test]
fn the_builtin_model_has_the_tokens_of_its_reference() {
    let reference: Json =
        serde_json::from_slice(include_bytes!("golden/tiny/reference.json")).expect("JSON");
    let tiny = tiny();
    let tokenizer = tiny.tokenizer.as_ref().expect("it has a tokenizer");
    let ids = tokenizer.encode(texts::SOTU, false).expect("a text");
    assert_eq!(json!(ids.len()), reference["eval"]["tokens_without_bos"]);
    let first = reference["eval"]["first_32_ids_without_bos"].as_array().expect("ids");
    assert_eq!(json!(ids[..first.len()]), json!(first));
    assert_eq!(tokenizer.decode(&ids).expect("its own ids"), texts::SOTU);
    assert_eq!(tokenizer.bos(), Some(0));
    assert_eq!(tokenizer.encode("a", true).expect("a letter")[0], 0);
}

#[test]
fn the_builtin_model_reads_its_weights_in_place() {
    let tiny = tiny();
    let shape = (tiny.config.vocab_size, tiny.config.hidden_size);
    let embedding = tiny.parameters.weight("model.embed_tokens", shape).expect("it is there");
    let again = tiny.parameters.weight("model.embed_tokens", shape).expect("it is there");
    let address = |w: &Arc<dyn Weight>| w.tensors()[0].1.bytes().as_ptr().addr();
    assert_eq!(address(&embedding), address(&again), "one copy of the bytes");
    assert!(tiny.parameters.has("lm_head.weight") && !tiny.parameters.has("lm_head.bias"));
}

#[test]
fn what_is_saved_is_read_back_bit_for_bit() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let target = dir.path().join("copy");
    let tiny = tiny();
    io::save(&parts(&tiny), &target, false).expect("an empty place");
    let copy = io::open(target.to_str().expect("UTF-8"), &options()).expect("what was saved");
    assert_eq!(copy.name, "copy");
    assert_eq!(copy.config, tiny.config);
    assert_same(&parts(&tiny), &parts(&copy));
    let ids = |c: &Checkpoint| {
        c.tokenizer.as_ref().expect("a tokenizer").encode("We the people", true).expect("text")
    };
    assert_eq!(ids(&tiny), ids(&copy));

    let error = io::save(&parts(&tiny), &target, false).expect_err("it exists").to_string();
    assert!(error.contains("exists already"), "{error}");
    // Saving over the folder that the model was read from: the mapped files live on until dropped.
    io::save(&parts(&copy), &target, true).expect("overwriting was asked for");
    let again = io::open(target.to_str().expect("UTF-8"), &options()).expect("what was saved");
    assert_same(&parts(&tiny), &parts(&again));
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1, "nothing else is left");
}

#[test]
fn a_quantized_weight_keeps_its_codes_and_a_dense_one_its_dtype() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let target = dir.path().join("quantized");
    let tiny = tiny();
    let mut saved = parts(&tiny);
    for (name, weight) in &mut saved.weights {
        let (n, k) = weight.shape();
        if name.ends_with("down_proj") {
            let codes = (0..n * k).map(|i| i8::try_from(i % 251).unwrap_or(-7)).collect();
            let scale = (0..n).map(|i| 0.001 * i as f32).collect();
            *weight = Arc::new(RowsInt8 {
                qdata: Tensor::new::<i8>(codes, &[n, k]).expect("codes"),
                scale: Tensor::new::<f32>(scale, &[n]).expect("scales"),
            });
        } else if name == "lm_head" {
            *weight = DenseWeight::shared(weight.dequantize().expect("bf16")).expect("f32");
        }
    }
    io::save(&saved, &target, false).expect("an empty place");
    let read = io::open_folder(&target, &options()).expect("what was saved");
    assert_same(&saved, &parts(&read));
    assert!(read.parameters.has("model.layers.0.mlp.down_proj.weight"));
    // Saved again as it was read: the same files.
    let second = dir.path().join("second");
    io::save(&parts(&read), &second, false).expect("an empty place");
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        assert_eq!(
            fs::read(target.join(file)).expect(file),
            fs::read(second.join(file)).expect(file),
            "{file}"
        );
    }
}

#[test]
fn saving_never_replaces_what_is_no_model() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tiny = tiny();
    let file = dir.path().join("file");
    fs::write(&file, "mine").expect("a file");
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("thesis.txt"), "mine").expect("a file");
    for target in [&file, &folder, &dir.path().join("no/such/parent"), Path::new("/")] {
        assert!(io::save(&parts(&tiny), target, true).is_err(), "{}", target.display());
    }
    assert_eq!(fs::read(folder.join("thesis.txt")).expect("still there"), b"mine");
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 2, "nothing else is left");
}

/// Writes the built-in model, split into two shards with an index.
fn write_shards(dir: &Path) {
    let tiny = tiny();
    let parts = parts(&tiny);
    io::save(&parts, dir, false).expect("an empty place");
    let all: Vec<_> = parts
        .weights
        .iter()
        .map(|(m, w)| (format!("{m}.weight"), w.tensors()[0].1.clone()))
        .chain(parts.vectors.iter().cloned())
        .collect();
    let (first, second) = all.split_at(20);
    let mut map = serde_json::Map::new();
    for (name, shard) in [("a-00001.safetensors", first), ("a-00002.safetensors", second)] {
        io::safetensors::write(dir.join(name), shard).expect("a shard");
        map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
    }
    fs::remove_file(dir.join("model.safetensors")).expect("it was there");
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).expect("an index");
}

#[test]
fn shards_are_one_model() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let target = dir.path().join("sharded");
    write_shards(&target);
    let read = io::open_folder(&target, &options()).expect("two shards");
    assert_same(&parts(&tiny()), &parts(&read));
}

/// Damages a saved folder and expects an error with all of `words`.
fn expect_error(damage: impl Fn(&Path), words: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let target = dir.path().join("model");
    io::save(&parts(&tiny()), &target, false).expect("an empty place");
    damage(&target);
    let result = io::open_folder(&target, &options()).and_then(|c| {
        let (h, f) = (c.config.hidden_size, c.config.intermediate_size);
        c.parameters.weight("model.layers.3.mlp.up_proj", (f, h))?;
        c.parameters.vector("model.norm.weight", h)
    });
    let error = result.expect_err(&words.join(", ")).to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

fn edit_config(dir: &Path, edit: impl Fn(&mut Json)) {
    let path = dir.join("config.json");
    let mut config: Json =
        serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("JSON");
    edit(&mut config);
    fs::write(path, config.to_string()).expect("a small file");
}

#[test]
fn damaged_folders_are_told_what_is_wrong() {
    let remove = |name: &'static str| {
        move |dir: &Path| fs::remove_file(dir.join(name)).expect("it was there")
    };
    let write = |name: &'static str, text: &'static str| {
        move |dir: &Path| fs::write(dir.join(name), text).expect("a small file")
    };
    expect_error(remove("config.json"), &["config.json"]);
    expect_error(remove("model.safetensors"), &["model.safetensors.index.json", "neither"]);
    expect_error(write("config.json", "{"), &["config.json", "not valid JSON"]);
    expect_error(write("config.json", "[]"), &["config.json", "wanted an object"]);
    expect_error(write("tokenizer.json", "{}"), &["tokenizer.json", "no model in it"]);
    expect_error(
        write("tokenizer_config.json", "7"),
        &["tokenizer_config.json", "wanted an object"],
    );
    expect_error(
        write("generation_config.json", r#"{"eos_token_id": -1}"#),
        &["generation_config.json", "no token id"],
    );
    expect_error(write("model.safetensors", ""), &["model.safetensors", "0 bytes are too few"]);
    let edit = |key: &'static str, value: Json| {
        move |dir: &Path| edit_config(dir, |config| config[key] = value.clone())
    };
    expect_error(
        edit("intermediate_size", json!(800)),
        &["up_proj", "[768, 256]", "[800, 256]", "intermediate_size"],
    );
    expect_error(edit("hidden_size", json!(-1)), &["hidden_size", "-1"]);
    expect_error(
        edit("quantization_config", json!({"quant_method": "awq"})),
        &["\"awq\"", "not supported"],
    );
    let modules = json!({"quant_method": "aolab", "version": 1, "modules": {"model.layers.3.mlp.up_proj": {"_type": "X"}}});
    expect_error(
        edit("quantization_config", modules),
        &["model.layers.3.mlp.up_proj", "unknown format"],
    );
    let version = json!({"quant_method": "aolab", "version": 2, "modules": {}});
    expect_error(edit("quantization_config", version), &["version 2"]);
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    for shard in ["../model.safetensors", "/etc/passwd", "a/b", "", ".."] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let target = dir.path().join("sharded");
        write_shards(&target);
        let index = json!({ "weight_map": { "model.norm.weight": shard } });
        fs::write(target.join("model.safetensors.index.json"), index.to_string())
            .expect("an index");
        let error = io::open_folder(&target, &options()).expect_err(shard).to_string();
        assert!(error.contains("beside the index"), "{error}");
    }
}

#[test]
fn a_name_that_is_nothing_says_what_was_meant() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(dir.path().join("llama-7b")).expect("a folder");
    fs::write(dir.path().join("notes.txt"), "no model").expect("a file");
    let inside = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    for (source, words) in [
        ("tny".to_owned(), "did you mean tiny?"),
        (inside("lama-7b"), "llama-7b?"),
        (inside("notes.txt"), "wanted a folder"),
        (inside("llama-7b"), "neither"),
        ("org/model".to_owned(), "hf:org/model"),
        (String::new(), "wanted tiny"),
    ] {
        let error = io::open(&source, &options()).expect_err(&source).to_string();
        assert!(error.contains(words), "{source}: {words:?} is not in: {error}");
    }
}

#[test]
fn text_streams_in_whole_characters() {
    let tokenizer: Tokenizer = tiny().tokenizer.expect("it has one");
    for text in ["naïve café — 東京 🚀🚀!", "plain", "", "\u{FFFD}\u{FFFD}x", "🚀"] {
        let mut stream = tokenizer.stream();
        let mut shown = String::new();
        for id in tokenizer.encode(text, false).expect("a text") {
            shown += &stream.push(id).expect("a token");
        }
        shown += &stream.finish().expect("the end");
        assert_eq!(shown, text);
    }
    // A rocket cut in the middle is nothing until the end, and then one replacement character.
    let ids = tokenizer.encode("🚀", false).expect("a rocket");
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(ids[0]).expect("a token"), "");
    assert_eq!(stream.finish().expect("the end"), "\u{FFFD}");
}
