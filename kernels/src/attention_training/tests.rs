use super::*;
use crate::sample::Sample;

struct Case<T> {
    shape: SequenceShape,
    /// q, k, v, dout.
    of: [Vec<T>; 4],
}

fn case(shape: SequenceShape, sample: &mut Sample) -> Case<f32> {
    let rows = shape.batch * shape.m;
    let (q, kv) = (rows * shape.q_cols(), rows * shape.kv_cols());
    Case { shape, of: [q, kv, kv, q].map(|len| sample.vec(len, 1.5)) }
}

fn widen(case: &Case<f32>) -> Case<f64> {
    let of = case.of.each_ref().map(|x| x.iter().map(|x| f64::from(*x)).collect());
    Case { shape: case.shape, of }
}

/// out, dq, dk, dv.
fn run<T: Multiply>(cpu: &Cpu, case: &Case<T>) -> [Vec<T>; 4] {
    let [q, k, v, dout] = &case.of;
    let nan = T::of(f64::NAN);
    let shape = &case.shape;
    let mut lse = vec![nan; shape.batch * shape.heads * shape.m];
    let [mut out, mut dq, mut dk, mut dv] = [q, q, k, v].map(|x| vec![nan; x.len()]);
    forward(cpu, shape, [q, k, v], &mut out, &mut lse);
    let of = Forward { q, k, v, out: &out, lse: &lse };
    let mut to = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    backward(cpu, shape, &of, dout, &mut to);
    [out, dq, dk, dv]
}

/// The formula, key by key.
fn plain(case: &Case<f64>) -> Vec<f64> {
    let SequenceShape { batch, m, heads, head_dim: d, scale, .. } = case.shape;
    let [q, k, v, _] = &case.of;
    let mut out = vec![0.0; q.len()];
    for (b, i, h) in
        (0..batch).flat_map(|b| (0..m).flat_map(move |i| (0..heads).map(move |h| (b, i, h))))
    {
        let kv = |j: usize| ((b * m + j) * case.shape.kv_heads + h / case.shape.group()) * d;
        let at = ((b * m + i) * heads + h) * d;
        let first = case.shape.window.map_or(0, |w| (i + 1).saturating_sub(w));
        let score = |j: usize| scale * (0..d).map(|x| q[at + x] * k[kv(j) + x]).sum::<f64>();
        let total: f64 = (first..=i).map(|j| score(j).exp()).sum();
        for j in first..=i {
            (0..d).for_each(|x| out[at + x] += score(j).exp() / total * v[kv(j) + x]);
        }
    }
    out
}

#[test]
fn f64_is_the_formula_and_its_gradients_are_the_central_differences() {
    let mut sample = Sample(51);
    for shape in &SHAPES[..3] {
        let mut case = widen(&case(*shape, &mut sample));
        let cpu = Cpu::new(Some(1));
        let got = run(&cpu, &case);
        for (got, wanted) in got[0].iter().zip(plain(&case)) {
            assert!((got - wanted).abs() < 1e-12, "{shape:?}: {got}, not {wanted}");
        }
        for which in 0..3 {
            let len = case.of[which].len();
            for i in (0..len).step_by(1 + len / 40) {
                let mut at = |h: f64| {
                    case.of[which][i] += h;
                    plain(&case).iter().zip(&case.of[3]).map(|(y, dy)| y * dy).sum::<f64>()
                };
                let slope = (at(1e-5) - at(-2e-5)) / 2e-5;
                at(1e-5);
                let got = got[which + 1][i];
                assert!((got - slope).abs() < 1e-6, "{shape:?} {which}[{i}]: {got}, not {slope}");
            }
        }
    }
}

#[test]
fn f32_matches_f64_on_every_isa_and_threads_change_nothing() {
    let mut sample = Sample(52);
    for shape in SHAPES {
        let case = case(shape, &mut sample);
        let exact = run(&Cpu::new(Some(1)), &widen(&case));
        for isa in Isa::available() {
            let got = run(&Cpu::with_isa(isa, Some(1)), &case);
            assert!(got == run(&Cpu::with_isa(isa, Some(3)), &case), "{} {shape:?}", isa.name());
            let scores = 1.0 + shape.scale * 2.25 * shape.head_dim as f64;
            let steps = (shape.m + 8 * shape.head_dim + 64) as f64 * 2f64.powi(-24);
            // A gradient sums over the M queries or keys, each weighted by P ≤ 1.
            let sizes = [1.5, 20.0, 20.0, 20.0].map(|s| s * scores * steps);
            for (which, (got, exact)) in got.iter().zip(&exact).enumerate() {
                for (i, (got, exact)) in got.iter().zip(exact).enumerate() {
                    let error = (f64::from(*got) - exact).abs();
                    let bound = sizes[which];
                    assert!(
                        error <= bound,
                        "{} {shape:?} {which}[{i}]: {got}, not {exact}",
                        isa.name()
                    );
                }
            }
        }
    }
}
