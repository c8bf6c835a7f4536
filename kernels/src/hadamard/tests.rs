use super::*;
use crate::sample::Sample;

fn exact(plan: &Plan, x: &[f32], f: fn(&Plan, &mut [f64])) -> Vec<f64> {
    let mut y: Vec<f64> = x.iter().map(|value| f64::from(*value)).collect();
    y.chunks_exact_mut(plan.len()).for_each(|row| f(plan, row));
    y
}

#[test]
fn every_instruction_set_agrees_with_the_oracle_and_goes_back() {
    for (m, n) in SHAPES {
        let plan = Plan::new(n).expect("a size with a matrix");
        let x = Sample((m * n) as u64).vec(m * n, 3.0);
        for isa in Isa::available() {
            for threads in [1, 3] {
                let cpu = Cpu::with_isa(isa, Some(threads));
                let mut y = x.clone();
                transform(&cpu, &plan, &mut y);
                let steps = (plan.run.ilog2() as usize + plan.stored) as f64;
                let allowed = 2.0_f64.powi(-22) * steps * 3.0 * (n as f64).sqrt();
                for (y, wanted) in y.iter().zip(exact(&plan, &x, oracle)) {
                    let error = (f64::from(*y) - wanted).abs();
                    assert!(error <= allowed, "{}, {m} × {n}: {y}, wanted {wanted}", isa.name());
                }
                inverse(&cpu, &plan, &mut y);
                for (y, x) in y.iter().zip(&x) {
                    let error = f64::from((y - x).abs());
                    assert!(
                        error <= 2.0 * allowed,
                        "{}, {m} × {n}: back to {y}, was {x}",
                        isa.name()
                    );
                }
            }
        }
    }
}

#[test]
fn every_stored_matrix_is_a_hadamard_matrix() {
    for n in STORED {
        let plan = Plan::new(n).expect("stored");
        assert_eq!((plan.stored, plan.run), (n, 1));
        for i in 0..n {
            for j in 0..n {
                let rows = plan.signs[i * n..][..n].iter().zip(&plan.signs[j * n..][..n]);
                let sum: f32 = rows.map(|(a, b)| a * b).sum();
                let wanted = if i == j { n as f32 } else { 0.0 };
                assert!((sum - wanted).abs() < 0.5, "{n}: rows {i} and {j}: {sum}");
            }
        }
    }
    assert_eq!(SIGNS.len(), STORED.iter().map(|n| (n * n).div_ceil(8)).sum::<usize>());
}

#[test]
fn sizes_without_a_matrix_have_no_plan() {
    for n in [0, 3, 7, 18, 100, 172 * 3] {
        assert_eq!(Plan::new(n), None, "{n}");
    }
}
