//! Linear layers: every format, tokens from 1 to 130, odd shapes.

use super::{assert_close, device, from_bf16, poisoned_bf16, poisoned_f32, to_bf16};
use crate::cuda::Device;
use crate::cuda::linear::{Float8Scales, HostWeight, Linear, Output, Rows};
use crate::sample::Sample;

/// A weight, its rows in f64, and whether activations are quantized.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) linear: Linear,
    pub(super) rows: Vec<f64>,
    pub(super) n: usize,
    pub(super) k: usize,
    /// How far a weight may be from its row: relative to it.
    weight_error: f64,
    pub(super) activations: Activations,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Activations {
    AsTheyAre,
    Int8,
    Float8Rows,
    Float8All,
}

/// What an e4m3 code stands for.
fn e4m3(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size = match exponent {
        0 => fraction * 2f64.powi(-9),
        _ => (8.0 + fraction) * 2f64.powi(exponent - 10),
    };
    if code & 0x7f == 0x7f {
        f64::NAN
    } else if code & 0x80 == 0 {
        size
    } else {
        -size
    }
}

/// The e4m3 number next to `v`, ties to even, beyond 448 saturated.
fn to_e4m3(v: f64) -> f64 {
    let codes = 0..0x7f_u8;
    let even = |code: &u8| code & 1;
    let far = |code: &u8| (e4m3(*code) - v.abs()).abs();
    let nearest = codes.min_by(|a, b| far(a).total_cmp(&far(b)).then(even(a).cmp(&even(b))));
    e4m3(nearest.unwrap_or(0)).copysign(v)
}

/// The codes' table, made up.
fn table(sample: &mut Sample) -> [f32; 16] {
    let mut table = [0.0; 16];
    for (to, v) in table.iter_mut().zip(sample.vec(16, 1.0)) {
        *to = half::bf16::from_f32(v).to_f32();
    }
    table
}

pub(super) fn table4(
    device: &Device,
    sample: &mut Sample,
    (n, k): (usize, usize),
    (group, bf16, float8): (usize, bool, bool),
) -> Case {
    let q: Vec<u8> = (0..n * k / 2).map(|_| sample.bits().to_le_bytes()[7]).collect();
    let mut scale: Vec<f32> =
        sample.vec(n * k / group, 0.02).iter().map(|v| v.abs() + 0.001).collect();
    if bf16 {
        scale.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
    }
    let mut values = table(sample);
    if float8 {
        for (i, v) in values.iter_mut().enumerate() {
            *v = i as f32 - 8.0;
        }
    }
    let code =
        |i: usize| usize::from(if i.is_multiple_of(2) { q[i / 2] & 15 } else { q[i / 2] >> 4 });
    let rows = (0..n * k).map(|i| f64::from(values[code(i)]) * f64::from(scale[i / group]));
    let rows: Vec<f64> = rows.collect();
    let (scale, group_size) = (scale.as_slice(), group);
    let weight = if float8 {
        HostWeight::Float8Int4 { q: &q, scale, group_size, bf16 }
    } else {
        HostWeight::Table4 { q: &q, table: values, scale, group_size, bf16 }
    };
    let linear = Linear::new(device, &[(weight, n)], k, Rows::Plain, None).expect("a layer");
    let activations = if float8 { Activations::Float8Rows } else { Activations::AsTheyAre };
    let name = format!("table {n} × {k}, groups of {group}, bf16 {bf16}, float8 {float8}");
    Case { name, linear, rows, n, k, weight_error: 2f64.powi(-7), activations }
}

