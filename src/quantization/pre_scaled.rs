//! A weight whose input is multiplied first, feature by feature: what AWQ, SINQ and SmoothQuant make of a weight.
//!
//! `y = inner(x · act_pre_scale)`, as torchao's `SupportsActivationPreScaling` has it (P01, P02).

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::config::Typed;
use super::stored::{Stored, read_weight as read_inner};
use crate::error::{Error, Result};
use crate::kernels::{Cost, Cpu};
use crate::model::{InputTransform, Weight, check_linear};
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "ActPreScaledWeight";

/// A weight behind a factor for each input feature.
#[derive(Clone, Debug)]
pub struct PreScaledWeight {
    /// f32 `(K)`: the reciprocal of what the inner weight's columns were multiplied with.
    act_pre_scale: Tensor,
    inner: Arc<dyn Weight>,
    /// Who made it: `awq`.
    algorithm: String,
}

impl PreScaledWeight {
    /// `inner` behind `act_pre_scale`, which `algorithm` chose.
    pub fn new(
        algorithm: &str,
        act_pre_scale: Vec<f32>,
        inner: Arc<dyn Weight>,
    ) -> Result<PreScaledWeight> {
        let k = inner.shape().1;
        let act_pre_scale = Tensor::new(act_pre_scale, &[k])?;
        Ok(PreScaledWeight { act_pre_scale, inner, algorithm: algorithm.to_owned() })
    }

    fn scaled(&self, x: &[f32]) -> Result<Vec<f32>> {
        let scale = self.act_pre_scale.as_slice::<f32>()?;
        let rows = x.chunks_exact(scale.len().max(1));
        Ok(rows.flat_map(|row| row.iter().zip(scale).map(|(x, scale)| x * scale)).collect())
    }
}

/// Reads what [`PreScaledWeight::tensors`] and `meta` say.
pub(super) fn read_weight(typed: &Typed<'_>, mut stored: Stored) -> Result<Arc<dyn Weight>> {
    typed.check_version(1)?;
    let data = typed.known_fields(&["algorithm", "inner"])?;
    let algorithm: String = typed.field("algorithm", String::new())?;
    if !["awq", "sinq", "smoothquant"].contains(&algorithm.as_str()) {
        return Err(Error::invalid(format!(
            "algorithm is {algorithm:?}; wanted awq, sinq or smoothquant"
        )));
    }
    let shape = stored.shape();
    let act_pre_scale = stored.take("act_pre_scale", &[DType::F32], &[shape.1])?;
    let inner = data.get("inner").ok_or_else(|| Error::invalid("there is no inner weight"))?;
    if inner.get("_type").and_then(Json::as_str) == Some(TYPE) {
        return Err(Error::invalid("an ActPreScaledWeight inside another; wanted one of a format"));
    }
    let inner = read_inner(inner, stored.into_tensors(), shape)?;
    Ok(Arc::new(PreScaledWeight { act_pre_scale, inner, algorithm }))
}

impl Weight for PreScaledWeight {
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }

    fn workflow(&self) -> String {
        format!("{}·{}", self.algorithm, self.inner.workflow())
    }

    fn details(&self) -> String {
        self.inner.details()
    }

    fn dtype(&self) -> DType {
        self.inner.dtype()
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.inner.dequantize_rows(rows, out)?;
        let scale = self.act_pre_scale.as_slice::<f32>()?;
        for row in out.chunks_exact_mut(scale.len().max(1)) {
            row.iter_mut().zip(scale).for_each(|(w, scale)| *w *= scale);
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all = self.inner.tensors();
        all.push(("act_pre_scale".to_owned(), self.act_pre_scale.clone()));
        all
    }

    fn meta(&self) -> Json {
        let data = json!({ "algorithm": self.algorithm, "inner": self.inner.meta() });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        check_linear(x, m, y, self.shape())?;
        self.inner.linear(cpu, &self.scaled(x)?, m, y)
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        format!("act_pre_scale + {}", self.inner.kernel(cpu, m))
    }

    fn as_transform(&self) -> Option<&dyn InputTransform> {
        Some(self)
    }

    fn cost(&self, m: usize) -> Cost {
        let (k, inner) = (self.shape().1, self.inner.cost(m));
        let bytes = inner.bytes + (4 * k + 8 * m * k) as u64;
        Cost { bytes, flops: inner.flops + (m * k) as u64 }
    }
}

impl InputTransform for PreScaledWeight {
    fn inner(&self) -> &Arc<dyn Weight> {
        &self.inner
    }

    fn transform(&self, _cpu: &Cpu, x: &[f32]) -> Result<Vec<f32>> {
        self.scaled(x)
    }

    fn around(&self, inner: Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(PreScaledWeight { inner, ..self.clone() }))
    }
}
