//! ParetoQ's quantizers and their gradients against torchao's.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use aolab::autograd::Tape;
use aolab::kernels::Cpu;
use aolab::training::paretoq::ParetoQ;
use golden_support::Family;

#[test]
fn weights_are_bit_exact_and_gradients_to_the_order_of_their_sums() {
    let family = Family::read("paretoq");
    for bits in 0..=4 {
        let tensor = |name: &str| family.tensor(&format!("b{bits}.{name}"));
        let quantizer = ParetoQ::new(bits).expect("known");
        let begin = quantizer.initial_clip_val(&family.tensor("w")).expect("scales");
        for (got, wanted) in begin.to_f32_vec().iter().zip(tensor("begin").to_f32_vec()) {
            assert!((got - wanted).abs() <= 1e-6 * wanted, "{bits}: α {got}, wanted {wanted}");
        }
        for threads in [1, 3] {
            let tape = Tape::new(&Cpu::new(Some(threads)));
            let (w, alpha) = (tape.leaf(family.tensor("w")), tape.leaf(tensor("alpha")));
            let seen = quantizer.quantize(&tape, &w, &alpha).expect("a weight");
            let pairs = seen.value().to_f32_vec().into_iter().zip(tensor("seen").to_f32_vec());
            for (i, (got, wanted)) in pairs.enumerate() {
                let same = (got + 0.0).to_bits() == (wanted + 0.0).to_bits();
                assert!(same, "{bits} bits [{i}]: {got}, wanted {wanted}");
            }
            let gradients = tape.backward_from(&seen, family.tensor("dy")).expect("gradients");
            let dw = gradients.of(&w).expect("of w").to_f32_vec();
            for (i, (got, wanted)) in dw.iter().zip(tensor("dw").to_f32_vec()).enumerate() {
                assert!((got - wanted).abs() < 1e-30, "{bits} bits dw[{i}]: {got}, {wanted}");
            }
            let dalpha = gradients.of(&alpha).expect("of α").to_f32_vec();
            for (i, (got, wanted)) in dalpha.iter().zip(tensor("dalpha").to_f32_vec()).enumerate() {
                // 48 terms of up to 8 · |dy|, scaled by 1 / √384.
                assert!((got - wanted).abs() < 2e-5, "{bits} bits dα[{i}]: {got}, {wanted}");
            }
        }
    }
    assert!(ParetoQ::new(5).is_err());
}
