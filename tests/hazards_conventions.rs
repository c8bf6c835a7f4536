//! Conventions that formats disagree about, each pinned by a weight whose codes are known: by what the largest magnitude is divided,
//! how ties are rounded, what dtype scales have, which of two codes lies in a byte's low nibble. And every workflow of the list,
//! saved to a folder and loaded again, bit for bit.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use aolab::Session;
use aolab::kernels::Cpu;
use aolab::kernels::matmul::Matrix;
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::{WORKFLOWS, config_from_dict};
use aolab::training::int8::quantize_int8_rowwise;
use aolab::{DType, Tensor};
use serde_json::{Value as Json, json};

#[expect(clippy::needless_pass_by_value, reason = "calls read like the JSON that they give")]
fn made(class: &str, data: Json, row: &[f32], dtype: DType) -> Arc<dyn Weight> {
    let of =
        |version| config_from_dict(&json!({ "_type": class, "_version": version, "_data": data }));
    let recipe = of(2).or_else(|_| of(1)).unwrap_or_else(|error| panic!("{class}: {error}"));
    // NVFP4 wants 16 rows.
    let n = if class.starts_with("NVFP4") { 16 } else { 1 };
    let w = Tensor::new(row.repeat(n), &[n, row.len()]).and_then(|w| w.to_dtype(dtype));
    let weight = DenseWeight::new(w.expect("a row")).expect("a matrix");
    recipe.quantize(&Cpu::new(Some(1)), &weight).unwrap_or_else(|error| panic!("{class}: {error}"))
}

fn tensor(weight: &dyn Weight, name: &str) -> Tensor {
    let found = weight.tensors().into_iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("{}: no tensor {name}", weight.workflow())).1
}

/// 0, 0, …, with these numbers first.
fn row(first: &[f32], len: usize) -> Vec<f32> {
    let mut row = vec![0.0; len];
    row[..first.len()].copy_from_slice(first);
    row
}

#[test]
fn the_largest_magnitude_is_divided_as_each_format_says() {
    let scale = |weight: &dyn Weight| tensor(weight, "scale").to_f32_vec()[0].to_bits();
    let one = 1.0_f32.to_bits();
    let group = |size: usize| json!({ "_type": "PerGroup", "_version": 1, "_data": { "group_size": size } });
    let int4 = json!({ "_type": "torch.dtype", "_data": "int4" });
    // N02: (2ᵇ − 1) / 2. 127.5 and −127.5 give 1.
    let int8 = made("Int8WeightOnlyConfig", json!({}), &row(&[127.5, -127.5], 64), DType::F32);
    assert_eq!(scale(int8.as_ref()), one, "int8: /127.5");
    let intx = json!({ "weight_dtype": int4, "granularity": group(32) });
    let intx = made("IntxWeightOnlyConfig", intx, &row(&[7.5, -7.5], 32), DType::F32);
    assert_eq!(scale(intx.as_ref()), one, "int4: /7.5");
    // N03: no clipping, min / −8 or max / 7.
    let symnc = json!({ "weight_dtype": int4, "granularity": group(32),
        "mapping_type": { "_type": "MappingType", "_data": "SYMMETRIC_NO_CLIPPING_ERR" } });
    for (value, wanted) in [(-8.0, 1.0), (7.0, 1.0), (-16.0, 2.0)] {
        let made = made("IntxWeightOnlyConfig", symnc.clone(), &row(&[value], 32), DType::F32);
        assert_eq!(scale(made.as_ref()), f32::to_bits(wanted), "no clipping: {value}");
    }
    // Q05: /8. P16: as N03.
    let float8 = json!({ "int4_packing_format": "plain" });
    let float8 =
        made("Float8DynamicActivationInt4WeightConfig", float8, &row(&[-8.0], 128), DType::F32);
    assert_eq!(scale(float8.as_ref()), one, "float8 × int4: /8");
    // R01: /127, as the key-value cache (kernels/src/kv_cache/tests.rs).
    let (_, scales) = quantize_int8_rowwise(Matrix::new(&[127.0, -3.0], 1, 2), 1e-12);
    assert_eq!(scales, [1.0], "int8 training: /127");
    // float8: /448; fp6 e3m2: /28.
    let e4m3 = made("Float8WeightOnlyConfig", json!({}), &row(&[-448.0], 64), DType::F32);
    assert_eq!(scale(e4m3.as_ref()), one, "float8: /448");
    let fp6 = made(
        "FPXWeightOnlyConfig",
        json!({ "ebits": 3, "mbits": 2 }),
        &row(&[28.0], 64),
        DType::F32,
    );
    assert_eq!(scale(fp6.as_ref()), one, "fp6 e3m2: /28");
}