pub(super) fn float8(
    device: &Device,
    sample: &mut Sample,
    (n, k): (usize, usize),
    activations: Activations,
) -> Case {
    // Every code but the two that are no numbers.
    let code = |bits: u64| {
        let byte = bits.to_le_bytes()[7];
        if byte & 0x7f == 0x7f { byte ^ 1 } else { byte }
    };
    let q: Vec<u8> = (0..n * k).map(|_| code(sample.bits())).collect();
    let scale: Vec<f32> = sample.vec(n, 0.02).iter().map(|v| v.abs() + 0.001).collect();
    let rows = (0..n * k).map(|i| e4m3(q[i]) * f64::from(scale[i / k])).collect();
    let (q, scale) = (q.as_slice(), scale.as_slice());
    let weight = match activations {
        Activations::Float8Rows => {
            HostWeight::Float8Dynamic { q, scale, activations: Float8Scales::Rows }
        }
        Activations::Float8All => {
            HostWeight::Float8Dynamic { q, scale, activations: Float8Scales::All }
        }
        _ => HostWeight::Float8 { q, scale },
    };
    let linear = Linear::new(device, &[(weight, n)], k, Rows::Plain, None).expect("a layer");
    let dynamic = activations != Activations::AsTheyAre;
    let name = format!("float8 {n} × {k}, dynamic {dynamic}");
    // Hopper adds products of e4m3 with 14 bits, 32 at a time.
    let weight_error = if dynamic { 2f64.powi(-10) } else { 0.0 };
    Case { name, linear, rows, n, k, weight_error, activations }
}

pub(super) fn int4(
    device: &Device,
    sample: &mut Sample,
    (n, k): (usize, usize),
    group: usize,
    bf16: bool,
) -> Case {
    let q: Vec<u8> = (0..n * k / 2).map(|_| sample.bits().to_le_bytes()[7]).collect();
    let mut scale: Vec<f32> =
        sample.vec(n * k / group, 0.02).iter().map(|v| v.abs() + 0.001).collect();
    let mut zero = sample.vec(n * k / group, 0.05);
    if bf16 {
        for v in scale.iter_mut().chain(&mut zero) {
            *v = half::bf16::from_f32(*v).to_f32();
        }
    }
    let code =
        |i: usize| f64::from(if i.is_multiple_of(2) { q[i / 2] & 15 } else { q[i / 2] >> 4 });
    let rows = (0..n * k)
        .map(|i| (code(i) - 8.0) * f64::from(scale[i / group]) + f64::from(zero[i / group]))
        .collect();
    let weight = HostWeight::Int4 { q: &q, scale: &scale, zero: &zero, group_size: group, bf16 };
    let linear = Linear::new(device, &[(weight, n)], k, Rows::Plain, None).expect("a layer");
    let name = format!("int4 {n} × {k}, groups of {group}, bf16 {bf16}");
    // From 17 tokens on scale and zero are rounded to bf16, and then the weight.
    Case {
        name,
        linear,
        rows,
        n,
        k,
        weight_error: 2f64.powi(-7),
        activations: Activations::AsTheyAre,
    }
}

pub(super) fn int8(
    device: &Device,
    sample: &mut Sample,
    (n, k): (usize, usize),
    dynamic: bool,
) -> Case {
    let q: Vec<i8> = (0..n * k).map(|_| sample.bits().to_le_bytes()[7].cast_signed()).collect();
    let scale: Vec<f32> = sample.vec(n, 0.02).iter().map(|v| v.abs() + 0.001).collect();
    let rows = (0..n * k).map(|i| f64::from(q[i]) * f64::from(scale[i / k])).collect();
    let weight = if dynamic {
        HostWeight::Int8Dynamic { q: &q, scale: &scale }
    } else {
        HostWeight::Int8 { q: &q, scale: &scale }
    };
    let linear = Linear::new(device, &[(weight, n)], k, Rows::Plain, None).expect("a layer");
    let activations = if dynamic { Activations::Int8 } else { Activations::AsTheyAre };
    let name = format!("int8 {n} × {k}, dynamic {dynamic}");
    Case { name, linear, rows, n, k, weight_error: 2f64.powi(-8), activations }
}

pub(super) fn dense(device: &Device, sample: &mut Sample, (n, k): (usize, usize)) -> Case {
    let w = to_bf16(&sample.vec(n * k, 0.1));
    let linear = Linear::new(device, &[(HostWeight::Bf16(&w), n)], k, Rows::Plain, None);
    let rows = from_bf16(&w);
    let name = format!("bf16 {n} × {k}");
    Case {
        name,
        linear: linear.expect("a layer"),
        rows,
        n,
        k,
        weight_error: 0.0,
        activations: Activations::AsTheyAre,
    }
}

