//! Scalar oracle: the formula with sums in f64.

use super::Panels;
use crate::Shape;

#[expect(clippy::cast_possible_truncation, reason = "the result is f32")]
pub(super) fn linear(w: &Panels, x: &[f32], y: &mut [f32], Shape { n, k, .. }: Shape) {
    let table = w.element().table();
    let mut codes = vec![0; k];
    for row in 0..n {
        w.row_codes(row, &mut codes);
        let value = |k: usize| f64::from(table[usize::from(codes[k])]) * f64::from(w.scale(row, k));
        let values: Vec<f64> = (0..k).map(value).collect();
        for (m, y) in y.chunks_exact_mut(n).enumerate() {
            let products = x[m * k..][..k].iter().zip(&values).map(|(&x, w)| f64::from(x) * w);
            y[row] = products.sum::<f64>() as f32;
        }
    }
}
