//! The operations between linear layers, buffers and graphs.

use super::{assert_close, device, from_bf16, poisoned_bf16, poisoned_f32, to_bf16};
use half::bf16;

use crate::cuda::ops;
use crate::sample::Sample;
use crate::{Cpu, int8_activation};

#[test]
fn norms_are_the_formula() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC1);
    for (m, k) in [(1, 4096), (3, 256), (2, 7), (5, 130), (1, 20_000), (130, 64)] {
        let (x, weight) = (sample.vec(m * k, 3.0), sample.vec(k, 1.5));
        let y = poisoned_bf16(&device, m * k);
        let (dx, dw) = (device.upload(&x).expect("x"), device.upload(&weight).expect("w"));
        ops::rms_norm(&device, &dx, &dw, 1e-5, &y).expect("a run");
        let mut wanted = Vec::new();
        for row in x.chunks_exact(k) {
            let sum: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum();
            let rms = (sum / k as f64 + 1e-5).sqrt();
            wanted
                .extend(row.iter().zip(&weight).map(|(v, w)| f64::from(*v) / rms * f64::from(*w)));
        }
        let got = from_bf16(&y.read().expect("y"));
        assert_close("rms_norm", &got, &wanted, |i| wanted[i].abs() * 2f64.powi(-8) + 1e-12);
    }
}

#[test]
fn softmax_and_argmax_are_the_formulas() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC2);
    for (m, n) in [(1, 1), (3, 77), (2, 4096), (1, 128_256)] {
        let mut x = sample.vec(m * n, 9.0);
        let y = poisoned_f32(&device, m * n);
        let dx = device.upload(&x).expect("x");
        ops::softmax(&device, &dx, n, &y).expect("a run");
        let mut wanted = Vec::new();
        for row in x.chunks_exact(n) {
            let most = row.iter().fold(f64::MIN, |a, v| a.max(f64::from(*v)));
            let all: f64 = row.iter().map(|v| (f64::from(*v) - most).exp()).sum();
            wanted.extend(row.iter().map(|v| (f64::from(*v) - most).exp() / all));
        }
        let got: Vec<f64> = y.read().expect("y").into_iter().map(f64::from).collect();
        assert_close("softmax", &got, &wanted, |i| wanted[i] * 2f64.powi(-17) + 1e-30);

        // The first of equals; a NaN before everything.
        x[n / 3] = 100.0;
        x[n - 1] = 100.0;
        let places = [n / 3, if m > 1 { n / 2 } else { n / 3 }];
        if m > 1 {
            x[n + n / 2] = f32::NAN;
        }
        let dx = device.upload(&x).expect("x");
        let keys = device.zeros(ops::argmax_keys(m)).expect("keys");
        let tokens = device.upload(&vec![-1_i32; m]).expect("tokens");
        ops::argmax(&device, &dx, n, &keys, &tokens, None).expect("a run");
        let tokens = tokens.read().expect("tokens");
        for (row, place) in places.iter().enumerate().take(m) {
            assert_eq!(usize::try_from(tokens[row]), Ok(*place), "row {row} of {m} × {n}");
        }
    }
}

