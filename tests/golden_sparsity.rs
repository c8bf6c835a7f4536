//! Masks, Wanda and the 2:4 layout against torchao 0.18 and torch (magnitude, wanda, semi_structured).

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::collections::BTreeMap;

use aolab::Tensor;
use aolab::kernels::Cpu;
use aolab::model::{Mask, Pattern};
use aolab::sparsity::semi_structured::{pack_cutlass, unpack_cutlass};
use aolab::sparsity::wanda::add_square_norms;
use aolab::sparsity::{MagnitudeSparsifier, WandaSparsifier, WeightNormSparsifier};
use golden_support::Family;
use half::f16;

fn bytes(mask: &Mask) -> Tensor {
    let (n, k) = mask.shape();
    let keeps = (0..n * k).map(|at| u8::from(mask.keeps(at / k, at % k))).collect::<Vec<u8>>();
    Tensor::new(keeps, &[n, k]).expect("its shape")
}

#[test]
fn sparsity() {
    let family = Family::read("sparsity");
    let cpu = Cpu::new(Some(2));
    let x = family.tensor("x");
    let mut computed = BTreeMap::new();
    for (name, n, m) in
        [("mask2of4", 2, 4), ("mask1of4", 1, 4), ("mask1of2", 1, 2), ("mask4of8", 4, 8)]
    {
        let config = MagnitudeSparsifier { pattern: Pattern::NOfM { n, m }, ..Default::default() };
        let mask = config.mask(&cpu, &x).expect("it fits");
        computed.insert(name.to_owned(), bytes(&mask));
    }
    let fake = WeightNormSparsifier {
        sparsity_level: 1.0,
        zeros_per_block: Some(2),
        ..Default::default()
    };
    let fake = fake.mask(&x).expect("it fits");
    assert_eq!(bytes(&fake).bytes(), computed["mask2of4"].bytes(), "apply_fake_sparsity");

    let mut sums = vec![0.0; 64];
    for batch in ["wanda.x0", "wanda.x1"] {
        add_square_norms(&mut sums, &family.tensor(batch).to_f32_vec());
    }
    let squared = WandaSparsifier { squared_norm: true, ..Default::default() };
    let forms = [
        ("unstructured", squared.clone()),
        ("s70", WandaSparsifier { sparsity_level: 0.7, ..squared.clone() }),
        ("s24", WandaSparsifier { semi_structured_block_size: Some(4), ..squared }),
    ];
    let mut wanted_sums = Vec::new();
    for (name, config) in &forms {
        let file = family.tensor(&format!("wanda.{name}.norm")).to_f32_vec();
        if *name == "unstructured" {
            // Sums of squares in another order than torch's: a few ulps.
            for (got, wanted) in sums.iter().zip(&file) {
                assert!((got - wanted).abs() <= 4.0 * f32::EPSILON * wanted, "{got} {wanted}");
            }
            wanted_sums = file.clone();
        }
        computed.insert(
            format!("wanda.{name}.norm"),
            Tensor::new(file.clone(), &[64]).expect("its shape"),
        );
        let mask = config.mask(&cpu, &x, &file).expect("it fits");
        computed.insert(format!("wanda.{name}.mask"), bytes(&mask));
    }
    // The norm itself ranks otherwise than its square.
    let ours = WandaSparsifier::default().mask(&cpu, &x, &wanted_sums).expect("it fits");
    assert_ne!(bytes(&ours).bytes(), computed["wanda.unstructured.mask"].bytes());
    assert_eq!(ours.kept(), 512);

    let halves = family.tensor("pack24.dense");
    let dense = halves.as_slice::<f16>().expect("f16");
    let packed = pack_cutlass(dense, (32, 64)).expect("2:4");
    assert_eq!(unpack_cutlass(&packed, (32, 64)).expect("its shape"), dense);
    let words: Vec<u8> =
        packed.meta.iter().flat_map(|word| word.to_le_bytes()[..2].to_vec()).collect();
    assert_eq!(words, family.raw("pack24.meta"), "pack24.meta");
    computed
        .insert("pack24.values".into(), Tensor::new(packed.values, &[32, 32]).expect("its shape"));

    let codes = family.tensor("pack24i8.dense");
    let dense = codes.as_slice::<i8>().expect("i8");
    let packed = pack_cutlass(dense, (32, 128)).expect("2:4");
    assert_eq!(unpack_cutlass(&packed, (32, 128)).expect("its shape"), dense);
    let words: Vec<i32> = packed.meta.iter().map(|word| word.cast_signed()).collect();
    computed.insert("pack24i8.meta".into(), Tensor::new(words, &[32, 4]).expect("its shape"));
    computed.insert(
        "pack24i8.values".into(),
        Tensor::new(packed.values, &[32, 64]).expect("its shape"),
    );
    let inputs = ["x", "wanda.x0", "wanda.x1", "pack24.dense", "pack24i8.dense", "pack24.meta"];
    family.check(&computed, &inputs);
}
