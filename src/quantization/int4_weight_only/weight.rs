//! An int4 weight: `w = (q − 8) · scale + zero_point`.

use std::ops::Range;

use half::bf16;
use serde_json::{Value as Json, json};

use super::options::Int4PackingFormat;
use crate::error::{Error, Result};
use crate::kernels::{Cost, Cpu, Shape, int4_linear};
use crate::model::{
    DeviceForm, Weight, check_linear, dequantize_then_multiply, dequantize_then_multiply_name,
};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use crate::quantization::stored::Stored;
use crate::tensor::{DType, Tensor};

/// The name that files know the format by.
pub(super) const TYPE: &str = "Int4Weight";

/// What a weight is made of.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    /// u8 `(N, K/2)`, the even column in the low nibble, codes 0 ..= 15.
    pub(super) qdata: Tensor,
    /// f32 or bf16 `(N, K/g)`.
    pub(super) scale: Tensor,
    /// The value of code 8, as `scale`.
    pub(super) zero_point: Tensor,
    /// The dtype that the weight came in.
    pub(super) dtype: DType,
    pub(super) packing_format: Int4PackingFormat,
}

/// Groups of 4-bit codes with a scale and a float zero each.
#[derive(Clone, Debug)]
pub(super) struct Int4Weight {
    parts: Parts,
    shape: (usize, usize),
    group_size: usize,
}

impl Int4Weight {
    pub(super) fn new(parts: Parts) -> Result<Int4Weight> {
        let (n, bytes) = parts.qdata.dims2()?;
        let (rows, groups) = parts.scale.dims2()?;
        let k = 2 * bytes;
        let group_size = k.checked_div(groups).unwrap_or(0);
        if rows != n || group_size * groups != k || group_size == 0 {
            return Err(Error::invalid(format!(
                "scale is {:?}; wanted ({n}, K / group_size) with K = {k}",
                parts.scale.shape()
            )));
        }
        parts.qdata.in_large_pages();
        Ok(Int4Weight { parts, shape: (n, k), group_size })
    }

    pub(super) fn read(typed: &Typed<'_>, mut stored: Stored) -> Result<Int4Weight> {
        typed.check_version(1)?;
        let fields = ["dtype", "group_size", "int4_packing_format"];
        let data = typed.object()?;
        if let Some(key) = data.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(unknown_field(TYPE, key, &fields));
        }
        let field = |name: &str| data.get(name).cloned().unwrap_or(Json::Null);
        let dtype = dtype_from_dict(&field("dtype"))?;
        let (n, k) = stored.shape();
        let divides = |group: &usize| *group > 0 && k.is_multiple_of(*group);
        let group_size = field("group_size").as_u64().and_then(|group| usize::try_from(group).ok());
        let group_size = group_size.filter(divides).ok_or_else(|| {
            let got = field("group_size");
            Error::invalid(format!("group_size is {got}; wanted a divisor of K = {k}"))
        })?;
        if !k.is_multiple_of(2) {
            return Err(Error::invalid(format!("K = {k} is odd; two int4 codes share a byte")));
        }
        let packing_format = serde_json::from_value(field("int4_packing_format"))
            .map_err(|error| Error::invalid(format!("int4_packing_format: {error}")))?;
        let qdata = stored.take("qdata", &[DType::U8], &[n, k / 2])?;
        let shape = [n, k / group_size];
        let scale = stored.take("scale", &[DType::BF16, DType::F32], &shape)?;
        let zero_point = stored.take("zero_point", &[scale.dtype()], &shape)?;
        stored.finish()?;
        Int4Weight::new(Parts { qdata, scale, zero_point, dtype, packing_format })
    }

    fn kernel_weight(&self) -> Result<int4_linear::Weight<'_>> {
        Ok(int4_linear::Weight {
            qdata: self.parts.qdata.as_slice()?,
            scale: floats(&self.parts.scale)?,
            zero: floats(&self.parts.zero_point)?,
            group_size: self.group_size,
        })
    }

    /// The kernel reads whole bytes of a group; odd groups are dequantized first.
    fn has_kernel(&self) -> bool {
        self.group_size.is_multiple_of(2)
    }
}

