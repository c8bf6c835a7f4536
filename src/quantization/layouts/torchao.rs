//! torchao's tensor subclasses as safetensors files hold them (I02): `NAME.weight` becomes `NAME._weight_qdata`, `NAME._weight_scale` …,
//! and a JSON of its class and attributes in the file's metadata.
//!
//! `Int8Tensor`, `Float8Tensor`, `IntxUnpackedToInt8Tensor`, `Int4Tensor`, `MXTensor` and `NVFP4Tensor`, each with what it does to
//! activations. Codes of fewer than 8 bits take a byte each in torchao's intx and fp6 classes; scales of MX and NVFP4 lie in cuBLAS's
//! order (L08).

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::{Ours, biased, bits_of, flat, none_in, packed, signed, transposed, unpacked};
use crate::error::{Error, Result};
use crate::io::Flat;
use crate::model::Weight;
use crate::quantization::config::{Typed, dtype_to_dict};
use crate::quantization::primitives::{from_blocked, pack_uint6, to_blocked, unpack_uint6};
use crate::quantization::stored::read_weight;
use crate::tensor::{DType, Tensor};

/// The classes, by the names that files have.
pub(crate) const CLASSES: [&str; 6] = [
    "Float8Tensor",
    "Int4Tensor",
    "Int8Tensor",
    "IntxUnpackedToInt8Tensor",
    "MXTensor",
    "NVFP4Tensor",
];

const NAME: &str = "torchao's safetensors layout";

fn enumeration(kind: &str, value: &str) -> Json {
    json!({ "_type": kind, "_data": value })
}

#[expect(clippy::needless_pass_by_value, reason = "it is put into what is returned")]
fn class(name: &str, data: Json, tensors: Vec<(&str, Tensor)>) -> Flat {
    let names: Vec<&str> = tensors.iter().map(|(name, _)| *name).collect();
    flat(json!({ "_type": name, "_data": data, "_tensor_data_names": names }), tensors)
}

/// A weight as torchao would flatten it.
pub(crate) fn flatten(weight: &dyn Weight) -> Result<Flat> {
    let ours = Ours::of(weight, NAME)?;
    match ours.kind.as_str() {
        "Int8Weight" | "Int8DynamicWeight" => int8(&ours),
        "Float8Weight" => float8(&ours),
        "IntxWeight" | "Int8DynamicIntxWeight" => intx(&ours),
        "Int4Weight" => int4(&ours),
        "MXWeight" => mx(&ours),
        "NVFP4Weight" => nvfp4(&ours),
        _ => Err(none_in(NAME, &weight.workflow())),
    }
}

/// How many rows and columns share a scale of this shape.
fn block_of(scale: &Tensor, (n, k): (usize, usize)) -> Result<[usize; 2]> {
    let (rows, groups) = scale.dims2()?;
    Ok([n.checked_div(rows).unwrap_or(0), k.checked_div(groups).unwrap_or(0)])
}

/// The same without the versions that our configurations carry and torchao's files do not.
fn unversioned(json: Json) -> Json {
    match json {
        Json::Object(fields) => Json::Object(
            fields
                .into_iter()
                .filter(|(name, _)| name != "_version")
                .map(|(name, field)| (name, unversioned(field)))
                .collect(),
        ),
        Json::Array(items) => Json::Array(items.into_iter().map(unversioned).collect()),
        other => other,
    }
}

fn int8(ours: &Ours) -> Result<Flat> {
    let scale = ours.tensor("scale")?.clone();
    let activation = ours.field("act_quant_kwargs");
    let reduce_range = activation["reduce_range"].as_bool().unwrap_or(false);
    let kwargs = match activation {
        Json::Null => Json::Null,
        data => json!({ "_type": "QuantizeTensorToInt8Kwargs", "_data": unversioned(data) }),
    };
    let data = json!({
        "act_quant_kwargs": kwargs,
        "reduce_range": reduce_range,
        "block_size": block_of(&scale, ours.shape)?,
        "dtype": ours.field("dtype"),
    });
    let zero_point = Tensor::zeros(DType::I8, scale.shape())?;
    let qdata = ours.tensor("qdata")?.clone();
    let tensors = vec![("zero_point", zero_point), ("qdata", qdata), ("scale", scale)];
    Ok(class("Int8Tensor", data, tensors))
}

