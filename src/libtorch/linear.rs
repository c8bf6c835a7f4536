//! One linear layer on libtorch, timed beside ours: what `bench linear --vs torch` prints as the ratio.

use tch::{Kind, Tensor};

use super::network::int;
use super::{prepare, wrong};
use crate::bench::Rival;
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::rng::Rng;

/// A layer of libtorch with random numbers, as PyTorch's users run it on a CPU: activations in bf16, or f32 for f32 weights.
#[derive(Debug)]
pub struct TorchLinear {
    x: Tensor,
    layer: Layer,
}

#[derive(Debug)]
enum Layer {
    /// `at::linear`, which calls MKL or oneDNN.
    Dense(Tensor),
    /// `at::_weight_int8pack_mm`: codes and a scale a row.
    Int8 { codes: Tensor, scale: Tensor },
    /// `at::_weight_int4pack_mm_for_cpu`: packed codes, and the scales and zeros of groups.
    Int4 { packed: Tensor, scales: Tensor, group_size: i64 },
}

impl TorchLinear {
    /// The counterpart of `weight` for `m` rows, on the threads of `cpu`.
    pub fn new(cpu: &Cpu, weight: &dyn Weight, m: usize, group_size: usize) -> Result<TorchLinear> {
        prepare(cpu)?;
        let (n, k) = weight.shape();
        let workflow = weight.workflow();
        let kind = if workflow == "f32" { Kind::Float } else { Kind::BFloat16 };
        let mut rng = Rng::new(4);
        let mut random = |rows: usize, scale: f32| -> Tensor {
            let values: Vec<f32> = (0..rows * k).map(|_| scale * rng.normal()).collect();
            Tensor::from_slice(&values).view([int(rows), int(k)])
        };
        let x = random(m, 1.0).to_kind(kind);
        let w = random(n, 0.02);
        let layer = match workflow.as_str() {
            "int8-weight-only" => {
                let scale = w.abs().amax([1_i64].as_slice(), true) / 127.0;
                let codes = (w / &scale).round().to_kind(Kind::Int8);
                Layer::Int8 { codes, scale: scale.view([-1]).to_kind(kind) }
            }
            // ATen packs rows in sixteens and groups of these sizes.
            "int4-weight-only"
                if n.is_multiple_of(16) && [32, 64, 128, 256].contains(&group_size) =>
            {
                int4(&w, (n, k), group_size)?
            }
            _ => Layer::Dense(w.to_kind(kind)),
        };
        Ok(TorchLinear { x, layer })
    }
}

fn int4(w: &Tensor, (n, k): (usize, usize), group_size: usize) -> Result<Layer> {
    let groups = w.view([int(n), int(k / group_size), int(group_size)]);
    let scale = groups.abs().amax([2_i64].as_slice(), true) / 7.5;
    let codes = ((groups / &scale).round() + 8.0).clamp(0.0, 15.0);
    let codes = codes.to_kind(Kind::Int).view([int(n), int(k)]);
    let packed = codes.f_internal_convert_weight_to_int4pack_for_cpu(1).map_err(wrong)?;
    let scale = scale.view([int(n), -1]).transpose(0, 1);
    let scales = Tensor::stack(&[&scale, &scale.zeros_like()], -1).contiguous();
    let scales = scales.to_kind(Kind::BFloat16);
    Ok(Layer::Int4 { packed, scales, group_size: int(group_size) })
}

impl Rival for TorchLinear {
    fn name(&self) -> String {
        let kind =
            if self.x.f_kind().is_ok_and(|kind| kind == Kind::Float) { "f32" } else { "bf16" };
        let function = match self.layer {
            Layer::Dense(_) => "linear",
            Layer::Int8 { .. } => "_weight_int8pack_mm",
            Layer::Int4 { .. } => "_weight_int4pack_mm_for_cpu",
        };
        format!("libtorch {function}, {kind}")
    }

    fn run(&self) -> Result<()> {
        let x = &self.x;
        let y = tch::no_grad(|| match &self.layer {
            Layer::Dense(weight) => x.f_linear::<&Tensor>(weight, None),
            Layer::Int8 { codes, scale } => x.f_internal_weight_int8pack_mm(codes, scale),
            Layer::Int4 { packed, scales, group_size } => {
                x.f_internal_weight_int4pack_mm_for_cpu(packed, *group_size, scales)
            }
        });
        let _ = std::hint::black_box(y.map_err(wrong)?);
        Ok(())
    }
}
