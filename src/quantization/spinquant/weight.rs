//! A weight whose input is turned by a Hadamard matrix first: `y = inner(x · H)`, R4 of SpinQuant.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::{inner_meta, plan_for};
use crate::error::{Error, Result};
use crate::kernels::hadamard::{self, Plan};
use crate::kernels::{Cost, Cpu, Isa};
use crate::model::{DenseWeight, InputTransform, Weight, check_linear};
use crate::quantization::config::Typed;
use crate::quantization::stored::{Stored, read_weight};
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "HadamardWeight";

/// A weight behind a fast Hadamard transform of its input.
#[derive(Clone, Debug)]
pub struct HadamardWeight {
    plan: Plan,
    inner: Arc<dyn Weight>,
}

impl HadamardWeight {
    /// `inner`, whose rows are turned already, behind the transform of its inputs.
    pub fn new(inner: Arc<dyn Weight>) -> Result<HadamardWeight> {
        Ok(HadamardWeight { plan: plan_for(inner.shape().1, "number of inputs")?, inner })
    }
}

/// The name of a dense weight's tensor inside.
const DENSE: &str = "weight";

pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<Arc<dyn Weight>> {
    typed.check_version(1)?;
    let data = typed.known_fields(&["inner"])?;
    let (meta, shape) = (inner_meta(data), stored.shape());
    if meta.get("_type").and_then(Json::as_str) == Some(TYPE) {
        return Err(Error::invalid("a HadamardWeight inside another; wanted one of a format"));
    }
    let inner = if meta.is_null() {
        let floats = [DType::F32, DType::BF16, DType::F16];
        let tensor = stored.take(DENSE, &floats, &[shape.0, shape.1])?;
        stored.finish()?;
        DenseWeight::shared(tensor)?
    } else {
        read_weight(&meta, stored.into_tensors(), shape)?
    };
    Ok(Arc::new(HadamardWeight::new(inner)?))
}

impl Weight for HadamardWeight {
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }

    fn workflow(&self) -> String {
        format!("spinquant·{}", self.inner.workflow())
    }

    fn details(&self) -> String {
        self.inner.details()
    }

    fn dtype(&self) -> DType {
        self.inner.dtype()
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.inner.dequantize_rows(rows, out)?;
        hadamard::inverse(&Cpu::with_isa(Isa::best(), Some(1)), &self.plan, out);
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        self.inner.tensors()
    }

    fn meta(&self) -> Json {
        json!({ "_type": TYPE, "_version": 1, "_data": { "inner": self.inner.meta() } })
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        check_linear(x, m, y, self.shape())?;
        self.inner.linear(cpu, &self.transform(cpu, x)?, m, y)
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        format!("{} + {}", hadamard::kernel_name(cpu.isa()), self.inner.kernel(cpu, m))
    }

    fn as_transform(&self) -> Option<&dyn InputTransform> {
        Some(self)
    }

    fn cost(&self, m: usize) -> Cost {
        let (turn, inner) = (hadamard::cost(m, self.shape().1), self.inner.cost(m));
        Cost { bytes: turn.bytes + inner.bytes, flops: turn.flops + inner.flops }
    }
}

impl InputTransform for HadamardWeight {
    fn inner(&self) -> &Arc<dyn Weight> {
        &self.inner
    }

    fn transform(&self, cpu: &Cpu, x: &[f32]) -> Result<Vec<f32>> {
        let mut turned = x.to_vec();
        hadamard::transform(cpu, &self.plan, &mut turned);
        Ok(turned)
    }

    fn around(&self, inner: Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(HadamardWeight::new(inner)?))
    }
}
