//! Other programs' layouts: torchao's own file read and written back, every format that a layout has through a folder, and
//! folders that lie. `tests/layouts/torchao_layout.py` made the file, and checks with torchao itself what is written here.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aolab::io::safetensors::SafetensorsFile;
use aolab::model::{Model, Weight};
use aolab::quantization::{Layout, read_weight};
use aolab::{Session, Tensor};
use serde_json::{Value as Json, json};

fn fixture() -> SafetensorsFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layouts/torchao.safetensors");
    SafetensorsFile::open(path).expect("torchao's file")
}

/// What torchao says of `name.weight`, and its tensors.
fn flattened(file: &SafetensorsFile, name: &str) -> (Json, Vec<(String, Tensor)>) {
    let meta = file.metadata(&format!("{name}.weight")).expect("its metadata");
    let meta: Json = serde_json::from_str(meta).expect("JSON");
    let parts = meta["_tensor_data_names"].as_array().expect("names");
    let tensors = parts.iter().map(|part| {
        let part = part.as_str().expect("a name").to_owned();
        let tensor = file.tensor_or_bytes(&format!("{name}._weight_{part}")).expect("a tensor").0;
        (part, tensor)
    });
    let tensors = tensors.collect();
    (meta, tensors)
}

fn values(weight: &dyn Weight) -> Vec<f32> {
    weight.dequantize().expect("rows").to_f32_vec()
}

#[test]
fn torchaos_own_file_is_read_and_written_back() {
    let file = fixture();
    let names: Vec<String> =
        serde_json::from_str(file.metadata("tensor_names").expect("names")).expect("a list");
    assert_eq!(names.len(), 13);
    for name in names.iter().map(|name| name.strip_suffix(".weight").expect("a weight")) {
        let (meta, tensors) = flattened(&file, name);
        let weight = read_weight(&meta, tensors.clone(), (48, 128)).expect(name);
        let wanted = file.tensor(&format!("{name}.values")).expect(name).to_f32_vec();
        // Its int8, float8 and intx classes round what they dequantize to the layer's bf16.
        let part = match meta["_type"].as_str() {
            Some("MXTensor" | "NVFP4Tensor" | "Int4Tensor") => 0.0,
            _ => 2.0_f32.powi(-7),
        };
        for (at, (got, wanted)) in values(weight.as_ref()).iter().zip(&wanted).enumerate() {
            let off = (got - wanted).abs();
            let same = off <= part * wanted.abs() || got.is_nan() && wanted.is_nan();
            assert!(same, "{name}[{at}] is {got}; torchao has {wanted}");
        }
        let layout = Layout::Torchao.of_files().expect("another program's");
        let mut again = (layout.flatten)(weight.as_ref()).expect(name);
        // Which of its kernels torchao runs is no property of the numbers.
        if let Some(preference) = meta["_data"].get("kernel_preference") {
            again.meta["_data"]["kernel_preference"] = preference.clone();
        }
        // Both orders of scales are read, cuBLAS's is written.
        let swizzles = meta["_data"]["is_swizzled_scales"] != false;
        if swizzles {
            assert_eq!(again.meta["_data"], meta["_data"], "{name}");
        }
        for (part, tensor, _) in &again.tensors {
            let (_, known) = tensors.iter().find(|(known, _)| known == part).expect(part);
            if swizzles || part == "qdata" {
                assert_eq!(tensor.shape(), known.shape(), "{name}: {part}");
                assert_eq!(tensor.dtype(), known.dtype(), "{name}: {part}");
                assert_eq!(tensor.bytes(), known.bytes(), "{name}: {part}");
            }
        }
    }
}

fn through(words: &str, layout: &str) -> aolab::Result<(Model, Model, PathBuf, tempfile::TempDir)> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model");
    let mut lab = Session::new();
    let line = format!("quantize tiny {words} | save '{}' --layout {layout}", path.display());
    let made = lab.run(&line)?.into_model()?;
    let back = aolab::load(path.to_str().expect("UTF-8"))?;
    Ok((made, back, path, dir))
}

