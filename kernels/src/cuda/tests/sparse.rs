//! 2:4 layers: every format, tokens from 1 to some hundreds, odd shapes, stored zeros.

use super::{assert_close, device, from_bf16, poisoned_bf16, poisoned_f32, to_bf16};
use crate::cuda::Device;
use crate::cuda::linear::{HostWeight, Linear, Output, Rows};
use crate::cuda::sparse::{Sparse24Linear, Sparse24Tiling, Stored24};
use crate::sample::Sample;
use crate::sparse24_linear::{codes_of, kept_of, pack_int4};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Bf16,
    Int8,
    Float8,
    Int4 { group: usize, bf16: bool },
}

/// A layer and its rows in f64, zeros and all.
struct Case {
    kind: Kind,
    linear: Sparse24Linear,
    rows: Vec<f64>,
    n: usize,
    k: usize,
    bias: Vec<f64>,
}

/// What an e4m3 code stands for.
fn e4m3(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size = match exponent {
        0 => fraction * 2f64.powi(-9),
        _ => (8.0 + fraction) * 2f64.powi(exponent - 10),
    };
    if code & 0x80 == 0 { size } else { -size }
}

/// The e4m3 number next to `v`, ties to even, beyond 448 saturated.
fn to_e4m3(v: f64) -> f64 {
    let far = |code: &u8| (e4m3(*code) - v.abs()).abs();
    let even = |code: &u8| code & 1;
    let order = |a: &u8, b: &u8| far(a).total_cmp(&far(b)).then(even(a).cmp(&even(b)));
    e4m3((0..0x7f_u8).min_by(order).unwrap_or(0)).copysign(v)
}

impl Case {
    fn new(device: &Device, sample: &mut Sample, kind: Kind, (n, k): (usize, usize)) -> Case {
        let mut keep = vec![false; n * k];
        for four in keep.as_chunks_mut::<4>().0 {
            let (a, b) = (sample.below(4) as usize, sample.below(4) as usize);
            (four[a], four[b]) = (true, true);
        }
        let codes = codes_of(|row, column| keep[row * k + column], (n, k)).expect("2:4");
        let stored_at = |i: usize| crate::sparse24_linear::is_stored(&codes, (i / k, i % k), k);
        let mut byte = || sample.bits().to_le_bytes()[6];
        let bytes: Vec<u8> = (0..n * k).map(|_| byte()).collect();
        let scale: Vec<f32> = sample.vec(n, 0.02).iter().map(|v| v.abs() + 0.001).collect();
        let bias = sample.vec(n, 1.0);
        let make = |stored: Stored24<'_>| {
            Sparse24Linear::new(device, (stored, &codes), (n, k), Some(&bias)).expect("a layer")
        };
        let (linear, dense): (Sparse24Linear, Vec<f64>) = match kind {
            Kind::Bf16 => {
                let w = to_bf16(&sample.vec(n * k, 0.3));
                (make(Stored24::Bf16(&kept_of(&w, &codes, k))), from_bf16(&w))
            }
            Kind::Int8 => {
                let q: Vec<i8> = bytes.iter().map(|b| b.cast_signed()).collect();
                let kept = kept_of(&q, &codes, k);
                let dense = q.iter().enumerate();
                let dense = dense.map(|(i, q)| f64::from(*q) * f64::from(scale[i / k])).collect();
                (make(Stored24::Int8Dynamic { q: &kept, scale: &scale }), dense)
            }
            Kind::Float8 => {
                // Every code but the two that are no numbers.
                let q: Vec<u8> =
                    bytes.iter().map(|b| if b & 0x7f == 0x7f { b ^ 1 } else { *b }).collect();
                let kept = kept_of(&q, &codes, k);
                let dense = q.iter().enumerate();
                let dense = dense.map(|(i, q)| e4m3(*q) * f64::from(scale[i / k])).collect();
                (make(Stored24::Float8Dynamic { q: &kept, scale: &scale }), dense)
            }
            Kind::Int4 { group, bf16 } => {
                let q: Vec<u8> = bytes.iter().map(|b| b & 15).collect();
                let mut scale: Vec<f32> = sample.vec(n * k / group, 0.02);
                if bf16 {
                    scale.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
                }
                let kept = pack_int4(&kept_of(&q, &codes, k), k);
                let dense = q.iter().enumerate();
                let dense = dense
                    .map(|(i, q)| (f64::from(*q) - 8.0) * f64::from(scale[i / group]))
                    .collect();
                (make(Stored24::Int4 { q: &kept, scale: &scale, group_size: group }), dense)
            }
        };
        let zeros = |(i, w): (usize, f64)| if stored_at(i) { w } else { 0.0 };
        let rows = dense.into_iter().enumerate().map(zeros).collect();
        let bias = bias.iter().map(|v| f64::from(*v)).collect();
        Case { kind, linear, rows, n, k, bias }
    }

    /// x as the layer multiplies it: as it is, or rounded to its codes.
    fn activations(&self, x: &[f64]) -> Vec<f64> {
        let by_token = |round: &dyn Fn(&[f64]) -> Vec<f64>| {
            x.chunks_exact(self.k).flat_map(round).collect::<Vec<f64>>()
        };
        let amax = |x: &[f64]| x.iter().fold(0.0_f32, |a, v| a.max(v.abs() as f32));
        match self.kind {
            Kind::Bf16 | Kind::Int4 { .. } => x.to_vec(),
            Kind::Int8 => by_token(&|x| {
                let scale = (amax(x) / 127.5).max(f32::EPSILON);
                let code = |v: &f64| ((*v as f32) * (1.0 / scale)).round_ties_even();
                let seen = |v| f64::from(code(v).clamp(-128.0, 127.0)) * f64::from(scale);
                x.iter().map(seen).collect()
            }),
            Kind::Float8 => by_token(&|x| {
                let scale = half::bf16::from_f32(amax(x) / 448.0).to_f32();
                let seen = |v: &f64| to_e4m3(f64::from(*v as f32 / scale)) * f64::from(scale);
                x.iter().map(seen).collect()
            }),
        }
    }
}

