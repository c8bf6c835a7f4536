//! Range learning (T07): scales and zero points are parameters.

use super::affine::{self, Codes, Scales};
use super::config::IntxFakeQuantizeConfig;
use crate::autograd::{Tape, Upstream, Var};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::quantization::MappingType;
use crate::tensor::Tensor;

/// The least scale that training begins with.
const SCALE_EPS: f32 = 1e-9;

/// The scale and, where the mapping is asymmetric, the zero point of each group.
#[derive(Clone, Debug)]
pub struct LearnedRange<V> {
    /// One a group.
    pub scale: V,
    /// One a group; `None` where it stays 0.
    pub zero_point: Option<V>,
}

/// Where training begins: the range that fake quantization of `x` would choose.
pub fn initial_range(
    cpu: &Cpu,
    config: &IntxFakeQuantizeConfig,
    x: &Tensor,
) -> Result<LearnedRange<Tensor>> {
    config.check()?;
    let k = x.shape().last().copied().unwrap_or(0);
    let codes = Codes::of(config, k)?;
    let Scales { scale, zero } = affine::choose(cpu, config, x)?;
    let shape = [x.numel() / k.max(1), k.checked_div(codes.group).unwrap_or(0)];
    let scale = scale.into_iter().map(|s| if s < SCALE_EPS { SCALE_EPS } else { s }).collect();
    let zero = zero.into_iter().map(|z| affine::clamp(z.round_ties_even(), codes.min, codes.max));
    let zero = match config.mapping_type {
        MappingType::Asymmetric => Some(Tensor::new(zero.collect::<Vec<f32>>(), &shape)?),
        _ => None,
    };
    Ok(LearnedRange { scale: Tensor::new::<f32>(scale, &shape)?, zero_point: zero })
}

impl IntxFakeQuantizeConfig {
    /// As fake quantization, with a range that takes gradients.
    pub fn fake_quantize_learned(
        &self,
        tape: &Tape,
        x: &Var,
        range: &LearnedRange<Var>,
    ) -> Result<Var> {
        self.check()?;
        let k = x.shape().last().copied().unwrap_or(0);
        let codes = Codes::of(self, k)?;
        let groups = x.value().numel().checked_div(codes.group).unwrap_or(0);
        let zero = range.zero_point.as_ref().map(|zero| zero.value().to_f32_vec());
        let scale = range.scale.value().as_slice::<f32>()?.to_vec();
        let scales = Scales { zero: zero.unwrap_or_else(|| vec![0.0; groups]), scale };
        if scales.scale.len() != groups || scales.zero.len() != groups {
            let (scale, zero) = (scales.scale.len(), scales.zero.len());
            return Err(Error::invalid(format!(
                "{scale} scales and {zero} zero points for {groups} groups"
            )));
        }
        let y = affine::quantized(tape.cpu(), &codes, &scales, x.value())?;
        let mut inputs = vec![x, &range.scale];
        inputs.extend(&range.zero_point);
        let kept = x.value().clone();
        let shape = range.scale.shape().to_vec();
        tape.custom("fake_quantize_learned", &inputs, y, move |up, dy| {
            let range = range_gradients(up, &codes, &scales, &kept, &dy)?;
            let dx = affine::passed(up.cpu, &codes, &scales, &kept, dy)?;
            let [dscale, dzero] = range.map(|values| Tensor::new(values, &shape));
            let mut all = vec![Some(dx), Some(dscale?)];
            if up.needs.len() == 3 {
                all.push(Some(dzero?));
            }
            Ok(all)
        })
    }
}

/// `dscale = Σ dy · (q − zero) − Σ dy · scale · x / scale²` and `dzero = −scale · Σ dy`, the second sums only over codes
/// that were not clamped, the last only over those that were.
fn range_gradients(
    up: &Upstream<'_>,
    codes: &Codes,
    scales: &Scales,
    x: &Tensor,
    dy: &Tensor,
) -> Result<[Vec<f32>; 2]> {
    let (x, dy) = (x.as_slice::<f32>()?, dy.as_slice::<f32>()?);
    let mut sums = vec![0.0; 2 * scales.scale.len()];
    affine::for_groups(up.cpu, 2, &mut sums, |group, _, sums| {
        let (scale, zero) = (scales.scale[group], scales.zero[group]);
        let inverse = codes.inverse(scale);
        let range = group * codes.group..(group + 1) * codes.group;
        let (mut along, mut through, mut shift, mut held) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
        for (x, dy) in x[range.clone()].iter().zip(&dy[range]) {
            let code = (x * inverse).round_ties_even() + zero;
            let clamped = affine::clamp(code, codes.min, codes.max);
            along += f64::from(dy * (clamped - zero));
            shift += f64::from(dy * scale);
            if code >= codes.min && code <= codes.max {
                through += f64::from(dy * scale * x);
                held += f64::from(dy * scale);
            }
        }
        let inverse = f64::from(inverse);
        let values = [along - through * inverse * inverse, held - shift];
        #[expect(clippy::cast_possible_truncation, reason = "sums run in f64, gradients are f32")]
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = value as f32);
    });
    let (pairs, _) = sums.as_chunks::<2>();
    Ok([pairs.iter().map(|pair| pair[0]).collect(), pairs.iter().map(|pair| pair[1]).collect()])
}
