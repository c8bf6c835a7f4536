//! The operations of training and their gradients against the formulas in f64.

use super::{assert_close, device, from_bf16, poisoned_bf16, poisoned_f32, to_bf16};
use crate::adam::{self, Hyper, Moment, Moments};
use crate::cuda::training::*;
use crate::cuda::{Buffer, Device};
use crate::rope::Order;
use crate::sample::Sample;
use crate::{Cpu, Shape};

fn wide(v: &Buffer<f32>) -> Vec<f64> {
    v.read().expect("numbers").into_iter().map(f64::from).collect()
}

fn narrow(v: &Buffer<u16>) -> Vec<f64> {
    from_bf16(&v.read().expect("numbers"))
}

/// Random bf16 numbers on both sides.
fn draw(device: &Device, sample: &mut Sample, len: usize) -> (Buffer<u16>, Vec<f64>) {
    let bits = to_bf16(&sample.vec(len, 1.0));
    (device.upload(&bits).expect("memory"), from_bf16(&bits))
}

/// `a (m, k) · b (n, k)ᵀ` and the same of absolute values; either factor may lie turned.
fn product(a: &[f64], b: &[f64], s: Shape, turned: [bool; 2]) -> (Vec<f64>, Vec<f64>) {
    let Shape { m, n, k } = s;
    let (mut y, mut size) = (vec![0.0; m * n], vec![0.0; m * n]);
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                let left = if turned[0] { a[l * m + i] } else { a[i * k + l] };
                let right = if turned[1] { b[l * n + j] } else { b[j * k + l] };
                y[i * n + j] += left * right;
                size[i * n + j] += (left * right).abs();
            }
        }
    }
    (y, size)
}

#[test]
fn the_three_products_of_a_layer_are_the_formulas() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0x7A1);
    let mut products = Products::new(&device).expect("cuBLASLt");
    for (m, n, k) in [(33, 40, 72), (256, 128, 64), (8, 8, 8), (65, 24, 200)] {
        let shape = Shape { m, n, k };
        let (x, hx) = draw(&device, &mut sample, m * k);
        let (w, hw) = draw(&device, &mut sample, n * k);
        let (dy, hdy) = draw(&device, &mut sample, m * n);
        let (wanted, size) = product(&hx, &hw, shape, [false, false]);
        let y = poisoned_bf16(&device, m * n);
        products.forward(shape, &x, &w, &Into::Bf16(&y)).expect("a run");
        let near = |i: usize| 2f64.powi(-8) * wanted[i].abs() + 1e-6 * size[i];
        assert_close(&format!("y {shape:?}"), &narrow(&y), &wanted, near);
        let onto = device.upload(&vec![3.0_f32; m * n]).expect("memory");
        let sum = poisoned_f32(&device, m * n);
        products.forward(shape, &x, &w, &Into::Sum { to: &sum, onto: &onto }).expect("a run");
        let added: Vec<f64> = wanted.iter().map(|v| v + 3.0).collect();
        assert_close("a sum", &wide(&sum), &added, |i| 1e-5 * (size[i] + 3.0));

        let dx = poisoned_bf16(&device, m * k);
        products.input_gradient(shape, &dy, &w, &Into::Bf16(&dx)).expect("a run");
        let (wanted, size) = product(&hdy, &hw, Shape { m, n: k, k: n }, [false, true]);
        let near = |i: usize| 2f64.powi(-8) * wanted[i].abs() + 1e-6 * size[i];
        assert_close(&format!("dx {shape:?}"), &narrow(&dx), &wanted, near);

        let dw = poisoned_f32(&device, n * k);
        products.weight_gradient(shape, &dy, &x, &Into::F32(&dw)).expect("a run");
        let (wanted, size) = product(&hdy, &hx, Shape { m: n, n: k, k: m }, [true, true]);
        assert_close(&format!("dw {shape:?}"), &wide(&dw), &wanted, |i| 1e-5 * size[i]);
        products.weight_gradient(shape, &dy, &x, &Into::Sum { to: &dw, onto: &dw }).expect("a run");
        let twice: Vec<f64> = wanted.iter().map(|v| 2.0 * v).collect();
        assert_close("dw twice", &wide(&dw), &twice, |i| 2e-5 * size[i]);
    }
}

