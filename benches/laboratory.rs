//! What a person waits for at the prompt: the run store, undo, completion, a picture.
//!
//! `cargo bench --bench laboratory`. The goals: 10,000 runs filtered and sorted in 50 ms, `undo` in 1 ms, completion among the names of
//! 1,000 layers in 20 ms, a heat map of 300 layers in 300 ms.

use std::hint::black_box;
use std::time::Duration;

use aolab::Session;
use aolab::command::{Names, complete};
use aolab::plot::{PlotConfig, PlotKind, figure};
use aolab::store::{Metric, Query, Run, RunStore};
use aolab::table::{Cell, Table};
use criterion::{Criterion, criterion_group, criterion_main};

fn store(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = RunStore::open(&folder.path().join("runs.sqlite")).expect("a store");
    let metric =
        |name: &str, unit: &str, value| Metric { name: name.into(), unit: unit.into(), value };
    let run = |i: u32| Run {
        started: i64::from(i),
        line: format!("load tiny | quantize int4-weight-only --group-size {i} | eval perplexity"),
        subject: format!("tiny-{}", i % 7),
        status: "done".into(),
        metrics: vec![
            metric("perplexity", "", 20.0 + f64::from(i % 1000) / 10.0),
            metric("speed", "tok/s", f64::from(i * 7919 % 10_007)),
            metric("mean NLL", "", 3.0),
            metric("bits", "bits a weight", 4.5),
            metric("model size", "B", 1e7),
        ],
        ..Run::default()
    };
    store.insert(&(0..10_000).map(run).collect::<Vec<_>>()).expect("10,000 rows");
    c.bench_function("store/10000-runs-filtered-and-sorted", |bencher| {
        let query = Query {
            filter: "perplexity < 30 and model ~ tiny".into(),
            sort: Some("tok/s".into()),
            limit: Some(30),
            ..Query::default()
        };
        bencher.iter(|| black_box(store.query(&query).expect("rows")));
    });
    c.bench_function("store/one-run-written", |bencher| {
        bencher.iter(|| store.insert(&[run(1)]).expect("a row"));
    });
}

fn undo(c: &mut Criterion) {
    let mut lab = Session::new();
    lab.run(
        "a = load tiny; b = $a | quantize int8-weight-only; c = $a | quantize int4-weight-only",
    )
    .expect("three models");
    c.bench_function("session/undo-and-redo", |bencher| {
        bencher.iter(|| {
            black_box(lab.undo().expect("a step back"));
            black_box(lab.redo().expect("and forth"));
        });
    });
}

fn completion(c: &mut Criterion) {
    let layers = (0..1000).map(|i| format!("model.layers.{}.mlp.part_{}", i / 7, i % 7));
    let names = Names::with_layers(layers.collect());
    let line = "quantize tiny int4-weight-only --filter model.layers.1";
    c.bench_function("completion/1000-layers", |bencher| {
        bencher.iter(|| black_box(complete(&names, line, line.len())));
    });
    c.bench_function("completion/commands", |bencher| {
        bencher.iter(|| black_box(complete(&names, "load tiny | q", 13)));
    });
}

/// A row a layer, six numbers each, as SVG, as PNG and as text.
fn heat_map(c: &mut Criterion) {
    let mut table = Table::new("Errors").column("layer");
    let parts = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"];
    for part in parts {
        table = table.column_unit(part, "dB");
    }
    for i in 0..300_u32 {
        let numbers = (0..6_u32).map(|j| Cell::Float(f64::from((i * 37 + j * 101) % 400) / 10.0));
        let row = std::iter::once(Cell::from(format!("model.layers.{i}"))).chain(numbers);
        table.push(row).expect("seven cells");
    }
    let config = PlotConfig {
        kind: PlotKind::HeatMap,
        x: Some("layer".to_owned()),
        y: parts.map(str::to_owned).to_vec(),
        ..PlotConfig::default()
    };
    let draw = || figure(&table, &config).expect("a heat map");
    c.bench_function("plot/heat-map-300-layers-svg", |bencher| {
        bencher.iter(|| black_box(draw().to_svg().expect("an SVG")));
    });
    c.bench_function("plot/heat-map-300-layers-png", |bencher| {
        bencher.iter(|| {
            let drawn = draw();
            let (width, height) = drawn.size();
            black_box(drawn.to_png(width, height).expect("a PNG"))
        });
    });
    c.bench_function("plot/heat-map-300-layers-terminal", |bencher| {
        bencher.iter(|| black_box(draw().to_text(120, 40, true)));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(2));
    targets = store, undo, completion, heat_map
}
criterion_main!(benches);