#[test]
fn ties_go_to_the_even_code_and_scales_follow_the_weight() {
    // The scale is 1: halves lie between two codes.
    let halves = [127.5, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.5];
    let int8 = made("Int8WeightOnlyConfig", json!({}), &row(&halves, 64), DType::F32);
    let codes = tensor(int8.as_ref(), "qdata");
    assert_eq!(codes.as_slice::<i8>().expect("i8")[..8], [127, 0, 2, 2, 0, -2, -2, -128]);
    let e2m1 = json!({ "weight_dtype": { "_type": "torch.dtype", "_data": "float4_e2m1fn_x2" } });
    // Between 0 and 0.5, 0.5 and 1, 1 and 1.5, 2 and 3, 4 and 6: to the even mantissa.
    let mx =
        made("MXWeightOnlyConfig", e2m1, &row(&[0.25, 0.75, 1.25, 2.5, 5.0, 6.0], 32), DType::F32);
    let seen = mx.dequantize().expect("values").to_f32_vec();
    assert_eq!(seen[..6], [0.0, 1.0, 1.0, 2.0, 4.0, 6.0], "fp4 ties");
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for class in ["Int8WeightOnlyConfig", "IntxWeightOnlyConfig"] {
            let made = made(class, json!({}), &row(&[0.3, -0.7], 64), dtype);
            // The kernels of int8 take f32; the numbers are the weight's dtype's all the same.
            let scale = tensor(made.as_ref(), "scale").to_dtype(DType::F32).expect("floats");
            let rounded = scale.to_dtype(dtype).and_then(|s| s.to_dtype(DType::F32));
            assert_eq!(scale.bytes(), rounded.expect("floats").bytes(), "{class}, {dtype}");
            assert_eq!(made.dtype(), dtype, "{class}");
        }
    }
    // 0.7 / 127.5 in bf16, then codes from that scale: not from the scale before it was rounded.
    let bf16 = made("Int8WeightOnlyConfig", json!({}), &row(&[0.3, -0.7], 64), DType::BF16);
    let scale = tensor(bf16.as_ref(), "scale").to_f32_vec()[0];
    let code = tensor(bf16.as_ref(), "qdata").as_slice::<i8>().expect("i8")[0];
    let w = half::bf16::from_f32(0.3).to_f32();
    #[expect(clippy::cast_possible_truncation, reason = "a code")]
    let wanted = (w * (1.0 / scale)).round_ties_even() as i8;
    assert_eq!(code, wanted, "scale {scale}");
}

#[test]
fn the_first_of_two_codes_lies_where_each_format_says() {
    // int4 (L02): the even column in the low nibble, codes from 0. A range of 15 has the scale 1: code = value.
    let mut values = row(&[3.0, 10.0], 32);
    values[2] = 15.0;
    let int4 = made("Int4WeightOnlyConfig", json!({ "group_size": 32 }), &values, DType::F32);
    assert_eq!(tensor(int4.as_ref(), "qdata").as_slice::<u8>().expect("u8")[0], 0xA3, "int4");
    // NF4 (L04): the first in the high nibble. 1 is code 15, −1 code 0.
    let nf4 = made(
        "NF4WeightOnlyConfig",
        json!({ "scaler_block_size": 1 }),
        &[[1.0, -1.0]; 32].concat(),
        DType::F32,
    );
    assert_eq!(
        tensor(nf4.as_ref(), "quantized_data").as_slice::<u8>().expect("u8")[0],
        0xF0,
        "nf4"
    );
    // MXFP4 and NVFP4 (L05): the first in the low nibble. 6 is code 7, −6 code 15.
    let e2m1 = json!({ "weight_dtype": { "_type": "torch.dtype", "_data": "float4_e2m1fn_x2" } });
    let mx = made("MXWeightOnlyConfig", e2m1, &row(&[6.0, -6.0], 32), DType::F32);
    assert_eq!(tensor(mx.as_ref(), "qdata").as_slice::<u8>().expect("u8")[0], 0xF7, "mxfp4");
    let nvfp4 = made("NVFP4WeightOnlyConfig", json!({}), &row(&[6.0, -6.0], 32), DType::F32);
    assert_eq!(tensor(nvfp4.as_ref(), "qdata").as_slice::<u8>().expect("u8")[0], 0xF7, "nvfp4");
    // Q4_0: 16 bytes, the first half of the block in the low nibbles. −8 is code 0, 0 code 8, 7 code 15 with the scale 1.
    let mut values = vec![0.0; 32];
    (values[0], values[16]) = (-8.0, 7.0);
    let q4 = made("GgufBlockConfig", json!({ "block_type": "Q4_0" }), &values, DType::F32);
    let bytes = q4.tensors().into_iter().find(|(_, t)| t.dtype() == DType::U8).expect("blocks").1;
    assert_eq!(bytes.as_slice::<u8>().expect("u8")[..4], [0x00, 0x3C, 0xF0, 0x88], "Q4_0");
}

