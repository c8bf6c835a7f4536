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

/// Inputs of one case, and the outputs in f64.
struct Case<T> {
    shape: AttentionShape,
    q: Vec<f32>,
    caches: [Vec<T>; 2],
    exact: Vec<f64>,
    bound: f64,
}

fn case<T: CacheElement>(shape: &AttentionShape, scale: f32, narrow: fn(f32) -> T) -> Case<T> {
    let mut sample = Sample(7 + shape.m as u64);
    let len = shape.kv_heads * shape.capacity * shape.head_dim;
    let q = sample.vec(shape.m * shape.heads * shape.head_dim, scale);
    let mut cache = |scale| -> Vec<T> { sample.vec(len, scale).into_iter().map(narrow).collect() };
    let [mut k, mut v] = [cache(2.0), cache(1.0)];
    // Entries beyond those in use must never be looked at.
    for head in 0..shape.kv_heads {
        let unused = head * shape.capacity + shape.past + shape.m..(head + 1) * shape.capacity;
        let unused = unused.start * shape.head_dim..unused.end * shape.head_dim;
        k[unused.clone()].fill(narrow(f32::NAN));
        v[unused].fill(narrow(f32::NAN));
    }
    let exact = exact(&q, &k, &v, shape);
    let largest = scale * 2.0 * shape.head_dim as f32 * shape.scale;
    let keys = (shape.past + shape.m) as f32;
    let terms = keys + 8.0 * shape.head_dim as f32 + 64.0;
    let bound = f64::from(terms * (1.0 + largest)) * 2f64.powi(-24);
    Case { shape: *shape, q, caches: [k, v], exact, bound }
}

fn check<T: CacheElement>(cpus: &[Cpu], case: &Case<T>) {
    for cpu in cpus {
        let mut out = vec![f32::NAN; case.q.len()];
        let [k, v] = &case.caches;
        attention(cpu, &case.q, k, v, &case.shape, &mut out);
        for (at, (&y, exact)) in out.iter().zip(&case.exact).enumerate() {
            let error = (f64::from(y) - exact).abs();
            let name = cpu.isa().name();
            assert!(error <= case.bound, "{name} {:?} out[{at}]: {y}, not {exact}", case.shape);
        }
    }
}

fn cpus() -> Vec<Cpu> {
    let mut cpus = Vec::new();
    for isa in Isa::available() {
        for shape in [&SHAPES[4], &SHAPES[9]] {
            println!("attention on {}: {}", isa.name(), kernel_name(isa, shape));
        }
        cpus.extend([1, 2, 5].map(|threads| Cpu::with_isa(isa, Some(threads))));
    }
    cpus
}

#[test]
fn matches_f64_on_every_isa() {
    let cpus = cpus();
    for shape in SHAPES {
        for scale in [0.0, 1.0, 8.0] {
            check(&cpus, &case(shape, scale, |x| x));
        }
        check(&cpus, &case(shape, 1.0, f16::from_f32));
        check(&cpus, &case(shape, 1.0, bf16::from_f32));
    }
}

/// What PyTorch gives: a query that meets NaN becomes NaN, the others stay; −inf is a key unseen.
#[test]
fn nan_and_masked_keys() {
    for (cpu, m) in cpus().iter().flat_map(|cpu| [2, 40].map(|m| (cpu, m))) {
        let shape = AttentionShape {
            m,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            past: 3,
            capacity: m + 3,
            window: None,
            scale: 1.0,
        };
        let q = vec![1.0; m * 16];
        let mut k = vec![0.5; (m + 3) * 8];
        let v: Vec<f32> = (0..k.len()).map(|at| if at / 8 == 0 { 100.0 } else { 1.0 }).collect();
        k[0] = f32::NEG_INFINITY;
        let mut out = vec![f32::NAN; q.len()];
        attention(cpu, &q, &k, &v, &shape, &mut out);
        assert!(out.iter().all(|y| (y - 1.0).abs() < 1e-6), "{:?}", cpu.isa());
        // The last key but one: the last two queries see it.
        k[(m + 1) * 8] = f32::NAN;
        attention(cpu, &q, &k, &v, &shape, &mut out);
        let (sane, broken) = out.split_at((m - 2) * 16);
        assert!(sane.iter().all(|y| (y - 1.0).abs() < 1e-6), "{:?}", cpu.isa());
        assert!(broken.iter().all(|y| y.is_nan()), "{:?} {broken:?}", cpu.isa());
    }
}