fn floats(tensor: &Tensor) -> Result<int4_linear::Floats<'_>> {
    match tensor.dtype() {
        DType::BF16 => Ok(int4_linear::Floats::Bf16(tensor.as_slice::<bf16>()?)),
        _ => Ok(int4_linear::Floats::F32(tensor.as_slice::<f32>()?)),
    }
}

/// Elements `range` as f32.
fn part(tensor: &Tensor, range: Range<usize>) -> Result<Vec<f32>> {
    match tensor.dtype() {
        DType::BF16 => Ok(tensor.as_slice::<bf16>()?[range].iter().map(|v| v.to_f32()).collect()),
        _ => Ok(tensor.as_slice::<f32>()?[range].to_vec()),
    }
}

impl Weight for Int4Weight {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn workflow(&self) -> String {
        super::WORKFLOW.name.to_owned()
    }

    fn details(&self) -> String {
        let Parts { dtype, packing_format, .. } = self.parts;
        let rounded = match packing_format {
            Int4PackingFormat::TilePackedTo4d if dtype != DType::BF16 => ", rounded to bf16",
            Int4PackingFormat::PlainInt32 if dtype == DType::F32 => ", rounded to bf16",
            _ => "",
        };
        format!("group_size {}, {packing_format}{rounded}", self.group_size)
    }

    fn dtype(&self) -> DType {
        self.parts.dtype
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (_, k) = self.shape;
        let groups = k / self.group_size;
        let range = rows.start * groups..rows.end * groups;
        let scale = part(&self.parts.scale, range.clone())?;
        let zero = part(&self.parts.zero_point, range)?;
        let bytes = &self.parts.qdata.as_slice::<u8>()?[rows.start * k / 2..rows.end * k / 2];
        for (at, value) in out.iter_mut().enumerate() {
            let byte = bytes[at / 2];
            let code = if at.is_multiple_of(2) { byte & 0x0f } else { byte >> 4 };
            let group = at / self.group_size;
            *value = (f32::from(code) - 8.0) * scale[group] + zero[group];
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        vec![
            ("qdata".into(), self.parts.qdata.clone()),
            ("scale".into(), self.parts.scale.clone()),
            ("zero_point".into(), self.parts.zero_point.clone()),
        ]
    }

    fn meta(&self) -> Json {
        let data = json!({
            "dtype": dtype_to_dict(self.parts.dtype),
            "group_size": self.group_size,
            "int4_packing_format": self.parts.packing_format,
        });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        let Parts { qdata, scale, zero_point, .. } = &self.parts;
        Ok(Some(DeviceForm::Int4 {
            q: qdata.as_slice()?.into(),
            scale: scale.to_f32_vec().into(),
            zero: zero_point.to_f32_vec().into(),
            group_size: self.group_size,
            bf16: scale.dtype() == DType::BF16,
        }))
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        if !self.has_kernel() {
            return dequantize_then_multiply(self, cpu, x, m, y);
        }
        check_linear(x, m, y, self.shape)?;
        let (n, k) = self.shape;
        int4_linear::weight_only(cpu, self.kernel_weight()?, x, y, Shape { m, n, k });
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        if self.has_kernel() {
            let (n, k) = self.shape;
            int4_linear::kernel_name(cpu.isa(), Shape { m, n, k }, self.group_size).to_owned()
        } else {
            dequantize_then_multiply_name(cpu, m)
        }
    }

    fn cost(&self, m: usize) -> Cost {
        let (n, k) = self.shape;
        int4_linear::cost(Shape { m, n, k }, self.group_size, self.parts.scale.dtype().size())
    }
}
