//! A 2:4 weight of which only what is kept is stored: dense, or with int8 or int4 codes.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use crate::error::{Error, Result};
use crate::kernels::int8_linear::ROW_SUM_MAX_K;
use crate::kernels::sparse24_linear::{self as kernel, Activation, Values};
use crate::kernels::{Cost, Cpu, Shape, int8_activation};
use crate::model::{
    DenseWeight, DeviceForm, Mask, Pattern, Sparse, Stored as OnDevice, Weight, all_bf16,
    check_linear,
};
use crate::quantization::config::{Typed, dtype_from_dict, dtype_to_dict};
use crate::quantization::stored::Stored;
use crate::sparsity::sparse_weight;
use crate::tensor::{DType, Element, Tensor};

/// The name that files know the format by.
pub(crate) const TYPE: &str = "SemiStructuredWeight";

/// See the head of this file.
#[derive(Clone, Debug)]
pub(crate) struct SemiStructuredWeight {
    form: Form,
    /// u8: three bits for each four; see the kernel.
    codes: Tensor,
    dtype: DType,
    shape: (usize, usize),
}

/// What is stored.
#[derive(Clone, Debug)]
enum Form {
    /// f32 or bf16 `(N, K / 2)`.
    Dense(Tensor),
    /// i8 `(N, K / 2)` and f32 `(N)`; with activations in int8 or as they are.
    Int8 { q: Tensor, scale: Tensor, dynamic: bool },
    /// u8 in the kernel's order, f32 `(N, K / group_size)`; `zero` is the value of code 8.
    Int4 { q: Tensor, scale: Tensor, zero: Option<Tensor>, group_size: usize },
}

impl SemiStructuredWeight {
    /// What of `weight` the mask keeps; `None` for a format that has no 2:4 kernel.
    pub(crate) fn of(weight: &dyn Weight, mask: &Mask) -> Result<Option<SemiStructuredWeight>> {
        let (n, k) = weight.shape();
        Pattern::TWO_OF_FOUR.check((n, k))?;
        let any: &dyn Any = weight;
        let codes = |keeps: &dyn Fn(usize, usize) -> bool| {
            kernel::codes_of(keeps, (n, k)).ok_or_else(|| {
                Error::invalid("four neighbours keep more than two numbers; prune to 2:4 first")
            })
        };
        let codes = codes(&|row, column| mask.keeps(row, column))?;
        let kept_q = |q: &[i8]| Tensor::new(kernel::kept_of(q, &codes, k), &[n, k / 2]);
        let form = if let Some(dense) = any.downcast_ref::<DenseWeight>() {
            match dense.tensor().dtype() {
                DType::F32 => kept::<f32>(dense.tensor(), &codes)?,
                DType::BF16 => kept::<half::bf16>(dense.tensor(), &codes)?,
                _ => return Ok(None),
            }
        } else {
            match weight.device_form()? {
                Some(DeviceForm::Int8 { q, scale }) => {
                    Form::Int8 { q: kept_q(&q)?, scale: Tensor::new(scale, &[n])?, dynamic: false }
                }
                Some(DeviceForm::Int8Dynamic { q, scale }) => {
                    Form::Int8 { q: kept_q(q)?, scale: Tensor::new(scale, &[n])?, dynamic: true }
                }
                Some(DeviceForm::Int4 { q, scale, zero, group_size, .. })
                    if is_group_size(group_size) =>
                {
                    let nibbles: Vec<u8> = q.iter().flat_map(|q| [q & 15, q >> 4]).collect();
                    let packed = kernel::pack_int4(&kernel::kept_of(&nibbles, &codes, k), k);
                    let groups = [n, k / group_size];
                    let plain = zero.iter().all(|zero| *zero == 0.0);
                    let zero =
                        if plain { None } else { Some(Tensor::new(zero.to_vec(), &groups)?) };
                    Form::Int4 {
                        q: Tensor::new(packed, &[n, kernel::int4_bytes(k)])?,
                        scale: Tensor::new(scale.to_vec(), &groups)?,
                        zero,
                        group_size,
                    }
                }
                _ => return Ok(None),
            }
        };
        let len = codes.len();
        let codes = Tensor::new(codes, &[len])?;
        Ok(Some(SemiStructuredWeight::new(form, codes, weight.dtype(), (n, k))))
    }

