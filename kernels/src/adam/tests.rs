use super::*;
use crate::sample::Sample;

/// The step in f64, moments kept exactly.
fn exact(p: &[f32], g: &[f32], m: &[f32], v: &[f32], hyper: &Hyper) -> Vec<[f64; 3]> {
    let numbers = p.iter().zip(g).zip(m).zip(v);
    let one = |(((p, g), m), v): (((&f32, &f32), &f32), &f32)| {
        let (mut p, mut g, lr) = (f64::from(*p), f64::from(*g), f64::from(hyper.lr));
        let decay = f64::from(hyper.weight_decay);
        if hyper.decoupled {
            p -= lr * decay * p;
        } else {
            g += decay * p;
        }
        let m = f64::from(*m) + (1.0 - hyper.betas.0) * (g - f64::from(*m));
        let v = f64::from(*v) + (1.0 - hyper.betas.1) * (g * g - f64::from(*v));
        let power = i32::try_from(hyper.step).expect("few steps");
        let (c1, c2) = (1.0 - hyper.betas.0.powi(power), 1.0 - hyper.betas.1.powi(power));
        p -= lr * (m / c1) / (v.sqrt() / c2.sqrt() + f64::from(hyper.eps));
        [p, m, v]
    };
    numbers.map(one).collect()
}

fn hyper(decoupled: bool, step: u32) -> Hyper {
    let weight_decay = 0.1;
    Hyper { lr: 1e-2, betas: (0.9, 0.999), eps: 1e-8, weight_decay, decoupled, step }
}

#[test]
fn f32_moments_follow_the_formula_in_f64() {
    let mut sample = Sample(61);
    for &(len, _) in SHAPES {
        for decoupled in [true, false] {
            let (p0, g) = (sample.vec(len, 1.0), sample.vec(len, 0.3));
            let m0 = sample.vec(len, 0.1);
            let v0: Vec<f32> = sample.vec(len, 0.1).into_iter().map(f32::abs).collect();
            let hyper = hyper(decoupled, 3);
            let wanted = exact(&p0, &g, &m0, &v0, &hyper);
            let mut first = None;
            for (isa, threads) in Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)])
            {
                let (mut p, mut m, mut v) = (p0.clone(), m0.clone(), v0.clone());
                let (mean, square) = (Moment::F32(&mut m), Moment::F32(&mut v));
                let cpu = Cpu::with_isa(isa, Some(threads));
                step(&cpu, &mut p, &g, Moments { mean, square, largest: None }, &hyper);
                for (i, wanted) in wanted.iter().enumerate() {
                    let got = [p[i], m[i], v[i]];
                    let near =
                        |(got, wanted): (&f32, &f64)| (f64::from(*got) - wanted).abs() < 1e-5;
                    assert!(got.iter().zip(wanted).all(near), "{i}: {got:?}, not {wanted:?}");
                }
                let all = (p, m, v);
                let first = first.get_or_insert_with(|| all.clone());
                assert_eq!(*first, all, "{} with {threads} threads", isa.name());
            }
        }
    }
}

#[test]
fn codes_are_the_nearest_of_the_table_and_blocks_do_not_touch() {
    let mut sample = Sample(62);
    for (codec, spread) in [
        (Codec::table(8, true), 1.0),
        (Codec::table(4, true), 1.0),
        (Codec::table(4, false), 1.0),
        (Codec::Float8, 1.0),
    ] {
        let x = sample.vec(256, spread);
        let mut codes = vec![0xFF; 256 / codec.per_byte()];
        let scale = encode(&codec, &x, &mut codes);
        let mut back = vec![f32::NAN; 256];
        decode(&codec, &codes, scale, &mut back);
        if let Codec::Table8(table) | Codec::Table4(table) = &codec {
            let amax = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            for (x, back) in x.iter().zip(&back) {
                let best = table.iter().map(|v| (v * amax - x).abs()).fold(f32::INFINITY, f32::min);
                assert!((back - x).abs() <= best + amax * 1e-6, "{x} became {back}, best {best}");
            }
        }
        let mut zero = vec![0xFF; 256 / codec.per_byte()];
        let scale = encode(&codec, &[0.0; 256], &mut zero);
        decode(&codec, &zero, scale, &mut back);
        assert!(scale > 0.0 && back.iter().all(|x| x.abs() <= scale), "{codec:?}");
    }
}

#[test]
fn amsgrad_keeps_the_largest_square_and_threads_change_no_code() {
    let mut sample = Sample(63);
    let (len, block) = (8192, 256);
    let (signed, unsigned) = (Codec::table(8, true), Codec::table(8, false));
    let gradients = [sample.vec(len, 1.0), sample.vec(len, 1e-3)];
    let run = |threads: usize| {
        let mut p = vec![0.5; len];
        let mut codes = [vec![0_u8; len], vec![0; len], vec![0; len]];
        let mut scales =
            [vec![0.0_f32; len / block], vec![0.0; len / block], vec![0.0; len / block]];
        for (i, g) in gradients.iter().enumerate() {
            let [cm, cv, cl] = &mut codes;
            let [sm, sv, sl] = &mut scales;
            let moments = Moments {
                mean: Moment::Coded { codec: &signed, codes: cm, scales: sm },
                square: Moment::Coded { codec: &unsigned, codes: cv, scales: sv },
                largest: Some(Moment::Coded { codec: &unsigned, codes: cl, scales: sl }),
            };
            let step_of = hyper(true, u32::try_from(i + 1).expect("two"));
            step(&Cpu::new(Some(threads)), &mut p, g, moments, &step_of);
        }
        assert!(scales[2].iter().zip(&scales[1]).all(|(most, now)| most >= now));
        (p, codes)
    };
    assert!(run(1) == run(3));
}
