//! What calibration sees of a layer that module-swap is to quantize.

use std::sync::Arc;

use super::range::extremes;
use super::{QuantizationRecipe, RangeSetting};
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::quantization::calibration::{Hessian, LayerObserver};

/// Gathers second moments and extremes, then sets ranges; results are those of the weight that was made, in a second pass.
#[derive(Debug)]
pub(super) struct Watch {
    config: QuantizationRecipe,
    weight: Arc<dyn Weight>,
    hessian: Option<Hessian>,
    input: (f32, f32),
    output: (f32, f32),
    again: bool,
    made: Option<Arc<dyn Weight>>,
}

impl Watch {
    pub(super) fn new(config: &QuantizationRecipe, weight: &Arc<dyn Weight>) -> Watch {
        let by_outputs = config.range_setting == RangeSetting::ActivationLoss;
        let none = (f32::INFINITY, f32::NEG_INFINITY);
        Watch {
            config: config.clone(),
            weight: Arc::clone(weight),
            hessian: by_outputs.then(|| Hessian::new(weight.shape().1)),
            input: none,
            output: none,
            again: false,
            made: None,
        }
    }

    fn made(&mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        if let Some(made) = &self.made {
            return Ok(Arc::clone(made));
        }
        let made = self.config.weight(cpu, self.weight.as_ref(), self.hessian.as_ref())?;
        self.made = Some(Arc::clone(&made));
        Ok(made)
    }
}

fn wider((min, max): (f32, f32), values: &[f32]) -> (f32, f32) {
    let (low, high) = extremes(values);
    // A NaN stays: the range is refused then.
    (
        if low < min || low.is_nan() { low } else { min },
        if high > max || high.is_nan() { high } else { max },
    )
}

impl LayerObserver for Watch {
    fn observe(&mut self, cpu: &Cpu, x: &[f32]) -> Result<()> {
        if self.again {
            let made = self.made(cpu)?;
            let (n, k) = made.shape();
            let m = x.len().checked_div(k).unwrap_or(0);
            let mut y = vec![0.0; m * n];
            made.linear(cpu, x, m, &mut y)?;
            self.output = wider(self.output, &y);
            return Ok(());
        }
        self.input = wider(self.input, x);
        self.hessian.as_mut().map_or(Ok(()), |hessian| hessian.update(cpu, x))
    }

    fn another_pass(&mut self) -> Result<bool> {
        let wanted = self.config.fixes_activations() && self.config.output_quantization;
        self.again = wanted && !self.again;
        Ok(self.again)
    }

    fn convert(&mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        let made = self.made(cpu)?;
        match self.config.fixes_activations() {
            true => self.config.rounded(made, Some(self.input), Some(self.output)),
            false => self.config.rounded(made, None, None),
        }
    }
}
