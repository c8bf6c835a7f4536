//! What an optimizer remembers of one parameter.

use super::galore::Projection;
use super::{AdamConfig, OptimizerConfig, Update};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::adam::{self, Codec, Hyper, Moment, Moments};
use crate::tensor::Tensor;

/// torchao quantizes the state of parameters with at least so many numbers.
const SMALLEST: usize = 4096;

#[derive(Clone, Debug)]
pub(super) struct State {
    /// Which parameter it was the first to be updated.
    pub(super) index: u64,
    pub(super) step: u32,
    /// `exp_avg`, `exp_avg_sq`, `max_exp_avg_sq`; for SGD `momentum_buffer`.
    moments: Vec<(&'static str, Kept)>,
    /// The directions that GaLore's moments are of, and the parameter's shape.
    low: Option<(Projection, (usize, usize))>,
}

/// A moment.
#[derive(Clone, Debug)]
enum Kept {
    F32(Vec<f32>),
    Coded { codec: Codec, codes: Vec<u8>, scales: Vec<f32> },
}

impl State {
    pub(super) fn new(
        config: &OptimizerConfig,
        (name, shape): (&str, &[usize]),
        index: u64,
    ) -> State {
        let galore = config.galore();
        let matrix = galore.and_then(|galore| galore.matrix(name, shape));
        let len = match (galore, matrix) {
            (Some(galore), Some(matrix)) => {
                let (rows, columns) = galore.low(matrix);
                rows * columns
            }
            _ => shape.iter().product(),
        };
        let low = matrix.map(|matrix| (Projection::default(), matrix));
        let moments = match config {
            OptimizerConfig::Sgd { momentum, .. } if *momentum == 0.0 => Vec::new(),
            OptimizerConfig::Sgd { .. } => vec![("momentum_buffer", Kept::F32(vec![0.0; len]))],
            OptimizerConfig::Adam(adam) => {
                let mut all = vec![
                    ("exp_avg", Kept::zeros(adam, true, len)),
                    ("exp_avg_sq", Kept::zeros(adam, false, len)),
                ];
                if adam.amsgrad {
                    all.push(("max_exp_avg_sq", Kept::zeros(adam, false, len)));
                }
                all
            }
        };
        State { index, step: 0, moments, low }
    }

    pub(super) fn nbytes(&self) -> usize {
        let projection = self.low.as_ref().map_or(0, |(projection, _)| projection.nbytes());
        projection + self.moments.iter().map(|(_, kept)| kept.nbytes()).sum::<usize>()
    }