#[test]
fn quantized_rows_are_torchaos_bit_for_bit() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0xC3);
    for (m, k) in [(1, 8), (5, 64), (3, 4096), (2, 14_336), (2, 20_480)] {
        let mut x = sample.vec(m * k, 4.0);
        x[1] = 37.5;
        let bits = to_bf16(&x);
        let x: Vec<f32> = from_bf16(&bits).into_iter().map(|v| v as f32).collect();
        let dx = device.upload(&bits).expect("x");
        let (q, scale) = ops::quantize_int8_rows(&device, &dx, m, k).expect("a run");
        let (mut wanted, mut scales) = (vec![0; m * k], vec![0.0; m]);
        let cpu = Cpu::new(Some(1));
        int8_activation::symmetric(
            &cpu,
            &x,
            &mut wanted,
            &mut scales,
            int8_activation::Range::FULL,
        );
        assert_eq!(scale.read().expect("scales"), scales, "{m} × {k}");
        let got: Vec<i8> = q.read().expect("codes").iter().map(|q| q.cast_signed()).collect();
        assert_eq!(got, wanted, "{m} × {k}");

        let (q, scale) = ops::quantize_float8_rows(&device, &dx, m, k).expect("a run");
        let (q, scale) = (q.read().expect("codes"), scale.read().expect("scales"));
        for (row, x) in x.chunks_exact(k).enumerate() {
            let amax = x.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
            let wanted = bf16::from_f32(amax / 448.0).to_f32();
            assert_eq!(scale[row].to_bits(), wanted.to_bits(), "scale of row {row}");
            for (i, x) in x.iter().enumerate() {
                let code = crate::dtypes::e4m3fn_encode_saturating(x / wanted);
                assert_eq!(q[row * k + i], code, "{m} × {k}: [{row}, {i}] of {x} / {wanted}");
            }
        }
    }
}

/// bf16 numbers of every size, and blocks of zeros, of one number and of the smallest.
fn numbers_for_blocks(len: usize) -> Vec<u16> {
    let mut sample = Sample(0xB10C);
    let mut all: Vec<u16> = Vec::with_capacity(len);
    for (block, values) in sample.vec(len, 1.0).chunks(32).enumerate() {
        let size = [1.0, 1e-3, 3e4, 1e-38, 448.0, 6.0][block % 6];
        all.extend(to_bf16(&values.iter().map(|v| v * size).collect::<Vec<_>>()));
    }
    all[..32].fill(0);
    all[32..64].fill(0x43e0); // 448
    all[64..96].fill(0x0001);
    all[96..128].fill(0xff7f);
    all
}

#[test]
fn mxfp8_blocks_are_torchaos_bit_for_bit() {
    use crate::dtypes::{e4m3fn_encode_saturating, e8m0_decode};
    let Some(device) = device() else { return };
    let len = 13 * 8192 + 32 * 7;
    let host = numbers_for_blocks(len);
    let x = device.upload(&host).expect("x");
    for rounding in [ops::MxRounding::Floor, ops::MxRounding::Rceil] {
        let (q, scales) = (device.zeros(len).expect("q"), device.zeros(len / 32).expect("scales"));
        ops::quantize_mxfp8_into(&device, &x, rounding, (&q, &scales)).expect("a run");
        let (q, scales) = (q.read().expect("q"), scales.read().expect("scales"));
        for (i, block) in host.chunks(32).enumerate() {
            let block: Vec<f32> = block.iter().map(|v| bf16::from_bits(*v).to_f32()).collect();
            let amax = block.iter().fold(0.0, |a: f32, v| a.max(v.abs()));
            let exponent = match rounding {
                ops::MxRounding::Floor => f64::from(amax).log2().floor() - 8.0,
                ops::MxRounding::Rceil => f64::from((f64::from(amax / 448.0).log2()) as f32).ceil(),
            };
            let code = exponent.clamp(-127.0, 127.0) + 127.0;
            assert_eq!(f64::from(scales[i]).to_bits(), code.to_bits(), "{rounding:?}, block {i}");
            // 0.18 does not scale by 2⁻¹²⁷.
            let by = match (rounding, scales[i]) {
                (ops::MxRounding::Floor, 0) => 2f32.powi(126),
                (ops::MxRounding::Rceil, 0) => 1.0,
                (_, code) => 1.0 / e8m0_decode(code),
            };
            for (j, v) in block.iter().enumerate() {
                let wanted = e4m3fn_encode_saturating(v * by);
                assert_eq!(q[32 * i + j], wanted, "{rounding:?}, block {i}: {v:e} · {by:e}");
            }
        }
    }
}

