//! Copying a model's weights to the GPU.

use std::sync::Arc;

use aolab_kernels::cuda::Device;
use aolab_kernels::cuda::linear::{HostWeight, Linear as DeviceLinear, Rows};

use super::{Placed, PlacedLayer, PlacedReport, PlacedShape};
use crate::error::{Context as _, Error, Result};
use crate::model::device_form::{DeviceForm, dequantized_bf16};
use crate::model::{Layer, Linear, Model, Weight};
use crate::tensor::Tensor;

/// Every inner size must be a multiple of this, so that no activation needs padding.
const GRAIN: usize = 64;

/// Weights that were put under one another.
struct Joined {
    linear: DeviceLinear,
    fallback: Option<String>,
}

impl Placed {
    pub(super) fn new(model: &Model, device: &Device) -> Result<Placed> {
        let config = &model.config;
        let attended = config.num_attention_heads * config.head_dim;
        let sizes = [config.hidden_size, config.intermediate_size, attended];
        if let Some(size) = sizes.iter().find(|size| !size.is_multiple_of(GRAIN)) {
            return Err(Error::invalid(format!(
                "{}: the GPU's forward pass wants sizes that are multiples of {GRAIN}, got {size}; use --device cpu",
                model.name
            )));
        }
        let mut report = Vec::new();
        let layers = model.layers.iter().enumerate().map(|(i, layer)| {
            place_layer(device, i, layer, &mut report).within(format!("block {i}"))
        });
        let layers = layers.collect::<Result<_>>()?;
        let head = match &model.lm_head {
            Some(head) => head.clone(),
            None => Linear { weight: model.embed_tokens.clone(), bias: None },
        };
        let head = place(device, &[("lm_head".to_owned(), &head)], Rows::Plain, &mut report)?;
        let embed = dequantized_bf16(model.embed_tokens.as_ref()).within("model.embed_tokens")?;
        let placed = Placed {
            device: device.clone(),
            layers,
            embed: device.upload(&embed)?,
            norm: device.upload(model.norm.as_slice()?)?,
            head,
            shape: PlacedShape {
                hidden: config.hidden_size,
                ffn: config.intermediate_size,
                vocab: config.vocab_size,
                eps: config.rms_norm_eps,
            },
            report,
        };
        device.synchronize()?;
        Ok(placed)
    }

    /// Bytes that one token reads: every layer and the head once.
    pub(crate) fn bytes_per_token(&self) -> usize {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
        layers.chain([&self.head]).map(DeviceLinear::nbytes).sum()
    }
}

fn place_layer(
    device: &Device,
    index: usize,
    layer: &Layer,
    report: &mut Vec<PlacedReport>,
) -> Result<PlacedLayer> {
    let vector = |tensor: &Tensor| -> Result<_> { Ok(device.upload(tensor.as_slice::<f32>()?)?) };
    let name = |part: &str| format!("model.layers.{index}.{part}");
    let qkv = [
        (name("self_attn.q_proj"), &layer.q_proj),
        (name("self_attn.k_proj"), &layer.k_proj),
        (name("self_attn.v_proj"), &layer.v_proj),
    ];
    let dense = layer.feed_forward.dense("the GPU's forward pass")?;
    let gate_up =
        [(name("mlp.gate_proj"), &dense.gate_proj), (name("mlp.up_proj"), &dense.up_proj)];
    let o = [(name("self_attn.o_proj"), &layer.o_proj)];
    let down = [(name("mlp.down_proj"), &dense.down_proj)];
    Ok(PlacedLayer {
        input_norm: vector(&layer.input_layernorm)?,
        qkv: place(device, &qkv, Rows::Plain, report)?,
        q_norm: layer.q_norm.as_ref().map(vector).transpose()?,
        k_norm: layer.k_norm.as_ref().map(vector).transpose()?,
        o: place(device, &o, Rows::Plain, report)?,
        post_norm: vector(&layer.post_attention_layernorm)?,
        gate_up: place(device, &gate_up, Rows::GatePairs, report)?,
        down: place(device, &down, Rows::Plain, report)?,
    })
}

/// One weight on the GPU; with why it was dequantized, if it was.
pub fn to_device(
    device: &Device,
    weight: &Arc<dyn Weight>,
) -> Result<(DeviceLinear, Option<String>)> {
    let linear = Linear { weight: Arc::clone(weight), bias: None };
    let joined = join(device, &[(weight.workflow(), &linear)], Rows::Plain)?;
    Ok((joined.linear, joined.fallback))
}

/// Puts layers with the same input under one another, and says how each runs.
fn place(
    device: &Device,
    parts: &[(String, &Linear)],
    rows: Rows,
    report: &mut Vec<PlacedReport>,
) -> Result<DeviceLinear> {
    let name = parts.first().map_or("", |(name, _)| name.as_str());
    let joined = join(device, parts, rows).within(name)?;
    for (fqn, linear) in parts {
        report.push(PlacedReport {
            fqn: fqn.clone(),
            workflow: linear.weight.workflow(),
            kernel: joined.linear.kernel_name(1),
            fallback: joined.fallback.clone(),
        });
    }
    Ok(joined.linear)
}

fn join(device: &Device, parts: &[(String, &Linear)], rows: Rows) -> Result<Joined> {
    let k = parts.first().map_or(0, |(_, linear)| linear.weight.shape().1);
    let bias = bias(parts)?;
    let forms = parts.iter().map(|(_, linear)| linear.weight.device_form());
    let forms: Option<Vec<DeviceForm<'_>>> = forms.collect::<Result<_>>()?;
    let upload = |forms: &[DeviceForm<'_>]| -> Result<DeviceLinear> {
        let rows_of = parts.iter().map(|(_, linear)| linear.weight.shape().0);
        let host: Vec<(HostWeight<'_>, usize)> =
            forms.iter().map(DeviceForm::host).zip(rows_of).collect();
        Ok(DeviceLinear::new(device, &host, k, rows, bias.as_deref())?)
    };
    let why = match &forms {
        None => "its format has no CUDA kernel".to_owned(),
        Some(forms) if forms.windows(2).all(|pair| pair[0].joins(&pair[1])) => {
            match upload(forms) {
                Ok(linear) => return Ok(Joined { linear, fallback: None }),
                Err(error) => error.to_string(),
            }
        }
        Some(_) => "layers with one input have different formats".to_owned(),
    };
    let dense = |(_, linear): &(String, &Linear)| -> Result<DeviceForm<'_>> {
        Ok(DeviceForm::Bf16(dequantized_bf16(linear.weight.as_ref())?))
    };
    let forms = parts.iter().map(dense).collect::<Result<Vec<_>>>()?;
    Ok(Joined {
        linear: upload(&forms)?,
        fallback: Some(format!("dequantized to bf16 once: {why}")),
    })
}

/// The biases under one another, zeros where a part has none; `None` where no part has one.
fn bias(parts: &[(String, &Linear)]) -> Result<Option<Vec<f32>>> {
    if parts.iter().all(|(_, linear)| linear.bias.is_none()) {
        return Ok(None);
    }
    let mut all = Vec::new();
    for (_, linear) in parts {
        match &linear.bias {
            Some(bias) => all.extend_from_slice(bias.as_slice::<f32>()?),
            None => all.resize(all.len() + linear.weight.shape().0, 0.0),
        }
    }
    Ok(Some(all))
}
