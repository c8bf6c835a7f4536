//! The signal-to-quantization-noise ratio (N23).

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// `20 · log10(‖x‖₂ / ‖x − y‖₂)` dB, the norms summed in f64. Equal tensors give +∞.
pub fn compute_error(x: &Tensor, y: &Tensor) -> Result<f64> {
    if x.shape() != y.shape() {
        return Err(Error::invalid(format!(
            "SQNR compares tensors of one shape; got {:?} and {:?}",
            x.shape(),
            y.shape()
        )));
    }
    let (x, y) = (x.to_f32_vec(), y.to_f32_vec());
    let signal: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    let noise: f64 = x.iter().zip(&y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
    Ok(10.0 * (signal / noise).log10())
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "infinity is exact")]
mod tests {
    use super::*;

    #[test]
    fn twenty_decibels_are_a_tenth() {
        let x = Tensor::new(vec![3.0_f32, 4.0], &[2]).expect("two");
        let y = Tensor::new(vec![3.3_f32, 4.4], &[2]).expect("two");
        let sqnr = compute_error(&x, &y).expect("same shape");
        assert!((sqnr - 20.0).abs() < 1e-5, "{sqnr}");
        assert_eq!(compute_error(&x, &x).expect("same shape"), f64::INFINITY);
        assert!(compute_error(&x, &y.reshape(&[1, 2]).expect("two")).is_err());
    }
}
