//! The order that the literature reports for formats, on the built-in model, wherever the difference of two divergences is more
//! than twice its standard error over windows; and what the windows say at all.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use aolab::data::texts;
use aolab::eval::{EvalConfig, KlResult};
use aolab::formats::{FormatsConfig, measure};
use aolab::kernels::Cpu;
use aolab::quantization::calibration::{Sequences, draw};
use aolab::quantization::{
    CodeType, Float8WeightOnlyConfig, GptqConfig, Granularity, Int4WeightOnlyConfig,
    Int8WeightOnlyConfig, IntxWeightOnlyConfig, Recipe,
};

fn intx(bits: u32, granularity: &str) -> Arc<dyn Recipe> {
    let granularity: Granularity = granularity.parse().expect("a granularity");
    let weight_dtype = CodeType::int(bits);
    Arc::new(IntxWeightOnlyConfig { weight_dtype, granularity, ..Default::default() })
}

fn int4(hqq: bool) -> Arc<dyn Recipe> {
    let mut config = Int4WeightOnlyConfig { group_size: 32, ..Int4WeightOnlyConfig::default() };
    if hqq {
        config.int4_packing_format = "tile-packed-to-4d".parse().expect("a format");
        config.int4_choose_qparams_algorithm = "hqq".parse().expect("an algorithm");
    }
    Arc::new(config)
}

fn gptq(base: Arc<dyn Recipe>) -> Arc<dyn Recipe> {
    Arc::new(GptqConfig::new(base))
}

#[test]
fn formats_stand_in_the_order_of_the_literature() {
    let cpu = Cpu::new(Some(2));
    let model = aolab::load("tiny").expect("the built-in model");
    let wanted = Sequences { count: 32, length: 256, seed: 0 };
    let sequences = draw(&model, texts::CALIBRATION, &wanted).expect("pieces");
    let rows: Vec<(&str, Arc<dyn Recipe>)> = vec![
        ("int8", Arc::new(Int8WeightOnlyConfig::default())),
        ("float8", Arc::new(Float8WeightOnlyConfig::default())),
        ("int4 gptq", gptq(int4(false))),
        ("int4 hqq", int4(true)),
        ("int4", int4(false)),
        ("int4 row", intx(4, "per-axis:0")),
        ("int3 gptq", gptq(intx(3, "per-group:32"))),
        ("int3", intx(3, "per-group:32")),
        ("int2 gptq", gptq(intx(2, "per-group:32"))),
        ("int2", intx(2, "per-group:32")),
    ];
    let rows: Vec<_> =
        rows.into_iter().map(|(label, recipe)| (label.to_owned(), Some(recipe))).collect();
    let eval = EvalConfig { windows: Some(16), ..EvalConfig::default() };
    let config = FormatsConfig { eval, decode_tokens: 0, decode_context: 0 };
    let inputs = (texts::SOTU, &sequences[..]);
    let mut found = Vec::new();
    measure(&cpu, (&model, &rows), inputs, &config, &mut |_, _, _| true, &mut found)
        .expect("measures");
    let by_label: BTreeMap<&str, &KlResult> =
        found.iter().map(|found| (found.label.as_str(), &found.kl)).collect();
    for found in &found {
        assert_eq!(found.kl.window_means.len(), 16);
        println!("{:12} KL {:.5} ± {:.5}", found.label, found.kl.mean, found.kl.window_error());
    }
    // Each nearer to the model than the next.
    for (near, far) in [
        ("int8", "float8"),
        ("float8", "int4 gptq"),
        ("float8", "int4 hqq"),
        ("int4 gptq", "int4"),
        ("int4 hqq", "int4"),
        ("int4", "int4 row"),
        ("int4 row", "int3 gptq"),
        ("int3 gptq", "int3"),
        ("int3", "int2 gptq"),
        ("int2 gptq", "int2"),
    ] {
        let (farther, error) = by_label[far].farther_than(by_label[near]);
        println!("{far} − {near}: {farther:.5} ± {error:.5}");
        assert!(farther > 2.0 * error, "{far} − {near}: {farther} ± {error}");
    }
    // Int8 is as good as bf16: its perplexity differs by less than a thousandth.
    let perplexity = |label: &str| by_label[label].perplexity;
    let (mut base, as_it_came) = (Vec::new(), [("base".to_owned(), None)]);
    measure(&cpu, (&model, &as_it_came), inputs, &config, &mut |_, _, _| true, &mut base)
        .expect("measures");
    let base = base[0].kl.perplexity;
    assert!((perplexity("int8") / base - 1.0).abs() < 1e-3, "{} and {base}", perplexity("int8"));
}