#[test]
fn nvfp4_blocks_are_torchaos_bit_for_bit() {
    use crate::dtypes::{e4m3fn_decode, e4m3fn_encode_saturating, floatx_encode};
    let Some(device) = device() else { return };
    let len = 13 * 8192 + 32 * 7;
    let host = numbers_for_blocks(len);
    let x = device.upload(&host).expect("x");
    for above in [None, Some(0.0137_f32)] {
        let q = device.zeros(len / 2).expect("q");
        let scales = device.zeros(len / 16).expect("scales");
        ops::quantize_nvfp4_into(&device, &x, above, (&q, &scales)).expect("a run");
        let (q, scales) = (q.read().expect("q"), scales.read().expect("scales"));
        for (i, block) in host.chunks(16).enumerate() {
            let block: Vec<f32> = block.iter().map(|v| bf16::from_bits(*v).to_f32()).collect();
            let amax = block.iter().fold(0.0, |a: f32, v| a.max(v.abs())) / 6.0;
            let scale = above.map_or(amax, |above| amax / above).max(1.0 / 64.0);
            let code = e4m3fn_encode_saturating(scale);
            assert_eq!(scales[i], code, "{above:?}, block {i}");
            let decoded = e4m3fn_decode(code);
            let by = above.map_or(1.0 / decoded, |above| 1.0 / above / decoded);
            for (j, v) in block.iter().enumerate() {
                let at = 16 * i + j;
                let got = q[at / 2] >> (4 * (at % 2)) & 15;
                assert_eq!(
                    got,
                    floatx_encode(v * by, 2, 1),
                    "{above:?}, block {i}: {v:e} · {by:e}"
                );
            }
        }
    }
}

#[test]
fn embeddings_are_rows_and_unknown_tokens_are_nan() {
    let Some(device) = device() else { return };
    let (vocab, k) = (11, 96);
    let table = to_bf16(&Sample(0xC4).vec(vocab * k, 1.0));
    let dt = device.upload(&table).expect("table");
    let tokens = device.upload(&[3_i32, 10, 11, -1]).expect("tokens");
    let x = device.zeros::<f32>(4 * k).expect("x");
    ops::embedding(&device, &tokens, &dt, (vocab, k), &x).expect("a run");
    let (x, table) = (x.read().expect("x"), from_bf16(&table));
    for i in 0..k {
        assert_eq!(f64::from(x[i]).to_bits(), table[3 * k + i].to_bits());
        assert_eq!(f64::from(x[k + i]).to_bits(), table[10 * k + i].to_bits());
        assert!(x[2 * k + i].is_nan() && x[3 * k + i].is_nan());
    }
}

#[test]
fn buffers_are_reused_and_graphs_replay() {
    let Some(device) = device() else { return };
    let first = device.uninit::<u8>(1 << 20).expect("memory");
    let address = first.address();
    drop(first);
    let second = device.uninit::<u8>((1 << 20) - 100).expect("memory");
    assert_eq!(second.address(), address, "a block that was given back is used again");

    // Each replay moves the sequence one on.
    let x = device.upload(&[1.0_f32, 5.0, 2.0]).expect("x");
    let keys = device.zeros(ops::argmax_keys(1)).expect("keys");
    let tokens = device.zeros::<i32>(1).expect("tokens");
    let position = ops::Position {
        length: device.zeros(1).expect("a length"),
        history: device.zeros(8).expect("a history"),
    };
    let step = || ops::argmax(&device, &x, 3, &keys, &tokens, Some(&position));
    step().expect("a run");
    let mut graph = device.capture(step).expect("a graph");
    assert_eq!(graph.nodes().expect("a count"), 2);
    for _ in 0..4 {
        graph.launch().expect("a replay");
    }
    assert_eq!(position.length.read().expect("a length"), [5]);
    assert_eq!(position.history.read().expect("a history"), [0, 1, 1, 1, 1, 1, 0, 0]);

    let broken = device.capture(|| device.uninit::<u8>(77 << 20).map(|_| ())).expect_err("no");
    assert!(broken.to_string().contains("cannot be captured"), "{broken}");
    let empty = device.capture(|| Ok(()));
    drop(empty);
    step().expect("the stream works after a broken capture");
    device.synchronize().expect("idle");
}
