//! float8 training (F01–F03), int8 mixed precision and BitNet (R01–R03) against torchao's: scales and codes bit for bit,
//! matmuls forward and backward to the order of their sums.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::collections::BTreeMap;

use aolab::autograd::{Tape, Var};
use aolab::kernels::Cpu;
use aolab::kernels::matmul::Matrix;
use aolab::training::float8::{
    Axis, Cast, Format, Recipe, auto_filter_for_recipe, cast_to_float8, float8_linear,
};
use aolab::training::int8::{
    Int8MixedPrecisionTrainingConfig, bitnet_linear, quantize_bitnet_weight, quantize_int8_rowwise,
};
use aolab::{DType, Tensor};
use golden_support::Family;

/// y, gx and gw of a layer on one and on three threads, which must agree.
fn layer(
    [x, w, g]: [&Tensor; 3],
    f: impl Fn(&Tape, &Var, &Var) -> aolab::Result<Var>,
) -> [Tensor; 3] {
    let run = |threads| {
        let tape = Tape::new(&Cpu::new(Some(threads)));
        let (x, w) = (tape.leaf(x.clone()), tape.leaf(w.clone()));
        let y = f(&tape, &x, &w).expect("a layer");
        let mut gradients = tape.backward_from(&y, g.clone()).expect("gradients");
        let gx = gradients.take(&x).expect("of x");
        [y.value().clone(), gx, gradients.take(&w).expect("of w")]
    };
    let (one, three) = (run(1), run(3));
    assert!(one.iter().zip(&three).all(|(a, b)| a.bytes() == b.bytes()), "threads");
    one
}

/// Sums of `terms` products, each at most `size`, in another order.
fn close(name: &str, got: &Tensor, wanted: &Tensor, ulp: f32, size: f32) {
    assert_eq!(got.shape(), wanted.shape(), "{name}");
    for (i, (got, wanted)) in got.to_f32_vec().iter().zip(wanted.to_f32_vec()).enumerate() {
        let bound = ulp * wanted.abs().max(size);
        assert!((got - wanted).abs() <= bound, "{name}[{i}]: wanted {wanted}, got {got}");
    }
}

#[test]
fn float8_scales_and_codes_are_bit_exact() {
    let family = Family::read("float8_training");
    let x = family.tensor("x");
    let values = x.as_slice::<f32>().expect("f32");
    let mut computed = BTreeMap::new();
    for (name, format) in [("e4m3fn", Format::E4m3), ("e5m2", Format::E5m2)] {
        for (axis_name, axis, shape) in [
            ("tensor", Axis::All, &[][..]),
            ("axis0", Axis::Column, &[1, 32][..]),
            ("axis1", Axis::Row, &[16, 1][..]),
        ] {
            for power_of_two in [false, true] {
                let cast = Cast { format, axis, power_of_two };
                let scales = cast.scales(values, 32);
                let key = format!("{name}.{axis_name}.p2{}", u8::from(power_of_two));
                let at = |i: usize| match axis {
                    Axis::All => scales[0],
                    Axis::Row => scales[i / 32],
                    Axis::Column => scales[i % 32],
                };
                let encode = match format {
                    Format::E4m3 => aolab::kernels::dtypes::e4m3fn_encode_saturating,
                    Format::E5m2 => aolab::kernels::dtypes::e5m2_encode_saturating,
                };
                let codes: Vec<u8> =
                    values.iter().enumerate().map(|(i, x)| encode(x * at(i))).collect();
                computed.insert(format!("q.{key}"), Tensor::new(codes, &[16, 32]).expect("ok"));
                let seen = cast_to_float8(&Cpu::new(Some(2)), values, 32, cast);
                for (i, (seen, x)) in seen.iter().zip(values).enumerate() {
                    let wanted = format.round(x * at(i)) / at(i);
                    assert_eq!(seen.to_bits(), wanted.to_bits(), "{key}[{i}]");
                }
                computed.insert(format!("scale.{key}"), Tensor::new(scales, shape).expect("ok"));
            }
        }
    }
    let layers: Vec<String> = ["tensorwise", "rowwise", "rowwise_with_gw_hp"]
        .iter()
        .flat_map(|recipe| ["f32", "bf16"].map(|dtype| format!("{recipe}.{dtype}")))
        .flat_map(|name| ["y", "gx", "gw"].map(|part| format!("{name}.{part}")))
        .collect();
    let mut inputs = vec!["x", "lin.w", "lin.b", "lin.x", "lin.gy"];
    inputs.extend(layers.iter().map(String::as_str));
    family.check(&computed, &inputs);
}

