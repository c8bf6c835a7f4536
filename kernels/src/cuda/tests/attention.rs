//! Attention of prompts and of single tokens against softmax(q · kᵀ) · v in f64.

use super::{assert_close, device, from_bf16, poisoned_bf16, to_bf16};
use crate::cuda::Device;
use crate::cuda::ops::{self, Cache, DecodeScratch, HeadNorms, Heads, Rotary};
use crate::sample::Sample;

/// Keys and values as the formula has them: (kv_heads, positions, D) each.
#[derive(Default)]
struct Reference {
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

fn turned(x: &[f64], position: usize, tables: &(Vec<f32>, Vec<f32>)) -> Vec<f64> {
    let half = x.len() / 2;
    let mut y = vec![0.0; x.len()];
    for i in 0..half {
        let (cos, sin) = (tables.0[position * half + i], tables.1[position * half + i]);
        let (cos, sin) = (f64::from(cos), f64::from(sin));
        y[i] = x[i] * cos - x[i + half] * sin;
        y[i + half] = x[i + half] * cos + x[i] * sin;
    }
    y
}

impl Reference {
    /// Takes in one token's keys and values, and gives its attention.
    fn step(&mut self, heads: &Heads, qkv: &[f64], tables: &(Vec<f32>, Vec<f32>)) -> Vec<f64> {
        let d = heads.head_dim;
        self.keys.resize(heads.kv_heads, Vec::new());
        self.values.resize(heads.kv_heads, Vec::new());
        let position = self.keys[0].len() / d;
        for head in 0..heads.kv_heads {
            let key = &qkv[(heads.heads + head) * d..][..d];
            self.keys[head].extend(turned(key, position, tables));
            self.values[head].extend(&qkv[(heads.heads + heads.kv_heads + head) * d..][..d]);
        }
        let first = if heads.window > 0 { (position + 1).saturating_sub(heads.window) } else { 0 };
        let mut out = Vec::new();
        for head in 0..heads.heads {
            let kv = head / (heads.heads / heads.kv_heads);
            let q = turned(&qkv[head * d..][..d], position, tables);
            let dot = |p: usize| -> f64 {
                let key = &self.keys[kv][p * d..][..d];
                q.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt()
            };
            let scores: Vec<f64> = (first..=position).map(dot).collect();
            let most = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let all: f64 = weights.iter().sum();
            out.extend((0..d).map(|i| {
                let value = |(at, w): (usize, &f64)| w * self.values[kv][(first + at) * d + i];
                weights.iter().enumerate().map(value).sum::<f64>() / all
            }));
        }
        out
    }
}

fn check(device: &Device, heads: &Heads, prompt: usize, chunk: usize, decoded: usize) {
    let mut sample = Sample(0xA77 + prompt as u64);
    let d = heads.head_dim;
    let inv_freq: Vec<f64> = (0..d / 2).map(|i| 1e4_f64.powf(-2.0 * i as f64 / d as f64)).collect();
    let tables = crate::rope::tables(&inv_freq, 0..heads.capacity, 1.0);
    let rotary = Rotary {
        cos: device.upload(&tables.0).expect("cos"),
        sin: device.upload(&tables.1).expect("sin"),
    };
    let numel = heads.kv_heads * heads.capacity * d;
    let cache = Cache { keys: poisoned_bf16(device, numel), values: poisoned_bf16(device, numel) };
    let scratch = DecodeScratch::new(device, heads).expect("scratch");
    let mut reference = Reference::default();
    let around = (&cache, &rotary, HeadNorms::default());
    // q, keys and weights are rounded to bf16: 2⁻⁸ of a score of a few units, and of the values, which are below 1.
    let bound = |_| 0.04;
    let mut past = 0;
    while past < prompt {
        let m = chunk.min(prompt - past);
        let qkv = to_bf16(&sample.vec(m * heads.qkv(), 1.0));
        let wanted: Vec<f64> = from_bf16(&qkv)
            .chunks_exact(heads.qkv())
            .flat_map(|token| reference.step(heads, token, &tables))
            .collect();
        let dq = device.upload(&qkv).expect("qkv");
        let wide = m * heads.heads * d;
        let (q, out) = (poisoned_bf16(device, wide), poisoned_bf16(device, wide));
        ops::attention_prefill(device, heads, (&dq, &q), around, (m, past), &out).expect("a run");
        let name = format!("prefill of {m} behind {past} {heads:?}");
        assert_close(&name, &from_bf16(&out.read().expect("out")), &wanted, bound);
        past += m;
    }
    for step in 0..decoded {
        let qkv = to_bf16(&sample.vec(heads.qkv(), 1.0));
        let wanted = reference.step(heads, &from_bf16(&qkv), &tables);
        let dq = device.upload(&qkv).expect("qkv");
        let length = device.upload(&[i32::try_from(past + step).expect("small")]).expect("length");
        let out = poisoned_bf16(device, heads.heads * d);
        let state = (&length, &scratch);
        ops::attention_decode(device, heads, &dq, around, state, &out).expect("a run");
        let name = format!("decode behind {} {heads:?}", past + step);
        assert_close(&name, &from_bf16(&out.read().expect("out")), &wanted, bound);
    }
}

#[test]
fn prompts_and_single_tokens_attend_as_the_formula_says() {
    let Some(device) = device() else { return };
    let heads = |heads, kv_heads, head_dim, capacity, window| Heads {
        heads,
        kv_heads,
        head_dim,
        capacity,
        window,
        eps: 1e-6,
    };
    for (heads, prompt, chunk, decoded) in [
        (heads(8, 4, 32, 300, 0), 150, 150, 5),
        (heads(4, 1, 128, 700, 0), 600, 256, 3),
        (heads(9, 3, 64, 900, 0), 513, 100, 4),
        (heads(14, 2, 64, 200, 0), 63, 64, 2),
        (heads(8, 1, 128, 300, 0), 1, 1, 30),
        (heads(2, 2, 256, 200, 0), 130, 70, 3),
        (heads(4, 2, 64, 900, 100), 300, 77, 12),
        (heads(2, 1, 32, 3000, 0), 2400, 2400, 3),
    ] {
        check(&device, &heads, prompt, chunk, decoded);
    }
    assert!(DecodeScratch::new(&device, &heads(9, 2, 64, 10, 0)).is_err());
}
