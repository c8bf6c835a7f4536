//! A weight of bit-packed codes in groups: what the low-bit integer workflows put into a model.
//!
//! In memory the codes lie in the kernels' panels; files keep each row as one stream of bits (L12), scales and zero
//! points `(N, K/g)`. Both hold the same bits. A workflow says what its codes mean and what it does with activations.

use std::ops::Range;

use serde_json::{Map, Value as Json, json};

use super::config::{Typed, dtype_from_dict, dtype_to_dict, unknown_field};
use super::primitives::{IntxRows, check_streams, push_stream, read_stream, stream_nbytes};
use super::rows::for_row_blocks;
use super::stored::Stored;
use crate::error::{Error, Result};
use crate::kernels::dtypes::{e4m3fn_decode, e4m3fn_encode_saturating};
use crate::kernels::packed_linear::{self, Activation, Codes, Floats, Offset, Tokens, Values};
use crate::kernels::{Cost, Cpu, Isa, Shape};
use crate::model::{DeviceForm, Weight, check_linear, packed_form};
use crate::tensor::{DType, Tensor};

/// What is done to activations before they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activations {
    /// Nothing.
    AsTheyAre,
    /// They are quantized to integers, a scale a token.
    Tokens(Tokens),
    /// They are rounded to float8 e4m3, a scale a token.
    Float8,
}

/// What a workflow's weights have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// The workflow's command.
    pub(crate) workflow: &'static str,
    /// The name that files know the format by.
    pub(crate) weight_type: &'static str,
    /// What it does with activations.
    pub(crate) activations: Activations,
}

/// How the codes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codec {
    pub(crate) bits: u32,
    /// What an unsigned stored code exceeds its number by.
    pub(crate) bias: i16,
    pub(crate) group_size: usize,
    pub(crate) zeros: Zeros,
}

/// What groups have besides a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zeros {
    /// Nothing.
    None,
    /// A zero point that is a code, i8.
    Codes,
    /// A number that is added to every value, f32.
    Values,
}

/// A weight `(N, K)` of one of the workflows.
#[derive(Clone, Debug)]
pub(crate) struct PackedWeight {
    kind: Kind,
    weight: packed_linear::Weight,
    dtype: DType,
    /// The workflow's own fields, as files have them.
    fields: Map<String, Json>,
    details: String,
}

/// Numbers made codes, one a byte, with what dequantizes them.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// Unsigned codes `(N, K)`.
    pub(crate) codes: Vec<u8>,
    /// f32, bf16 or f16 `(N, K/g)`.
    pub(crate) scale: Tensor,
    /// i8 or f32 `(N, K/g)`: see [`Zeros`].
    pub(crate) zero_point: Option<Tensor>,
}

impl PackedWeight {
    /// A weight of `shape` from its parts. `fields` are the workflow's own, for files; `details` for readers.
    pub(crate) fn new(
        cpu: &Cpu,
        kind: Kind,
        (shape, codec): ((usize, usize), Codec),
        parts: &Parts,
        dtype: DType,
        (fields, details): (Map<String, Json>, String),
    ) -> Result<PackedWeight> {
        let (_, k) = shape;
        let codes = Codes::pack(cpu, shape, codec.bits, |n, row| {
            row.copy_from_slice(&parts.codes[n * k..][..k]);
        });
        let weight = assemble(codes, codec, &parts.scale, parts.zero_point.as_ref())?;
        Ok(PackedWeight { kind, weight, dtype, fields, details })
    }

    /// The weight that `stored` holds: `read_fields` says how its codes are to be read, from the workflow's own fields, which
    /// must be `names`, and describes it.
    pub(crate) fn read(
        typed: &Typed<'_>,
        mut stored: Stored,
        kind: Kind,
        names: &[&str],
        read_fields: impl Fn(&Map<String, Json>, (usize, usize)) -> Result<(Codec, String)>,
    ) -> Result<PackedWeight> {
        typed.check_version(1)?;
        let mut fields = typed.object()?.clone();
        let known: Vec<&str> = [&["dtype"], names].concat();
        if let Some(key) = fields.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(unknown_field(kind.weight_type, key, &known));
        }
        let dtype = dtype_from_dict(&fields.remove("dtype").unwrap_or(Json::Null))?;
        let (n, k) = stored.shape();
        let (codec, details) = read_fields(&fields, (n, k))?;
        let Codec { bits, group_size, .. } = codec;
        let groups = groups_of(k, group_size)?;
        let nbytes = stream_nbytes(k, bits)
            .ok_or_else(|| Error::invalid(format!("rows of {k} codes are too long")))?;
        let floats = [DType::F32, DType::BF16, DType::F16];
        let qdata = stored.take("qdata", &[DType::U8], &[n, nbytes])?;
        let scale = stored.take("scale", &floats, &[n, groups])?;
        let mut take = |dtype| stored.take("zero_point", &[dtype], &[n, groups]);
        let zero = match codec.zeros {
            Zeros::None => None,
            Zeros::Codes => Some(take(DType::I8)?),
            Zeros::Values => Some(take(DType::F32)?),
        };
        stored.finish()?;
        let codes = read_codes(&qdata, (n, k), bits)?;
        let weight = assemble(codes, codec, &scale, zero.as_ref())?;
        Ok(PackedWeight { kind, weight, dtype, fields, details })
    }

    fn quantize_activation(&self, cpu: &Cpu, x: &[f32], m: usize) -> Option<Activation> {
        let (_, k) = self.shape();
        match self.kind.activations {
            Activations::Tokens(to) if self.weight.has_panels() => {
                Some(Activation::quantize_tokens(cpu, x, (m, k), to))
            }
            _ => None,
        }
    }

    /// What is multiplied where activations are not integers: they themselves, or through their rounding and back.
    fn seen(&self, x: &[f32]) -> Option<Vec<f32>> {
        let (_, k) = self.shape();
        match self.kind.activations {
            Activations::AsTheyAre => None,
            Activations::Tokens(to) => Some(packed_linear::through_tokens(x, k, to)),
            Activations::Float8 => Some(through_float8(x, k)),
        }
    }
}