fn float8(ours: &Ours) -> Result<Flat> {
    let scale = ours.tensor("scale")?.clone();
    let activation = ours.field("act_quant_kwargs");
    let kernel = enumeration("KernelPreference", "AUTO");
    let (kwargs, mm_config) = match &activation["dynamic"] {
        Json::Null if activation.is_string() => (Json::Null, Json::Null),
        Json::Null => return Err(none_in(NAME, "float8-static-activation-float8-weight")),
        dynamic => {
            let mut data = unversioned(dynamic.clone());
            data["mm_config"] = Json::Null;
            data["kernel_preference"] = kernel.clone();
            let mm = json!({ "emulate": false, "use_fast_accum": true, "pad_inner_dim": false });
            (
                json!({ "_type": "QuantizeTensorToFloat8Kwargs", "_data": data }),
                json!({ "_type": "Float8MMConfig", "_data": mm }),
            )
        }
    };
    let data = json!({
        "block_size": block_of(&scale, ours.shape)?,
        "mm_config": mm_config,
        "act_quant_kwargs": kwargs,
        "kernel_preference": kernel,
        "dtype": ours.field("dtype"),
    });
    let tensors = vec![("qdata", ours.tensor("qdata")?.clone()), ("scale", scale)];
    let mut made = class("Float8Tensor", data, tensors);
    made.tensors[0].2 = Some(match ours.field("float8_dtype")["_data"].as_str() {
        Some("float8_e5m2") => "F8_E5M2",
        _ => "F8_E4M3",
    });
    Ok(made)
}

fn intx(ours: &Ours) -> Result<Flat> {
    let target = ours.field("weight_dtype");
    let bits = bits_of(&target)?;
    let (n, k) = ours.shape;
    let codes = signed(&unpacked(ours.tensor("qdata")?, bits, (n, k))?, bits);
    let scale = ours.tensor("scale")?.clone();
    let zeros = match ours.tensor("zero_point") {
        Ok(zeros) => zeros.clone(),
        Err(_) => Tensor::zeros(DType::I8, scale.shape())?,
    };
    let activation = match ours.kind.as_str() {
        "Int8DynamicIntxWeight" => json!("int8_asym_per_token"),
        _ => Json::Null,
    };
    let data = json!({
        "target_dtype": target,
        "block_size": block_of(&scale, (n, k))?,
        "dtype": ours.field("dtype"),
        "activation_quantization": activation,
    });
    let qdata = Tensor::new(codes, &[n, k])?;
    let tensors = vec![("qdata", qdata), ("scale", scale), ("zero_point", zeros)];
    Ok(class("IntxUnpackedToInt8Tensor", data, tensors))
}

fn int4(ours: &Ours) -> Result<Flat> {
    if ours.field("int4_packing_format")["_data"] != "PLAIN" {
        return Err(none_in(NAME, "int4-weight-only --packing-format other than plain"));
    }
    let (n, k) = ours.shape;
    // The top bit of each nibble is what codes from −8 and codes from 0 differ by.
    let bytes = ours.tensor("qdata")?.as_slice::<u8>()?.iter();
    let bytes = bytes.map(|byte| (byte ^ 0x88).cast_signed()).collect::<Vec<i8>>();
    let scale = ours.tensor("scale")?;
    let data = json!({
        "activation_dtype": dtype_to_dict(DType::BF16),
        "block_size": block_of(scale, (n, k))?,
        "shape": [n, k],
    });
    let tensors = vec![
        ("qdata", Tensor::new(bytes, &[n, k / 2])?),
        ("scale", transposed(scale)?),
        ("zero_point", transposed(ours.tensor("zero_point")?)?),
    ];
    Ok(class("Int4Tensor", data, tensors))
}

/// Scales `(N, K / block)` in cuBLAS's order, under the shape that torchao gives them.
fn swizzled(scale: &Tensor) -> Result<Tensor> {
    let (n, columns) = scale.dims2()?;
    let shape = [n.div_ceil(128) * 32, columns.div_ceil(4) * 16];
    to_blocked(scale)?.reshape(&shape)
}

