//! Quantizing never holds two full models: the peak stays below the stored size + the quantized size + 200 MB.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Map, json};

const HIDDEN: usize = 1024;
const FFN: usize = 4096;
const LAYERS: usize = 10;
const VOCAB: usize = 1024;
const ALLOWED: u64 = 200_000_000;

/// Names and shapes of every tensor of the model.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for i in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![FFN, HIDDEN]),
            ("mlp.up_proj", vec![FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
        ] {
            all.push((format!("model.layers.{i}.{name}.weight"), shape));
        }
    }
    all
}

/// Writes a model of bf16 zeros, which as a file with holes takes no place on the disk; gives its size.
fn write_model(dir: &Path) -> u64 {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 16, "num_key_value_heads": 16,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).expect("a small file");
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in tensors() {
        let end = at + 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]});
        header.insert(name, entry);
        at = end;
    }
    let mut header = serde_json::to_vec(&header).expect("JSON");
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(dir.join("model.safetensors")).expect("a file");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("its length");
    file.write_all(&header).expect("its header");
    let size = (8 + header.len() + at) as u64;
    file.set_len(size).expect("a hole");
    size
}

/// The most memory that a run of the program held, in bytes, pages of mapped files included.
fn peak_of(lines: &str) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aolab"));
    command.args(["--threads", "2", "--quiet", "-c", lines]).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::null()).spawn().expect("the program starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        if let Some(ended) = child.try_wait().expect("a child") {
            assert!(ended.success(), "{lines}");
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn quantizing_never_holds_two_full_models() {
    let dir = tempfile::tempdir().expect("a folder");
    let stored = write_model(dir.path());
    for (workflow, bits) in [
        ("int8-weight-only", 8.1),
        ("int8-dynamic-activation-int8-weight", 8.1),
        ("int4-weight-only --group-size 128", 4.6),
    ] {
        let peak = peak_of(&format!("load '{}' | quantize {workflow}", dir.path().display()));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size")]
        let quantized = (stored as f64 / 16.0 * bits) as u64;
        let most = stored + quantized + ALLOWED;
        assert!(
            peak < most,
            "{workflow}: {} MB, allowed {} MB",
            peak / 1_000_000,
            most / 1_000_000
        );
        // Else the measurement would have missed the work.
        assert!(peak > quantized, "{workflow}: {} MB", peak / 1_000_000);
    }
}
