//! An NVFP4 weight: `w = code · (per_tensor_scale · scale)`, and what becomes of the activations that it multiplies.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::amax;
use crate::error::{Error, Result};
use crate::kernels::float_linear::{self, Element, Panels, Scales};
use crate::kernels::{Cost, Cpu, Shape};
use crate::model::{DeviceForm, Weight, check_linear, float_form};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use crate::quantization::primitives::{
    NVFP4_BLOCK, nvfp4_dequantize, nvfp4_quantize, pack_bits, per_tensor_amax_to_scale, unpack_bits,
};
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "NVFP4Weight";

/// What becomes of activations.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Activation {
    /// Nothing.
    AsIs,
    /// NVFP4 at every call, with a scale above all blocks or without.
    Dynamic { use_dynamic_per_tensor_scale: bool },
}

/// fp4 codes in blocks of 16 with an e4m3 scale each, and perhaps one scale above them.
#[derive(Clone, Debug)]
pub(super) struct Nvfp4Weight {
    panels: Panels,
    /// Whether there is a scale of all; it is the panels' factor.
    two_levels: bool,
    dtype: DType,
    activation: Activation,
}

impl Nvfp4Weight {
    pub(super) fn new(
        panels: Panels,
        two_levels: bool,
        dtype: DType,
        activation: Activation,
    ) -> Nvfp4Weight {
        Nvfp4Weight { panels, two_levels, dtype, activation }
    }

    pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<Nvfp4Weight> {
        typed.check_version(1)?;
        let fields = ["dtype", "use_per_tensor_scale", "act_quant_kwargs"];
        let data = typed.object()?;
        if let Some(key) = data.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(unknown_field(TYPE, key, &fields));
        }
        let field = |name: &str| data.get(name).cloned().unwrap_or(Json::Null);
        fn read<T: serde::de::DeserializeOwned>(name: &str, json: Json) -> Result<T> {
            let got = json.to_string();
            serde_json::from_value(json)
                .map_err(|error| Error::invalid(format!("{name} is {got}: {error}")))
        }
        let dtype = dtype_from_dict(&field("dtype"))?;
        let two_levels = read("use_per_tensor_scale", field("use_per_tensor_scale"))?;
        let activation = read("act_quant_kwargs", field("act_quant_kwargs"))?;
        let (n, k) = stored.shape();
        if n == 0 || k == 0 || !k.is_multiple_of(NVFP4_BLOCK) {
            return Err(Error::invalid(format!("a weight of {n} × {k} has no blocks of 16")));
        }
        let qdata = stored.take("qdata", &[DType::U8], &[n, k / 2])?;
        let scale = stored.take("scale", &[DType::U8], &[n, k / NVFP4_BLOCK])?;
        let factor = if two_levels {
            let above = stored.take("per_tensor_scale", &[DType::F32], &[1])?;
            above.to_f32_vec().first().copied().unwrap_or_default()
        } else {
            1.0
        };
        stored.finish()?;
        let bytes = qdata.as_slice::<u8>()?;
        let row = |i: usize, codes: &mut [u8]| unpack_bits(4, &bytes[i * k / 2..][..k / 2], codes);
        let scales = Scales::E4m3 { codes: scale.as_slice::<u8>()?.to_vec(), factor };
        let panels = Panels::pack(&Cpu::new(None), Element::E2m1, (n, k), scales, row);
        qdata.done_with();
        Ok(Nvfp4Weight { panels, two_levels, dtype, activation })
    }
}

/// `x` through NVFP4 and back.
fn through_nvfp4(x: &[f32], (m, k): (usize, usize), two_levels: bool) -> Result<Tensor> {
    let above = two_levels.then(|| per_tensor_amax_to_scale(amax(x))).filter(|above| *above != 0.0);
    let x = Tensor::new(x.to_vec(), &[m, k])?;
    let (scales, codes) = nvfp4_quantize(&x, above)?;
    nvfp4_dequantize(&codes, &scales, above)
}

impl Weight for Nvfp4Weight {
    fn shape(&self) -> (usize, usize) {
        (self.panels.n(), self.panels.k())
    }

    fn workflow(&self) -> String {
        match self.activation {
            Activation::AsIs => super::WEIGHT_ONLY.name,
            Activation::Dynamic { .. } => super::DYNAMIC.name,
        }
        .to_owned()
    }

    fn details(&self) -> String {
        let levels = if self.two_levels { "two levels of scales" } else { "one level of scales" };
        match self.activation {
            Activation::AsIs => levels.to_owned(),
            Activation::Dynamic { .. } => format!("{levels}, activations too"),
        }
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (_, k) = self.shape();
        self.panels.dequantize(rows, 0..k, out, k);
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let (n, k) = self.shape();
        let (mut codes, mut bytes) = (vec![0; k], Vec::with_capacity(n * k / 2));
        for i in 0..n {
            self.panels.row_codes(i, &mut codes);
            pack_bits(4, &codes, &mut bytes);
        }
        let (scale, factor) = match self.panels.scales() {
            Scales::E4m3 { codes, factor } => (codes, factor),
            _ => (Vec::new(), 1.0),
        };
        let mut made = vec![
            ("qdata", Tensor::new(bytes, &[n, k / 2])),
            ("scale", Tensor::new(scale, &[n, k / NVFP4_BLOCK])),
        ];
        if self.two_levels {
            made.push(("per_tensor_scale", Tensor::new(vec![factor], &[1])));
        }
        made.into_iter().filter_map(|(name, made)| Some((name.to_owned(), made.ok()?))).collect()
    }

    fn meta(&self) -> Json {
        let data = json!({
            "dtype": dtype_to_dict(self.dtype),
            "use_per_tensor_scale": self.two_levels,
            "act_quant_kwargs": self.activation,
        });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn nbytes(&self) -> usize {
        self.panels.nbytes()
    }

    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        let plain = self.activation == Activation::AsIs;
        Ok(if plain { float_form(&self.panels, None) } else { None })
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = self.shape();
        check_linear(x, m, y, (n, k))?;
        let shape = Shape { m, n, k };
        match self.activation {
            Activation::AsIs => float_linear::linear(cpu, &self.panels, x, y, shape),
            Activation::Dynamic { use_dynamic_per_tensor_scale } => {
                let x = through_nvfp4(x, (m, k), use_dynamic_per_tensor_scale)?;
                float_linear::linear(cpu, &self.panels, x.as_slice()?, y, shape);
            }
        }
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        float_linear::kernel_name(cpu.isa(), Element::E2m1, m)
    }

    fn cost(&self, m: usize) -> Cost {
        float_linear::cost(&self.panels, m)
    }
}
