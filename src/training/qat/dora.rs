//! DoRA (X26): an adapted weight's rows have a length of their own, which is trained beside their direction.
//!
//! `V = W + B · A · alpha / rank`, and what is multiplied is `m[n] · V[n] / ‖V[n]‖`. The norm is a constant to the gradient
//! (Liu et al. 2024, DoRA, arXiv 2402.09353, §4.3), as in torchao's `DoRALayer`.

use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The lengths of the rows of `weight (N, K)`, in f64 and rounded: where magnitudes begin.
pub fn row_norms(weight: &Tensor) -> Result<Tensor> {
    let (n, k) = weight.dims2()?;
    let rows = weight.as_slice::<f32>()?.chunks_exact(k.max(1));
    let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
    let norms: Vec<f32> = rows.map(|row| norm(row) as f32).collect();
    Tensor::new(norms, &[n])
}

/// The rows of `v (N, K)` at the lengths `magnitude (N)`; a row of zeros stays one.
pub fn dora_weight(tape: &Tape, v: &Var, magnitude: &Var) -> Result<Var> {
    let (n, k) = v.value().dims2()?;
    if magnitude.shape() != [n] {
        let got = magnitude.shape();
        return Err(Error::invalid(format!("DoRA: {got:?} magnitudes for {n} rows")));
    }
    let norms = row_norms(v.value())?.into_vec::<f32>()?;
    let inverse: Vec<f32> = norms.iter().map(|n| if *n > 0.0 { 1.0 / n } else { 0.0 }).collect();
    let (rows, lengths) = (v.value().clone(), magnitude.value().clone());
    let factors: Vec<f32> =
        inverse.iter().zip(lengths.as_slice::<f32>()?).map(|(inverse, m)| m * inverse).collect();
    let scaled = move |x: &Tensor, factors: &[f32]| -> Result<Tensor> {
        let rows = x.as_slice::<f32>()?.chunks_exact(k.max(1)).zip(factors);
        let y = rows.flat_map(|(row, factor)| row.iter().map(move |x| x * factor)).collect();
        Tensor::new::<f32>(y, &[n, k])
    };
    let y = scaled(v.value(), &factors)?;
    tape.custom("dora", &[v, magnitude], y, move |up, dy| {
        let dv = up.wants(0, || scaled(&dy, &factors))?;
        let dm = up.wants(1, || {
            let rows = rows.as_slice::<f32>()?.chunks_exact(k.max(1));
            let pairs = rows.zip(dy.as_slice::<f32>()?.chunks_exact(k.max(1))).zip(&inverse);
            let along = |v: &[f32], dy: &[f32]| -> f64 {
                v.iter().zip(dy).map(|(v, dy)| f64::from(*v) * f64::from(*dy)).sum()
            };
            #[expect(clippy::cast_possible_truncation, reason = "sums run in f64")]
            let dm = pairs.map(|((v, dy), inverse)| (along(v, dy) * f64::from(*inverse)) as f32);
            Tensor::new::<f32>(dm.collect(), &[n])
        })?;
        Ok(vec![dv, dm])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Cpu;
    use crate::rng::Rng;

    const N: usize = 5;
    const K: usize = 7;

    /// Σ of what is multiplied times `weights`, in f64, with the norms of `fixed`.
    fn objective(v: &[f32], m: &[f32], fixed: &[f32], weights: &[f32]) -> f64 {
        let mut sum = 0.0;
        for (row, m) in m.iter().enumerate() {
            let range = row * K..(row + 1) * K;
            let square: f64 = fixed[range.clone()].iter().map(|x| f64::from(x * x)).sum();
            for at in range {
                sum += f64::from(*m) * f64::from(v[at]) / square.sqrt() * f64::from(weights[at]);
            }
        }
        sum
    }

    #[test]
    fn rows_get_their_lengths_and_gradients_are_central_differences() {
        let mut rng = Rng::new(8);
        let mut draw = |len: usize| (0..len).map(|_| rng.normal()).collect::<Vec<f32>>();
        let (v, m, weights) = (draw(N * K), draw(N), draw(N * K));
        let tape = Tape::new(&Cpu::new(Some(1)));
        let leaf = |x: &[f32], shape: &[usize]| {
            tape.leaf(Tensor::new(x.to_vec(), shape).expect("its shape"))
        };
        let (rows, lengths) = (leaf(&v, &[N, K]), leaf(&m, &[N]));
        let y = dora_weight(&tape, &rows, &lengths).expect("it fits");
        for (norm, m) in row_norms(y.value()).expect("a matrix").to_f32_vec().iter().zip(&m) {
            assert!((norm - m.abs()).abs() <= 1e-6 * m.abs(), "{norm} {m}");
        }
        let upstream = Tensor::new(weights.clone(), &[N, K]).expect("its shape");
        let mut found = tape.backward_from(&y, upstream).expect("gradients");
        let [dv, dm] = [rows, lengths].map(|x| found.take(&x).expect("a gradient").to_f32_vec());
        for (at, dv) in dv.iter().enumerate() {
            let with = |h: f32| {
                let mut moved = v.clone();
                moved[at] += h;
                objective(&moved, &m, &v, &weights)
            };
            let slope = (with(0.125) - with(-0.125)) / 0.25;
            assert!((f64::from(*dv) - slope).abs() < 1e-5 * (1.0 + slope.abs()), "v[{at}]");
        }
        for (at, dm) in dm.iter().enumerate() {
            let with = |h: f32| {
                let mut moved = m.clone();
                moved[at] += h;
                objective(&v, &moved, &v, &weights)
            };
            let slope = (with(0.125) - with(-0.125)) / 0.25;
            assert!((f64::from(*dm) - slope).abs() < 1e-5 * (1.0 + slope.abs()), "m[{at}]");
        }
    }

    #[test]
    fn a_row_of_zeros_stays_one_and_shapes_are_checked() {
        let tape = Tape::no_grad(&Cpu::new(Some(1)));
        let v = tape.constant(Tensor::new(vec![0.0_f32, 0.0, 3.0, 4.0], &[2, 2]).expect("2 × 2"));
        let m = tape.constant(Tensor::new(vec![2.0_f32, 10.0], &[2]).expect("two"));
        let y = dora_weight(&tape, &v, &m).expect("it fits").value().to_f32_vec();
        assert_eq!(y, [0.0, 0.0, 6.0, 8.0]);
        let one = tape.constant(Tensor::new(vec![2.0_f32], &[1]).expect("one"));
        assert!(dora_weight(&tape, &v, &one).is_err());
    }
}
