//! Where training from scratch begins.

use super::Parameters;
use crate::error::Result;
use crate::rng::Rng;
use crate::tensor::Tensor;

/// The spread of weights, as GPT-2's.
const SPREAD: f32 = 0.02;

/// Parameters of the same shapes at random: matrices normal with a spread of 0.02, those that end a residual branch
/// divided by √(2 · blocks), norms 1, biases 0.
pub fn initialize(parameters: &Parameters, blocks: usize, seed: u64) -> Result<Parameters> {
    let mut rng = Rng::new(seed);
    let mut fresh = Parameters::default();
    #[expect(clippy::cast_precision_loss, reason = "block counts are small")]
    let residual = SPREAD / (2.0 * blocks.max(1) as f32).sqrt();
    for (name, tensor) in parameters.iter() {
        let ends_branch =
            name.contains("o_proj") || name.contains("down_proj") || name.ends_with(".w2.weight");
        let spread = if ends_branch { residual } else { SPREAD };
        let is_matrix = tensor.shape().len() > 1;
        let value = |rng: &mut Rng| match name {
            _ if is_matrix => rng.normal() * spread,
            _ if name.ends_with(".bias") => 0.0,
            _ => 1.0,
        };
        let values: Vec<f32> = (0..tensor.numel()).map(|_| value(&mut rng)).collect();
        fresh.set(name, Tensor::new(values, tensor.shape())?.to_dtype(tensor.dtype())?);
    }
    Ok(fresh)
}
