//! Configurations as torchao's JSON and as command-line options, and what they do to a model, layer by layer.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::sync::Arc;

use aolab::kernels::Cpu;
use aolab::model::Model;
use aolab::quantization::{
    Choice, FqnToConfig, Int4WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig, QuantizeOptions, Recipe, WORKFLOWS, config_from_dict, config_to_dict,
    is_linear, quantize_, quantize_with, support_table,
};
use clap::Parser;
use serde_json::{Value as Json, json};

/// What torchao 0.18's `json.dumps(config_to_dict(config))` printed.
const PRINTED: [&str; 6] = [
    r#"{"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {"group_size": 32, "set_inductor_config": true, "int4_packing_format": {"_type": "Int4PackingFormat", "_data": "PLAIN"}, "int4_choose_qparams_algorithm": {"_type": "Int4ChooseQParamsAlgorithm", "_data": "TINYGEMM"}, "int4_tile_packed_ntile": 8}}"#,
    r#"{"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {"group_size": null, "granularity": {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}, "set_inductor_config": true}}"#,
    r#"{"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {"group_size": null, "granularity": {"_type": "PerGroup", "_version": 1, "_data": {"group_size": 64}}, "set_inductor_config": true}}"#,
    r#"{"_type": "Int8DynamicActivationInt8WeightConfig", "_version": 2, "_data": {"act_mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"}, "weight_only_decode": false, "granularity": {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}, "set_inductor_config": true, "reduce_range": false}}"#,
    r#"{"_type": "Int8DynamicActivationInt8WeightConfig", "_version": 2, "_data": {"act_mapping_type": {"_type": "MappingType", "_data": "ASYMMETRIC"}, "weight_only_decode": false, "granularity": [{"_type": "PerTensor", "_version": 1, "_data": {}}, {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}], "set_inductor_config": true, "reduce_range": true}}"#,
    r#"{"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": {"model.layers.0.q": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {"group_size": null, "granularity": {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}, "set_inductor_config": true}}, "re:.*down": null, "_default": {"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {"group_size": 128, "set_inductor_config": true, "int4_packing_format": {"_type": "Int4PackingFormat", "_data": "PLAIN"}, "int4_choose_qparams_algorithm": {"_type": "Int4ChooseQParamsAlgorithm", "_data": "TINYGEMM"}, "int4_tile_packed_ntile": 8}}}, "module_fqn_to_config": {"model.layers.0.q": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {"group_size": null, "granularity": {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}, "set_inductor_config": true}}, "re:.*down": null, "_default": {"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {"group_size": 128, "set_inductor_config": true, "int4_packing_format": {"_type": "Int4PackingFormat", "_data": "PLAIN"}, "int4_choose_qparams_algorithm": {"_type": "Int4ChooseQParamsAlgorithm", "_data": "TINYGEMM"}, "int4_tile_packed_ntile": 8}}}}}"#,
];

#[test]
fn torchaos_json_is_read_and_written_to_the_letter() {
    for printed in PRINTED {
        let json: Json = serde_json::from_str(printed).expect("valid JSON");
        let config = config_from_dict(&json).expect(printed);
        // As text, so that the order of fields counts too.
        assert_eq!(config_to_dict(config.as_ref()).to_string(), json.to_string());
    }
    let defaults: [&dyn Recipe; 3] = [
        &Int4WeightOnlyConfig { group_size: 32, ..Default::default() },
        &Int8WeightOnlyConfig::default(),
        &Int8DynamicActivationInt8WeightConfig::default(),
    ];
    for (config, printed) in defaults.into_iter().zip([PRINTED[0], PRINTED[1], PRINTED[3]]) {
        let printed: Json = serde_json::from_str(printed).expect("valid JSON");
        assert_eq!(config_to_dict(config).to_string(), printed.to_string());
    }
}