fn check(
    device: &Device,
    case: &Case,
    m: usize,
    sample: &mut Sample,
    tiling: Option<Sparse24Tiling>,
) {
    let (n, k) = (case.n, case.k);
    let x = to_bf16(&sample.vec(m * k, 1.0));
    let on_device = device.upload(&x).expect("x");
    let x = case.activations(&from_bf16(&x));
    let (mut wanted, mut magnitude) = (vec![0.0; m * n], vec![0.0; m * n]);
    for (i, x) in x.chunks_exact(k).enumerate() {
        for (j, w) in case.rows.chunks_exact(k).enumerate() {
            wanted[i * n + j] = case.bias[j];
            magnitude[i * n + j] = case.bias[j].abs();
            for (x, w) in x.iter().zip(w) {
                wanted[i * n + j] += x * w;
                magnitude[i * n + j] += (x * w).abs();
            }
        }
    }
    // Hopper adds products of e4m3 with 14 bits.
    let short = match case.kind {
        Kind::Float8 => 2f64.powi(-10),
        // W becomes bf16 where many tokens read it.
        Kind::Int4 { .. } if m > 32 => 2f64.powi(-9),
        _ => 0.0,
    };
    let sums = k as f64 * 2f64.powi(-22) + short;
    let name = format!("{:?} {n} × {k}, M = {m}, {tiling:?}", case.kind);
    let run = |y: &Output<'_>| match tiling {
        Some(tiling) => case.linear.run_as(tiling, &on_device, m, y),
        None => case.linear.run(&on_device, m, y),
    };
    let y = poisoned_bf16(device, m * n);
    run(&Output::Bf16(&y)).expect("a run");
    let bound = |i: usize| magnitude[i] * sums + wanted[i].abs() * 2f64.powi(-8) + 1e-30;
    assert_close(&name, &from_bf16(&y.read().expect("y")), &wanted, bound);
    let y = poisoned_f32(device, m * n);
    run(&Output::F32(&y)).expect("a run");
    let got: Vec<f64> = y.read().expect("y").into_iter().map(f64::from).collect();
    let bound = |i: usize| magnitude[i] * sums + wanted[i].abs() * 2f64.powi(-22) + 1e-30;
    assert_close(&name, &got, &wanted, bound);
    let before = sample.vec(m * n, 2.0);
    let y = device.upload(&before).expect("y");
    run(&Output::AddF32(&y)).expect("a run");
    let got: Vec<f64> = y.read().expect("y").into_iter().map(f64::from).collect();
    let wanted: Vec<f64> = wanted.iter().zip(&before).map(|(a, b)| a + f64::from(*b)).collect();
    assert_close(&name, &got, &wanted, |i| bound(i) + wanted[i].abs() * 2f64.powi(-22));
}