    /// Codes 0 to 15 `(N, K)` with scales `(N, K / group_size)`, of which the mask keeps two of four.
    pub(crate) fn of_int4(
        (q, scale): (&Tensor, &Tensor),
        group_size: usize,
        mask: &Mask,
        dtype: DType,
    ) -> Result<SemiStructuredWeight> {
        let (n, k) = q.dims2()?;
        let codes = kernel::codes_of(|row, column| mask.keeps(row, column), (n, k));
        let codes = codes.ok_or_else(|| Error::invalid("the mask keeps more than two of four"))?;
        let packed = kernel::pack_int4(&kernel::kept_of(q.as_slice::<u8>()?, &codes, k), k);
        let form = Form::Int4 {
            q: Tensor::new(packed, &[n, kernel::int4_bytes(k)])?,
            scale: scale.reshape(&[n, k / group_size])?,
            zero: None,
            group_size,
        };
        let len = codes.len();
        let codes = Tensor::new(codes, &[len])?;
        Ok(SemiStructuredWeight::new(form, codes, dtype, (n, k)))
    }

    fn new(form: Form, codes: Tensor, dtype: DType, shape: (usize, usize)) -> SemiStructuredWeight {
        let (Form::Dense(values) | Form::Int8 { q: values, .. } | Form::Int4 { q: values, .. }) =
            &form;
        values.in_large_pages();
        codes.in_large_pages();
        SemiStructuredWeight { form, codes, dtype, shape }
    }

    /// Whether a value beside each scale has to be added.
    pub(crate) fn has_zero_points(&self) -> bool {
        matches!(self.form, Form::Int4 { zero: Some(_), .. })
    }

    /// Whether the values are as they came, not quantized.
    pub(crate) fn is_dense(&self) -> bool {
        matches!(self.form, Form::Dense(_))
    }

    fn weight(&self) -> Result<kernel::Weight<'_>> {
        let values = match &self.form {
            Form::Dense(values) if values.dtype() == DType::F32 => Values::F32(values.as_slice()?),
            Form::Dense(values) => Values::Bf16(values.as_slice()?),
            Form::Int8 { q, scale, .. } => {
                Values::Int8 { q: q.as_slice()?, scale: scale.as_slice()? }
            }
            Form::Int4 { q, scale, zero, group_size } => Values::Int4 {
                q: q.as_slice()?,
                scale: scale.as_slice()?,
                zero: zero.as_ref().map(Tensor::as_slice).transpose()?,
                group_size: *group_size,
            },
        };
        Ok(kernel::Weight { values, codes: self.codes.as_slice()? })
    }

    fn at(&self, m: usize) -> Shape {
        Shape { m, n: self.shape.0, k: self.shape.1 }
    }
}

fn kept<T: Element>(dense: &Tensor, codes: &[u8]) -> Result<Form> {
    let (n, k) = dense.dims2()?;
    Ok(Form::Dense(Tensor::new(kernel::kept_of(dense.as_slice::<T>()?, codes, k), &[n, k / 2])?))
}

fn is_group_size(group_size: usize) -> bool {
    matches!(group_size, 32 | 64) || (group_size > 0 && group_size.is_multiple_of(128))
}

