//! A weight behind a mask: any format, any pattern, no room saved.
//!
//! Where the format gives zero itself at every place that the mask leaves out (dense weights, symmetric codes), the weight
//! multiplies as it did, at its own speed. Where it cannot (a grid with a zero point has none at 0), the zeros are put in
//! when it is dequantized, and the kernel's name says so.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use crate::error::{Error, Result};
use crate::kernels::cuda::linear::Float8Scales;
use crate::kernels::sparse24_linear::{codes_of, kept_of};
use crate::kernels::{Cost, Cpu};
use crate::model::{
    DenseWeight, DeviceForm, Mask, Pattern, Sparse, Stored as OnDevice, Weight, check_linear,
    dequantize_then_multiply, dequantize_then_multiply_name,
};
use crate::quantization::config::Typed;
use crate::quantization::read_weight as read_inner;
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(crate) const TYPE: &str = "MaskedWeight";

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct MaskedWeight {
    inner: Arc<dyn Weight>,
    mask: Mask,
    pattern: Pattern,
    /// Whether `inner` is zero wherever the mask says so.
    exact: bool,
}

/// Rows that are looked at at once.
const ROWS_AT_ONCE: usize = 64;

impl MaskedWeight {
    /// `inner` with the zeros of `mask`. A dense one is rewritten with them.
    pub fn new(inner: Arc<dyn Weight>, mask: Mask, pattern: Pattern) -> Result<MaskedWeight> {
        if mask.shape() != inner.shape() {
            return Err(Error::invalid(format!(
                "a mask of {:?} for a weight of {:?}",
                mask.shape(),
                inner.shape()
            )));
        }
        if !mask.holds(pattern) {
            return Err(Error::invalid(format!("the mask keeps more than {pattern} allows")));
        }
        if has_zeros(inner.as_ref(), &mask)? {
            return Ok(MaskedWeight { inner, mask, pattern, exact: true });
        }
        if !inner.meta().is_null() {
            return Ok(MaskedWeight { inner, mask, pattern, exact: false });
        }
        let inner = masked_dense(inner.as_ref(), &mask)?;
        Ok(MaskedWeight { inner, mask, pattern, exact: true })
    }

    /// The weight behind the mask.
    pub fn inner(&self) -> &Arc<dyn Weight> {
        &self.inner
    }
}

/// The values of `weight` with the zeros of `mask`, dense, in the dtype that it came in.
pub(crate) fn masked_dense(weight: &dyn Weight, mask: &Mask) -> Result<Arc<dyn Weight>> {
    let (n, k) = weight.shape();
    let mut values = vec![0.0; n * k];
    weight.dequantize_rows(0..n, &mut values)?;
    mask.apply_rows(0, &mut values);
    DenseWeight::shared(Tensor::new(values, &[n, k])?.to_dtype(weight.dtype())?)
}

fn has_zeros(weight: &dyn Weight, mask: &Mask) -> Result<bool> {
    let (n, k) = weight.shape();
    let mut values = vec![0.0; ROWS_AT_ONCE.min(n) * k];
    for start in (0..n).step_by(ROWS_AT_ONCE) {
        let rows = ROWS_AT_ONCE.min(n - start);
        let values = &mut values[..rows * k];
        weight.dequantize_rows(start..start + rows, values)?;
        for (i, row) in values.chunks_exact(k.max(1)).enumerate() {
            if row.iter().enumerate().any(|(j, value)| *value != 0.0 && !mask.keeps(start + i, j)) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

pub(crate) fn read_weight(typed: &Typed<'_>, mut stored: Stored) -> Result<Arc<dyn Weight>> {
    typed.check_version(1)?;
    let data = typed.known_fields(&["pattern", "inner"])?;
    let pattern: Pattern = typed.field("pattern", Pattern::Unstructured)?;
    let shape = stored.shape();
    pattern.check(shape)?;
    let mask = stored.take("mask", &[DType::U8], &[shape.0, shape.1.div_ceil(8)])?;
    let mask = Mask::from_tensor(&mask, shape)?;
    let inner = match data.get("inner") {
        None | Some(Json::Null) => {
            let floats = [DType::F32, DType::BF16, DType::F16];
            let tensor = stored.take("weight", &floats, &[shape.0, shape.1])?;
            stored.finish()?;
            DenseWeight::shared(tensor)?
        }
        Some(inner) if inner.get("_type").and_then(Json::as_str) == Some(TYPE) => {
            return Err(Error::invalid("a MaskedWeight inside another; wanted one of a format"));
        }
        Some(inner) => read_inner(inner, stored.into_tensors(), shape)?,
    };
    Ok(Arc::new(MaskedWeight::new(inner, mask, pattern)?))
}

impl Weight for MaskedWeight {
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }

    fn workflow(&self) -> String {
        format!("{}·{}", self.pattern, self.inner.workflow())
    }

    fn details(&self) -> String {
        let details = self.inner.details();
        let comma = if details.is_empty() { "" } else { ", " };
        format!("{details}{comma}{:.1} % zeros", 100.0 * self.mask.sparsity())
    }

    fn dtype(&self) -> DType {
        self.inner.dtype()
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let first = rows.start;
        self.inner.dequantize_rows(rows, out)?;
        if !self.exact {
            self.mask.apply_rows(first, out);
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all = self.inner.tensors();
        // A mask was made with this very shape, so that its bytes are a tensor.
        all.extend(self.mask.tensor().map(|mask| ("mask".to_owned(), mask)));
        all
    }

    fn meta(&self) -> Json {
        let data = json!({ "pattern": self.pattern, "inner": self.inner.meta() });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    /// e4m3 with scales of tokens and of rows has a 2:4 kernel of its own.
    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        if !self.exact {
            return Ok(None);
        }
        let form = self.inner.device_form()?;
        Ok(match form {
            Some(DeviceForm::Float8Dynamic { q, scale, activations: Float8Scales::Rows })
                if self.pattern == Pattern::TWO_OF_FOUR =>
            {
                let shape @ (_, k) = self.shape();
                match codes_of(|row, column| self.mask.keeps(row, column), shape) {
                    Some(codes) => Some(DeviceForm::TwoOfFour {
                        stored: OnDevice::Float8Dynamic {
                            q: kept_of(&q, &codes, k).into(),
                            scale: scale.into(),
                        },
                        codes: codes.into(),
                    }),
                    None => Some(DeviceForm::Float8Dynamic {
                        q,
                        scale,
                        activations: Float8Scales::Rows,
                    }),
                }
            }
            form => form,
        })
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        check_linear(x, m, y, self.shape())?;
        if self.exact {
            return self.inner.linear(cpu, x, m, y);
        }
        dequantize_then_multiply(self, cpu, x, m, y)
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        if self.exact {
            return self.inner.kernel(cpu, m);
        }
        dequantize_then_multiply_name(cpu, m)
    }

    fn as_sparse(&self) -> Option<&dyn Sparse> {
        Some(self)
    }

    fn cost(&self, m: usize) -> Cost {
        self.inner.cost(m)
    }
}

impl Sparse for MaskedWeight {
    fn mask(&self) -> Result<Mask> {
        Ok(self.mask.clone())
    }

    fn pattern(&self) -> Pattern {
        self.pattern
    }

    fn around(&self, weight: Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        super::sparse_weight(weight, self.mask.clone(), self.pattern)
    }
}