#[test]
fn two_of_four_in_int4_multiply_as_their_formula_says() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0x24_0001);
    for (shape, group, bf16) in
        [((272, 512), 128, true), ((17, 1280), 256, false), ((33, 128), 128, false)]
    {
        let case = Case::new(&device, &mut sample, Kind::Int4 { group, bf16 }, shape);
        for m in (1..=20).chain([32, 33, 64, 65, 130, 300]) {
            check(&device, &case, m, &mut sample, None);
        }
    }
    // One after the other through the same memory.
    let kind = Kind::Int4 { group: 128, bf16: false };
    let cases = [(); 3].map(|()| Case::new(&device, &mut sample, kind, (1024, 768)));
    for case in cases.iter().cycle().take(9) {
        check(&device, case, 64, &mut sample, None);
        check(&device, case, 300, &mut sample, None);
    }
}

#[test]
fn two_of_four_on_hopper_multiply_as_their_formulas_say() {
    let Some(device) = device() else { return };
    if !device.has_wgmma() {
        println!("skipped: {} has no wgmma", device.name());
        return;
    }
    let mut sample = Sample(0x24_0002);
    for kind in [Kind::Bf16, Kind::Int8, Kind::Float8] {
        for shape in [(272, 512), (19, 208), (136, 64), (648, 1040)] {
            let case = Case::new(&device, &mut sample, kind, shape);
            for m in [1, 2, 7, 16, 17, 33, 64, 65, 130, 300] {
                check(&device, &case, m, &mut sample, None);
            }
        }
        println!("{kind:?}");
    }
}

#[test]
fn every_tiling_gives_the_same() {
    let Some(device) = device() else { return };
    if !device.has_wgmma() {
        println!("skipped: {} has no wgmma", device.name());
        return;
    }
    let mut sample = Sample(0x24_0003);
    for kind in [Kind::Bf16, Kind::Int8, Kind::Float8] {
        let case = Case::new(&device, &mut sample, kind, (1160, 384));
        for (tokens, share, chunks) in
            [(16, 1, 2), (32, 2, 1), (64, 4, 1), (128, 2, 2), (256, 1, 1), (256, 2, 1), (256, 4, 1)]
        {
            let stages = if tokens == 256 || chunks == 2 { 3 } else { 5 };
            let tiling = Sparse24Tiling { tokens, warpgroups: 2, stages, chunks, share, blocks: 1 };
            check(&device, &case, 290, &mut sample, Some(tiling));
        }
    }
}

/// Stored numbers of a 2:4 weight and their places.
struct Owned {
    codes: Vec<u8>,
    bf16: Vec<u16>,
    bytes: Vec<u8>,
    int8: Vec<i8>,
    scale: Vec<f32>,
}

impl Owned {
    fn new(sample: &mut Sample, kind: Kind, (n, k): (usize, usize)) -> Owned {
        let firsts: Vec<usize> = (0..n * k / 4).map(|_| sample.below(4) as usize).collect();
        let keeps = |row: usize, column: usize| {
            let first = firsts[row * (k / 4) + column / 4];
            column % 4 == first || column % 4 == (first + 1 + row % 3) % 4
        };
        let codes = codes_of(keeps, (n, k)).expect("2:4");
        let number = |byte: u8| if byte & 0x7f == 0x7f { byte ^ 1 } else { byte };
        let drawn: Vec<u8> = (0..n * k / 2).map(|_| sample.bits().to_le_bytes()[6]).collect();
        let (bytes, scales) = match kind {
            Kind::Int4 { group, .. } => {
                let q: Vec<u8> = drawn.iter().map(|byte| byte & 15).collect();
                (pack_int4(&q, k), n * k / group)
            }
            _ => (drawn.iter().map(|byte| number(*byte)).collect(), n),
        };
        Owned {
            codes,
            bf16: to_bf16(&sample.vec(n * k / 2, 0.3)),
            bytes,
            int8: drawn.iter().map(|byte| byte.cast_signed()).collect(),
            scale: sample.vec(scales, 0.02).iter().map(|v| v.abs() + 0.001).collect(),
        }
    }

