//! Attention of training and its gradient against the formulas in f64.

use super::{assert_close, device, from_bf16, poisoned_bf16, poisoned_f32, to_bf16};
use crate::cuda::Device;
use crate::cuda::training::{
    AttentionShape, Gradient, attention_backward, attention_forward, has_tensor_cores,
};
use crate::sample::Sample;

/// out and dqkv of one sequence after another.
fn reference(shape: &AttentionShape, qkv: &[f64], dout: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let AttentionShape { batch, tokens, heads, kv_heads, head_dim: d } = *shape;
    let (wide, attended) = (shape.qkv(), shape.attended());
    let (mut out, mut dqkv) = (vec![0.0; dout.len()], vec![0.0; qkv.len()]);
    let scale = 1.0 / (d as f64).sqrt();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let rows = (0..batch).flat_map(|sequence| (0..tokens).map(move |i| (sequence, i)));
    for ((sequence, i), head) in rows.flat_map(|row| (0..heads).map(move |head| (row, head))) {
        let kv = heads + head / (heads / kv_heads);
        let row = sequence * tokens + i;
        let at = |j: usize, h: usize| (sequence * tokens + j) * wide + h * d;
        let q = &qkv[row * wide + head * d..][..d];
        let scores: Vec<f64> = (0..=i).map(|j| dot(q, &qkv[at(j, kv)..][..d]) * scale).collect();
        let most = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
        let all: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        let p: Vec<f64> = scores.iter().map(|s| (s - most).exp() / all).collect();
        let up = &dout[row * attended + head * d..][..d];
        let dp: Vec<f64> = (0..=i).map(|j| dot(up, &qkv[at(j, kv + kv_heads)..][..d])).collect();
        let delta = dot(&p, &dp);
        for j in 0..=i {
            let ds = p[j] * (dp[j] - delta) * scale;
            for c in 0..d {
                out[row * attended + head * d + c] += p[j] * qkv[at(j, kv + kv_heads) + c];
                dqkv[row * wide + head * d + c] += ds * qkv[at(j, kv) + c];
                dqkv[at(j, kv) + c] += ds * q[c];
                dqkv[at(j, kv + kv_heads) + c] += p[j] * up[c];
            }
        }
    }
    (out, dqkv)
}

fn check(device: &Device, shape: AttentionShape) {
    let rows = shape.rows();
    let mut sample = Sample(0xA77E + rows as u64);
    let qkv = to_bf16(&sample.vec(rows * shape.qkv(), 1.5));
    let dout = to_bf16(&sample.vec(rows * shape.attended(), 1.0));
    let (dx, dup) = (device.upload(&qkv).expect("qkv"), device.upload(&dout).expect("dout"));
    let out = poisoned_bf16(device, rows * shape.attended());
    let lse = poisoned_f32(device, shape.statistics());
    attention_forward(device, &shape, &dx, &out, &lse).expect("a run");
    let dqkv = poisoned_bf16(device, rows * shape.qkv());
    let of = Gradient { qkv: &dx, out: &out, lse: &lse, dout: &dup, dqkv: &dqkv };
    attention_backward(device, &shape, &of).expect("a run");
    let (wanted, dwanted) = reference(&shape, &from_bf16(&qkv), &from_bf16(&dout));
    let (got, dgot) = (out.read().expect("out"), dqkv.read().expect("dqkv"));
    // Weights are rounded to bf16, 2⁻⁹ of values below 1.5, and so is what is stored.
    let name = format!("{shape:?}");
    assert_close(&name, &from_bf16(&got), &wanted, |i| 0.006 + 0.005 * wanted[i].abs());
    // Weights of a column add up over all the queries behind it: their roundings as the root of their number.
    let most = dwanted.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
    let bound = |i: usize| 0.004 * most + 0.01 * dwanted[i].abs() + 0.004;
    assert_close(&format!("gradient of {name}"), &from_bf16(&dgot), &dwanted, bound);
    // The same bits again: nothing depends on the order of blocks.
    let again = poisoned_bf16(device, rows * shape.qkv());
    let of = Gradient { dqkv: &again, ..of };
    attention_backward(device, &shape, &of).expect("a run");
    assert_eq!(again.read().expect("dqkv"), dgot, "{name}");
}

#[test]
fn attention_and_its_gradient_are_the_formulas() {
    let Some(device) = device() else { return };
    for (batch, tokens, heads, kv_heads, head_dim) in [
        (2, 64, 4, 2, 32),
        (3, 65, 8, 4, 32),
        (1, 200, 4, 1, 64),
        (2, 130, 6, 3, 64),
        (1, 1, 2, 2, 64),
        (2, 33, 4, 4, 64),
        (1, 193, 4, 2, 128),
        (2, 70, 3, 1, 128),
        (2, 40, 4, 2, 80),
        (1, 35, 2, 1, 20),
        (1, 17, 2, 2, 256),
    ] {
        check(&device, AttentionShape { batch, tokens, heads, kv_heads, head_dim });
    }
    assert!(has_tensor_cores(64) && !has_tensor_cores(80));
    let odd = AttentionShape { batch: 1, tokens: 4, heads: 3, kv_heads: 2, head_dim: 64 };
    let x = poisoned_bf16(&device, 4);
    let lse = poisoned_f32(&device, 4);
    assert!(attention_forward(&device, &odd, &x, &x, &lse).is_err());
}
