//! Block-sparse layers: tokens from 1 to some hundreds, rows of blocks without any, gates.

use super::{assert_close, device, from_bf16, poisoned_bf16, poisoned_f32, to_bf16};
use crate::cuda::linear::{HostWeight, Linear, Output, Rows};
use crate::cuda::sparse::{BlockSparseLinear, StoredBlocks};
use crate::sample::Sample;

/// Blocks, and the rows in f64.
struct Case {
    values: Vec<u16>,
    crow: Vec<i32>,
    col: Vec<i32>,
    rows: Vec<f64>,
    n: usize,
    k: usize,
}

impl Case {
    /// Of each row of blocks some, of the second none.
    fn new(sample: &mut Sample, (n, k): (usize, usize)) -> Case {
        let (mut crow, mut col) = (vec![0], Vec::new());
        for row in 0..n / 64 {
            for column in 0..k / 64 {
                if row != 1 && sample.below(3) == 0 {
                    col.push(i32::try_from(column).expect("small"));
                }
            }
            crow.push(i32::try_from(col.len()).expect("small"));
        }
        let values = to_bf16(&sample.vec(col.len() * 4096, 0.3));
        let numbers = from_bf16(&values);
        let mut rows = vec![0.0; n * k];
        let whole = |index: i32| usize::try_from(index).expect("an index");
        for row in 0..n / 64 {
            for at in whole(crow[row])..whole(crow[row + 1]) {
                for i in 0..4096 {
                    let (column, of) = (whole(col[at]) * 64 + i / 64, row * 64 + i % 64);
                    rows[of * k + column] = numbers[at * 4096 + i];
                }
            }
        }
        Case { values, crow, col, rows, n, k }
    }

    fn stored(&self) -> StoredBlocks<'_> {
        StoredBlocks { values: &self.values, crow: &self.crow, col: &self.col }
    }

    /// `x · Wᵀ` and `|x| · |W|ᵀ`.
    fn product(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let rows = || {
            x.chunks_exact(self.k).flat_map(|x| self.rows.chunks_exact(self.k).map(move |w| (x, w)))
        };
        let sum = |(x, w): (&[f64], &[f64])| x.iter().zip(w).map(|(x, w)| x * w).sum();
        let size = |(x, w): (&[f64], &[f64])| x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
        (rows().map(sum).collect(), rows().map(size).collect())
    }
}

#[test]
fn blocks_multiply_as_their_formula_says() {
    let Some(device) = device() else { return };
    if !device.has_wgmma() {
        println!("skipped: {} has no wgmma", device.name());
        return;
    }
    let mut sample = Sample(0xB10C);
    for shape in [(192, 256), (64, 64), (448, 1024)] {
        let case = Case::new(&mut sample, shape);
        let (n, k) = (case.n, case.k);
        let bias = sample.vec(n, 1.0);
        let layer = BlockSparseLinear::new(&device, case.stored(), shape, Some(&bias));
        let layer = layer.expect("a layer");
        for m in [1, 2, 7, 16, 17, 33, 64, 65, 130, 256, 257, 513, 700] {
            let x = to_bf16(&sample.vec(m * k, 1.0));
            let on_device = device.upload(&x).expect("x");
            let (mut wanted, size) = case.product(&from_bf16(&x));
            for (i, wanted) in wanted.iter_mut().enumerate() {
                *wanted += f64::from(bias[i % n]);
            }
            let name = format!("{n} × {k}, M = {m}");
            let bound = |i: usize| {
                size[i] * k as f64 * 2f64.powi(-22) + wanted[i].abs() * 2f64.powi(-8) + 1e-6
            };
            let y = poisoned_bf16(&device, m * n);
            layer.run(&on_device, m, &Output::Bf16(&y)).expect("a run");
            assert_close(&name, &from_bf16(&y.read().expect("y")), &wanted, bound);
            let y = poisoned_f32(&device, m * n);
            layer.run(&on_device, m, &Output::F32(&y)).expect("a run");
            let got: Vec<f64> = y.read().expect("y").into_iter().map(f64::from).collect();
            assert_close(&name, &got, &wanted, bound);
            let before = sample.vec(m * n, 2.0);
            let y = device.upload(&before).expect("y");
            layer.run(&on_device, m, &Output::AddF32(&y)).expect("a run");
            let got: Vec<f64> = y.read().expect("y").into_iter().map(f64::from).collect();
            let sum: Vec<f64> =
                wanted.iter().zip(&before).map(|(a, b)| a + f64::from(*b)).collect();
            assert_close(&name, &got, &sum, |i| bound(i) + sum[i].abs() * 2f64.powi(-22));
        }
    }
}

#[test]
fn block_sparse_gates_are_multiplied_and_lies_are_refused() {
    let Some(device) = device() else { return };
    if !device.has_wgmma() {
        println!("skipped: {} has no wgmma", device.name());
        return;
    }
    let mut sample = Sample(0xB10D);
    let shape @ (n, k) = (128, 320);
    let parts = [(); 2].map(|()| Case::new(&mut sample, shape));
    let host = parts.each_ref().map(|part| (HostWeight::Blocks(part.stored()), n));
    let layer = Linear::new(&device, &host, k, Rows::GatePairs, None).expect("a layer");
    for m in [1, 40] {
        let x = to_bf16(&sample.vec(m * k, 1.0));
        let [gate, up] = parts.each_ref().map(|part| part.product(&from_bf16(&x)).0);
        let y = poisoned_bf16(&device, m * n);
        layer.run(&device.upload(&x).expect("x"), m, &Output::Bf16(&y)).expect("a run");
        let wanted: Vec<f64> =
            gate.iter().zip(&up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
        assert_close("gates", &from_bf16(&y.read().expect("y")), &wanted, |i| {
            wanted[i].abs() * 2f64.powi(-5) + 1e-2
        });
    }
    let [part, _] = &parts;
    let past = vec![5; part.col.len()];
    for lie in [
        StoredBlocks { col: &past, ..part.stored() },
        StoredBlocks { crow: &part.crow[1..], ..part.stored() },
        StoredBlocks { values: &part.values[1..], ..part.stored() },
    ] {
        let error = BlockSparseLinear::new(&device, lie, shape, None).expect_err("a lie");
        assert!(error.to_string().contains("no block-sparse weight"), "{error}");
    }
}