/// Rows through float8 e4m3 and back: `scale = max(amax, 1e-12) / 448`, ties to even (Q05).
fn through_float8(x: &[f32], k: usize) -> Vec<f32> {
    let mut seen = Vec::with_capacity(x.len());
    for row in x.chunks_exact(k.max(1)) {
        let amax = row.iter().fold(0.0_f32, |amax, v| if v.abs() > amax { v.abs() } else { amax });
        let scale = amax.max(1e-12) / 448.0;
        let through = |v: &f32| e4m3fn_decode(e4m3fn_encode_saturating(v / scale)) * scale;
        seen.extend(row.iter().map(through));
    }
    seen
}

/// Quantizes `weight` a few rows at a time. Codes are stored unsigned, `bias` above their numbers; zero points are kept if `zeros`.
pub(crate) fn quantize_rows(
    cpu: &Cpu,
    weight: &dyn Weight,
    (bias, zeros): (i16, bool),
    work: impl Fn(&Tensor) -> Result<IntxRows> + Sync,
) -> Result<Parts> {
    let (n, k) = weight.shape();
    let mut codes = Vec::with_capacity(n * k);
    let (mut scale, mut zero, mut dtype) = (Vec::new(), Vec::new(), DType::F32);
    for_row_blocks(cpu, weight, work, |rows: IntxRows| {
        codes.extend(unsigned(&rows.codes, bias)?);
        dtype = rows.scale.dtype();
        scale.extend(rows.scale.to_f32_vec());
        zero.extend_from_slice(rows.zero_point.as_slice::<i8>()?);
        Ok(())
    })?;
    let shape = [n, scale.len().checked_div(n).unwrap_or(0)];
    Ok(Parts {
        codes,
        // Numbers that were rounded to the dtype stay what they are on the way through f32.
        scale: Tensor::new(scale, &shape)?.to_dtype(dtype)?,
        zero_point: if zeros { Some(Tensor::new(zero, &shape)?) } else { None },
    })
}

/// The parts of a weight that was quantized as a whole.
pub(crate) fn unsigned_parts(rows: &IntxRows, bias: i16) -> Result<Parts> {
    Ok(Parts {
        codes: unsigned(&rows.codes, bias)?,
        scale: rows.scale.clone(),
        zero_point: Some(rows.zero_point.clone()),
    })
}

/// Codes as they are stored: `bias` above their numbers.
fn unsigned(codes: &Tensor, bias: i16) -> Result<Vec<u8>> {
    if codes.dtype() == DType::U8 {
        return Ok(codes.as_slice::<u8>()?.to_vec());
    }
    let stored = |code: &i8| u8::try_from(i16::from(*code) + bias).unwrap_or_default();
    Ok(codes.as_slice::<i8>()?.iter().map(stored).collect())
}

fn groups_of(k: usize, group_size: usize) -> Result<usize> {
    if group_size > 0 && k.is_multiple_of(group_size) {
        return Ok(k / group_size);
    }
    Err(Error::invalid(format!("group_size is {group_size}; wanted a divisor of K = {k}")))
}

fn assemble(
    codes: Codes,
    codec: Codec,
    scale: &Tensor,
    zero_point: Option<&Tensor>,
) -> Result<packed_linear::Weight> {
    let groups = groups_of(codes.k(), codec.group_size)?;
    if scale.shape() != [codes.n(), groups] {
        return Err(Error::invalid(format!(
            "scale is {:?}; wanted ({}, {groups})",
            scale.shape(),
            codes.n()
        )));
    }
    let offset = match zero_point {
        None => Offset::None,
        Some(zero) if zero.shape() == scale.shape() => match codec.zeros {
            Zeros::Values => Offset::Values(floats(zero)?),
            _ => Offset::Zeros(zero.as_slice()?.to_vec()),
        },
        Some(zero) => {
            return Err(Error::invalid(format!(
                "zero_point is {:?}; wanted {:?}",
                zero.shape(),
                scale.shape()
            )));
        }
    };
    let values = Values::Integers { bias: codec.bias };
    Ok(packed_linear::Weight::new(codes, values, codec.group_size, &floats(scale)?, &offset))
}