#[test]
fn norms_and_their_gradients_are_the_formulas() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0x7A2);
    for (m, k) in [(1, 2048), (3, 7), (130, 256), (5, 4096), (700, 96), (2, 8192), (9, 1001)] {
        let (x, weight) = (sample.vec(m * k, 2.0), sample.vec(k, 1.5));
        let (dy, hdy) = draw(&device, &mut sample, m * k);
        let (dev_x, dev_w) = (device.upload(&x).expect("x"), device.upload(&weight).expect("w"));
        let (y, inv_rms) = (poisoned_bf16(&device, m * k), poisoned_f32(&device, m));
        let amax = device.zeros::<u32>(1).expect("memory");
        rms_norm_forward(&device, (&dev_x, &dev_w, 1e-5), &y, &inv_rms, Some(&amax))
            .expect("a run");
        let before = sample.vec(m * k, 1.0);
        let (dx, rounded) = (device.upload(&before).expect("dx"), poisoned_bf16(&device, m * k));
        let dweight = device.upload(&vec![2.0_f32; k]).expect("dw");
        let to = NormGradient {
            dx: &dx,
            add: true,
            rounded: Some(&rounded),
            dweight: &dweight,
            amax: None,
        };
        rms_norm_backward(&device, (&dev_x, &dev_w, &inv_rms), &dy, &to).expect("a run");
        let (mut wanted, mut dwanted, mut wwanted) = (Vec::new(), Vec::new(), vec![2.0; k]);
        for row in 0..m {
            let of = |i: usize| f64::from(x[row * k + i]);
            let sum: f64 = (0..k).map(|i| of(i).powi(2)).sum();
            let inv = 1.0 / (sum / k as f64 + 1e-5).sqrt();
            let d = |i: usize| hdy[row * k + i] * f64::from(weight[i]);
            let dot = (0..k).map(|i| d(i) * of(i) * inv).sum::<f64>() / k as f64;
            for i in 0..k {
                let hat = of(i) * inv;
                wanted.push(hat * f64::from(weight[i]));
                dwanted.push(f64::from(before[row * k + i]) + inv * (d(i) - hat * dot));
                wwanted[i] += hdy[row * k + i] * hat;
            }
        }
        let name = format!("{m} × {k}");
        let got = narrow(&y);
        assert_close(&name, &got, &wanted, |i| 2f64.powi(-8) * wanted[i].abs() + 1e-12);
        let most = got.iter().fold(0.0_f64, |a, v| a.max(v.abs()));
        let told = f32::from_bits(amax.read().expect("amax")[0]);
        assert_eq!(f64::from(told).to_bits(), most.to_bits(), "amax of {name}");
        assert_close(&format!("dx {name}"), &wide(&dx), &dwanted, |_| 2e-5);
        let near = |i: usize| 2f64.powi(-8) * dwanted[i].abs() + 2e-5;
        assert_close(&format!("dx in bf16 {name}"), &narrow(&rounded), &dwanted, near);
        let near = |_: usize| 2e-6 * (m as f64) + 1e-5;
        assert_close(&format!("dweight {name}"), &wide(&dweight), &wwanted, near);
    }
}

/// Turns the heads of a row by the formula.
fn turn(row: &mut [f64], (cos, sin): (&[f32], &[f32]), order: Order, back: bool) {
    let pairs = cos.len();
    for head in row.chunks_exact_mut(2 * pairs) {
        for i in 0..pairs {
            let (a, b) = match order {
                Order::Half => (i, i + pairs),
                Order::Interleaved => (2 * i, 2 * i + 1),
            };
            let (c, s) = (f64::from(cos[i]), f64::from(sin[i]) * if back { -1.0 } else { 1.0 });
            (head[a], head[b]) = (head[a] * c - head[b] * s, head[b] * c + head[a] * s);
        }
    }
}

