use super::*;
use crate::sample::Sample;
use half::{bf16, f16};

/// The formula in f64, one output at a time.
fn exact<T: CacheElement>(q: &[f32], k: &[T], v: &[T], s: &AttentionShape) -> Vec<f64> {
    let mut out = Vec::new();
    for (i, h) in (0..s.m).flat_map(|i| (0..s.heads).map(move |h| (i, h))) {
        let wide = |cache: &[T], j: usize, d: usize| {
            f64::from(cache[(h / (s.heads / s.kv_heads) * s.capacity + j) * s.head_dim + d].widen())
        };
        let query = |d: usize| f64::from(q[(i * s.heads + h) * s.head_dim + d]);
        let sees = |j: &usize| *j <= s.past + i && s.window.is_none_or(|w| j + w > s.past + i);
        let keys: Vec<usize> = (0..s.capacity).filter(sees).collect();
        let score = |&j: &usize| {
            f64::from(s.scale) * (0..s.head_dim).map(|d| query(d) * wide(k, j, d)).sum::<f64>()
        };
        let scores: Vec<f64> = keys.iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        for d in 0..s.head_dim {
            let weighted = keys.iter().zip(&scores);
            out.push(weighted.map(|(&j, s)| (s - max).exp() * wide(v, j, d)).sum::<f64>() / sum);
        }
    }
    out
}

fn check<T: CacheElement>(cpu: &Cpu, shape: &AttentionShape, scale: f32, narrow: fn(f32) -> T) {
    let mut sample = Sample(7 + shape.m as u64);
    let len = shape.kv_heads * shape.capacity * shape.head_dim;
    let q = sample.vec(shape.m * shape.heads * shape.head_dim, scale);
    let mut cache = |scale| -> Vec<T> { sample.vec(len, scale).into_iter().map(narrow).collect() };
    let (mut k, mut v) = (cache(2.0), cache(1.0));
    // Entries beyond those in use must never be looked at.
    for head in 0..shape.kv_heads {
        let unused = head * shape.capacity + shape.past + shape.m..(head + 1) * shape.capacity;
        let unused = unused.start * shape.head_dim..unused.end * shape.head_dim;
        k[unused.clone()].fill(narrow(f32::NAN));
        v[unused].fill(narrow(f32::NAN));
    }
    let mut out = vec![f32::NAN; q.len()];
    attention(cpu, &q, &k, &v, shape, &mut out);
    let largest = scale * 2.0 * shape.head_dim as f32 * shape.scale;
    let keys = (shape.past + shape.m) as f32;
    let terms = keys + 8.0 * shape.head_dim as f32 + 64.0;
    let bound = f64::from(terms * (1.0 + largest)) * 2f64.powi(-24);
    for (at, (&y, exact)) in out.iter().zip(exact(&q, &k, &v, shape)).enumerate() {
        let error = (f64::from(y) - exact).abs();
        assert!(error <= bound, "{} {shape:?} out[{at}]: {y}, not {exact}", cpu.isa().name());
    }
}

#[test]
fn matches_f64_on_every_isa() {
    for isa in Isa::available() {
        for shape in [&SHAPES[4], &SHAPES[9]] {
            println!("attention on {}: {}", isa.name(), kernel_name(isa, shape));
        }
        for threads in [1, 2, 5] {
            let cpu = Cpu::with_isa(isa, Some(threads));
            for shape in SHAPES {
                for scale in [0.0, 1.0, 8.0] {
                    check(&cpu, shape, scale, |x| x);
                }
                check(&cpu, shape, 1.0, f16::from_f32);
                check(&cpu, shape, 1.0, bf16::from_f32);
            }
        }
    }
}