/// x as the layer sees it.
pub(super) fn seen(x: &[f64], k: usize, activations: Activations) -> Vec<f64> {
    let mut seen = Vec::with_capacity(x.len());
    let largest = |row: &[f64]| row.iter().fold(0.0, |a: f64, v| a.max(v.abs())) as f32;
    for row in x.chunks_exact(k) {
        let amax = if activations == Activations::Float8All { largest(x) } else { largest(row) };
        match activations {
            Activations::Float8Rows | Activations::Float8All => {
                let scale = f64::from(half::bf16::from_f32(amax / 448.0).to_f32());
                seen.extend(
                    row.iter().map(|v| to_e4m3(f64::from(*v as f32 / scale as f32)) * scale),
                );
            }
            Activations::AsTheyAre => seen.extend_from_slice(row),
            Activations::Int8 => {
                let scale = (amax / 127.5).max(f32::EPSILON);
                seen.extend(row.iter().map(|v| {
                    let q = (*v as f32 * (1.0 / scale)).round_ties_even().clamp(-128.0, 127.0);
                    f64::from(q) * f64::from(scale)
                }));
            }
        }
    }
    seen
}

fn check(device: &Device, case: &Case, m: usize, sample: &mut Sample) {
    let (n, k) = (case.n, case.k);
    let x = to_bf16(&sample.vec(m * k, 1.0));
    let k_padded = case.linear.k_padded();
    let padded = super::super::linear::padded_for_tests(&x, k, k_padded);
    let x_device = device.upload(&padded).expect("x");
    let x = seen(&from_bf16(&x), k, case.activations);
    let (mut wanted, mut magnitude) = (vec![0.0; m * n], vec![0.0; m * n]);
    for (i, x) in x.chunks_exact(k).enumerate() {
        for (j, w) in case.rows.chunks_exact(k).enumerate() {
            for (x, w) in x.iter().zip(w) {
                wanted[i * n + j] += x * w;
                magnitude[i * n + j] += (x * w).abs();
            }
        }
    }
    let eight_bits = matches!(case.activations, Activations::Float8Rows | Activations::Float8All);
    let rounded_w = if m > 16 || eight_bits { case.weight_error } else { 0.0 };
    let sums = k as f64 * 2f64.powi(-22) + rounded_w;
    let name = format!("{} M = {m} {}", case.name, case.linear.kernel_name(m));
    let y = poisoned_bf16(device, m * n);
    case.linear.run(&x_device, m, &Output::Bf16(&y)).expect("a run");
    let got = from_bf16(&y.read().expect("y"));
    let bf16_bound = |i: usize| magnitude[i] * sums + wanted[i].abs() * 2f64.powi(-8) + 1e-30;
    assert_close(&name, &got, &wanted, bf16_bound);
    let y = poisoned_f32(device, m * n);
    case.linear.run(&x_device, m, &Output::F32(&y)).expect("a run");
    let got: Vec<f64> = y.read().expect("y").into_iter().map(f64::from).collect();
    let f32_bound = |i: usize| magnitude[i] * sums + wanted[i].abs() * 2f64.powi(-22) + 1e-30;
    assert_close(&name, &got, &wanted, f32_bound);
    let before = sample.vec(m * n, 2.0);
    let y = device.upload(&before).expect("y");
    case.linear.run(&x_device, m, &Output::AddF32(&y)).expect("a run");
    let got: Vec<f64> = y.read().expect("y").into_iter().map(f64::from).collect();
    let wanted: Vec<f64> = wanted.iter().zip(&before).map(|(a, b)| a + f64::from(*b)).collect();
    assert_close(&name, &got, &wanted, |i| bf16_bound(i) + wanted[i].abs() * 2f64.powi(-8));
}

