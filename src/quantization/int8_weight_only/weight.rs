//! An int8 weight: `w = q · scale`.

use std::ops::Range;

use serde_json::{Value as Json, json};

use crate::error::{Error, Result};
use crate::kernels::{Cost, Cpu, Shape, int8_linear};
use crate::model::{DeviceForm, Weight, check_linear};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "Int8Weight";

/// Codes with one f32 scale for the tensor, for each row, or for each group of a row.
#[derive(Clone, Debug)]
pub(super) struct Int8Weight {
    /// i8 `(N, K)`.
    qdata: Tensor,
    /// f32 `(1, 1)` for the tensor, `(N, 1)` for rows, `(N, K/g)` for groups.
    scale: Tensor,
    dtype: DType,
    shape: (usize, usize),
    /// How many columns share a scale.
    group_size: usize,
}

impl Int8Weight {
    pub(super) fn new(qdata: Tensor, scale: Tensor, dtype: DType) -> Result<Int8Weight> {
        let (n, k) = qdata.dims2()?;
        let (rows, groups) = scale.dims2()?;
        let fits = (rows, groups) == (1, 1) || (rows == n && groups > 0 && k % groups == 0);
        if !fits {
            return Err(Error::invalid(format!(
                "scale is {:?}; wanted (1, 1), ({n}, 1) or ({n}, K / group_size)",
                scale.shape()
            )));
        }
        let group_size = k / groups.max(1);
        qdata.in_large_pages();
        Ok(Int8Weight { qdata, scale, dtype, shape: (n, k), group_size })
    }

    pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<Int8Weight> {
        typed.check_version(1)?;
        let fields = ["dtype", "scale_shape"];
        let data = typed.object()?;
        if let Some(key) = data.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(unknown_field(TYPE, key, &fields));
        }
        let dtype = dtype_from_dict(data.get("dtype").unwrap_or(&Json::Null))?;
        let scale_shape: [usize; 2] = data
            .get("scale_shape")
            .and_then(|shape| serde_json::from_value(shape.clone()).ok())
            .ok_or_else(|| Error::invalid("scale_shape: wanted a list of two numbers"))?;
        let (n, k) = stored.shape();
        let qdata = stored.take("qdata", &[DType::I8], &[n, k])?;
        let scale = stored.take("scale", &[DType::F32], &scale_shape)?;
        stored.finish()?;
        Int8Weight::new(qdata, scale, dtype)
    }

    fn scales(&self) -> Result<int8_linear::Scale<'_>> {
        let scale = self.scale.as_slice::<f32>()?;
        let (_, k) = self.shape;
        Ok(match scale {
            [one] => int8_linear::Scale::Tensor(*one),
            _ if self.group_size == k => int8_linear::Scale::Row(scale),
            _ => int8_linear::Scale::Group { scale, group_size: self.group_size },
        })
    }
}

impl Weight for Int8Weight {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn workflow(&self) -> String {
        super::WORKFLOW.name.to_owned()
    }

    fn details(&self) -> String {
        match self.scale.shape() {
            [1, 1] => "per-tensor".to_owned(),
            [_, 1] => "per-row".to_owned(),
            _ => format!("per-group:{}", self.group_size),
        }
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (_, k) = self.shape;
        let codes = &self.qdata.as_slice::<i8>()?[rows.start * k..rows.end * k];
        let scale = self.scale.as_slice::<f32>()?;
        let groups = k / self.group_size.max(1);
        let group_size = self.group_size.max(1);
        for (at, (values, codes)) in
            out.chunks_mut(group_size).zip(codes.chunks(group_size)).enumerate()
        {
            let scale = if let [one] = scale { *one } else { scale[rows.start * groups + at] };
            values.iter_mut().zip(codes).for_each(|(to, code)| *to = f32::from(*code) * scale);
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        vec![("qdata".into(), self.qdata.clone()), ("scale".into(), self.scale.clone())]
    }

    fn meta(&self) -> Json {
        let data = json!({
            "dtype": dtype_to_dict(self.dtype),
            "scale_shape": self.scale.shape(),
        });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        let (n, _) = self.shape;
        let q = self.qdata.as_slice()?;
        let scale = self.scale.as_slice::<f32>()?;
        Ok(match (scale, self.scale.shape()) {
            ([one], _) => Some(DeviceForm::Int8 { q: q.into(), scale: vec![*one; n] }),
            (_, [_, 1]) => Some(DeviceForm::Int8 { q: q.into(), scale: scale.to_vec() }),
            _ => None,
        })
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        check_linear(x, m, y, self.shape)?;
        let (n, k) = self.shape;
        int8_linear::weight_only(
            cpu,
            self.qdata.as_slice()?,
            self.scales()?,
            x,
            y,
            Shape { m, n, k },
        );
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        let (n, k) = self.shape;
        let name = |scale| int8_linear::kernel_name(cpu.isa(), scale, Shape { m, n, k });
        self.scales().map_or("none: the scales are not f32", name).to_owned()
    }

    fn cost(&self, m: usize) -> Cost {
        let (n, k) = self.shape;
        int8_linear::weight_only_cost(Shape { m, n, k }, self.scale.numel())
    }
}
