//! Small models of every supported family against transformers: biases, q/k norms, windows, RoPE
//! scalings, tied embeddings, shards. `tests/golden/make_families.py` made them.

use std::path::{Path, PathBuf};

use aolab::kernels::{Cpu, Isa};
use aolab::model::{Model, NoObserver};
use safetensors::SafeTensors;
use serde_json::{Value as Json, json};

const CASES: [&str; 10] = [
    "llama",
    "llama_biases_tied",
    "llama3_rope",
    "linear_rope",
    "mistral_window",
    "mistral_full",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "qwen3_biases_window",
];

/// Logits are below 30, and each is a sum of a few hundred products in f32.
const TOLERANCE: f32 = 2e-4;

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families")
}

fn load(dir: &Path) -> aolab::Result<Model> {
    aolab::load(dir.to_str().expect("UTF-8"))
}

fn max_abs_diff(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    assert!(got.iter().all(|v| v.is_finite()), "a value is not finite");
    got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_family_gives_the_logits_of_transformers() {
    let bytes = std::fs::read(families().join("expected.safetensors")).expect("the reference");
    let file = SafeTensors::deserialize(&bytes).expect("valid safetensors");
    for case in CASES {
        let data = |name: &str| file.tensor(&format!("{case}.{name}")).expect(case).data();
        let ids: Vec<i32> = bytemuck::pod_collect_to_vec(data("ids"));
        let tokens: Vec<u32> = ids.iter().map(|id| id.cast_unsigned()).collect();
        let wanted: Vec<f32> = bytemuck::pod_collect_to_vec(data("logits"));
        let model = load(&families().join(case)).expect(case);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            // All at once, and in pieces through the cache: 1 + 20 + 1 + 18 tokens.
            for pieces in [&[40][..], &[1, 20, 1, 18]] {
                let mut context = model.context(40);
                let (mut logits, mut at) = (Vec::new(), 0);
                for &piece in pieces {
                    let part = &tokens[at..at + piece];
                    let out = model.forward(&cpu, part, &mut context, &mut NoObserver).expect(case);
                    logits.extend(model.logits(&cpu, &out).expect(case));
                    at += piece;
                }
                let diff = max_abs_diff(&logits, &wanted);
                assert!(diff < TOLERANCE, "{case} {} {pieces:?}: {diff}", isa.name());
            }
        }
    }
}

#[test]
fn what_is_saved_gives_the_same_logits() {
    for case in ["llama_biases_tied", "qwen3_biases_window", "mistral_window"] {
        let (dir, cpu) = (tempfile::tempdir().expect("a folder"), Cpu::new(Some(2)));
        let mut lab = aolab::Session::new();
        let (from, to) = (families().join(case), dir.path().join("again"));
        lab.run(&format!("load '{}' | save '{}'", from.display(), to.display())).expect(case);
        let logits = |dir: &Path| {
            let model = load(dir).expect(case);
            let tokens: Vec<u32> = (0..30).collect();
            let mut context = model.context(30);
            let out = model.forward(&cpu, &tokens, &mut context, &mut NoObserver).expect(case);
            model.logits(&cpu, &out).expect(case)
        };
        assert_eq!(logits(&from), logits(&to), "{case}");
    }
}

/// Changes config.json of a copy of a case and loads it.
fn load_changed(case: &str, edit: impl FnOnce(&mut Json)) -> aolab::Result<Model> {
    let dir = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(families().join(case)).expect(case) {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a copy");
    }
    let path = dir.path().join("config.json");
    let mut config =
        serde_json::from_slice(&std::fs::read(&path).expect("a config")).expect("JSON");
    edit(&mut config);
    std::fs::write(&path, config.to_string()).expect("a small file");
    load(dir.path())
}

#[test]
fn a_config_is_read_with_transformers_defaults() {
    let window = |case: &str, edit: &dyn Fn(&mut Json)| {
        let config = load_changed(case, edit).expect(case).config;
        (0..3).map(|layer| config.window(layer)).collect::<Vec<_>>()
    };
    let drop = |key: &'static str| {
        move |json: &mut Json| drop(json.as_object_mut().expect("an object").remove(key))
    };
    assert_eq!(window("mistral_window", &|_| {}), [Some(5); 3]);
    assert_eq!(window("mistral_window", &drop("sliding_window")), [Some(4096); 3]);
    assert_eq!(window("mistral_full", &|_| {}), [None; 3]);
    assert_eq!(window("qwen2_window", &drop("layer_types")), [None, Some(4), Some(4)]);
    assert_eq!(window("qwen2_window", &drop("use_sliding_window")), [None; 3]);
    assert_eq!(window("qwen3_biases_window", &|_| {}), [Some(6), None, Some(6)]);
    let zero = |json: &mut Json| {
        drop("layer_types")(json);
        json["max_window_layers"] = json!(0);
    };
    assert_eq!(window("qwen2_window", &zero), [Some(4); 3]);
}

#[test]
fn a_config_that_cannot_be_honoured_is_refused_in_words() {
    let check = |case: &str, words: &str, edit: &dyn Fn(&mut Json)| {
        let error = load_changed(case, edit).expect_err(words).to_string();
        assert!(error.contains(words), "{words:?} is not in: {error}");
    };
    check("llama", "model_type \"gemma3\"", &|j| j["model_type"] = json!("gemma3"));
    check("llama", "hidden_act \"gelu\"", &|j| j["hidden_act"] = json!("gelu"));
    check("llama", "partial_rotary_factor is 0.5", &|j| j["partial_rotary_factor"] = json!(0.5));
    check("llama3_rope", "rope_type \"yarn\"", &|j| {
        j["rope_parameters"]["rope_type"] = json!("yarn")
    });
    check("llama3_rope", "positive factor", &|j| j["rope_parameters"]["factor"] = json!(-8));
    check("qwen2_window", "layer_types names 1", &|j| j["layer_types"] = json!(["full_attention"]));
    check("qwen2_window", "layer_types is \"linear", &|j| j["layer_types"][0] = json!("linear"));
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "head_dim",
        "max_position_embeddings",
    ] {
        for bad in
            [json!(0), json!(-1), json!(1.5), json!(1e300), json!(u64::MAX), json!("32"), json!([])]
        {
            check("llama", key, &|j| j[key] = bad.clone());
        }
        // A size that could be, and is not this file's, is a wrong shape, told before it is allocated.
        if key != "max_position_embeddings" && key != "num_hidden_layers" {
            load_changed("llama", |j| j[key] = json!(16_777_216)).expect_err(key);
        }
    }
    check("llama", "layers.3", &|j| j["num_hidden_layers"] = json!(16_777_216));
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let dir = tempfile::tempdir().expect("a folder");
    let weights = "model.safetensors";
    std::fs::copy(families().join("qwen2").join(weights), dir.path().join(weights))
        .expect("a copy");
    std::fs::write(dir.path().join("config.json"), deep).expect("a file");
    let error = load(dir.path()).expect_err("a deep file").to_string();
    assert!(error.contains("config.json"), "{error}");
}
