use super::*;
use crate::sample::Sample;

/// The largest distance from `x` that the head of `mod.rs` allows.
fn bound(format: CacheFormat, x: f32, scale: f32) -> f32 {
    match format {
        CacheFormat::F32 => 0.0,
        CacheFormat::F16 => x.abs() * 2f32.powi(-11) + 2f32.powi(-25),
        CacheFormat::Bf16 => x.abs() * 2f32.powi(-8),
        CacheFormat::Float8 => {
            x.abs() * (2f32.powi(-4) + 2f32.powi(-8)) + scale * 2f32.powi(-10) * 1.01
        }
        _ => scale / 2.0 * 1.01 + x.abs() * 2f32.powi(-8),
    }
}

/// Row `index` of `rows` against the numbers that were stored in it.
fn check(format: CacheFormat, rows: Rows<'_>, index: usize, x: &[f32]) {
    let mut row = vec![f32::NAN; x.len()];
    rows.dequantize(index..index + 1, &mut row);
    let qmax = match format {
        CacheFormat::Int4 => 7.0,
        CacheFormat::Float8 => 448.0,
        _ => 127.0,
    };
    let amax = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    let scale = (amax / qmax).max(1e-5);
    for (y, &x) in row.iter().zip(x) {
        assert!((y - x).abs() <= bound(format, x, scale), "{format:?}: {x} came back as {y}");
    }
}

#[test]
fn rows_come_back_within_half_a_step() {
    let mut sample = Sample(5);
    for (format, &(m, heads, d)) in
        CacheFormat::ALL.iter().flat_map(|f| SHAPES.iter().map(move |s| (*f, s)))
    {
        println!("{}", kernel_name(format));
        for size in [0.0, 1e-6, 1.0, 300.0] {
            let (keys, values) = (sample.vec(m * heads * d, size), sample.vec(m * heads * d, size));
            let mut cache = KvCache::new(format, 2, [heads, m + 4, d]);
            cache.store(1, 3, [&keys, &values]);
            let index = |at: usize| at % heads * (m + 4) + 3 + at / heads;
            for (rows, new) in [(cache.keys(1), &keys), (cache.values(1), &values)] {
                let new = new.chunks_exact(d).enumerate();
                new.for_each(|(at, x)| check(format, rows, index(at), x));
            }
        }
    }
}

/// Codes and scales by torchao's own steps: symmetric, ±127, eps 1e-5, the scale kept as bf16.
#[test]
fn int8_codes_are_torchaos() {
    let mut sample = Sample(9);
    for d in [1, 31, 64, 129] {
        let x = sample.vec(d, 3.0);
        let mut codes = vec![0; d];
        let scale = format::quantize(CacheFormat::Int8, &x, &mut codes);
        let amax = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        let exact = (amax / (254.0 / 2.0)).max(1e-5);
        assert_eq!(scale, bf16::from_f32(exact));
        for (code, x) in codes.iter().zip(&x) {
            let wanted = (x * (1.0 / exact)).round_ties_even().clamp(-127.0, 127.0);
            assert!((f32::from(code.cast_signed()) - wanted).abs() < 0.5, "{x}");
        }
    }
}

#[test]
fn ties_go_to_even_and_a_nan_takes_its_row() {
    let mut codes = vec![0; 4];
    // The scale is exactly 1.
    format::quantize(CacheFormat::Int8, &[127.0, 0.5, 1.5, -2.5], &mut codes);
    assert_eq!(codes.iter().map(|c| c.cast_signed()).collect::<Vec<_>>(), [127, 0, 2, -2]);
    for format in CacheFormat::ALL {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut cache = KvCache::new(format, 1, [1, 3, 33]);
            let mut keys = vec![1.0; 3 * 33];
            keys[33 + 32] = bad;
            cache.store(0, 0, [&keys, &keys]);
            let mut row = vec![0.0; 3 * 33];
            cache.keys(0).dequantize(0..3, &mut row);
            assert!(
                row[..33].iter().chain(&row[66..]).all(|x| (x - 1.0).abs() < 0.01),
                "{format:?}"
            );
            assert!(!row[65].is_finite(), "{format:?}");
        }
    }
}

#[test]
fn bytes_are_what_the_formats_say() {
    let bits = |format: CacheFormat| 8.0 * format.row_nbytes(64) as f64 / 64.0;
    let wanted = [32.0, 16.0, 16.0, 8.25, 8.25, 4.25];
    for (format, wanted) in CacheFormat::ALL.into_iter().zip(wanted) {
        assert!((bits(format) - wanted).abs() < 1e-9, "{format:?}");
        let cache = KvCache::new(format, 7, [3, 100, 64]);
        let sides = [&cache.keys, &cache.values];
        let held: usize = sides.map(|side| side.scales.len() * 2 + numbers(side)).iter().sum();
        assert_eq!(cache.nbytes(), held);
        assert_eq!(cache.nbytes_of(50) * 2, held);
    }
}

fn numbers(side: &Side) -> usize {
    match &side.numbers {
        Numbers::F32(numbers) => size_of_val(numbers.as_slice()),
        Numbers::F16(numbers) => size_of_val(numbers.as_slice()),
        Numbers::Bf16(numbers) => size_of_val(numbers.as_slice()),
        Numbers::Codes(codes) => codes.len(),
    }
}
