//! RMS and layer norms.

use super::float::Float;
use super::{Tape, Upstream, Var, rows_of};
use crate::error::{Error, Result};
use crate::kernels::norm_backward::{self, Call, Gradients, Norm};
use crate::tensor::Tensor;

impl Tape {
    /// `x · weight / √(mean x² + eps)` over the last dimension.
    pub fn rms_norm(&self, x: &Var, weight: &Var, eps: f32) -> Result<Var> {
        self.norm(Norm::Rms, x, weight, None, eps)
    }

    /// `(x − mean) · weight / √(variance + eps) + bias` over the last dimension.
    pub fn layer_norm(&self, x: &Var, weight: &Var, bias: &Var, eps: f32) -> Result<Var> {
        self.norm(Norm::Layer, x, weight, Some(bias), eps)
    }

    fn norm(&self, norm: Norm, x: &Var, weight: &Var, bias: Option<&Var>, eps: f32) -> Result<Var> {
        let (_, k) = rows_of("norm", x.shape())?;
        let mut inputs = vec![x, weight];
        inputs.extend(bias);
        if inputs[1..].iter().any(|vector| vector.shape() != [k]) {
            return Err(Error::invalid(format!(
                "norm: weight and bias must have {k} numbers, got {:?}",
                weight.shape()
            )));
        }
        let is_f64 = self.is_f64("norm", &inputs)?;
        let (forward, backward) = if is_f64 {
            (forward::<f64> as Forward, backward::<f64> as Back)
        } else {
            (forward::<f32> as Forward, backward::<f32> as Back)
        };
        let kept = Kept { norm, x: x.value.clone(), weight: weight.value.clone(), eps };
        let y = forward(self, &kept, bias.map(|bias| &bias.value))?;
        let has_bias = bias.is_some();
        self.custom("norm", &inputs, y, move |up, dy| {
            let [dx, dweight, dbias] = backward(up, &kept, &dy)?;
            let mut all = vec![Some(dx), Some(dweight)];
            all.extend(has_bias.then_some(Some(dbias)));
            Ok(all)
        })
    }
}

struct Kept {
    norm: Norm,
    x: Tensor,
    weight: Tensor,
    eps: f32,
}

type Forward = fn(&Tape, &Kept, Option<&Tensor>) -> Result<Tensor>;
type Back = fn(&Upstream<'_>, &Kept, &Tensor) -> Result<[Tensor; 3]>;

impl Kept {
    fn call<T: Float>(&self) -> Result<Call<'_, T>> {
        let (x, weight) = (self.x.as_slice()?, self.weight.as_slice()?);
        Ok(Call { norm: self.norm, x, weight, eps: T::of(f64::from(self.eps)) })
    }
}

fn forward<T: Float>(tape: &Tape, kept: &Kept, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut y = T::room(&tape.cpu, kept.x.numel());
    let bias = bias.map(Tensor::as_slice::<T>).transpose()?;
    T::norm(&tape.cpu, &kept.call::<T>()?, bias, &mut y);
    T::tensor(y, kept.x.shape())
}

fn backward<T: Float>(up: &Upstream<'_>, kept: &Kept, dy: &Tensor) -> Result<[Tensor; 3]> {
    let k = kept.weight.numel();
    let mut dx = T::room(up.cpu, dy.numel());
    let (mut dweight, mut dbias) = (vec![T::default(); k], vec![T::default(); k]);
    let to = Gradients { dx: &mut dx, dweight: &mut dweight, dbias: Some(&mut dbias) };
    norm_backward::backward(up.cpu, &kept.call::<T>()?, dy.as_slice()?, to);
    Ok([T::tensor(dx, kept.x.shape())?, Tensor::new(dweight, &[k])?, Tensor::new(dbias, &[k])?])
}