fn mx(ours: &Ours) -> Result<Flat> {
    let element = ours.field("elem_dtype");
    let word = element["_data"].as_str().or(element.as_str()).unwrap_or_default().to_owned();
    let (n, k) = ours.shape;
    let (qdata, dtype) = match word.as_str() {
        "float8_e4m3fn" => (ours.tensor("qdata")?.clone(), Some("F8_E4M3")),
        "float8_e5m2" => (ours.tensor("qdata")?.clone(), Some("F8_E5M2")),
        "float4_e2m1fn_x2" => (ours.tensor("qdata")?.clone(), None),
        "fp6_e2m3" | "fp6_e3m2" => {
            let mut codes = vec![0; n * k];
            unpack_uint6(ours.tensor("qdata")?.as_slice::<u8>()?, &mut codes);
            (Tensor::new(codes, &[n, k])?, None)
        }
        _ => return Err(none_in(NAME, "mxint8")),
    };
    let kernel = enumeration("KernelPreference", "AUTO");
    let kwargs = match &ours.field("act_quant_kwargs")["dynamic"] {
        Json::Null => Json::Null,
        dynamic => json!({ "_type": "QuantizeTensorToMXKwargs", "_data": {
            "elem_dtype": element, "block_size": 32, "scaling_mode": dynamic["scaling_mode"],
            "kernel_preference": kernel, "is_swizzled_scales": true } }),
    };
    let data = json!({
        "elem_dtype": element, "block_size": 32, "orig_dtype": ours.field("dtype"),
        "kernel_preference": kernel, "act_quant_kwargs": kwargs, "is_swizzled_scales": true,
    });
    let tensors = vec![("qdata", qdata), ("scale", swizzled(ours.tensor("scale")?)?)];
    let mut made = class("MXTensor", data, tensors);
    (made.tensors[0].2, made.tensors[1].2) = (dtype, Some("F8_E8M0"));
    Ok(made)
}

fn nvfp4(ours: &Ours) -> Result<Flat> {
    let kwargs = match &ours.field("act_quant_kwargs")["dynamic"] {
        Json::Null => Json::Null,
        dynamic => json!({ "_type": "QuantizeTensorToNVFP4Kwargs", "_data": {
            "block_size": 16, "is_swizzled_scales": true, "use_triton_kernel": false,
            "use_dynamic_per_tensor_scale": dynamic["use_dynamic_per_tensor_scale"] } }),
    };
    let data = json!({
        "is_swizzled_scales": true, "use_triton_kernel": false, "act_quant_kwargs": kwargs,
        "block_size": 16, "orig_dtype": ours.field("dtype"),
    });
    let mut tensors =
        vec![("qdata", ours.tensor("qdata")?.clone()), ("scale", swizzled(ours.tensor("scale")?)?)];
    if let Ok(above) = ours.tensor("per_tensor_scale") {
        tensors.push(("per_tensor_scale", above.reshape(&[])?));
    }
    let mut made = class("NVFP4Tensor", data, tensors);
    made.tensors[1].2 = Some("F8_E4M3");
    Ok(made)
}

/// The tensors of a class, taken by name.
struct Theirs<'a> {
    data: &'a Json,
    tensors: Vec<(String, Tensor)>,
    shape: (usize, usize),
}

impl Theirs<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let found = self.tensors.iter().find(|(known, _)| known == name);
        let (_, tensor) =
            found.ok_or_else(|| Error::invalid(format!("there is no tensor {name}")))?;
        if tensor.shape() == shape {
            return Ok(tensor.clone());
        }
        let got = tensor.shape();
        Err(Error::invalid(format!("{name} is {got:?}; wanted {shape:?}")))
    }

    /// The block that shares a scale, which must divide the weight.
    fn block(&self) -> Result<[usize; 2]> {
        let (n, k) = self.shape;
        let block: Option<[usize; 2]> =
            serde_json::from_value(self.data["block_size"].clone()).ok();
        let divides = |b: &[usize; 2]| b[0] > 0 && b[1] > 0 && n % b[0] == 0 && k % b[1] == 0;
        block.filter(divides).ok_or_else(|| {
            let got = &self.data["block_size"];
            Error::invalid(format!("block_size is {got}; wanted divisors of {n} and {k}"))
        })
    }

    fn granularity(&self, block: [usize; 2]) -> Json {
        let (n, k) = self.shape;
        match block {
            [rows, columns] if rows == n && columns == k && n > 1 => {
                json!({ "_type": "PerTensor", "_data": {} })
            }
            [1, columns] if columns == k => {
                json!({ "_type": "PerRow", "_data": { "dim": -1 } })
            }
            [1, group] => json!({ "_type": "PerGroup", "_data": { "group_size": group } }),
            block => json!({ "_type": "PerBlock", "_data": { "block_size": block } }),
        }
    }

    /// Scales `(N, K / block)` out of cuBLAS's order, or as they are.
    fn scales(&self, size: usize) -> Result<Tensor> {
        let (n, k) = self.shape;
        if size == 0 || !k.is_multiple_of(size) {
            return Err(Error::invalid(format!("K = {k} is no multiple of {size}")));
        }
        let columns = k / size;
        if self.data["is_swizzled_scales"] != true {
            return self.tensor("scale", &[n, columns]);
        }
        let stored = [n.div_ceil(128) * 32, columns.div_ceil(4) * 16];
        let scale = self.tensor("scale", &stored)?;
        from_blocked(&scale.reshape(&[scale.numel()])?, n, columns)
    }
}

