//! A module-swap layer whose inputs or results are rounded, or whose weight is a codebook.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::WORKFLOW;
use super::rounding::Rounding;
use crate::error::{Error, Result};
use crate::kernels::{Cost, Cpu};
use crate::model::{Weight, check_linear};
use crate::quantization::config::Typed;
use crate::quantization::stored::{Stored, read_weight as read_inner};
use crate::tensor::{DType, Tensor};

/// A weight of codes between two roundings.
#[derive(Clone, Debug)]
pub(super) struct SwappedLayer {
    inner: Arc<dyn Weight>,
    input: Option<Rounding>,
    output: Option<Rounding>,
}

impl SwappedLayer {
    pub(super) fn new(
        inner: Arc<dyn Weight>,
        input: Option<Rounding>,
        output: Option<Rounding>,
    ) -> Result<SwappedLayer> {
        let (n, k) = inner.shape();
        input.map_or(Ok(()), |rounding| rounding.check(k))?;
        output.map_or(Ok(()), |rounding| rounding.check(n))?;
        Ok(SwappedLayer { inner, input, output })
    }

    /// Reads what [`Weight::tensors`] and `meta` say; `None` where it is a weight of codes alone.
    pub(super) fn read(typed: &Typed<'_>, stored: Stored) -> Result<SwappedLayer> {
        typed.check_version(1)?;
        let data = typed.known_fields(&["inner", "input", "output"])?;
        let inner = data.get("inner").ok_or_else(|| Error::invalid("there is no inner weight"))?;
        let nested = inner.get("_data").is_some_and(|data| data.get("inner").is_some());
        let known = ["CodebookWeight", super::KIND.weight_type];
        let named = inner.get("_type").and_then(Json::as_str).unwrap_or_default();
        if nested || !known.contains(&named) {
            return Err(Error::invalid(format!(
                "inner is {named:?}; wanted {} of codes",
                known.join(" or ")
            )));
        }
        let shape = stored.shape();
        let inner = read_inner(inner, stored.into_tensors(), shape)?;
        SwappedLayer::new(inner, typed.field("input", None)?, typed.field("output", None)?)
    }
}

impl Weight for SwappedLayer {
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }

    fn workflow(&self) -> String {
        WORKFLOW.name.to_owned()
    }

    fn details(&self) -> String {
        let mut details = self.inner.details();
        for (what, rounding) in [("inputs", &self.input), ("results", &self.output)] {
            if let Some(rounding) = rounding {
                details += &format!(", {what} in {rounding}");
            }
        }
        details
    }

    fn dtype(&self) -> DType {
        self.inner.dtype()
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.inner.dequantize_rows(rows, out)
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        self.inner.tensors()
    }

    fn meta(&self) -> Json {
        let data =
            json!({ "inner": self.inner.meta(), "input": self.input, "output": self.output });
        json!({ "_type": super::KIND.weight_type, "_version": 1, "_data": data })
    }

    fn nbytes(&self) -> usize {
        self.inner.nbytes()
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = self.shape();
        check_linear(x, m, y, (n, k))?;
        match &self.input {
            None => self.inner.linear(cpu, x, m, y)?,
            Some(rounding) => {
                let mut x = x.to_vec();
                rounding.round(&mut x, k);
                self.inner.linear(cpu, &x, m, y)?;
            }
        }
        if let Some(rounding) = &self.output {
            rounding.round(y, n);
        }
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        let inner = self.inner.kernel(cpu, m);
        match (&self.input, &self.output) {
            (None, None) => inner,
            (Some(_), None) => format!("round + {inner}"),
            (None, Some(_)) => format!("{inner} + round"),
            (Some(_), Some(_)) => format!("round + {inner} + round"),
        }
    }

    fn cost(&self, m: usize) -> Cost {
        self.inner.cost(m)
    }
}
