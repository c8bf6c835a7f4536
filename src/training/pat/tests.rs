use super::*;
use crate::kernels::Cpu;
use crate::rng::Rng;

fn draw(len: usize) -> Vec<f32> {
    let mut rng = Rng::new(9);
    (0..len).map(|_| rng.normal()).collect()
}

fn applied(prox: Prox, group: Grouper, values: &[f32], shape: (usize, usize), t: f64) -> Vec<f32> {
    let mut out = values.to_vec();
    prox.apply(group, &mut out, shape, t).expect("it fits");
    out
}

#[test]
fn shrinking_maps_are_their_formulas() {
    let w = [3.0, -4.0, 0.0, 0.3, -0.2, 0.1];
    let lasso = applied(Prox::Lasso, Grouper::Elem, &w, (2, 3), 0.5);
    for (got, wanted) in lasso.iter().zip([2.5, -3.5, 0.0, 0.0, 0.0, 0.0]) {
        assert!((got - wanted).abs() < 1e-6, "{lasso:?}");
    }
    // The first row is 5 long: 0.5 · √3 of it go; the second is shorter than that.
    let rows = applied(Prox::GroupLasso, Grouper::Dim0, &w, (2, 3), 0.5);
    let share = 1.0 - 0.5 * 3.0_f32.sqrt() / 5.0;
    for (got, wanted) in rows.iter().zip([3.0 * share, -4.0 * share, 0.0, 0.0, 0.0, 0.0]) {
        assert!((got - wanted).abs() < 1e-6, "{rows:?}");
    }
    // A threshold of 0 changes nothing, not even zeros.
    assert_eq!(applied(Prox::Lasso, Grouper::Elem, &w, (2, 3), 0.0), w);
    assert_eq!(applied(Prox::GroupLasso, Grouper::Dim1, &[0.0; 6], (2, 3), 0.0), [0.0; 6]);
}

#[test]
fn constraints_zero_the_shortest_groups() {
    let w = [1.0, 0.1, 5.0, 0.2, 0.3, -0.4];
    let rows = Prox::MinSparsity(0.5);
    assert_eq!(applied(rows, Grouper::Dim0, &w, (2, 3), 9.0), [1.0, 0.1, 5.0, 0.0, 0.0, 0.0]);
    assert_eq!(applied(rows, Grouper::Dim1, &w, (2, 3), 9.0), [0.0, 0.0, 5.0, 0.0, 0.0, -0.4]);
    assert_eq!(applied(rows, Grouper::Elem, &w, (2, 3), 9.0), [1.0, 0.0, 5.0, 0.0, 0.0, -0.4]);
    let heads = applied(rows, Grouper::HeadRows(2), &[1.0, 1.0, 2.0, 2.0], (4, 1), 0.0);
    assert_eq!(heads, [0.0, 0.0, 2.0, 2.0]);
    // ⌈0.4 · 4⌉ groups of two; the last of a row of three has one number.
    let pairs = applied(Prox::MinSparsity(0.4), Grouper::KElement(2), &w, (2, 3), 0.0);
    assert_eq!(pairs, [1.0, 0.1, 5.0, 0.0, 0.0, 0.0]);
    let two = applied(Prox::NMSparse(2), Grouper::KElement(4), &[1.0, -3.0, 2.0, 0.5], (1, 4), 0.0);
    assert_eq!(two, [0.0, -3.0, 2.0, 0.0]);
    assert_eq!(applied(Prox::MinSparsity(1.0), Grouper::Layer, &w, (2, 3), 0.0), [0.0; 6]);
}

#[test]
fn singular_values_shrink_and_ranks_fall() {
    for (n, k) in [(6, 9), (9, 6)] {
        let w = draw(n * k);
        let whole = applied(Prox::NuclearNorm, Grouper::Svd, &w, (n, k), 0.0);
        assert!(whole.iter().zip(&w).all(|(a, b)| (a - b).abs() < 1e-5));
        let half = applied(Prox::MinRank(0.5), Grouper::Svd, &w, (n, k), 0.0);
        let again = applied(Prox::MinRank(0.5), Grouper::Svd, &half, (n, k), 0.0);
        assert!(half.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-5), "rank 3 stays");
        assert!(half.iter().zip(&w).any(|(a, b)| (a - b).abs() > 0.1));
        // The nuclear norm falls by the threshold for each value above it: the trace of A · Wᵀ of one of rank 1.
        let one: Vec<f32> = (0..n * k).map(|at| w[at / k] * w[n + at % k]).collect();
        let length = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let less = applied(Prox::NuclearNorm, Grouper::Svd, &one, (n, k), 0.25);
        assert!((length(&one) - length(&less) - 0.25).abs() < 1e-5);
    }
}

#[test]
fn one_budget_takes_from_the_weakest_layers() {
    let mut weights = [
        (vec![1.0, 1.0, 2.0, 2.0], (2, 2)),
        (vec![0.1, 0.1, 0.1, 0.1, 9.0, 9.0, 9.0, 9.0], (2, 4)),
    ];
    prune_globally(Grouper::Dim0, (0.5, Score::Rms), &mut weights).expect("it fits");
    assert_eq!(weights[0].0, [0.0, 0.0, 2.0, 2.0]);
    assert_eq!(weights[1].0, [0.0, 0.0, 0.0, 0.0, 9.0, 9.0, 9.0, 9.0]);
    let mut odd = [(vec![1.0; 6], (2, 3))];
    assert!(prune_globally(Grouper::KElement(2), (0.5, Score::L2), &mut odd).is_err());
}