/// A layer of the list's workflow with its defaults, over int8 where it wants a base.
fn configuration(class: &str) -> (Json, bool) {
    let base = |name: &str| json!({ "base_config": { "_type": name, "_version": 2, "_data": {} } });
    let datas =
        [json!({}), base("Int8WeightOnlyConfig"), base("Int8DynamicActivationInt8WeightConfig")];
    for data in &datas {
        for version in [1, 2] {
            let json = json!({ "_type": class, "_version": version, "_data": data });
            if let Ok(recipe) = config_from_dict(&json) {
                return (json, recipe.calibrated().is_some());
            }
        }
    }
    panic!("{class}: no defaults")
}

#[test]
fn every_workflow_comes_back_from_a_folder_bit_for_bit() {
    let dir = tempfile::tempdir().expect("a folder");
    for workflow in WORKFLOWS {
        let name = workflow.name;
        let path = dir.path().join(name);
        let mut lab = Session::new();
        // One block is enough, and the embedding with the output layer for those of embeddings.
        let change = if name == "spinquant" {
            "spinquant --use-r1 --use-r2".to_owned()
        } else {
            let (json, calibrated) = configuration(workflow.config_type);
            let config = dir.path().join("config.json");
            std::fs::write(&config, json.to_string()).expect("a small file");
            let text = if calibrated { " --sequences 1 --sequence-length 64" } else { "" };
            let filter = if name.contains("embedding") { "" } else { " --filter 'layers\\.0\\.'" };
            format!("quantize --config '{}'{text}{filter} --skip-incompatible", config.display())
        };
        let line = format!("load tiny | {change} | save '{}'", path.display());
        let saved = lab.run(&line).and_then(aolab::Value::into_model);
        let saved = saved.unwrap_or_else(|error| panic!("{name}: {error}"));
        let back = aolab::load(path.to_str().expect("UTF-8"));
        let back = back.unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut quantized = 0;
        let embeddings = [(
            "model.embed_tokens".to_owned(),
            Arc::clone(&saved.embed_tokens),
            Arc::clone(&back.embed_tokens),
        )];
        let linears = saved.linears().into_iter().zip(back.linears());
        let linears =
            linears.map(|((fqn, a), (_, b))| (fqn, Arc::clone(&a.weight), Arc::clone(&b.weight)));
        for (fqn, a, b) in linears.chain(embeddings) {
            assert_eq!(a.meta(), b.meta(), "{name}: {fqn}");
            assert_eq!((a.shape(), a.details()), (b.shape(), b.details()), "{name}: {fqn}");
            quantized += usize::from(a.meta() != Json::Null);
            for ((part, a), (other, b)) in a.tensors().iter().zip(b.tensors()) {
                assert_eq!(*part, other, "{name}: {fqn}");
                let same =
                    a.dtype() == b.dtype() && a.shape() == b.shape() && a.bytes() == b.bytes();
                assert!(same, "{name}: {fqn}: {part}");
            }
            assert_eq!(a.tensors().len(), b.tensors().len(), "{name}: {fqn}");
        }
        assert!(quantized > 0, "{name}: nothing was quantized");
    }
}
