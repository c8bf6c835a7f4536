//! Which layers float8 training leaves alone (F07), and what its blocks compute (F12). What the other recipes compute is among the
//! golden vectors: float8_training, in tests/golden_vectors.rs.

use aolab::Tensor;
use aolab::autograd::Tape;
use aolab::kernels::Cpu;
use aolab::kernels::dtypes::{e4m3fn_decode, e4m3fn_encode_saturating};
use aolab::training::float8::{Recipe, auto_filter_for_recipe, float8_linear};

#[test]
fn the_filter_leaves_small_layers_alone() {
    let keeps = |recipe, fqn: &str, shape| {
        auto_filter_for_recipe(recipe, &["head".to_owned()], fqn, shape).expect("a filter")
    };
    assert!(keeps(Recipe::Tensorwise, "mlp", (2048, 4096)));
    assert!(!keeps(Recipe::Tensorwise, "mlp", (1024, 4096)));
    assert!(!keeps(Recipe::Tensorwise, "mlp", (2047, 8192)), "N is no multiple of 16");
    assert!(!keeps(Recipe::Tensorwise, "lm_head", (2048, 8192)), "named");
    assert!(keeps(Recipe::Rowwise, "mlp", (4096, 4096)));
    assert!(!keeps(Recipe::Rowwise, "mlp", (4096, 2048)));
    assert!(auto_filter_for_recipe(Recipe::RowwiseWithGwHp, &[], "mlp", (4096, 4096)).is_err());
    assert!(auto_filter_for_recipe(Recipe::Blockwise, &[], "mlp", (4096, 4096)).is_err());
}

#[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as torchao's scales are")]
fn to_f32(x: f64) -> f32 {
    x as f32
}

/// A matrix as torchao's blocks hold it, from the definition alone: blocks of `rows` × `columns`, a scale each.
fn through_blocks(x: &[f32], k: usize, (rows, columns): (usize, usize)) -> Vec<f64> {
    let m = x.len() / k;
    let block_of = |i: usize| (i / k / rows, i % k / columns);
    (0..m * k)
        .map(|i| {
            let amax = (0..m * k)
                .filter(|j| block_of(*j) == block_of(i))
                .fold(0.0_f64, |most, j| most.max(f64::from(x[j]).abs()));
            let scale = to_f32(448.0 / amax.max(1e-12));
            let code = e4m3fn_decode(e4m3fn_encode_saturating(x[i] * scale));
            f64::from(code * (1.0 / scale))
        })
        .collect()
}

/// `Σ a[i, p] · b[p, j]` in f64, each given by a function.
fn product(
    (m, n, k): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    (0..m * n).map(|i| (0..k).map(|p| a(i / n, p) * b(p, i % n)).sum()).collect()
}

fn assert_near(what: &str, got: &Tensor, wanted: &[f64]) {
    let most = wanted.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    for (got, wanted) in got.to_f32_vec().iter().zip(wanted) {
        assert!((f64::from(*got) - wanted).abs() <= 1e-5 * most, "{what}: {got} {wanted}");
    }
}

#[test]
fn blocks_have_their_own_scales_in_all_three_products() {
    // No side is a multiple of 128; magnitudes differ from block to block, one block of x and of dy is zero.
    let (m, n, k) = (130, 140, 150);
    let mut rng = aolab::rng::Rng::new(23);
    let mut random = |rows: usize, columns: usize, empty: bool| -> Vec<f32> {
        (0..rows * columns)
            .map(|i| {
                let (row, column) = (i / columns, i % columns);
                let size =
                    if row < 128 { 1.0 } else { 300.0 } * if column < 128 { 1.0 } else { 0.01 };
                if empty && row >= 128 && column >= 128 { 0.0 } else { rng.normal() * size }
            })
            .collect()
    };
    let (x, w, dy) = (random(m, k, true), random(n, k, false), random(m, n, true));
    let tape = Tape::new(&Cpu::new(Some(3)));
    let leaf =
        |x: &[f32], shape: [usize; 2]| tape.leaf(Tensor::new(x.to_vec(), &shape).expect("whole"));
    let (x_var, w_var) = (leaf(&x, [m, k]), leaf(&w, [n, k]));
    let y = float8_linear(&tape, Recipe::Blockwise, &x_var, &w_var).expect("a layer");
    let seed = Tensor::new(dy.clone(), &[m, n]).expect("whole");
    let mut gradients = tape.backward_from(&y, seed).expect("gradients");
    let (dx, dw) = (gradients.take(&x_var).expect("of x"), gradients.take(&w_var).expect("of W"));

    let (low_x, low_w) = (through_blocks(&x, k, (1, 128)), through_blocks(&w, k, (128, 128)));
    assert_near(
        "y",
        y.value(),
        &product((m, n, k), |i, p| low_x[i * k + p], |p, j| low_w[j * k + p]),
    );
    let low_dy = through_blocks(&dy, n, (1, 128));
    assert_near("dx", &dx, &product((m, k, n), |i, p| low_dy[i * n + p], |p, j| low_w[p * k + j]));
    let (low_dy, low_x) = (through_blocks(&dy, n, (128, 1)), through_blocks(&x, k, (128, 1)));
    assert_near("dW", &dw, &product((n, k, m), |i, p| low_dy[p * n + i], |p, j| low_x[p * k + j]));
}