    pub(super) fn update(
        &mut self,
        cpu: &Cpu,
        config: &OptimizerConfig,
        p: &mut [f32],
        update: &Update<'_>,
    ) -> Result<()> {
        let g = update.gradient.as_slice::<f32>()?;
        let step = self.step;
        match (config, &mut self.moments[..]) {
            (
                OptimizerConfig::Adam(AdamConfig { galore: Some(galore), .. }),
                [(_, mean), (_, square), ..],
            ) if self.low.is_some() => {
                let low = self.low.as_mut().map(|(projection, matrix)| (projection, *matrix));
                let Some((projection, matrix)) = low else { return Ok(()) };
                let gap = galore.update_proj_gap;
                if step == 1 || (step - 1).is_multiple_of(gap) {
                    *projection = Projection::of(cpu, galore, g, matrix)?;
                }
                let seen = projection.project(cpu, g, matrix);
                let mut moved = vec![0.0; seen.len()];
                let moments =
                    Moments { mean: mean.moment(), square: square.moment(), largest: None };
                let hyper = config.galore_hyper(update.lr, step)?;
                adam::step(cpu, &mut moved, &seen, moments, &hyper);
                let back = projection.back(cpu, &moved, matrix);
                let decay = config.decay(update) * update.lr;
                for (p, moved) in p.iter_mut().zip(&back) {
                    *p += galore.scale * moved;
                    *p -= decay * *p;
                }
            }
            (OptimizerConfig::Adam(config), [(_, mean), (_, square), rest @ ..]) => {
                let hyper = Hyper {
                    lr: update.lr,
                    betas: config.betas,
                    eps: config.eps,
                    weight_decay: if update.decays { config.weight_decay } else { 0.0 },
                    decoupled: config.decoupled,
                    step,
                };
                let largest = rest.first_mut().map(|(_, kept)| kept.moment());
                let moments = Moments { mean: mean.moment(), square: square.moment(), largest };
                adam::step(cpu, p, g, moments, &hyper);
            }
            (OptimizerConfig::Sgd { momentum, weight_decay }, rest) => {
                let decay = if update.decays { *weight_decay } else { 0.0 };
                let mut buffer = match rest.first_mut() {
                    Some((_, Kept::F32(buffer))) => Some(buffer),
                    _ => None,
                };
                // PyTorch's buffer begins as the first gradient.
                let momentum = if step == 1 { 0.0 } else { *momentum };
                for (i, (p, g)) in p.iter_mut().zip(g).enumerate() {
                    let mut along = g + decay * *p;
                    if let Some(buffer) = &mut buffer {
                        along += momentum * buffer[i];
                        buffer[i] = along;
                    }
                    *p -= update.lr * along;
                }
            }
            (OptimizerConfig::Adam(_), _) => {
                return Err(Error::invalid("the state of an Adam optimizer has two moments"));
            }
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let place = vec![i64::from(self.step), self.index.cast_signed()];
        let mut all = vec![("step".to_owned(), Tensor::new(place, &[2])?)];
        if let Some((projection, _)) = &self.low {
            all.extend(projection.tensors()?);
        }
        for (name, kept) in &self.moments {
            match kept {
                Kept::F32(values) => {
                    all.push(((*name).to_owned(), Tensor::new(values.clone(), &[values.len()])?));
                }
                Kept::Coded { codes, scales, .. } => {
                    let codes = Tensor::new(codes.clone(), &[codes.len()])?;
                    let scales = Tensor::new(scales.clone(), &[scales.len()])?;
                    all.extend([
                        (format!("{name}.codes"), codes),
                        (format!("{name}.scale"), scales),
                    ]);
                }
            }
        }
        Ok(all)
    }

    pub(super) fn restore(
        &mut self,
        config: &OptimizerConfig,
        step: &Tensor,
        find: &dyn Fn(&str) -> Option<Tensor>,
    ) -> Result<()> {
        if let (Some((projection, matrix)), Some(galore)) = (&mut self.low, config.galore()) {
            *projection = Projection::restored(galore, *matrix, find)?;
        }
        let [step, index] = step.as_slice::<i64>()? else {
            return Err(Error::invalid("step: wanted two numbers"));
        };
        self.step = u32::try_from(*step)
            .map_err(|_| Error::invalid(format!("step is {step}; wanted a small number")))?;
        self.index = index.cast_unsigned();
        for (name, kept) in &mut self.moments {
            kept.restore(name, find)?;
        }
        Ok(())
    }
}

impl Kept {
    fn zeros(adam: &AdamConfig, signed: bool, len: usize) -> Kept {
        let block = adam.block();
        match adam.state.codec(signed) {
            Some(codec) if len >= SMALLEST && len.is_multiple_of(block) => {
                let (codes, scales) = (vec![0; len / codec.per_byte()], vec![0.0; len / block]);
                Kept::Coded { codec, codes, scales }
            }
            _ => Kept::F32(vec![0.0; len]),
        }
    }

    fn nbytes(&self) -> usize {
        match self {
            Kept::F32(values) => 4 * values.len(),
            Kept::Coded { codes, scales, .. } => codes.len() + 4 * scales.len(),
        }
    }

    fn moment(&mut self) -> Moment<'_> {
        match self {
            Kept::F32(values) => Moment::F32(values),
            Kept::Coded { codec, codes, scales } => Moment::Coded { codec, codes, scales },
        }
    }

    fn restore(&mut self, name: &str, find: &dyn Fn(&str) -> Option<Tensor>) -> Result<()> {
        let get = |part: &str, len: usize| {
            let tensor = find(part)
                .ok_or_else(|| Error::invalid(format!("{part} is missing from the checkpoint")))?;
            if tensor.numel() == len {
                return Ok(tensor);
            }
            let got = tensor.numel();
            Err(Error::invalid(format!("{part} has {got} numbers, wanted {len}")))
        };
        match self {
            Kept::F32(values) => *values = get(name, values.len())?.into_vec()?,
            Kept::Coded { codes, scales, .. } => {
                *codes = get(&format!("{name}.codes"), codes.len())?.into_vec()?;
                *scales = get(&format!("{name}.scale"), scales.len())?.into_vec()?;
            }
        }
        Ok(())
    }
}