/// A float tensor as the kernels take it.
pub(crate) fn floats(tensor: &Tensor) -> Result<Floats> {
    Ok(match tensor.dtype() {
        DType::BF16 => Floats::Bf16(tensor.as_slice()?.to_vec()),
        DType::F16 => Floats::F16(tensor.as_slice()?.to_vec()),
        _ => Floats::F32(tensor.as_slice()?.to_vec()),
    })
}

/// The tensor of [`floats`], or one without elements if the shape is not its.
pub(crate) fn float_tensor(floats: Floats, shape: &[usize]) -> Result<Tensor> {
    match floats {
        Floats::F32(v) => Tensor::new(v, shape),
        Floats::Bf16(v) => Tensor::new(v, shape),
        Floats::F16(v) => Tensor::new(v, shape),
    }
}

/// Rows of codes as streams of bits: u8 `(N, bytes)`.
pub(crate) fn stream_tensor(codes: &Codes) -> Result<Tensor> {
    let (n, k, bits) = (codes.n(), codes.k(), codes.bits());
    let nbytes = stream_nbytes(k, bits).unwrap_or(0);
    let mut bytes = Vec::with_capacity(n * nbytes);
    let mut row = vec![0; k];
    for n in 0..n {
        codes.row(n, &mut row);
        push_stream(&row, bits, &mut bytes);
    }
    Tensor::new(bytes, &[n, nbytes])
}

/// The codes of [`stream_tensor`].
pub(crate) fn read_codes(qdata: &Tensor, shape: (usize, usize), bits: u32) -> Result<Codes> {
    let bytes = qdata.as_slice::<u8>()?;
    let (_, nbytes) = qdata.dims2()?;
    check_streams(bytes, shape.1, bits)?;
    // One thread: reading a file is what takes time here.
    let cpu = Cpu::with_isa(Isa::Scalar, Some(1));
    let row = |n: usize, row: &mut [u8]| read_stream(&bytes[n * nbytes..][..nbytes], bits, row);
    Ok(Codes::pack(&cpu, shape, bits, row))
}

impl Weight for PackedWeight {
    fn shape(&self) -> (usize, usize) {
        (self.weight.n(), self.weight.k())
    }

    fn workflow(&self) -> String {
        self.kind.workflow.to_owned()
    }

    fn details(&self) -> String {
        self.details.clone()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (n, k) = self.shape();
        if rows.end > n || out.len() != rows.len() * k {
            let len = out.len();
            return Err(Error::invalid(format!(
                "rows {rows:?} of ({n}, {k}) are not {len} values"
            )));
        }
        for (row, out) in rows.zip(out.chunks_mut(k.max(1))) {
            self.weight.dequantize_row(row, out);
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let (n, k) = self.shape();
        let shape = [n, k / self.weight.group_size().max(1)];
        let mut all = vec![
            ("qdata".to_owned(), stream_tensor(self.weight.codes())),
            ("scale".to_owned(), float_tensor(self.weight.scale(), &shape)),
        ];
        match self.weight.offset() {
            Offset::None => {}
            Offset::Zeros(zeros) => all.push(("zero_point".to_owned(), Tensor::new(zeros, &shape))),
            Offset::Values(values) => {
                all.push(("zero_point".to_owned(), float_tensor(values, &shape)));
            }
        }
        let whole = |(name, tensor): (String, Result<Tensor>)| {
            (name, tensor.expect("the weight was made of as many numbers"))
        };
        all.into_iter().map(whole).collect()
    }

    fn meta(&self) -> Json {
        let mut data = self.fields.clone();
        data.insert("dtype".to_owned(), dtype_to_dict(self.dtype));
        json!({ "_type": self.kind.weight_type, "_version": 1, "_data": data })
    }

    fn nbytes(&self) -> usize {
        self.weight.nbytes()
    }

    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        Ok(match self.kind.activations {
            Activations::AsTheyAre => packed_form(&self.weight, false),
            Activations::Float8 => packed_form(&self.weight, true),
            Activations::Tokens(_) => None,
        })
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        check_linear(x, m, y, self.shape())?;
        if let Some(x) = self.quantize_activation(cpu, x, m) {
            packed_linear::linear_prepared(cpu, &self.weight, &x, y);
            return Ok(());
        }
        let (n, k) = self.shape();
        let seen = self.seen(x);
        packed_linear::linear(
            cpu,
            &self.weight,
            seen.as_deref().unwrap_or(x),
            y,
            Shape { m, n, k },
        );
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        packed_linear::kernel_name(cpu.isa(), &self.weight, m)
    }

    fn cost(&self, m: usize) -> Cost {
        packed_linear::cost(&self.weight, m)
    }
}
