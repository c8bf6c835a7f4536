//! A small-float weight: `w = code · scale`, one scale a row.

use std::ops::Range;

use serde_json::{Value as Json, json};

use super::{FLOATS, element};
use crate::error::{Error, Result};
use crate::kernels::float_linear::{self, Panels, Scales};
use crate::kernels::{Cost, Cpu, Shape};
use crate::model::{Weight, check_linear};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use crate::quantization::primitives::{pack_bits, packed_len, unpack_bits};
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "FloatxWeight";

/// Codes of 4 to 6 bits with a scale a row.
#[derive(Clone, Debug)]
pub(super) struct FloatxWeight {
    panels: Panels,
    dtype: DType,
}

impl FloatxWeight {
    pub(super) fn new(panels: Panels, dtype: DType) -> FloatxWeight {
        FloatxWeight { panels, dtype }
    }

    pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<FloatxWeight> {
        typed.check_version(1)?;
        let fields = ["dtype", "ebits", "mbits"];
        let data = typed.object()?;
        if let Some(key) = data.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(unknown_field(TYPE, key, &fields));
        }
        let field = |name: &str| data.get(name).cloned().unwrap_or(Json::Null);
        let bits = |name: &str| {
            let bits = field(name).as_u64().and_then(|bits| u32::try_from(bits).ok());
            bits.ok_or_else(|| {
                Error::invalid(format!("{name} is {}; wanted a small number", field(name)))
            })
        };
        let dtype = dtype_from_dict(&field("dtype"))?;
        let element = element(bits("ebits")?, bits("mbits")?)?;
        let (n, k) = stored.shape();
        let row_nbytes = k.checked_mul(element.bits()).map(|bits| bits.div_ceil(8));
        let row_nbytes = row_nbytes.filter(|_| n > 0 && k > 0);
        let row_nbytes = row_nbytes
            .ok_or_else(|| Error::invalid(format!("a weight of {n} × {k} is not one")))?;
        let qdata = stored.take("qdata", &[DType::U8], &[n, row_nbytes])?;
        let scale = stored.take("scale", &[dtype], &[n])?;
        stored.finish()?;
        let bytes = qdata.as_slice::<u8>()?;
        let row = |i: usize, codes: &mut [u8]| {
            unpack_bits(element.bits(), &bytes[i * row_nbytes..][..row_nbytes], codes);
        };
        let scales = Scales::Groups { values: scale.to_f32_vec(), group_size: k };
        let panels = Panels::pack(&Cpu::new(None), element, (n, k), scales, row);
        qdata.done_with();
        Ok(FloatxWeight { panels, dtype })
    }
}

impl Weight for FloatxWeight {
    fn shape(&self) -> (usize, usize) {
        (self.panels.n(), self.panels.k())
    }

    fn workflow(&self) -> String {
        super::WORKFLOW.name.to_owned()
    }

    fn details(&self) -> String {
        format!("fp{} {}", self.panels.element().bits(), self.panels.element().name())
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
        let bits = self.panels.element().bits();
        let row_nbytes = packed_len(bits, k);
        let (mut codes, mut bytes) = (vec![0; k], Vec::with_capacity(n * row_nbytes));
        for i in 0..n {
            self.panels.row_codes(i, &mut codes);
            pack_bits(bits, &codes, &mut bytes);
        }
        let scale = match self.panels.scales() {
            Scales::Groups { values, .. } => values,
            _ => Vec::new(),
        };
        // A scale that was rounded to the weight's dtype stays what it is.
        let scale = Tensor::new(scale, &[n]).and_then(|scale| scale.to_dtype(self.dtype));
        let made = [("qdata", Tensor::new(bytes, &[n, row_nbytes])), ("scale", scale)];
        made.into_iter().filter_map(|(name, made)| Some((name.to_owned(), made.ok()?))).collect()
    }

    fn meta(&self) -> Json {
        let element = self.panels.element();
        let bits = FLOATS.iter().find(|(.., known)| *known == element);
        let (ebits, mbits) = bits.map_or((0, 0), |(ebits, mbits, _)| (*ebits, *mbits));
        let data = json!({ "dtype": dtype_to_dict(self.dtype), "ebits": ebits, "mbits": mbits });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn nbytes(&self) -> usize {
        self.panels.nbytes()
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = self.shape();
        check_linear(x, m, y, (n, k))?;
        float_linear::linear(cpu, &self.panels, x, y, Shape { m, n, k });
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        float_linear::kernel_name(cpu.isa(), self.panels.element(), m)
    }

    fn cost(&self, m: usize) -> Cost {
        float_linear::cost(&self.panels, m)
    }
}
