//! From gradients to new parameters.

use super::Trainer;
use super::optim::Update;
use crate::error::Result;
use crate::kernels::Cpu;
use crate::tensor::Tensor;

impl Trainer {
    /// The norm of all gradients together, in f64; an error where it is not finite.
    pub(super) fn norm(&self, cpu: &Cpu, gradients: &[Option<Tensor>]) -> Result<f64> {
        let mut total = 0.0;
        let mut wrong = None;
        for ((name, _), gradient) in self.parameters.iter().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let square = square_of(cpu, gradient.as_slice()?);
            if !square.is_finite() {
                wrong = Some(name);
            }
            total += square;
        }
        match wrong {
            None => Ok(total.sqrt()),
            Some(name) => {
                let words = format!("the gradient of {name} is not finite");
                Err(self.at_step(&words))
            }
        }
    }

    /// Moves every parameter that has a gradient.
    pub(super) fn update(
        &mut self,
        cpu: &Cpu,
        gradients: Vec<Option<Tensor>>,
        scale: f64,
        lr: f64,
    ) -> Result<()> {
        #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as they are used")]
        let (scale, lr) = (scale as f32, lr as f32);
        for (index, gradient) in gradients.into_iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let gradient = scaled(cpu, gradient, scale)?;
            let (name, parameter) = self.parameters.take(index)?;
            let decays = gradient.shape().len() > 1;
            let update = Update { name: &name, gradient: &gradient, lr, decays };
            let moved = self.optimizer.step(cpu, parameter, &update)?;
            let kept = self.zeros.put_back(&name, moved)?;
            self.parameters.set(&name, kept);
        }
        Ok(())
    }
}

/// Numbers that a thread takes at a time.
const SHARE: usize = 1 << 16;

/// `Σ g²` in f64: shares of one length each, added in their order, so that threads change nothing.
fn square_of(cpu: &Cpu, gradient: &[f32]) -> f64 {
    let mut squares = vec![0.0; gradient.len().div_ceil(SHARE)];
    cpu.threads().chunks_mut(&mut squares, 1, |part, square| {
        let numbers = &gradient[part * SHARE..gradient.len().min((part + 1) * SHARE)];
        // Eight sums, which are added side by side.
        let mut sums = [0.0; 8];
        for numbers in numbers.chunks(8) {
            sums.iter_mut().zip(numbers).for_each(|(sum, g)| *sum += f64::from(*g) * f64::from(*g));
        }
        square[0] = sums.iter().sum();
    });
    squares.iter().sum()
}

fn scaled(cpu: &Cpu, gradient: Tensor, scale: f32) -> Result<Tensor> {
    #[expect(clippy::float_cmp, reason = "1 changes nothing; whatever else does")]
    if scale == 1.0 {
        return Ok(gradient);
    }
    gradient.changed::<f32>(|values| {
        cpu.threads().chunks_mut(values, SHARE, |_, values| {
            values.iter_mut().for_each(|value| *value *= scale);
        });
    })
}
