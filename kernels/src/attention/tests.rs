use super::*;
use crate::kv_cache::Numbers;
use crate::sample::Sample;
use half::bf16;

/// The formula in f64 over `[k, v]` (kv_heads, capacity, head_dim), one output at a time.
fn exact(q: &[f32], [k, v]: [&[f32]; 2], s: &AttentionShape) -> Vec<f64> {
    let mut out = Vec::new();
    for (i, h) in (0..s.m).flat_map(|i| (0..s.heads).map(move |h| (i, h))) {
        let wide = |cache: &[f32], j: usize, d: usize| {
            f64::from(cache[(h / (s.heads / s.kv_heads) * s.capacity + j) * s.head_dim + d])
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
struct Case {
    shape: AttentionShape,
    q: Vec<f32>,
    cache: KvCache,
    /// The keys and values of this call, where they are not looked up in the cache.
    new: Option<[Vec<f32>; 2]>,
    exact: Vec<f64>,
    bound: f64,
}

/// The layer of the cache that is looked at.
const LAYER: usize = 1;

fn case(shape: &AttentionShape, scale: f32, format: CacheFormat, apart: bool) -> Case {
    let AttentionShape { m, heads, kv_heads, head_dim, past, capacity, .. } = *shape;
    let mut sample = Sample(7 + m as u64);
    let q = sample.vec(m * heads * head_dim, scale);
    let mut rows = |tokens: usize| {
        [
            sample.vec(tokens * kv_heads * head_dim, 2.0),
            sample.vec(tokens * kv_heads * head_dim, 1.0),
        ]
    };
    let (old, new) = (rows(past), rows(m));
    let mut cache = KvCache::new(format, 2, [kv_heads, capacity, head_dim]);
    // What was never stored must never be looked at.
    poison(&mut cache);
    cache.store(LAYER, 0, [&old[0], &old[1]]);
    if !apart {
        cache.store(LAYER, past, [&new[0], &new[1]]);
    }
    let mut wide = [const { Vec::new() }; 2];
    for ((wide, rows), new) in
        wide.iter_mut().zip([cache.keys(LAYER), cache.values(LAYER)]).zip(&new)
    {
        wide.resize(kv_heads * capacity * head_dim, f32::NAN);
        rows.dequantize(0..kv_heads * capacity, wide);
        for (at, row) in new.chunks_exact(head_dim).enumerate().filter(|_| apart) {
            let index = at % kv_heads * capacity + past + at / kv_heads;
            wide[index * head_dim..][..head_dim].copy_from_slice(row);
        }
    }
    let exact = exact(&q, [&wide[0], &wide[1]], shape);
    let largest = scale * 2.0 * head_dim as f32 * shape.scale;
    let terms = (past + m) as f32 + 8.0 * head_dim as f32 + 64.0;
    let bound = f64::from(terms * (1.0 + largest)) * 2f64.powi(-24);
    Case { shape: *shape, q, cache, new: apart.then_some(new), exact, bound }
}

fn poison(cache: &mut KvCache) {
    for side in cache.sides_mut() {
        match &mut side.numbers {
            Numbers::F32(numbers) => numbers.fill(f32::NAN),
            Numbers::F16(bits) => bits.fill(half::f16::NAN.to_bits()),
            Numbers::Bf16(bits) => bits.fill(bf16::NAN.to_bits()),
            Numbers::Codes(_) => side.scales.fill(bf16::NAN),
        }
    }
}

fn check(cpus: &[Cpu], case: &Case) {
    for cpu in cpus {
        let mut out = vec![f32::NAN; case.q.len()];
        let new = case.new.as_ref().map(|[k, v]| [k.as_slice(), v.as_slice()]);
        let keys = Keys { cache: &case.cache, layer: LAYER, new };
        attention(cpu, &case.q, keys, &case.shape, &mut out);
        for (at, (&y, exact)) in out.iter().zip(&case.exact).enumerate() {
            let error = (f64::from(y) - exact).abs();
            let name = kernel_name(cpu.isa(), &case.shape, case.cache.format());
            assert!(error <= case.bound, "{name} {:?} out[{at}]: {y}, not {exact}", case.shape);
        }
    }
}

fn cpus() -> Vec<Cpu> {
    let mut cpus = Vec::new();
    for isa in Isa::available() {
        for shape in [&SHAPES[4], &SHAPES[9]] {
            for format in CacheFormat::ALL {
                println!("attention on {}: {}", isa.name(), kernel_name(isa, shape, format));
            }
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
            check(&cpus, &case(shape, scale, CacheFormat::F32, false));
        }
        for format in CacheFormat::ALL {
            check(&cpus, &case(shape, 1.0, format, false));
            check(&cpus, &case(shape, 1.0, format, true));
        }
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
        let mut cache = KvCache::new(CacheFormat::F32, 1, [1, m + 3, 8]);
        cache.store(0, 0, [&k, &v]);
        attention(cpu, &q, Keys { cache: &cache, layer: 0, new: None }, &shape, &mut out);
        assert!(out.iter().all(|y| (y - 1.0).abs() < 1e-6), "{:?}", cpu.isa());
        // The last key but one: the last two queries see it.
        k[(m + 1) * 8] = f32::NAN;
        cache.store(0, 0, [&k, &v]);
        attention(cpu, &q, Keys { cache: &cache, layer: 0, new: None }, &shape, &mut out);
        let (sane, broken) = out.split_at((m - 2) * 16);
        assert!(sane.iter().all(|y| (y - 1.0).abs() < 1e-6), "{:?}", cpu.isa());
        assert!(broken.iter().all(|y| y.is_nan()), "{:?} {broken:?}", cpu.isa());
    }
}