#[test]
fn every_format_that_a_layout_has_comes_back_bit_for_bit() {
    for (layout, words) in [
        ("torchao", "int8-weight-only"),
        ("torchao", "int8-weight-only --granularity per-tensor"),
        ("torchao", "int8-dynamic-activation-int8-weight --act-mapping-type asymmetric"),
        ("torchao", "float8-weight-only"),
        ("torchao", "float8-weight-only --weight-dtype float8_e5m2"),
        ("torchao", "float8-dynamic-activation-float8-weight --granularity per-row"),
        ("torchao", "intx-weight-only --weight-dtype int3 --granularity per-group:32"),
        (
            "torchao",
            "int8-dynamic-activation-intx-weight --weight-dtype int4 --weight-mapping-type asymmetric",
        ),
        ("torchao", "int4-weight-only --group-size 32"),
        ("torchao", "mx-weight-only --weight-dtype e4m3"),
        ("torchao", "mx-weight-only --weight-dtype e2m3"),
        ("torchao", "mx-dynamic-activation-mx-weight --weight-dtype e2m1 --activation-dtype e2m1"),
        ("torchao", "nvfp4-weight-only"),
        ("torchao", "nvfp4-dynamic-activation-nvfp4-weight"),
        ("torchao", "int4-weight-only --group-size 64 --filter mlp"),
        ("compressed-tensors", "intx-weight-only --weight-dtype int4 --granularity per-group:32"),
        (
            "compressed-tensors",
            "intx-weight-only --weight-dtype int4 --granularity per-group:64 --mapping-type asymmetric",
        ),
        ("compressed-tensors", "intx-weight-only --weight-dtype int8"),
        ("compressed-tensors", "int8-weight-only"),
        ("compressed-tensors", "int8-weight-only --granularity per-tensor --filter self_attn"),
        ("compressed-tensors", "int8-dynamic-activation-int8-weight"),
        ("compressed-tensors", "float8-weight-only"),
        ("compressed-tensors", "float8-dynamic-activation-float8-weight --granularity per-row"),
        ("compressed-tensors", "float8-static-activation-float8-weight --act-quant-scale 0.25"),
    ] {
        let (made, back, ..) = through(words, layout).unwrap_or_else(|e| panic!("{words}: {e}"));
        for ((name, a), (_, b)) in made.linears().iter().zip(back.linears()) {
            assert_eq!(a.weight.workflow(), b.weight.workflow(), "{layout}: {words}: {name}");
            assert_eq!(a.weight.details(), b.weight.details(), "{layout}: {words}: {name}");
            let same = values(a.weight.as_ref()) == values(b.weight.as_ref());
            assert!(same, "{layout}: {words}: {name}");
        }
    }
}

#[test]
fn what_a_layout_lacks_is_told() {
    for (layout, words) in [
        ("torchao", "nf4-weight-only"),
        ("torchao", "mx-weight-only --weight-dtype int8"),
        ("compressed-tensors", "int4-weight-only"),
        ("compressed-tensors", "nvfp4-weight-only"),
    ] {
        let words = through(words, layout).expect_err(words).to_string();
        assert!(
            words.contains("has no layout for") && words.contains("without --layout"),
            "{words}"
        );
    }
}

/// Changes config.json of a folder and loads it.
fn load_changed(path: &Path, edit: impl FnOnce(&mut Json)) -> aolab::Result<Model> {
    let config = path.join("config.json");
    let whole = fs::read(&config).expect("a config");
    let mut json = serde_json::from_slice(&whole).expect("JSON");
    edit(&mut json);
    fs::write(&config, json.to_string()).expect("a small file");
    let loaded = aolab::load(path.to_str().expect("UTF-8"));
    fs::write(&config, whole).expect("a small file");
    loaded
}

#[test]
fn folders_that_lie_are_refused_in_words() {
    let words = "intx-weight-only --weight-dtype int4 --granularity per-group:32";
    let (_, _, path, _dir) = through(words, "compressed-tensors").expect("saves");
    let group = |json: &mut Json, key: &str, value: Json| {
        json["quantization_config"]["config_groups"]["group_0"]["weights"][key] = value;
    };
    for (key, value) in [
        ("num_bits", json!(3)),
        ("num_bits", json!(8)),
        ("num_bits", json!(1e300)),
        ("group_size", json!(48)),
        ("group_size", json!(0)),
        ("group_size", json!(64)),
        ("strategy", json!("block")),
        ("type", json!("float")),
        ("symmetric", json!(false)),
    ] {
        let words = load_changed(&path, |json| group(json, key, value.clone()));
        let words = words.expect_err(key).to_string();
        assert!(words.contains("model."), "{key} = {value}: {words}");
    }
    let refused =
        |edit: &dyn Fn(&mut Json)| load_changed(&path, edit).expect_err("refused").to_string();
    let quant = "quantization_config";
    assert!(refused(&|j| j[quant]["format"] = json!("marlin-24")).contains("marlin-24"));
    assert!(refused(&|j| j[quant]["config_groups"] = json!({})).contains("config_groups"));
    let nobody = json!(["re:(", "lm_head"]);
    let words = refused(&|j| j[quant]["config_groups"]["group_0"]["targets"] = nobody.clone());
    assert!(words.contains("no group"), "{words}");
    // A file that is not torchao's under torchao's name.
    let words = refused(&|j| j[quant] = json!({ "quant_method": "torchao" }));
    assert!(words.contains("flatten_tensor_state_dict"), "{words}");
    let (meta, tensors) = flattened(&fixture(), "mxfp8");
    let lie = |edit: &dyn Fn(&mut Json)| {
        let mut meta = meta.clone();
        edit(&mut meta["_data"]);
        let read: aolab::Result<Arc<dyn Weight>> = read_weight(&meta, tensors.clone(), (48, 128));
        read.expect_err("refused").to_string()
    };
    assert!(lie(&|data| data["block_size"] = json!(16)).contains("block"));
    assert!(lie(&|data| data["elem_dtype"] = json!("fp6_e9m9")).contains("fp6_e9m9"));
    assert!(lie(&|data| data["is_swizzled_scales"] = json!(false)).contains("scale"));
    assert!(read_weight(&meta, tensors, (48, 64)).is_err(), "another shape");
}