#[test]
fn words_come_back_and_nonsense_is_refused() {
    for word in [
        "lasso",
        "group-lasso",
        "nuclear-norm",
        "min-sparsity:0.5",
        "global-min-sparsity:0.25:l2",
        "min-rank:0.5",
        "nm-sparse:2",
    ] {
        let prox: Prox = word.parse().expect(word);
        assert_eq!(prox.to_string(), word);
        assert!(
            PatRule::new(PatConfig::new(prox, prox.usual_group()), TrainConfig::default()).is_ok()
        );
    }
    for word in ["elem", "layer", "dim0", "dim1", "k-element:4", "head-rows:32", "svd"] {
        assert_eq!(word.parse::<Grouper>().expect(word).to_string(), word);
    }
    assert!("lasso:1".parse::<Prox>().is_err() && "min-rank:x".parse::<Prox>().is_err());
    assert!("rows".parse::<Grouper>().is_err());
    let refused = |config: PatConfig| PatRule::new(config, TrainConfig::default()).is_err();
    assert!(refused(PatConfig::new(Prox::NuclearNorm, Grouper::Dim0)));
    assert!(refused(PatConfig::new(Prox::Lasso, Grouper::Svd)));
    assert!(refused(PatConfig::new(Prox::MinSparsity(1.5), Grouper::Dim0)));
    assert!(refused(PatConfig::new(Prox::NMSparse(5), Grouper::KElement(4))));
    let lasso = PatConfig::new(Prox::Lasso, Grouper::Elem);
    assert!(refused(PatConfig { warmup_steps: 3, healing_start_step: Some(3), ..lasso }));
    assert!(refused(PatConfig { min_sparsity_schedule: true, ..lasso }));
    assert!(refused(PatConfig { reg_lambda: f64::NAN, ..lasso }));
}

#[test]
fn shares_rise_as_a_cubic_and_end_before_healing() {
    let config = PatConfig {
        warmup_steps: 2,
        healing_start_step: Some(10),
        min_sparsity_schedule: true,
        prox_freq: 3,
        ..PatConfig::new(Prox::MinSparsity(0.8), Grouper::Dim0)
    };
    let share = |step| config.prox_at(step).target().expect("a share");
    assert_eq!((share(0), share(2), share(9), share(20)), (0.0, 0.0, 0.8, 0.8));
    assert!((share(6) - 0.8 * (1.0 - 0.125)).abs() < 1e-12, "{}", share(6));
    let prunes: Vec<usize> = (0..10).filter(|step| config.prunes(*step)).collect();
    assert_eq!(prunes, [2, 5, 8, 9]);
}

/// Three steps of pruning, then healing, with made-up moves in place of an optimizer.
#[test]
fn latent_weights_are_pruned_and_healing_keeps_the_zeros() {
    let run = TrainConfig {
        lr: 0.5,
        warmup: 0,
        schedule: crate::training::Schedule::Constant,
        ..TrainConfig::default()
    };
    let config = PatConfig {
        reg_lambda: 1.0,
        warmup_steps: 1,
        healing_start_step: Some(3),
        ..PatConfig::new(Prox::Lasso, Grouper::Elem)
    };
    let rule = PatRule::new(config, run).expect("sound");
    let name = "model.layers.0.mlp.up_proj";
    let mut parameters = Parameters::default();
    let put = |parameters: &mut Parameters, w: [f32; 4]| {
        let w = Tensor::new(w.to_vec(), &[2, 2]).expect("2 × 2");
        parameters.set(&format!("{name}.weight"), w);
    };
    put(&mut parameters, [1.0, -2.0, 0.25, 4.0]);
    rule.prepare(&mut parameters).expect("it fits");
    let seen = |parameters: &Parameters| {
        let plain = rule.finish(parameters).expect("plain");
        plain.get(&format!("{name}.weight")).expect("it is there").to_f32_vec()
    };
    let latent = |p: &Parameters| p.get(&format!("{name}.weight")).expect("there").to_f32_vec();
    for (step, wanted) in [
        // Warm-up: as it is. Then gamma is 0.5, then 1.
        (0, [1.0, -2.0, 0.25, 4.0]),
        (1, [0.5, -1.5, 0.0, 3.5]),
        (2, [0.0, -1.0, 0.0, 3.0]),
    ] {
        rule.begin_step(step);
        rule.end_step(step, &mut parameters).expect("pruned");
        assert_eq!(seen(&parameters), wanted, "step {step}");
        if step < 2 {
            assert_eq!(latent(&parameters), [1.0, -2.0, 0.25, 4.0], "the latent weight stays");
        }
    }
    assert_eq!(latent(&parameters), [0.0, -1.0, 0.0, 3.0], "healing begins with what was seen");
    rule.begin_step(3);
    let tape = Tape::new(&Cpu::new(Some(1)));
    let vars = parameters.on(&tape, &|name| rule.is_frozen(name)).expect("variables");
    let x = tape.constant(Tensor::new(vec![1.0_f32, 10.0], &[1, 2]).expect("a row"));
    let weight = vars.get(&format!("{name}.weight")).expect("it is there");
    let y = rule.linear(&tape, name, &x, weight, &vars).expect("a product");
    assert_eq!(y.value().to_f32_vec(), [-10.0, 30.0]);
    let sum = tape.sum(&y).expect("a sum");
    let mut found = tape.backward(&sum).expect("gradients");
    let dw = found.take(weight).expect("a gradient").to_f32_vec();
    assert_eq!(dw, [0.0, 10.0, 0.0, 10.0], "no gradient where a zero stays");
    put(&mut parameters, [0.5, -0.5, 0.5, 0.5]);
    rule.end_step(3, &mut parameters).expect("healed");
    assert_eq!(seen(&parameters), [0.0, -0.5, 0.0, 0.5]);
    assert_eq!(latent(&parameters), [0.0, -0.5, 0.0, 0.5]);
}