/// Every number of tokens from 1 to 130.
fn check_all(device: &Device, cases: &[Case], sample: &mut Sample) {
    for case in cases {
        for m in 1..=130 {
            check(device, case, m, sample);
        }
        println!("{}: 1 to 130 tokens", case.name);
    }
}

#[test]
fn int4_multiplies_as_its_formula_says() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC0DA);
    let cases = [
        int4(&device, &mut sample, (272, 512), 128, true),
        int4(&device, &mut sample, (33, 2304), 256, true),
    ];
    check_all(&device, &cases, &mut sample);
}

#[test]
fn int4_in_other_groups_multiplies_as_its_formula_says() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC0DC);
    let cases = [
        int4(&device, &mut sample, (100, 384), 64, false),
        int4(&device, &mut sample, (48, 96), 32, true),
        int4(&device, &mut sample, (17, 160), 16, false),
    ];
    check_all(&device, &cases, &mut sample);
}

#[test]
fn tables_multiply_as_their_formula_says() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC0DD);
    let cases = [
        table4(&device, &mut sample, (272, 512), (64, false, false)),
        table4(&device, &mut sample, (100, 384), (128, true, false)),
        table4(&device, &mut sample, (48, 96), (32, true, false)),
        table4(&device, &mut sample, (17, 160), (16, false, false)),
        table4(&device, &mut sample, (130, 640), (128, true, true)),
    ];
    check_all(&device, &cases, &mut sample);
}

#[test]
fn int8_multiplies_as_its_formula_says() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC0DE);
    let cases = [
        int8(&device, &mut sample, (272, 512), false),
        int8(&device, &mut sample, (19, 100), false),
        int8(&device, &mut sample, (272, 512), true),
        int8(&device, &mut sample, (64, 192), true),
    ];
    check_all(&device, &cases, &mut sample);
}

#[test]
fn float8_and_bf16_multiply_as_their_formulas_say() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC0DF);
    let mut cases = vec![
        float8(&device, &mut sample, (272, 512), Activations::AsTheyAre),
        float8(&device, &mut sample, (19, 100), Activations::AsTheyAre),
        dense(&device, &mut sample, (272, 512)),
        dense(&device, &mut sample, (24, 72)),
    ];
    if device.has_wgmma() {
        cases.push(float8(&device, &mut sample, (136, 512), Activations::Float8Rows));
        cases.push(float8(&device, &mut sample, (72, 192), Activations::Float8All));
    }
    check_all(&device, &cases, &mut sample);
}

#[test]
fn wide_layers_and_many_tokens_take_other_tilings() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC0E0);
    let wide = [
        int4(&device, &mut sample, (8208, 128), 128, true),
        int8(&device, &mut sample, (8208, 128), false),
        int8(&device, &mut sample, (4100, 192), true),
        int4(&device, &mut sample, (520, 2048), 128, true),
        table4(&device, &mut sample, (328, 1024), (64, false, false)),
    ];
    for case in &wide {
        for m in [1, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 300] {
            check(&device, case, m, &mut sample);
        }
    }
}

#[test]
fn gate_pairs_are_silu_of_one_half_times_the_other() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC0DB);
    for f in [20, 24, 64, 136] {
        let k = 128;
        let (gate, up) = (sample.vec(f * k, 0.2), sample.vec(f * k, 0.2));
        let (gate, up) = (to_bf16(&gate), to_bf16(&up));
        let q: Vec<u8> = (0..f * k).map(|_| sample.bits().to_le_bytes()[7]).collect();
        let scale: Vec<f32> = vec![0.03125; 2 * f];
        let zero: Vec<f32> = vec![0.0; 2 * f];
        let int4 =
            HostWeight::Int4 { q: &q, scale: &scale, zero: &zero, group_size: 128, bf16: true };
        let codes: Vec<f64> =
            q.iter().flat_map(|b| [b & 15, b >> 4]).map(|q| (f64::from(q) - 8.0) / 32.0).collect();
        let dense: Vec<f64> = from_bf16(&gate).into_iter().chain(from_bf16(&up)).collect();
        let dense_parts = [(HostWeight::Bf16(&gate), f), (HostWeight::Bf16(&up), f)];
        check_pairs(&device, &mut sample, (f, k), &dense, &dense_parts);
        check_pairs(&device, &mut sample, (f, k), &codes, &[(int4, 2 * f)]);
        let q: Vec<i8> =
            (0..2 * f * k).map(|_| sample.bits().to_le_bytes()[7].cast_signed()).collect();
        let scale: Vec<f32> = (0..2 * f).map(|i| 0.0005 + i as f32 * 1e-6).collect();
        let rows: Vec<f64> =
            q.iter().enumerate().map(|(i, q)| f64::from(*q) * f64::from(scale[i / k])).collect();
        let int8 = HostWeight::Int8 { q: &q, scale: &scale };
        check_pairs(&device, &mut sample, (f, k), &rows, &[(int8, 2 * f)]);
    }
}