/// Reads what [`Weight::tensors`] and [`Weight::meta`] say.
pub(crate) fn read_weight(typed: &Typed<'_>, mut stored: Stored) -> Result<Arc<dyn Weight>> {
    typed.check_version(1)?;
    let data = typed.known_fields(&["format", "dtype", "group_size", "has_zero"])?;
    let dtype = dtype_from_dict(data.get("dtype").unwrap_or(&Json::Null))?;
    let format: String = typed.field("format", String::new())?;
    let (n, k) = stored.shape();
    Pattern::TWO_OF_FOUR.check((n, k))?;
    let codes = stored.take("codes", &[DType::U8], &[n * kernel::code_bytes(k) + 2])?;
    if !kernel::are_codes(codes.as_slice()?, (n, k)) {
        return Err(Error::invalid("codes: some four neighbours do not store two numbers"));
    }
    let form = match format.as_str() {
        "dense" => Form::Dense(stored.take("values", &[DType::F32, DType::BF16], &[n, k / 2])?),
        "int8" | "int8-dynamic" => Form::Int8 {
            q: stored.take("qdata", &[DType::I8], &[n, k / 2])?,
            scale: stored.take("scale", &[DType::F32], &[n])?,
            dynamic: format == "int8-dynamic",
        },
        "int4" => {
            let group_size: usize = typed.field("group_size", 0)?;
            if !is_group_size(group_size) || !k.is_multiple_of(group_size) {
                return Err(Error::invalid(format!(
                    "group_size is {group_size}; wanted 32, 64 or a multiple of 128 that divides {k}"
                )));
            }
            let groups = [n, k / group_size];
            let has_zero: bool = typed.field("has_zero", false)?;
            let zero = has_zero.then(|| stored.take("zero", &[DType::F32], &groups)).transpose()?;
            Form::Int4 {
                q: stored.take("qdata", &[DType::U8], &[n, kernel::int4_bytes(k)])?,
                scale: stored.take("scale", &[DType::F32], &groups)?,
                zero,
                group_size,
            }
        }
        other => {
            return Err(Error::invalid(format!(
                "format is {other:?}; wanted dense, int8, int8-dynamic or int4"
            )));
        }
    };
    stored.finish()?;
    if k > ROW_SUM_MAX_K && matches!(form, Form::Int8 { dynamic: true, .. }) {
        return Err(Error::invalid(format!("K = {k} is too long for 32-bit sums")));
    }
    Ok(Arc::new(SemiStructuredWeight::new(form, codes, dtype, (n, k))))
}

impl Weight for SemiStructuredWeight {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn workflow(&self) -> String {
        match &self.form {
            Form::Dense(values) => format!("2:4·{}", values.dtype()),
            Form::Int8 { dynamic: false, .. } => "2:4·int8-weight-only".to_owned(),
            Form::Int8 { .. } => "2:4·int8-dynamic-activation-int8-weight".to_owned(),
            Form::Int4 { .. } => "2:4·int4-weight-only".to_owned(),
        }
    }

    fn details(&self) -> String {
        match &self.form {
            Form::Int4 { group_size, .. } => format!("group_size {group_size}, compressed"),
            _ => "compressed".to_owned(),
        }
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        kernel::dequantize(self.weight()?, self.at(0), rows, out);
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let named = |name: &str, tensor: &Tensor| (name.to_owned(), tensor.clone());
        let mut all = vec![named("codes", &self.codes)];
        match &self.form {
            Form::Dense(values) => all.push(named("values", values)),
            Form::Int8 { q, scale, .. } => all.extend([named("qdata", q), named("scale", scale)]),
            Form::Int4 { q, scale, zero, .. } => {
                all.extend([named("qdata", q), named("scale", scale)]);
                all.extend(zero.iter().map(|zero| named("zero", zero)));
            }
        }
        all
    }