    fn stored(&self, kind: Kind) -> Stored24<'_> {
        match kind {
            Kind::Bf16 => Stored24::Bf16(&self.bf16),
            Kind::Int8 => Stored24::Int8Dynamic { q: &self.int8, scale: &self.scale },
            Kind::Float8 => Stored24::Float8Dynamic { q: &self.bytes, scale: &self.scale },
            Kind::Int4 { group, .. } => {
                Stored24::Int4 { q: &self.bytes, scale: &self.scale, group_size: group }
            }
        }
    }
}

#[test]
fn parts_under_one_another_give_what_each_gives_and_gates_are_multiplied() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0x24_0004);
    let (n, k) = (72, 256);
    for kind in [Kind::Int4 { group: 128, bf16: false }, Kind::Bf16, Kind::Int8, Kind::Float8] {
        if !matches!(kind, Kind::Int4 { .. }) && !device.has_wgmma() {
            println!("skipped: {} has no wgmma", device.name());
            continue;
        }
        let parts = [(); 2].map(|()| Owned::new(&mut sample, kind, (n, k)));
        let host = parts.each_ref().map(|part| {
            (HostWeight::TwoOfFour { stored: part.stored(kind), codes: &part.codes }, n)
        });
        let layer = |rows| Linear::new(&device, &host, k, rows, None).expect("a layer");
        let (plain, gates) = (layer(Rows::Plain), layer(Rows::GatePairs));
        assert!(plain.kernel_name(1).contains("24"), "{}", plain.kernel_name(1));
        for m in [1, 5, 40] {
            let x = device.upload(&to_bf16(&sample.vec(m * k, 1.0))).expect("x");
            let each = parts.each_ref().map(|part| {
                let stored = (part.stored(kind), part.codes.as_slice());
                let layer = Sparse24Linear::new(&device, stored, (n, k), None).expect("a layer");
                let y = poisoned_bf16(&device, m * n);
                layer.run(&x, m, &Output::Bf16(&y)).expect("a run");
                from_bf16(&y.read().expect("y"))
            });
            let both = poisoned_bf16(&device, m * 2 * n);
            plain.run(&x, m, &Output::Bf16(&both)).expect("a run");
            let both = from_bf16(&both.read().expect("y"));
            let wanted: Vec<f64> = (0..m)
                .flat_map(|i| each.iter().flat_map(move |y| &y[i * n..][..n]))
                .copied()
                .collect();
            assert_close(&format!("{kind:?} M = {m}"), &both, &wanted, |i| {
                wanted[i].abs() * 2f64.powi(-7) + 1e-6
            });
            let y = poisoned_bf16(&device, m * n);
            gates.run(&x, m, &Output::Bf16(&y)).expect("a run");
            let silu = |v: f64| v / (1.0 + (-v).exp());
            let wanted: Vec<f64> =
                each[0].iter().zip(&each[1]).map(|(gate, up)| silu(*gate) * up).collect();
            let y = from_bf16(&y.read().expect("y"));
            assert_close(&format!("gates, {kind:?} M = {m}"), &y, &wanted, |i| {
                wanted[i].abs() * 2f64.powi(-5) + 1e-3
            });
        }
    }
    let [odd, even] = [Kind::Bf16, Kind::Int8].map(|kind| Owned::new(&mut sample, kind, (n, k)));
    let host = [(odd.stored(Kind::Bf16), &odd), (even.stored(Kind::Int8), &even)]
        .map(|(stored, part)| (HostWeight::TwoOfFour { stored, codes: &part.codes }, n));
    let error = Linear::new(&device, &host, k, Rows::Plain, None).expect_err("unlike parts");
    assert!(error.to_string().contains("differ"), "{error}");
}

#[test]
fn weights_that_are_not_whole_are_refused_in_words() {
    let Some(device) = device() else { return };
    let scale = [1.0; 4];
    let stored = Stored24::Int4 { q: &[0; 32], scale: &scale, group_size: 32 };
    let error = Sparse24Linear::new(&device, (stored, &[0; 14]), (1, 128), None);
    assert!(error.expect_err("no kernel").to_string().contains("groups of 32"));
    let error = Sparse24Linear::new(&device, (stored, &[0; 3]), (1, 128), None);
    assert!(error.expect_err("codes").to_string().contains("codes"));
}
