//! An MX weight: `w = code · 2^(scale − 127)`, and what becomes of the activations that it multiplies.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::BLOCK_SIZE;
use crate::error::{Error, Result};
use crate::kernels::float_linear::{self, Element, Panels, Scales};
use crate::kernels::{Cost, Cpu, Shape};
use crate::model::{DeviceForm, Weight, check_linear, float_form};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use crate::quantization::primitives::{
    MxElement, ScaleCalculationMode, from_mx, pack_bits, pack_uint6, packed_len, to_mx,
    unpack_bits, unpack_uint6,
};
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "MXWeight";

/// What becomes of activations.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Activation {
    /// Nothing.
    AsIs,
    /// MX, as the weight's, at every call.
    Dynamic { elem_dtype: MxElement, scaling_mode: ScaleCalculationMode },
}

/// Codes in blocks of 32 with an e8m0 scale each.
#[derive(Clone, Debug)]
pub(super) struct MxWeight {
    panels: Panels,
    dtype: DType,
    activation: Activation,
}

impl MxWeight {
    pub(super) fn new(panels: Panels, dtype: DType, activation: Activation) -> MxWeight {
        MxWeight { panels, dtype, activation }
    }

    pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<MxWeight> {
        typed.check_version(1)?;
        let fields = ["dtype", "elem_dtype", "block_size", "act_quant_kwargs"];
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
        let MxElement(element) = read("elem_dtype", field("elem_dtype"))?;
        let activation = read("act_quant_kwargs", field("act_quant_kwargs"))?;
        let (n, k) = stored.shape();
        super::check_block(read("block_size", field("block_size"))?, k)?;
        if n == 0 || k == 0 {
            return Err(Error::invalid(format!("a weight of {n} × {k} has no numbers")));
        }
        let row_nbytes = packed_len(element.bits(), k);
        let qdata = stored.take("qdata", &[DType::U8], &[n, row_nbytes])?;
        let scale = stored.take("scale", &[DType::U8], &[n, k / BLOCK_SIZE])?;
        stored.finish()?;
        let bytes = qdata.as_slice::<u8>()?;
        let row = |i: usize, codes: &mut [u8]| {
            let bytes = &bytes[i * row_nbytes..][..row_nbytes];
            match element.bits() {
                6 => unpack_uint6(bytes, codes),
                bits => unpack_bits(bits, bytes, codes),
            }
        };
        let scales = Scales::E8m0(scale.as_slice::<u8>()?.to_vec());
        let panels = Panels::pack(&Cpu::new(None), element, (n, k), scales, row);
        qdata.done_with();
        Ok(MxWeight { panels, dtype, activation })
    }

    fn element(&self) -> Element {
        self.panels.element()
    }
}

impl Weight for MxWeight {
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
        let element = MxElement(self.element());
        match self.activation {
            Activation::AsIs => format!("{element} in blocks of 32"),
            Activation::Dynamic { elem_dtype, scaling_mode } => {
                format!("{element} in blocks of 32, activations {elem_dtype} {scaling_mode}")
            }
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
        let row_nbytes = packed_len(self.element().bits(), k);
        let (mut codes, mut bytes) = (vec![0; k], Vec::with_capacity(n * row_nbytes));
        for i in 0..n {
            self.panels.row_codes(i, &mut codes);
            match self.element().bits() {
                6 => pack_uint6(&codes, &mut bytes),
                bits => pack_bits(bits, &codes, &mut bytes),
            }
        }
        let scale = match self.panels.scales() {
            Scales::E8m0(codes) => codes,
            _ => Vec::new(),
        };
        let made = [
            ("qdata", Tensor::new(bytes, &[n, row_nbytes])),
            ("scale", Tensor::new(scale, &[n, k / BLOCK_SIZE])),
        ];
        made.into_iter().filter_map(|(name, made)| Some((name.to_owned(), made.ok()?))).collect()
    }

    fn meta(&self) -> Json {
        let data = json!({
            "dtype": dtype_to_dict(self.dtype),
            "elem_dtype": MxElement(self.element()),
            "block_size": BLOCK_SIZE,
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
        let Activation::Dynamic { elem_dtype, scaling_mode } = self.activation else {
            float_linear::linear(cpu, &self.panels, x, y, shape);
            return Ok(());
        };
        let x = Tensor::new(x.to_vec(), &[m, k])?;
        let (scales, codes) = to_mx(&x, elem_dtype.0, BLOCK_SIZE, scaling_mode)?;
        let x = from_mx(&codes, &scales, elem_dtype.0, BLOCK_SIZE)?;
        float_linear::linear(cpu, &self.panels, x.as_slice()?, y, shape);
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        float_linear::kernel_name(cpu.isa(), self.element(), m)
    }

    fn cost(&self, m: usize) -> Cost {
        float_linear::cost(&self.panels, m)
    }
}
