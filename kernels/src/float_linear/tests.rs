//! Every element, every kind of scale, every instruction set, against the formula in f64.

use super::*;
use crate::sample::Sample;

/// Every element with the scales that its formats have, and groups besides.
fn cases(element: Element, numbers: &mut Sample, (n, k): (usize, usize)) -> Vec<Scales> {
    let mut scale = |len: usize| -> Vec<f32> { (0..len).map(|_| numbers.unit() * 0.1).collect() };
    let mut all = vec![
        Scales::Tensor(0.37),
        Scales::Groups { values: scale(n), group_size: k },
        Scales::Blocks128(scale(n.div_ceil(128) * k.div_ceil(128))),
    ];
    if k.is_multiple_of(32) {
        all.push(Scales::Groups { values: scale(n * (k / 32)), group_size: 32 });
        let codes = (0..n * (k / 32)).map(|i| [0, 1, 100, 126, 127, 128, 140][i % 7]).collect();
        all.push(Scales::E8m0(codes));
    }
    if k.is_multiple_of(96) {
        all.push(Scales::Groups { values: scale(n * (k / 96)), group_size: 96 });
    }
    if element == Element::E2m1 && k.is_multiple_of(16) {
        let codes = (0..n * (k / 16)).map(|i| [0, 1, 8, 60, 0x7E, 0x38][i % 6]).collect();
        all.push(Scales::E4m3 { codes, factor: 0.013 });
    }
    all
}

fn random_codes(element: Element, numbers: &mut Sample, len: usize) -> Vec<u8> {
    let code = |numbers: &mut Sample| {
        let code = numbers.bits().to_le_bytes()[3] >> (8 - element.bits());
        if element.is_special(code) { 1 } else { code }
    };
    (0..len).map(|_| code(numbers)).collect()
}

/// Packs, checks that everything comes back, and compares each instruction set with the f64 formula.
fn check(element: Element, scales: &Scales, shape: Shape, numbers: &mut Sample) {
    let Shape { m, n, k } = shape;
    let codes = random_codes(element, numbers, n * k);
    let cpu = Cpu::new(Some(2));
    let row = |i: usize, to: &mut [u8]| to.copy_from_slice(&codes[i * k..][..k]);
    let w = Panels::pack(&cpu, element, (n, k), scales.clone(), row);
    assert_eq!(&w.scales(), scales, "{element:?} {shape:?}");
    let mut back = vec![0; k];
    for i in 0..n {
        w.row_codes(i, &mut back);
        assert_eq!(back, codes[i * k..][..k], "{element:?} {scales:?} row {i}");
    }
    let x = numbers.vec(m * k, 3.0);
    let mut values = vec![f32::NAN; n * k];
    w.dequantize(0..n, 0..k, &mut values, k);
    for (i, value) in values.iter().enumerate() {
        let wanted = element.decode(codes[i]) * w.scale(i / k, i % k);
        assert_eq!(value.to_bits(), wanted.to_bits(), "{element:?} {scales:?} at {i}");
    }
    for isa in Isa::available() {
        let mut y = vec![f32::NAN; m * n];
        linear(&Cpu::with_isa(isa, Some(2)), &w, &x, &mut y, shape);
        for (at, y) in y.iter().enumerate() {
            let (x, w) = (&x[at / n * k..][..k], &values[at % n * k..][..k]);
            let wanted: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let allowed = bound(x, w);
            let off = (f64::from(*y) - wanted).abs();
            let case = format!("{element:?} {scales:?} {shape:?} {}", isa.name());
            assert!(off <= allowed, "y[{at}] is {y}, wanted {wanted} ± {allowed}: {case}");
        }
    }
}

/// The bound at the head of the kernel.
fn bound(x: &[f32], w: &[f32]) -> f64 {
    let mut sum = 1e-30;
    for (x, w) in x.chunks(32).zip(w.chunks(32)) {
        let amax = x.iter().fold(0.0_f32, |amax, x| amax.max(x.abs()));
        sum +=
            f64::from(amax) * 2.0_f64.powi(-15) * w.iter().map(|w| f64::from(w.abs())).sum::<f64>();
    }
    let products: f64 = x.iter().zip(w).map(|(x, w)| f64::from(x * w).abs()).sum();
    sum + x.len() as f64 * 2.0_f64.powi(-22) * products
}

#[test]
fn every_instruction_set_is_within_the_bound() {
    let mut numbers = Sample(0xf10a7);
    let odd =
        [Shape { m: 2, n: 19, k: 50 }, Shape { m: 1, n: 3, k: 1 }, Shape { m: 1, n: 20, k: 48 }];
    for element in Element::ALL {
        for shape in SHAPES.into_iter().chain(odd) {
            for scales in cases(element, &mut numbers, (shape.n, shape.k)) {
                check(element, &scales, shape, &mut numbers);
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let shape = Shape { m: 2, n: 18, k: 64 };
    let Shape { m, n, k } = shape;
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(1));
        let run = |element, scales: Scales, code: u8, x: f32| {
            let row = |i: usize, to: &mut [u8]| to.fill(if i == 17 { code } else { 1 });
            let w = Panels::pack(&cpu, element, (n, k), scales, row);
            let mut activations = vec![1.0; m * k];
            activations[k + 40] = x;
            let mut y = vec![f32::NAN; m * n];
            linear(&cpu, &w, &activations, &mut y, shape);
            y
        };
        let y = run(Element::E4m3, Scales::Tensor(1.0), 0x7F, 1.0);
        assert!(y[17].is_nan() && y[16].is_finite(), "{}", isa.name());
        let y = run(Element::E5m2, Scales::Tensor(1.0), 0x7C, 1.0);
        assert!(y[17].is_infinite() && y[16].is_finite(), "{}", isa.name());
        for element in Element::ALL {
            let y = run(element, Scales::Tensor(1.0), 1, f32::INFINITY);
            assert!(y[n].is_infinite() && y[0].is_finite(), "{element:?} {}", isa.name());
            let y = run(element, Scales::Tensor(1.0), 1, f32::NAN);
            assert!(y[n].is_nan() && y[0].is_finite(), "{element:?} {}", isa.name());
        }
        let codes: Vec<u8> = (0..n * 2).map(|i| if i == 35 { 255 } else { 127 }).collect();
        let y = run(Element::E2m1, Scales::E8m0(codes), 1, 1.0);
        assert!(y[17].is_nan() && y[16].is_finite(), "{}", isa.name());
    }
}