/// The weight that a class of torchao's holds.
pub(crate) fn read(
    typed: &Typed<'_>,
    tensors: Vec<(String, Tensor)>,
    shape: (usize, usize),
) -> Result<Arc<dyn Weight>> {
    let data = &Json::Object(typed.object()?.clone());
    if let Some((name, _)) = tensors.iter().find(|(name, _)| name.starts_with("act_pre_scale")) {
        return Err(Error::invalid(format!(
            "{name}: inputs that are scaled first are not read yet"
        )));
    }
    let theirs = Theirs { data, tensors, shape };
    let (kind, ours, tensors) = match typed.name {
        "Int8Tensor" => read_int8(&theirs)?,
        "Float8Tensor" => read_float8(&theirs)?,
        "IntxUnpackedToInt8Tensor" => read_intx(&theirs)?,
        "Int4Tensor" => read_int4(&theirs)?,
        "MXTensor" => read_mx(&theirs)?,
        _ => read_nvfp4(&theirs)?,
    };
    let meta = json!({ "_type": kind, "_version": 1, "_data": ours });
    let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    read_weight(&meta, tensors, shape)
}

type Read = (&'static str, Json, Vec<(&'static str, Tensor)>);

fn read_int8(theirs: &Theirs<'_>) -> Result<Read> {
    let ((n, k), [rows, columns]) = (theirs.shape, theirs.block()?);
    let (qdata, shape) = (theirs.tensor("qdata", &[n, k])?, [n / rows, k / columns]);
    let scale = theirs.tensor("scale", &shape)?;
    if let Ok(zeros) = theirs.tensor("zero_point", &shape)
        && zeros.bytes().iter().any(|byte| *byte != 0)
    {
        return Err(Error::invalid("int8 weights with zero points are not supported"));
    }
    let tensors = vec![("qdata", qdata), ("scale", scale)];
    let (data, dtype) = (theirs.data, theirs.data["dtype"].clone());
    match &data["act_quant_kwargs"] {
        Json::Null => Ok(("Int8Weight", json!({ "dtype": dtype, "scale_shape": shape }), tensors)),
        kwargs => {
            let granularity = theirs.granularity([rows, columns]);
            let ours = json!({ "dtype": dtype, "granularity": granularity, "act_quant_kwargs": kwargs["_data"] });
            Ok(("Int8DynamicWeight", ours, tensors))
        }
    }
}

fn read_float8(theirs: &Theirs<'_>) -> Result<Read> {
    let ((n, k), [rows, columns]) = (theirs.shape, theirs.block()?);
    let qdata = theirs.tensor("qdata", &[n, k])?;
    let scale = theirs.tensor("scale", &[n / rows, k / columns])?;
    let activation = match &theirs.data["act_quant_kwargs"]["_data"] {
        Json::Null => json!("as_is"),
        kwargs => json!({ "dynamic": {
            "float8_dtype": kwargs["float8_dtype"], "granularity": kwargs["granularity"],
            "hp_value_lb": kwargs["hp_value_lb"], "hp_value_ub": kwargs["hp_value_ub"] } }),
    };
    let float8 = match theirs.data["stored_as"].as_str() {
        Some("F8_E5M2") => "float8_e5m2",
        _ => "float8_e4m3fn",
    };
    let ours = json!({
        "dtype": theirs.data["dtype"],
        "float8_dtype": { "_type": "torch.dtype", "_data": float8 },
        "granularity": theirs.granularity([rows, columns]),
        "act_quant_kwargs": activation,
    });
    Ok(("Float8Weight", ours, vec![("qdata", qdata), ("scale", scale)]))
}