#[test]
fn rotation_and_swiglu_are_the_formulas() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0x7A3);
    for (batch, tokens, heads, pairs, rest) in
        [(2, 9, 3, 16, 32), (1, 130, 5, 32, 64), (3, 4, 1, 5, 0)]
    {
        let stride = heads * 2 * pairs + rest;
        let angles: Vec<f32> = sample.vec(tokens * pairs, 3.0);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let tables = [device.upload(&cos).expect("cos"), device.upload(&sin).expect("sin")];
        let tables = [&tables[0], &tables[1]];
        for (order, back) in
            [(Order::Half, false), (Order::Half, true), (Order::Interleaved, false)]
        {
            let (x, mut wanted) = draw(&device, &mut sample, batch * tokens * stride);
            rope(&device, &x, tables, (tokens, stride, heads), order, back).expect("a run");
            for (row, values) in wanted.chunks_exact_mut(stride).enumerate() {
                let place = row % tokens * pairs;
                let turns = (&cos[place..][..pairs], &sin[place..][..pairs]);
                turn(&mut values[..heads * 2 * pairs], turns, order, back);
            }
            let near = |i: usize| 2f64.powi(-8) * wanted[i].abs() + 1e-6;
            assert_close(&format!("{order:?}"), &narrow(&x), &wanted, near);
        }
    }
    for (m, f) in [(1, 8), (5, 4104), (70, 768)] {
        let (gate_up, both) = draw(&device, &mut sample, m * 2 * f);
        let (dh, up) = draw(&device, &mut sample, m * f);
        let (h, d) = (poisoned_bf16(&device, m * f), poisoned_bf16(&device, m * 2 * f));
        let amax = device.zeros::<u32>(1).expect("memory");
        swiglu_forward(&device, &gate_up, f, &h, None).expect("a run");
        swiglu_backward(&device, (&gate_up, &dh), f, &d, Some(&amax)).expect("a run");
        let (mut wanted, mut dwanted) = (vec![0.0; m * f], vec![0.0; 2 * m * f]);
        for i in 0..m * f {
            let at = i / f * 2 * f + i % f;
            let (g, u) = (both[at], both[at + f]);
            let s = 1.0 / (1.0 + (-g).exp());
            wanted[i] = g * s * u;
            dwanted[at] = up[i] * u * s * (1.0 + g * (1.0 - s));
            dwanted[at + f] = up[i] * g * s;
        }
        let near = |v: f64| 2f64.powi(-8) * v.abs() + 1e-6;
        assert_close("swiglu", &narrow(&h), &wanted, |i| near(wanted[i]));
        let got = narrow(&d);
        assert_close("its gradient", &got, &dwanted, |i| near(dwanted[i]));
        let most = got.iter().fold(0.0_f64, |a, v| a.max(v.abs()));
        let told = f32::from_bits(amax.read().expect("amax")[0]);
        assert_eq!(f64::from(told).to_bits(), most.to_bits(), "amax of {m} × {f}");
    }
    assert!(
        swiglu_forward(&device, &poisoned_bf16(&device, 14), 7, &poisoned_bf16(&device, 7), None)
            .is_err()
    );
}

#[test]
fn the_loss_and_the_embeddings_gradient_are_the_formulas() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0x7A4);
    for (m, n) in [(1, 1), (7, 77), (5, 4096), (3, 32_000), (2, 1030)] {
        let logits = sample.vec(m * n, 12.0);
        let targets: Vec<i32> = (0..m)
            .map(|i| if i == 3 { -1 } else { i32::try_from(i * 7 % n).expect("small") })
            .collect();
        let (dl, dt) = (device.upload(&logits).expect("x"), device.upload(&targets).expect("t"));
        let (losses, d) = (poisoned_f32(&device, m), poisoned_bf16(&device, m * n));
        cross_entropy(&device, &dl, &dt, 0.5, (&losses, &d)).expect("a run");
        let sum = device.upload(&[1.0_f32]).expect("memory");
        add_to_loss(&device, &losses, &sum).expect("a run");
        let (mut wanted, mut dwanted) = (Vec::new(), Vec::new());
        for (row, target) in logits.chunks_exact(n).zip(&targets) {
            let most = row.iter().fold(f64::MIN, |a, v| a.max(f64::from(*v)));
            let all: f64 = row.iter().map(|v| (f64::from(*v) - most).exp()).sum();
            let target = usize::try_from(*target).ok();
            wanted.push(target.map_or(0.0, |t| 0.5 * (most + all.ln() - f64::from(row[t]))));
            for (i, v) in row.iter().enumerate() {
                let p = (f64::from(*v) - most).exp() / all;
                let hit = f64::from(u8::from(target == Some(i)));
                dwanted.push(target.map_or(0.0, |_| 0.5 * (p - hit)));
            }
        }
        let near = |i: usize| 2f64.powi(-8) * dwanted[i].abs() + 1e-6;
        assert_close(&format!("losses {m} × {n}"), &wide(&losses), &wanted, |_| 1e-5);
        assert_close(&format!("gradient {m} × {n}"), &narrow(&d), &dwanted, near);
        let all = [1.0 + wanted.iter().sum::<f64>()];
        assert_close("their sum", &wide(&sum), &all, |_| 1e-4);
    }
    let (vocab, k, tokens) = (9, 40, [3, 3, 8, 0, 3, 8]);
    let dx = sample.vec(tokens.len() * k, 1.0);
    let table = device.upload(&vec![1.0_f32; vocab * k]).expect("table");
    let places = Places::of(&device, &tokens).expect("places");
    embedding_backward(&device, &device.upload(&dx).expect("dx"), &places, &table, k)
        .expect("a run");
    let mut wanted = vec![1.0; vocab * k];
    for (row, token) in tokens.iter().enumerate() {
        let at = usize::try_from(*token).expect("a token") * k;
        (0..k).for_each(|c| wanted[at + c] += f64::from(dx[row * k + c]));
    }
    assert_close("the table's gradient", &wide(&table), &wanted, |_| 1e-6);
}