/// Multiplies with `parts`, whose rows are `rows`: F gates, then F partners.
fn check_pairs(
    device: &Device,
    sample: &mut Sample,
    (f, k): (usize, usize),
    rows: &[f64],
    parts: &[(HostWeight<'_>, usize)],
) {
    let linear = Linear::new(device, parts, k, Rows::GatePairs, None).expect("a layer");
    for m in [1, 3, 8, 20, 64, 70, 140] {
        let x = to_bf16(&sample.vec(m * k, 1.0));
        let y = poisoned_bf16(device, m * f);
        let x_device = device.upload(&x).expect("x");
        linear.run(&x_device, m, &Output::Bf16(&y)).expect("a run");
        let x = from_bf16(&x);
        let dot = |i: usize, row: usize| -> f64 {
            (0..k).map(|c| x[i * k + c] * rows[row * k + c]).sum()
        };
        let (mut wanted, mut bound) = (Vec::new(), Vec::new());
        for at in 0..m * f {
            let (gate, up) = (dot(at / f, at % f), dot(at / f, f + at % f));
            wanted.push(gate / (1.0 + (-gate).exp()) * up);
            // Both factors may be rounded to bf16 on the way, and W from 17 tokens on.
            bound.push(2f64.powi(-6) * (gate.abs() + 0.1) * (up.abs() + 0.5));
        }
        let name = format!("pairs of {f}, M = {m}, {}", linear.kernel_name(m));
        assert_close(&name, &from_bf16(&y.read().expect("y")), &wanted, |i| bound[i]);
    }
}

#[test]
fn biases_are_added_on_every_path() {
    let Some(device) = device() else { return };
    let (n, k) = (40, 64);
    let w = to_bf16(&vec![0.0; n * k]);
    let bias: Vec<f32> = (0..n).map(|i| i as f32 - 8.0).collect();
    let parts = [(HostWeight::Bf16(&w), n)];
    let linear = Linear::new(&device, &parts, k, Rows::Plain, Some(&bias)).expect("a layer");
    for m in [1, 4, 5, 100] {
        let x = device.upload(&to_bf16(&vec![1.0; m * k])).expect("x");
        let y = poisoned_bf16(&device, m * n);
        linear.run(&x, m, &Output::Bf16(&y)).expect("a run");
        let wanted: Vec<f64> = (0..m * n).map(|i| f64::from(bias[i % n])).collect();
        assert_close("bias", &from_bf16(&y.read().expect("y")), &wanted, |_| 0.0);
    }
}

#[test]
fn what_has_no_kernel_is_refused_in_words() {
    let Some(device) = device() else { return };
    let scale = [1.0_f32; 8];
    let weight =
        HostWeight::Int4 { q: &[0; 96], scale: &scale, zero: &scale, group_size: 24, bf16: true };
    let error = Linear::new(&device, &[(weight, 8)], 24, Rows::Plain, None).expect_err("no kernel");
    assert!(error.to_string().contains("groups of 24"), "{error}");
    let parts = [(HostWeight::Bf16(&[0; 64]), 2)];
    assert!(Linear::new(&device, &parts, 64, Rows::Plain, None).is_err());
}