fn read_intx(theirs: &Theirs<'_>) -> Result<Read> {
    let ((n, k), [_, group_size]) = (theirs.shape, theirs.block()?);
    let bits = bits_of(&theirs.data["target_dtype"])?;
    let shape = [n, k / group_size];
    let qdata = theirs.tensor("qdata", &[n, k])?;
    let codes = packed(&biased(qdata.as_slice::<i8>()?, bits)?, bits, (n, k))?;
    let scale = theirs.tensor("scale", &shape)?;
    let zeros = theirs.tensor("zero_point", &shape)?;
    let asymmetric = zeros.bytes().iter().any(|byte| *byte != 0);
    let mapping = if asymmetric { "ASYMMETRIC" } else { "SYMMETRIC" };
    let ours = json!({
        "dtype": theirs.data["dtype"], "weight_dtype": theirs.data["target_dtype"],
        "group_size": group_size, "mapping_type": enumeration("MappingType", mapping),
    });
    let kind = match &theirs.data["activation_quantization"] {
        Json::Null => "IntxWeight",
        word if word == "int8_asym_per_token" => "Int8DynamicIntxWeight",
        other => return Err(Error::invalid(format!("activation_quantization {other} is unknown"))),
    };
    let mut tensors = vec![("qdata", codes), ("scale", scale)];
    if asymmetric {
        tensors.push(("zero_point", zeros));
    }
    Ok((kind, ours, tensors))
}

fn read_int4(theirs: &Theirs<'_>) -> Result<Read> {
    let ((n, k), [_, group_size]) = (theirs.shape, theirs.block()?);
    let bytes = theirs.tensor("qdata", &[n, k / 2])?;
    let bytes = bytes.bytes().iter().map(|byte| byte ^ 0x88).collect::<Vec<u8>>();
    let shape = [k / group_size, n];
    let scale = transposed(&theirs.tensor("scale", &shape)?)?;
    let zero_point = transposed(&theirs.tensor("zero_point", &shape)?)?;
    let ours = json!({
        "dtype": dtype_to_dict(scale.dtype()), "group_size": group_size,
        "int4_packing_format": enumeration("Int4PackingFormat", "PLAIN"),
    });
    let qdata = Tensor::new(bytes, &[n, k / 2])?;
    Ok(("Int4Weight", ours, vec![("qdata", qdata), ("scale", scale), ("zero_point", zero_point)]))
}

fn read_mx(theirs: &Theirs<'_>) -> Result<Read> {
    let (n, k) = theirs.shape;
    let element = theirs.data["elem_dtype"].clone();
    let word = element["_data"].as_str().or(element.as_str()).unwrap_or_default();
    let qdata = match word {
        "float4_e2m1fn_x2" => theirs.tensor("qdata", &[n, k / 2])?,
        "fp6_e2m3" | "fp6_e3m2" => {
            let codes = theirs.tensor("qdata", &[n, k])?;
            let mut bytes = Vec::new();
            if codes.as_slice::<u8>()?.iter().any(|code| *code > 63) || !k.is_multiple_of(4) {
                return Err(Error::invalid("a code does not fit 6 bits, or K is no multiple of 4"));
            }
            let rows = codes.as_slice::<u8>()?.chunks_exact(k.max(1));
            rows.for_each(|row| pack_uint6(row, &mut bytes));
            Tensor::new(bytes, &[n, k / 4 * 3])?
        }
        _ => theirs.tensor("qdata", &[n, k])?,
    };
    let activation = match &theirs.data["act_quant_kwargs"]["_data"] {
        Json::Null => json!("as_is"),
        kwargs => json!({ "dynamic": {
            "elem_dtype": kwargs["elem_dtype"], "scaling_mode": kwargs["scaling_mode"] } }),
    };
    let ours = json!({
        "dtype": theirs.data["orig_dtype"], "elem_dtype": element,
        "block_size": theirs.data["block_size"], "act_quant_kwargs": activation,
    });
    Ok(("MXWeight", ours, vec![("qdata", qdata), ("scale", theirs.scales(32)?)]))
}

fn read_nvfp4(theirs: &Theirs<'_>) -> Result<Read> {
    let (n, k) = theirs.shape;
    let mut tensors =
        vec![("qdata", theirs.tensor("qdata", &[n, k / 2])?), ("scale", theirs.scales(16)?)];
    let above = theirs.tensors.iter().find(|(name, _)| name == "per_tensor_scale");
    if let Some((_, above)) = above {
        tensors.push(("per_tensor_scale", above.reshape(&[1])?));
    }
    let activation = match &theirs.data["act_quant_kwargs"]["_data"] {
        Json::Null => json!("as_is"),
        kwargs => json!({ "dynamic": {
            "use_dynamic_per_tensor_scale": kwargs["use_dynamic_per_tensor_scale"] } }),
    };
    let ours = json!({
        "dtype": theirs.data["orig_dtype"], "use_per_tensor_scale": above.is_some(),
        "act_quant_kwargs": activation,
    });
    Ok(("NVFP4Weight", ours, tensors))
}