#[test]
fn other_spellings_of_the_same_configuration_are_read() {
    let read = |json: Json| config_to_dict(config_from_dict(&json).expect("reads").as_ref());
    let full = read(json!({"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {}}));
    assert_eq!(full["_data"]["group_size"], 128, "a missing field takes its default");
    // torchao keeps a plain word where a plain word was given.
    let word = json!({"int4_packing_format": "tile_packed_to_4d"});
    let word = read(json!({"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": word}));
    assert_eq!(word["_data"]["int4_packing_format"]["_data"], "TILE_PACKED_TO_4D");
    let null_data = json!({"granularity": null});
    let null = json!({"_type": "Int8DynamicActivationInt8WeightConfig", "_version": 2, "_data": null_data});
    let null = read(null);
    assert_eq!(null["_data"]["granularity"]["_type"], "PerRow");
    let old = json!({"module_fqn_to_config": {"_default": null}});
    let old = read(json!({"_type": "ModuleFqnToConfig", "_version": 1, "_data": old}));
    assert_eq!(old["_data"]["fqn_to_config"], json!({"_default": null}));
}

#[test]
fn wrong_configurations_are_refused_in_words() {
    let int4 = |data: Json| json!({"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": data});
    let int8 = |data: Json| json!({"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": data});
    let dynamic = |data: Json| json!({"_type": "Int8DynamicActivationInt8WeightConfig", "_version": 2, "_data": data});
    let fqn = |data: Json| json!({"_type": "FqnToConfig", "_version": 1, "_data": data});
    let row = json!({"_type": "PerRow", "_version": 1, "_data": {"dim": 0}});
    let token = json!({"_type": "PerToken", "_version": 1, "_data": {}});
    for (json, words) in [
        (json!(4), "wanted an object"),
        (json!({"_data": {}}), "no _type"),
        (json!({"_type": "Int4WeightOnlyConfig", "_version": 2}), "no _data"),
        (
            json!({"_type": "Int4WeightOnlyConfg", "_data": {}}),
            "did you mean Int4WeightOnlyConfig?",
        ),
        (json!({"_type": "Int4WeightOnlyConfig", "_version": 1, "_data": {}}), "version 1"),
        (
            json!({"_type": "Int4WeightOnlyConfig", "_data": {}}),
            "version 1 is not supported; wanted 2",
        ),
        (json!({"_type": "FqnToConfig", "_version": 2, "_data": {}}), "version 2"),
        (int4(json!({"gruop_size": 32})), "did you mean group_size?"),
        (int4(json!({"group_size": "32"})), "group_size is \"32\""),
        (int4(json!({"group_size": -1})), "group_size is -1"),
        (int4(json!({"group_size": 0})), "group_size is 0"),
        (int4(json!({"int4_tile_packed_ntile": 9})), "8 or 16"),
        (int4(json!({"int4_packing_format": "opaque"})), "wanted plain or preshuffled"),
        (
            int4(
                json!({"int4_choose_qparams_algorithm": {"_type": "Int4ChooseQParamsAlgorithm", "_data": "HQQ"}}),
            ),
            "hqq belongs to tile-packed-to-4d",
        ),
        (
            int4(json!({"int4_packing_format": {"_type": "MappingType", "_data": "PLAIN"}})),
            "MappingType is not Int4PackingFormat",
        ),
        (int8(json!({"group_size": 32})), "per-group:32"),
        (int8(json!({"granularity": row})), "use per-row, per-tensor or per-group"),
        (int8(json!({"granularity": {"_type": "PerGrup", "_data": {}}})), "did you mean PerGroup?"),
        (
            int8(json!({"granularity": {"_type": "PerGroup", "_data": {"group_size": 0}}})),
            "a positive number",
        ),
        (
            int8(json!({"granularity": {"_type": "PerRow", "_data": {"din": 0}}})),
            "did you mean dim?",
        ),
        (dynamic(json!({"weight_only_decode": true})), "use int8-weight-only"),
        (
            dynamic(json!({"act_mapping_type": "symmetric_no_clipping_err"})),
            "use symmetric or asymmetric",
        ),
        (dynamic(json!({"granularity": token})), "use per-row or per-tensor"),
        (dynamic(json!({"granularity": []})), "granularity is []"),
        (fqn(json!({"fqn_to_config": 3})), "wanted an object"),
        (fqn(json!({"fqn_to_config": {"a": null}, "module_fqn_to_config": {"b": null}})), "differ"),
        (fqn(json!({"fqn_to_config": {"re:(": null}})), "re:("),
        (fqn(json!({"fqn_to_config": {"a": {"_type": "Nothing", "_data": {}}}})), "a: Nothing"),
    ] {
        let error = config_from_dict(&json).expect_err("wrong").to_string();
        assert!(error.contains(words), "{json}: {words:?} is not in {error:?}");
    }
}

#[derive(Parser)]
struct Options<T: clap::Args> {
    #[command(flatten)]
    config: T,
}

#[test]
fn options_make_the_same_configurations() {
    fn parse<T: clap::Args>(line: &str) -> Result<T, clap::Error> {
        Options::try_parse_from(["quantize"].into_iter().chain(line.split_whitespace()))
            .map(|options: Options<T>| options.config)
    }
    let json = |recipe: &dyn Recipe| config_to_dict(recipe)["_data"].clone();
    let int4: Int4WeightOnlyConfig = parse("").expect("defaults");
    assert_eq!(int4, Int4WeightOnlyConfig::default());
    let int8: Int8WeightOnlyConfig = parse("").expect("defaults");
    assert_eq!(int8, Int8WeightOnlyConfig::default());
    let dynamic: Int8DynamicActivationInt8WeightConfig = parse("").expect("defaults");
    assert_eq!(dynamic, Int8DynamicActivationInt8WeightConfig::default());
    let int4: Int4WeightOnlyConfig =
        parse("--group-size 32 --packing-format tile-packed-to-4d").expect("options");
    assert_eq!(json(&int4)["group_size"], 32);
    assert_eq!(json(&int4)["int4_packing_format"]["_data"], "TILE_PACKED_TO_4D");
    let int8: Int8WeightOnlyConfig = parse("--granularity per-group:64").expect("options");
    assert_eq!(json(&int8)["granularity"]["_data"], json!({"group_size": 64}));
    let dynamic: Int8DynamicActivationInt8WeightConfig =
        parse("--granularity per-tensor,per-row --act-mapping-type asymmetric --reduce-range")
            .expect("options");
    assert_eq!(json(&dynamic)["granularity"][0]["_type"], "PerTensor");
    let error = parse::<Int8WeightOnlyConfig>("--granularity per-rwo").expect_err("wrong");
    assert!(error.to_string().contains("did you mean per-row?"), "{error}");
}

fn tiny() -> Model {
    aolab::load("tiny").expect("the built-in model loads")
}

fn workflow_of(model: &Model, fqn: &str) -> String {
    let linears = model.linears();
    let (_, linear) = linears.iter().find(|(name, _)| name == fqn).expect(fqn);
    linear.weight.workflow()
}

#[test]
fn a_model_is_quantized_layer_by_layer() {
    let (original, mut model) = (tiny(), tiny());
    let config = Int4WeightOnlyConfig { group_size: 32, ..Default::default() };
    let report =
        quantize_(&mut model, &config, |fqn, _| fqn != "lm_head").expect("32 divides every K");
    let linears = model.linears();
    assert_eq!(report.layers.len(), linears.len());
    assert_eq!(report.quantized(), linears.len() - 1);
    for ((fqn, linear), layer) in linears.iter().zip(&report.layers) {
        assert_eq!((fqn, linear.weight.nbytes()), (&layer.fqn, layer.nbytes_after));
        assert_eq!(linear.weight.workflow(), layer.workflow);
        assert_eq!(layer.skipped.is_some(), fqn == "lm_head");
    }
    let (before, after) = report.nbytes();
    assert_eq!((before - after, after), (original.nbytes() - model.nbytes(), report.nbytes().1));
    // 4 bits and two bf16 numbers for 32 weights: 5 bits where there were 16.
    let layer = &report.layers[0];
    assert_eq!(layer.nbytes_after * 16, layer.nbytes_before * 5);
    assert_eq!(report.table().expect("a table").len(), linears.len());
    assert_eq!(workflow_of(&original, "model.layers.0.mlp.up_proj"), "bf16", "clones are apart");
}

#[test]
fn a_layer_that_does_not_fit_is_an_error_before_anything_changes_or_a_reported_skip() {
    let mut model = tiny();
    let config = Int4WeightOnlyConfig { group_size: 96, ..Default::default() };
    let error = quantize_(&mut model, &config, is_linear).expect_err("96 does not divide 256");
    assert_eq!(
        error.to_string(),
        "model.layers.0.self_attn.q_proj: K = 256 is not a multiple of group_size 96; \
         use 4, 8, 16, 32, 64, 128 or 256"
    );
    assert!(model.linears().iter().all(|(_, linear)| linear.weight.workflow() == "bf16"));
    let options = QuantizeOptions { skip_incompatible: true, ..Default::default() };
    let report = quantize_with(&Cpu::new(Some(2)), &mut model, &config, &is_linear, options)
        .expect("others are skipped");
    assert_eq!(report.quantized(), 6, "K = 768 of the six down projections is 8 · 96");
    for layer in &report.layers {
        let fits = layer.fqn.ends_with("down_proj");
        assert_eq!(layer.skipped.is_none(), fits, "{layer:?}");
        assert!(fits || layer.skipped.as_deref().is_some_and(|why| why.contains("K = 256")));
    }
}

#[test]
fn progress_is_told_and_cancelling_keeps_what_was_done() {
    let mut model = tiny();
    let (mut told, asked) = (Vec::new(), Cell::new(0));
    let mut progress =
        |done: usize, total: usize, fqn: &str| told.push((done, total, fqn.to_owned()));
    let cancelled = || {
        asked.set(asked.get() + 1);
        asked.get() > 3
    };
    let options = QuantizeOptions {
        progress: Some(&mut progress),
        cancelled: Some(&cancelled),
        ..Default::default()
    };
    let config = Int8WeightOnlyConfig::default();
    let stopped = quantize_with(&Cpu::new(Some(1)), &mut model, &config, &is_linear, options);
    assert!(stopped.expect_err("stopped").is_cancelled());
    let linears = model.linears();
    assert_eq!(told.len(), 3);
    assert_eq!(told[1], (1, linears.len(), linears[1].0.clone()));
    let done = linears.iter().filter(|(_, l)| l.weight.workflow() == "int8-weight-only").count();
    assert_eq!(done, 3);
}

fn by_group_size(entries: &[(&str, Option<usize>)]) -> FqnToConfig {
    let entry = |(key, group_size): &(&str, Option<usize>)| {
        let config = |group_size| -> Arc<dyn Recipe> {
            Arc::new(Int4WeightOnlyConfig { group_size, ..Default::default() })
        };
        ((*key).to_owned(), group_size.map(config))
    };
    FqnToConfig::new(entries.iter().map(entry)).expect("sound keys")
}

#[test]
fn names_choose_configurations_in_torchaos_order() {
    let config = by_group_size(&[
        ("_default", Some(256)),
        ("re:a\\.b", Some(4)),
        ("re:a\\..*", Some(8)),
        ("re:a\\.b\\.weight", Some(16)),
        ("re:.*\\.weight", Some(32)),
        ("a.exact", Some(64)),
        ("a.both", Some(64)),
        ("a.both.weight", Some(128)),
        ("a.none.weight", None),
        ("re:b|c", None),
    ]);
    for (fqn, wanted) in [
        ("a.both", Some(128)), // the exact parameter wins over the exact module
        ("a.exact", Some(64)), // which wins over patterns
        ("a.b", Some(8)),      // the first pattern on the parameter: a\..* matches a.b.weight whole
        ("x", Some(32)),       // re:.*\.weight matches x.weight
        ("a.none", None),      // null leaves alone, whatever else matches
    ] {
        let chosen = match config.choose(fqn) {
            Choice::Other(recipe) => config_to_dict(recipe)["_data"]["group_size"].as_u64(),
            Choice::Leave(_) => None,
            Choice::Itself => panic!("{fqn}: FqnToConfig applies others"),
        };
        assert_eq!(chosen, wanted, "{fqn}");
    }
    let modules = by_group_size(&[("re:b|c", None), ("re:.", Some(8)), ("_default", Some(16))]);
    assert!(matches!(modules.choose("b"), Choice::Leave(why) if why.contains("re:b|c")));
    assert!(matches!(modules.choose("bc"), Choice::Other(_)), "a pattern matches the whole name");
    assert!(modules.matches("c") && modules.matches("d") && !modules.matches("dd"));
    assert!(!modules.matches("_default"), "a key that is no name names nothing");
    let nothing = by_group_size(&[("a", Some(8))]);
    assert!(matches!(nothing.choose("b"), Choice::Leave(_)));
}

#[test]
fn each_layer_of_a_model_gets_its_own_configuration() {
    let mut model = tiny();
    let json = json!({"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": {
        "lm_head": null,
        "model.layers.1.mlp.up_proj.weight": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}},
        "re:model\\.layers\\.\\d+\\.self_attn\\..*": {"_type": "Int8DynamicActivationInt8WeightConfig", "_version": 2, "_data": {}},
        "_default": {"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {"group_size": 64}},
    }}});
    let config = config_from_dict(&json).expect("reads");
    let report = quantize_(&mut model, config.as_ref(), is_linear).expect("fits");
    assert_eq!(report.quantized(), report.layers.len() - 1);
    for (fqn, workflow) in [
        ("lm_head", "bf16"),
        ("model.layers.1.mlp.up_proj", "int8-weight-only"),
        ("model.layers.0.mlp.up_proj", "int4-weight-only"),
        ("model.layers.5.self_attn.o_proj", "int8-dynamic-activation-int8-weight"),
    ] {
        assert_eq!(workflow_of(&model, fqn), workflow, "{fqn}");
    }
    let mistyped = by_group_size(&[("model.layers.0.mlp.up_porj", Some(32))]);
    let error = quantize_(&mut model, &mistyped, is_linear).expect_err("no such layer").to_string();
    assert!(error.contains("did you mean model.layers.0.mlp.up_proj?"), "{error}");
}

#[test]
fn patterns_that_no_layer_heeds_are_told() {
    let config = by_group_size(&[
        ("re:.*mlp.*", Some(32)),
        ("re:model\\.layers\\.0\\.mlp\\.up_proj", Some(64)),
        ("re:mlp", Some(64)),
        ("re:.*self_attn.*", None),
        ("_default", Some(128)),
    ]);
    let report = quantize_(&mut tiny(), &config, is_linear).expect("it fits");
    let [shadowed, unmatched] = report.notes.as_slice() else { panic!("{:?}", report.notes) };
    assert!(shadowed.contains("up_proj decides nothing"), "{shadowed}");
    assert!(unmatched.contains("re:mlp matches no linear layer"), "{unmatched}");
    assert!(unmatched.contains("re:.*mlp.*"), "{unmatched}");
    let plain = quantize_(&mut tiny(), &Int4WeightOnlyConfig::default(), is_linear);
    assert!(plain.expect("it fits").notes.is_empty());
}

#[test]
fn every_workflow_is_listed_and_its_default_is_read_by_its_name() {
    for workflow in WORKFLOWS {
        let read = |version| {
            let name = workflow.config_type;
            config_from_dict(&json!({"_type": name, "_version": version, "_data": {}}))
        };
        match read(2).or_else(|_| read(1)) {
            Ok(config) => assert_eq!(config.name(), workflow.name),
            // Those that need another one, or a whole model, say so.
            Err(error) => {
                let error = error.to_string();
                let wants = ["no base_config", "use apply_spinquant"];
                assert!(wants.iter().any(|words| error.contains(words)), "{error}");
            }
        }
    }
    let table = support_table().expect("a table");
    assert_eq!(table.len(), WORKFLOWS.len());
}
