//! Searches over workflows: the best mix within a budget, and the fastest workflow for each layer.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use aolab::data::texts;
use aolab::kernels::Cpu;
use aolab::model::{Linear, Model};
use aolab::quantization::autoquant::{AutoquantCache, AutoquantOptions, autoquant};
use aolab::quantization::calibration::{Sequences, draw};
use aolab::quantization::mixed_precision::{Candidate, LayerChoice, Point, choose, search};
use aolab::quantization::{
    GptqConfig, Int4WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig,
    Recipe, quantize_,
};

fn tiny() -> Model {
    aolab::load("tiny").expect("the built-in model")
}

fn candidate(words: &str, recipe: impl Recipe + 'static) -> Candidate {
    Candidate { words: words.to_owned(), recipe: Some(Arc::new(recipe)) }
}

fn candidates() -> Vec<Candidate> {
    vec![
        Candidate { words: "as it is".to_owned(), recipe: None },
        candidate("int4", Int4WeightOnlyConfig { group_size: 128, ..Default::default() }),
        candidate("int8", Int8WeightOnlyConfig::default()),
    ]
}

fn layer(points: &[(usize, f64)]) -> LayerChoice {
    let point = |(candidate, (nbytes, kl)): (usize, &(usize, f64))| Point {
        candidate,
        nbytes: *nbytes,
        kl: *kl,
    };
    LayerChoice {
        fqn: String::new(),
        shape: (1, 8),
        points: points.iter().enumerate().map(point).collect(),
        chosen: 0,
    }
}

#[test]
fn the_budget_goes_where_it_saves_most() {
    // 8 weights each: bytes are bits a weight. The middle point of the second layer lies above its hull.
    let layers = [
        layer(&[(16, 0.0), (8, 1.0), (4, 9.0)]),
        layer(&[(16, 0.0), (8, 0.39), (4, 0.4)]),
        layer(&[(4, 2.0), (8, 3.0)]),
    ];
    for (target, wanted) in
        [(4.0, [2, 2, 0]), (5.4, [1, 2, 0]), (8.0, [0, 2, 0]), (12.0, [0, 0, 0])]
    {
        let mut layers = layers.clone();
        choose(&mut layers, target).expect("a mix that small exists");
        let chosen: Vec<usize> = layers.iter().map(|layer| layer.chosen).collect();
        assert_eq!(chosen, wanted, "{target} bits");
        let spent: usize = layers.iter().map(|layer| layer.points[layer.chosen].nbytes).sum();
        assert!(
            f64::from(u32::try_from(spent).expect("few")) <= 3.0 * target,
            "{target} bits: {spent}"
        );
    }
    let error = choose(&mut layers.clone(), 3.9).expect_err("too small").to_string();
    assert!(error.contains("smallest mix has 4.000 bits"), "{error}");
}

#[test]
fn a_mix_stays_within_its_target_and_can_be_calibrated() {
    let (cpu, base) = (Cpu::new(Some(2)), tiny());
    let wanted = Sequences { count: 1, length: 128, seed: 1 };
    let sequences = draw(&base, texts::CALIBRATION, &wanted).expect("draws");
    let filter = |fqn: &str, _: &Linear| fqn.contains("layers.1.") || fqn == "lm_head";
    let mix = search(&cpu, &base, candidates(), 6.0, &filter, &sequences, &mut |_, _| true);
    let mix = mix.expect("searches");
    assert_eq!(mix.layers.len(), 8);
    assert!(
        mix.bits_per_weight() <= 6.0 && mix.bits_per_weight() > 4.5,
        "{}",
        mix.bits_per_weight()
    );
    for layer in &mix.layers {
        let [original, int4, int8] = &layer.points[..] else { panic!("three candidates") };
        assert!(original.kl < int8.kl && int8.kl < int4.kl, "{}: {:?}", layer.fqn, layer.points);
    }
    let mut model = base.clone();
    let recipe = mix.recipe(&|recipe| recipe).expect("sound keys");
    let report = quantize_(&mut model, &recipe, filter).expect("quantizes");
    let nbytes: usize = mix.layers.iter().map(|layer| layer.points[layer.chosen].nbytes).sum();
    let taken = report.layers.iter().filter(|layer| filter(&layer.fqn, &model.linears()[0].1));
    assert_eq!(taken.map(|layer| layer.nbytes_after).sum::<usize>(), nbytes);
    assert_eq!(mix.table().expect("a table").len(), 8);
    let around = mix.recipe(&|recipe| Arc::new(GptqConfig::new(recipe))).expect("sound keys");
    assert!(around.entries().any(|(_, recipe)| recipe.is_some_and(|r| r.calibrated().is_some())));
    let stopped = search(&cpu, &base, candidates(), 6.0, &filter, &sequences, &mut |_, _| false);
    assert!(stopped.expect_err("stopped").is_cancelled());
}

#[test]
fn autoquant_takes_no_time_twice_and_nothing_that_loses_too_much() {
    let (cpu, base) = (Cpu::new(Some(1)), tiny());
    let all = || {
        let mut all = candidates();
        all.push(candidate("int8dq", Int8DynamicActivationInt8WeightConfig::default()));
        all
    };
    let filter = |fqn: &str, _: &Linear| fqn.contains("layers.0.self_attn");
    let options =
        AutoquantOptions { min_sqnr: Some(30.0), seconds: 0.002, ..AutoquantOptions::default() };
    let mut cache = AutoquantCache::default();
    let run = |cache: &mut AutoquantCache| {
        let list = (all(), &filter as &_);
        autoquant(&cpu, &base, list, &options, cache, &mut |_, _| true).expect("runs")
    };
    let first = run(&mut cache);
    let known = cache.len();
    assert!(known > 0);
    let again = run(&mut cache);
    assert_eq!(cache.len(), known, "the second run timed something");
    for (a, b) in first.layers.iter().zip(&again.layers) {
        assert_eq!(a.won, b.won, "{}", a.fqn);
        let int4 = &a.tried[1];
        assert!(int4.us.is_none() && int4.sqnr_db.is_some_and(|db| db < 30.0), "{int4:?}");
        assert!(a.tried[2].sqnr_db.is_some_and(|db| db > 30.0), "{:?}", a.tried[2]);
        let fastest = a.tried.iter().filter_map(|tried| tried.us).fold(f64::INFINITY, f64::min);
        assert!(a.tried[a.won].us.is_some_and(|us| us <= fastest), "{}", a.fqn);
    }
    let kept: AutoquantCache =
        serde_json::from_value(serde_json::to_value(&cache).expect("to JSON")).expect("and back");
    assert_eq!(kept.len(), known);
    let mut model = base.clone();
    let recipe = first.recipe().expect("sound keys");
    quantize_(&mut model, &recipe, filter).expect("quantizes");
    assert!(first.table().expect("a table").len() >= 4);
}