    fn meta(&self) -> Json {
        let mut data = json!({ "dtype": dtype_to_dict(self.dtype) });
        data["format"] = match &self.form {
            Form::Dense(_) => "dense",
            Form::Int8 { dynamic: false, .. } => "int8",
            Form::Int8 { .. } => "int8-dynamic",
            Form::Int4 { .. } => "int4",
        }
        .into();
        if let Form::Int4 { zero, group_size, .. } = &self.form {
            data["group_size"] = (*group_size).into();
            data["has_zero"] = zero.is_some().into();
        }
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    /// Compressed where a GPU multiplies it so; int8 with activations as they are is expanded, zeros and all.
    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        let (n, k) = self.shape;
        let codes = self.codes.as_slice::<u8>()?;
        let stored = match &self.form {
            Form::Dense(values) if values.dtype() == DType::BF16 => {
                let values = values.as_slice::<half::bf16>()?;
                OnDevice::Bf16(values.iter().map(|v| v.to_bits()).collect())
            }
            Form::Dense(values) => {
                let values = values.as_slice::<f32>()?.iter();
                OnDevice::Bf16(values.map(|v| half::bf16::from_f32(*v).to_bits()).collect())
            }
            Form::Int8 { q, scale, dynamic: true } => OnDevice::Int8Dynamic {
                q: q.as_slice::<i8>()?.into(),
                scale: scale.as_slice::<f32>()?.into(),
            },
            Form::Int8 { q, scale, dynamic: false } => {
                let q = kernel::expanded(q.as_slice::<i8>()?, codes, (n, k), 0);
                let scale = scale.as_slice::<f32>()?.to_vec();
                return Ok(Some(DeviceForm::Int8 { q: q.into(), scale }));
            }
            // A zero point would be there where nothing is stored, too.
            Form::Int4 { zero: Some(_), .. } => return Ok(None),
            Form::Int4 { q, scale, group_size, .. } if group_size.is_multiple_of(128) => {
                OnDevice::Int4 {
                    q: q.as_slice::<u8>()?.into(),
                    scale: scale.as_slice::<f32>()?.into(),
                    group_size: *group_size,
                }
            }
            Form::Int4 { q, scale, group_size, .. } => {
                let stored = kernel::unpack_int4(q.as_slice()?, k);
                let all = kernel::expanded(&stored, codes, (n, k), 8);
                let scale = scale.as_slice::<f32>()?;
                return Ok(Some(DeviceForm::Int4 {
                    q: all.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect(),
                    scale: scale.into(),
                    zero: vec![0.0; scale.len()].into(),
                    group_size: *group_size,
                    bf16: all_bf16(scale),
                }));
            }
        };
        Ok(Some(DeviceForm::TwoOfFour { stored, codes: codes.into() }))
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        check_linear(x, m, y, self.shape)?;
        let w = self.weight()?;
        let (Form::Int8 { dynamic: true, .. }, Values::Int8 { q, scale }) = (&self.form, w.values)
        else {
            kernel::linear(cpu, w, x, y, self.at(m));
            return Ok(());
        };
        let (mut a, mut a_scale) = (vec![0; x.len()], vec![0.0; m]);
        let range = int8_activation::Range::FULL;
        int8_activation::symmetric(cpu, x, &mut a, &mut a_scale, range);
        let act = Activation { q: &a, scale: &a_scale };
        kernel::dynamic(cpu, (q, scale, w.codes), act, y, self.at(m));
        Ok(())
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        match (self.weight(), &self.form) {
            (Ok(_), Form::Int8 { dynamic: true, .. }) => kernel::dynamic_kernel_name(cpu, m),
            (Ok(w), _) => kernel::kernel_name(cpu, w, m),
            (Err(error), _) => error.to_string(),
        }
    }

    fn as_sparse(&self) -> Option<&dyn Sparse> {
        Some(self)
    }

    fn cost(&self, m: usize) -> Cost {
        self.weight().map_or(Cost::default(), |w| kernel::cost(w, self.at(m)))
    }
}

impl Sparse for SemiStructuredWeight {
    /// The two places of each four that are stored, even where a zero is.
    fn mask(&self) -> Result<Mask> {
        let (n, k) = self.shape;
        let codes = self.codes.as_slice::<u8>()?;
        let keep: Vec<bool> =
            (0..n * k).map(|at| kernel::is_stored(codes, (at / k, at % k), k)).collect();
        Mask::of(&keep, self.shape)
    }

    fn pattern(&self) -> Pattern {
        Pattern::TWO_OF_FOUR
    }

    fn around(&self, weight: Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        sparse_weight(weight, self.mask()?, Pattern::TWO_OF_FOUR)
    }
}
