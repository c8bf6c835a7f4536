//! One token: normed on its way in, and the ladder's first rungs.

use super::linear::{Activations, Case, dense, float8, int4, int8, seen, table4};
use super::{assert_close, device, from_bf16, poisoned_bf16, poisoned_f32, to_bf16};
use crate::cuda::Device;
use crate::cuda::linear::{Norm, Output, PlainInt4, Rung, run_rung};
use crate::sample::Sample;

#[test]
fn one_token_is_normed_on_its_way_in() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC0E1);
    let cases = [
        int4(&device, &mut sample, (272, 512), 128, true),
        int4(&device, &mut sample, (33, 2304), 256, true),
        int4(&device, &mut sample, (100, 384), 64, false),
        int4(&device, &mut sample, (48, 128), 32, true),
        int4(&device, &mut sample, (17, 192), 16, false),
        int4(&device, &mut sample, (4100, 4096), 128, true),
        table4(&device, &mut sample, (272, 512), (64, false, false)),
        table4(&device, &mut sample, (130, 640), (128, true, true)),
        int8(&device, &mut sample, (272, 512), false),
        int8(&device, &mut sample, (64, 192), true),
        float8(&device, &mut sample, (272, 5120), Activations::AsTheyAre),
        dense(&device, &mut sample, (272, 512)),
        dense(&device, &mut sample, (24, 4160)),
    ];
    for case in &cases {
        check_normed(&device, case, &mut sample);
    }
}

fn check_normed(device: &Device, case: &Case, sample: &mut Sample) {
    let (n, k, eps) = (case.n, case.k, 1e-5_f32);
    let (x, weight) = (sample.vec(k, 3.0), sample.vec(k, 1.0));
    let squares: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
    let inv_rms = 1.0 / (squares / k as f64 + f64::from(eps)).sqrt();
    let normed = x.iter().zip(&weight).map(|(x, w)| f64::from(*x) * f64::from(*w) * inv_rms);
    let normed: Vec<f64> = normed.collect();
    // What is quantized is the norm rounded to bf16.
    let rounded: Vec<f32> = normed.iter().map(|v| *v as f32).collect();
    let seen = match case.activations {
        Activations::AsTheyAre => normed,
        _ => seen(&from_bf16(&to_bf16(&rounded)), k, case.activations),
    };
    let (x, weight) = (device.upload(&x).expect("x"), device.upload(&weight).expect("weight"));
    let norm = Norm { x: &x, weight: &weight, eps };
    let room = poisoned_bf16(device, k);
    let y = poisoned_f32(device, n);
    case.linear.run_normed(&norm, &room, &Output::F32(&y)).expect("a run");
    let got: Vec<f64> = y.read().expect("y").into_iter().map(f64::from).collect();
    let dot = |w: &[f64], f: fn(f64) -> f64| seen.iter().zip(w).map(|(x, w)| f(x * w)).sum();
    let rows = || case.rows.chunks_exact(k);
    let wanted: Vec<f64> = rows().map(|w| dot(w, |v| v)).collect();
    let magnitude: Vec<f64> = rows().map(|w| dot(w, f64::abs)).collect();
    // x is rounded to bf16, or to codes from one side of a half or the other.
    let step = match case.activations {
        Activations::AsTheyAre => 2f64.powi(-8),
        _ => 2f64.powi(-6),
    };
    let name = format!("{} normed {}", case.name, case.linear.kernel_name(1));
    assert_close(&name, &got, &wanted, |i| magnitude[i] * step + 1e-30);
}

#[test]
fn the_first_rungs_are_the_same_product() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC0E2);
    let (n, k) = (133, 2048);
    let q: Vec<u8> = (0..n * k / 2).map(|_| sample.bits().to_le_bytes()[7]).collect();
    let (scale, x) = (to_bf16(&sample.vec(n * k / 128, 0.05)), to_bf16(&sample.vec(k, 1.0)));
    let w = PlainInt4 {
        q: device.upload(&q).expect("q"),
        scale: device.upload(&scale).expect("scale"),
        n,
        k,
    };
    let x_device = device.upload(&x).expect("x");
    let (x, scale) = (from_bf16(&x), from_bf16(&scale));
    let term = |i: usize| {
        let code = if i.is_multiple_of(2) { q[i / 2] & 15 } else { q[i / 2] >> 4 };
        (f64::from(code) - 8.0) * scale[i / 128] * x[i % k]
    };
    let row = |r: usize| (r * k..(r + 1) * k).map(term);
    let wanted: Vec<f64> = (0..n).map(|r| row(r).sum()).collect();
    let magnitude: Vec<f64> = (0..n).map(|r| row(r).map(f64::abs).sum()).collect();
    for rung in [Rung::ThreadARow, Rung::WarpARow, Rung::WideLoads] {
        let y = poisoned_f32(&device, n);
        run_rung(&device, rung, &w, &x_device, &y).expect("a run");
        let got: Vec<f64> = y.read().expect("y").into_iter().map(f64::from).collect();
        let bound = |i: usize| magnitude[i] * k as f64 * 2f64.powi(-24);
        assert_close(&format!("{rung:?}"), &got, &wanted, bound);
    }
}
