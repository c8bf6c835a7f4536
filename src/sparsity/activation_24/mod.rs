//! 2:4 activations (X11): a layer behind a squared ReLU of which two of each four stay.
//!
//! torchao's `SRELUFloat8SemiSparseDynamicActivationFloat8WeightConfig`: of each four pre-activations of a token the two largest (signed) are kept,
//! `relu(x)²` of them taken, and a float8 layer (row scales for both) multiplies. The layer is fed what comes before the activation. What GPUs pack
//! (values, and the nibble `c0 | c1 << 2` of their places) is [`pack_activation`]; the CPU multiplies the zeros.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use crate::error::{Error, Result};
use crate::kernels::{Cost, Cpu};
use crate::model::{InputTransform, Weight, check_linear};
use crate::quantization::config::Typed;
use crate::quantization::stored::Stored;
use crate::quantization::{
    Float8DynamicActivationFloat8WeightConfig, Recipe, read_weight as read_inner,
};
use crate::tensor::Tensor;

/// The name that files know the format by.
pub(crate) const TYPE: &str = "SquaredRelu24Weight";

/// Which two of four are the largest, signed, in the order of their places; the first of equals stays.
fn two_largest(four: &[f32; 4]) -> [usize; 2] {
    let mut order = [0, 1, 2, 3];
    // NaN counts as the largest, so that it is not lost.
    order.sort_by(|a, b| {
        let key = |i: &usize| if four[*i].is_nan() { f32::INFINITY } else { four[*i] };
        key(b).total_cmp(&key(a))
    });
    let (a, b) = (order[0], order[1]);
    [a.min(b), a.max(b)]
}

/// `relu(x)²` of the two largest of each four, zero for the others. Rows are multiples of 4.
pub fn squared_relu_24(x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    for (y, x) in y.as_chunks_mut::<4>().0.iter_mut().zip(x.as_chunks::<4>().0) {
        for place in two_largest(x) {
            // A comparison that NaN passes.
            y[place] = if x[place] <= 0.0 { 0.0 } else { x[place] * x[place] };
        }
    }
    y
}

/// The two kept of each four, squared, and their places `c0 | c1 << 2`, a nibble each.
pub fn pack_activation(x: &[f32]) -> (Vec<f32>, Vec<u8>) {
    let y = squared_relu_24(x);
    let fours = x.as_chunks::<4>().0.iter().zip(y.as_chunks::<4>().0);
    let mut values = Vec::with_capacity(x.len() / 2);
    let mut places = Vec::with_capacity(x.len() / 4);
    for (x, y) in fours {
        let [first, second] = two_largest(x);
        values.extend([y[first], y[second]]);
        let nibble = first | second << 2;
        places.push([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][nibble]);
    }
    (values, places)
}

/// A layer that squares, prunes and multiplies in float8.
#[derive(Clone, Debug, Default)]
pub struct SReluFloat8SemiSparseConfig {}

impl SReluFloat8SemiSparseConfig {
    fn base(&self) -> Result<Float8DynamicActivationFloat8WeightConfig> {
        let granularity = "per-row".parse()?;
        Ok(Float8DynamicActivationFloat8WeightConfig { granularity, ..Default::default() })
    }

    /// `weight` in float8, behind the activation.
    pub fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        if !weight.shape().1.is_multiple_of(4) {
            let k = weight.shape().1;
            return Err(Error::invalid(format!("K = {k} is not a multiple of 4")));
        }
        let inner = self.base()?.quantize(cpu, weight)?;
        Ok(Arc::new(SquaredRelu24Weight { inner }))
    }
}

/// `y = inner(squared_relu_24(x))`
#[derive(Clone, Debug)]
pub struct SquaredRelu24Weight {
    inner: Arc<dyn Weight>,
}

pub(crate) fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    typed.check_version(1)?;
    let data = typed.known_fields(&["inner"])?;
    let inner = data.get("inner").ok_or_else(|| Error::invalid("there is no inner weight"))?;
    if inner.get("_type").and_then(Json::as_str) == Some(TYPE) {
        return Err(Error::invalid("one squared ReLU inside another; wanted a weight"));
    }
    let shape = stored.shape();
    if !shape.1.is_multiple_of(4) {
        return Err(Error::invalid(format!("K = {} is not a multiple of 4", shape.1)));
    }
    let inner = read_inner(inner, stored.into_tensors(), shape)?;
    Ok(Arc::new(SquaredRelu24Weight { inner }))
}

impl Weight for SquaredRelu24Weight {
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }

    fn workflow(&self) -> String {
        format!("squared-relu-24·{}", self.inner.workflow())
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.inner.dequantize_rows(rows, out)
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        self.inner.tensors()
    }

    fn meta(&self) -> Json {
        json!({ "_type": TYPE, "_version": 1, "_data": { "inner": self.inner.meta() } })
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        check_linear(x, m, y, self.shape())?;
        self.inner.linear(cpu, &squared_relu_24(x), m, y)
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        format!("squared_relu_24 + {}", self.inner.kernel(cpu, m))
    }

    fn as_transform(&self) -> Option<&dyn InputTransform> {
        Some(self)
    }

    fn cost(&self, m: usize) -> Cost {
        self.inner.cost(m)
    }
}

impl InputTransform for SquaredRelu24Weight {
    fn inner(&self) -> &Arc<dyn Weight> {
        &self.inner
    }

    fn transform(&self, _cpu: &Cpu, x: &[f32]) -> Result<Vec<f32>> {
        Ok(squared_relu_24(x))
    }

    fn around(&self, inner: Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(SquaredRelu24Weight { inner }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_largest_stay_squared() {
        let x = [3.0, -5.0, 1.0, 2.0, -1.0, -2.0, -3.0, -4.0, 1.0, 1.0, 1.0, 1.0];
        let y = [9.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0];
        assert_eq!(squared_relu_24(&x), y);
        let (values, places) = pack_activation(&x);
        assert_eq!(values, [9.0, 4.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(places, [12, 4, 4]);
        assert!(squared_relu_24(&[f32::NAN, 1.0, 2.0, 3.0])[0].is_nan());
    }
}