#[test]
fn a_step_is_the_cpus_and_a_norm_that_is_not_finite_moves_nothing() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0x7A5);
    let cpu = Cpu::new(Some(1));
    for (n, decayed, clip) in [(4, 0, 0.0), (70_004, 4096, 1.0), (1 << 20, 1 << 20, 1e9)] {
        let (mut p, g) = (sample.vec(n, 1.0), sample.vec(n, 1.0));
        let dp = device.upload(&p).expect("p");
        let dg = device.upload(&g).expect("g");
        let moments = [device.zeros::<f32>(n).expect("m"), device.zeros::<f32>(n).expect("v")];
        let (copy, norm) = (poisoned_bf16(&device, n), Norm::new(&device).expect("memory"));
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        let share = 0.25;
        let wanted = g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt() * 0.25;
        let of = AdamStep {
            p: &dp,
            gradient: &dg,
            moments: [&moments[0], &moments[1]],
            copy: &copy,
            decayed,
        };
        for step in 1..=3 {
            let hyper = Hyper {
                lr: 1e-2,
                betas: (0.9, 0.999),
                eps: 1e-8,
                weight_decay: 0.1,
                decoupled: true,
                step,
            };
            gradient_norm(&device, &dg, (share, clip), &norm).expect("a run");
            adam_step(&device, &of, &norm, &hyper).expect("a run");
            let told = norm.values.read().expect("the norm");
            assert_close("norm", &[f64::from(told[0])], &[wanted], |_| 1e-6 * wanted);
            let scaled: Vec<f32> = g.iter().map(|g| g * told[1]).collect();
            for (range, weight_decay) in [(0..decayed, 0.1), (decayed..n, 0.0)] {
                let moments = Moments {
                    mean: Moment::F32(&mut m[range.clone()]),
                    square: Moment::F32(&mut v[range.clone()]),
                    largest: None,
                };
                let hyper = Hyper { weight_decay, ..hyper };
                adam::step(&cpu, &mut p[range.clone()], &scaled[range], moments, &hyper);
            }
            let wanted: Vec<f64> = p.iter().map(|p| f64::from(*p)).collect();
            assert_close("parameters", &wide(&dp), &wanted, |_| 1e-7);
            let rounded = to_bf16(&dp.read().expect("p"));
            assert_eq!(copy.read().expect("the copy"), rounded);
        }
        dg.part(n - 1..n).write(&[f32::INFINITY]).expect("a copy");
        let before = dp.read().expect("p");
        gradient_norm(&device, &dg, (share, clip), &norm).expect("a run");
        let hyper = Hyper {
            lr: 1e-2,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.1,
            decoupled: true,
            step: 4,
        };
        adam_step(&device, &of, &norm, &hyper).expect("a run");
        assert_eq!(dp.read().expect("p"), before);
    }
}
