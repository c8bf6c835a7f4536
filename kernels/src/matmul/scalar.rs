//! Plain Rust: the path of every other processor, and the product in f64.

use super::{Engine, Matrix};

const MR: usize = 4;
const NR: usize = 8;

pub(super) fn engine<R>(round: R) -> Engine<'static, f32, R> {
    Engine { mr: MR, nr: NR, pair: 1, round, tile: Box::new(tile) }
}

fn tile(a: &[f32], b: &[f32], c: &mut [f32]) {
    c.fill(0.0);
    let (c, _) = c.as_chunks_mut::<NR>();
    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
        for (c, a) in c.iter_mut().zip(a) {
            c.iter_mut().zip(b).for_each(|(c, b)| *c += a * b);
        }
    }
}

/// `c = a · b` in f64, the oracle.
pub fn oracle(a: Matrix<'_, f64>, b: Matrix<'_, f64>, c: &mut [f64]) {
    assert!(a.cols == b.rows && c.len() == a.rows * b.cols, "shapes do not fit");
    for (i, row) in c.chunks_exact_mut(b.cols.max(1)).enumerate() {
        for (j, c) in row.iter_mut().enumerate() {
            let product = |k: usize| {
                a.data[i * a.row_stride + k * a.col_stride]
                    * b.data[k * b.row_stride + j * b.col_stride]
            };
            *c = (0..a.cols).map(product).sum();
        }
    }
}
