//! Which layers float8 training leaves alone (F01–F03). What it computes is among the golden vectors: float8_training,
//! quantized_training, in tests/golden_vectors.rs.

use aolab::training::float8::{Recipe, auto_filter_for_recipe};

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
}