#[test]
fn float8_layers_match_in_f32_and_bf16() {
    let family = Family::read("float8_training");
    let bias = family.tensor("lin.b").to_f32_vec();
    for (word, recipe) in [
        ("tensorwise", Recipe::Tensorwise),
        ("rowwise", Recipe::Rowwise),
        ("rowwise_with_gw_hp", Recipe::RowwiseWithGwHp),
    ] {
        assert_eq!(recipe.to_string(), word);
        for (dtype, word_of, ulp) in
            [(DType::F32, "f32", 2.0_f32.powi(-20)), (DType::BF16, "bf16", 2.0_f32.powi(-7))]
        {
            let input = |name: &str| {
                let tensor = family.tensor(name).to_dtype(dtype).expect("a float");
                tensor.to_dtype(DType::F32).expect("a float")
            };
            let (x, w, g) = (input("lin.x"), input("lin.w"), input("lin.gy"));
            let [y, gx, gw] = layer([&x, &w, &g], |tape, x, w| float8_linear(tape, recipe, x, w));
            let biased: Vec<f32> =
                y.to_f32_vec().iter().enumerate().map(|(i, y)| y + bias[i % 16]).collect();
            let y = Tensor::new(biased, y.shape()).expect("its shape");
            for (part, got) in [("y", y), ("gx", gx), ("gw", gw)] {
                let name = format!("{word}.{word_of}.{part}");
                close(&name, &got, &family.tensor(&name), ulp, 4.0);
            }
        }
    }
}

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

#[test]
fn int8_and_ternary_codes_are_bit_exact() {
    let family = Family::read("quantized_training");
    let w = family.tensor("w");
    let values = w.as_slice::<f32>().expect("f32");
    let codes = |codes: &[f32]| {
        let codes: Vec<f32> = codes.to_vec();
        Tensor::new(codes, &[32, 64]).expect("its shape").to_f32_vec()
    };
    let (q, scale) = quantize_int8_rowwise(Matrix::new(values, 32, 64), 1e-12);
    assert_eq!(codes(&q), family.tensor("rowwise.q").to_f32_vec());
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    assert_eq!(bits(&scale), bits(&family.tensor("rowwise.scale").to_f32_vec()));
    let (q, scale) = quantize_bitnet_weight(values);
    assert_eq!(codes(&q), family.tensor("bitnet.q").to_f32_vec());
    let wanted = family.tensor("bitnet.scale").to_f32_vec()[0];
    assert!((scale - wanted).abs() <= wanted * 2.0_f32.powi(-22), "{scale} {wanted}");
}

#[test]
fn int8_and_ternary_layers_match() {
    let family = Family::read("quantized_training");
    let [x, w, g] = ["x", "w", "g"].map(|name| family.tensor(name));
    let ulp = 2.0_f32.powi(-20);
    let check = |name: &str, all: [Tensor; 3]| {
        for (part, got) in ["y", "gx", "gw"].into_iter().zip(all) {
            let name = format!("{name}.{part}");
            close(&name, &got, &family.tensor(&name), ulp, 8.0);
        }
    };
    for (output, gradients) in [(true, true), (true, false), (false, true), (false, false)] {
        let config = Int8MixedPrecisionTrainingConfig {
            output,
            grad_input: gradients,
            grad_weight: gradients,
        };
        let [o, g1] = [output, gradients].map(u8::from);
        let all = layer([&x, &w, &g], |tape, x, w| config.linear(tape, x, w));
        check(&format!("mixed.o{o}gi{g1}gw{g1}"), all);
    }
    check("bitnet", layer([&x, &w, &g], bitnet_linear));
}
