//! compressed-tensors: `weight_packed` or `weight` with `weight_scale` of each layer, and one scheme for a group of layers in config.json.
//!
//! - `pack-quantized`: int4 and int8 codes of intx weights, `32 / bits` to a word of i32, the first in its lowest bits, each 2ᵇ⁻¹ above its
//!   number; scales `(N, K/g)`; zero points packed along the rows.
//! - `int-quantized`: int8 codes, a scale a row or one; activations as they are or int8 a token. `naive-quantized` is read as well.
//! - `float-quantized`: e4m3 codes, a scale a row or one; activations as they are, dynamic, or with a scale that is given.

use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::{Ours, biased, bits_of, flat, none_in, packed, signed, transposed, unpacked};
use crate::error::{Error, Result};
use crate::io::Flat;
use crate::model::Weight;
use crate::quantization::config::{Typed, dtype_to_dict};
use crate::quantization::stored::read_weight;
use crate::tensor::{DType, Tensor};

const NAME: &str = "compressed-tensors";

/// The arguments of one quantizer, as compressed-tensors names them.
fn arguments(bits: u32, kind: &str, strategy: &str, dynamic: bool) -> Json {
    json!({
        "num_bits": bits, "type": kind, "symmetric": true, "strategy": strategy, "dynamic": dynamic,
    })
}

#[expect(clippy::needless_pass_by_value, reason = "it is put into what is returned")]
fn scheme(format: &str, weights: Json, activations: Json) -> Json {
    json!({ "format": format, "weights": weights, "input_activations": activations })
}

/// A weight with its scheme.
pub(crate) fn flatten(weight: &dyn Weight) -> Result<Flat> {
    let ours = Ours::of(weight, NAME)?;
    match ours.kind.as_str() {
        "IntxWeight" => pack_quantized(&ours, weight),
        "Int8Weight" | "Int8DynamicWeight" => int_quantized(&ours, weight),
        "Float8Weight" => float_quantized(&ours, weight),
        _ => Err(none_in(NAME, &weight.workflow())),
    }
}

/// `(strategy, group_size)` of a scale.
fn strategy(scale: &Tensor, (n, k): (usize, usize)) -> Result<(&'static str, Option<usize>)> {
    match scale.dims2()? {
        (1, 1) if n > 1 => Ok(("tensor", None)),
        (rows, 1) if rows == n => Ok(("channel", None)),
        (rows, groups) if rows == n && groups > 0 => Ok(("group", Some(k / groups))),
        _ => Err(none_in(NAME, "scales of squares")),
    }
}

fn pack_quantized(ours: &Ours, weight: &dyn Weight) -> Result<Flat> {
    let (n, k) = ours.shape;
    let bits = bits_of(&ours.field("weight_dtype"))?;
    if ![4, 8].contains(&bits) {
        return Err(none_in(NAME, &format!("{} of int{bits}", weight.workflow())));
    }
    let scale = ours.tensor("scale")?.clone();
    let (strategy, group_size) = strategy(&scale, (n, k))?;
    let zeros = ours.tensor("zero_point").ok();
    let mut weights = arguments(bits, "int", strategy, false);
    weights["symmetric"] = zeros.is_none().into();
    if let Some(size) = group_size {
        weights["group_size"] = size.into();
    }
    let codes = unpacked(ours.tensor("qdata")?, bits, (n, k))?;
    let shape = [n, k].map(|size| i64::try_from(size).unwrap_or(i64::MAX)).to_vec();
    let mut tensors = vec![
        ("weight_packed", words(&codes, bits, (n, k))?),
        ("weight_scale", scale),
        ("weight_shape", Tensor::new(shape, &[2])?),
    ];
    if let Some(zeros) = zeros {
        let turned = transposed(zeros)?;
        let (groups, rows) = turned.dims2()?;
        let codes = biased(turned.as_slice::<i8>()?, bits)?;
        let packed = words(&codes, bits, (groups, rows))?;
        tensors.push(("weight_zero_point", transposed(&packed)?));
    }
    Ok(flat(scheme("pack-quantized", weights, Json::Null), tensors))
}

/// Rows of codes in words of i32, the last of a row filled up with zeros.
fn words(codes: &[u8], bits: u32, (n, k): (usize, usize)) -> Result<Tensor> {
    let per_word = 32 / bits as usize;
    let mut words = Vec::with_capacity(n * k.div_ceil(per_word));
    for row in codes.chunks_exact(k.max(1)) {
        words.extend(row.chunks(per_word).map(|codes| {
            let bits_of = |(i, code): (usize, &u8)| u32::from(*code) << (bits as usize * i);
            codes.iter().enumerate().map(bits_of).fold(0, |word, bits| word | bits).cast_signed()
        }));
    }
    Tensor::new(words, &[n, k.div_ceil(per_word)])
}

/// The inverse of [`words`].
fn from_words(words: &Tensor, bits: u32, (n, k): (usize, usize)) -> Result<Vec<u8>> {
    let per_word = 32 / bits as usize;
    let wanted = [n, k.div_ceil(per_word)];
    if words.shape() != wanted {
        let got = words.shape();
        return Err(Error::invalid(format!("packed codes are {got:?}; wanted {wanted:?}")));
    }
    let mask = u8::MAX >> (8 - bits);
    let words = words.as_slice::<i32>()?;
    let code = |at: usize| {
        let (row, column) = (at / k, at % k);
        let word = words[row * wanted[1] + column / per_word].cast_unsigned();
        (word >> (bits as usize * (column % per_word))).to_le_bytes()[0] & mask
    };
    Ok((0..n * k).map(code).collect())
}

fn int_quantized(ours: &Ours, weight: &dyn Weight) -> Result<Flat> {
    let scale = ours.tensor("scale")?.clone();
    let (strategy, group_size) = strategy(&scale, ours.shape)?;
    let activation = ours.field("act_quant_kwargs");
    let activations = match &activation {
        Json::Null => Json::Null,
        kwargs
            if kwargs["mapping_type"]["_data"] == "SYMMETRIC"
                && kwargs["granularity"]["_type"] == "PerRow"
                && kwargs["reduce_range"] == false =>
        {
            arguments(8, "int", "token", true)
        }
        _ => return Err(none_in(NAME, &format!("{} with these activations", weight.workflow()))),
    };
    let mut weights = arguments(8, "int", strategy, false);
    if let Some(size) = group_size {
        weights["group_size"] = size.into();
    }
    let scale = if strategy == "tensor" { scale.reshape(&[1])? } else { scale };
    let tensors = vec![("weight", ours.tensor("qdata")?.clone()), ("weight_scale", scale)];
    Ok(flat(scheme("int-quantized", weights, activations), tensors))
}

fn float_quantized(ours: &Ours, weight: &dyn Weight) -> Result<Flat> {
    let scale = ours.tensor("scale")?.clone();
    let (strategy, group_size) = strategy(&scale, ours.shape)?;
    if ours.field("float8_dtype")["_data"] != "float8_e4m3fn" || group_size.is_some() {
        return Err(none_in(NAME, &format!("{} of e5m2, or in groups", weight.workflow())));
    }
    let activation = ours.field("act_quant_kwargs");
    let (dynamic, fixed) = (&activation["dynamic"], &activation["static"]);
    let mut tensors = vec![("weight", ours.tensor("qdata")?.clone())];
    let activations = if activation.is_string() {
        Json::Null
    } else if fixed.is_object() && fixed["output_scale"].is_null() {
        #[expect(clippy::cast_possible_truncation, reason = "it was an f32 when it was written")]
        let scale = fixed["scale"].as_f64().unwrap_or_default() as f32;
        tensors.push(("input_scale", Tensor::new(vec![scale], &[1])?));
        arguments(8, "float", "tensor", false)
    } else if dynamic["granularity"]["_type"] == "PerRow" && dynamic["hp_value_ub"].is_null() {
        arguments(8, "float", "token", true)
    } else if dynamic["granularity"]["_type"] == "PerTensor" && dynamic["hp_value_ub"].is_null() {
        arguments(8, "float", "tensor", true)
    } else {
        return Err(none_in(NAME, &format!("{} with these activations", weight.workflow())));
    };
    let scale = if strategy == "tensor" { scale.reshape(&[1])? } else { scale };
    tensors.push(("weight_scale", scale));
    let weights = arguments(8, "float", strategy, false);
    let mut made = flat(scheme("float-quantized", weights, activations), tensors);
    made.tensors[0].2 = Some("F8_E4M3");
    Ok(made)
}

/// config.json's `quantization_config`: one group for each scheme, its layers by name, and what is left alone.
pub(crate) fn config(modules: &[(String, Json)], ignored: &[String]) -> Result<Json> {
    let mut groups: Vec<(&Json, Vec<&str>)> = Vec::new();
    for (module, scheme) in modules {
        match groups.iter_mut().find(|(known, _)| *known == scheme) {
            Some((_, names)) => names.push(module),
            None => groups.push((scheme, vec![module])),
        }
    }
    let format = modules.first().map_or(&Json::Null, |(_, scheme)| &scheme["format"]);
    if let Some((other, _)) = groups.iter().find(|(scheme, _)| scheme["format"] != *format) {
        return Err(Error::invalid(format!(
            "{NAME} has one format for all layers, and these have {format} and {}; use one, or save without --layout",
            other["format"]
        )));
    }
    let only_one = groups.len() == 1;
    let mut all = Map::new();
    for (i, (scheme, names)) in groups.into_iter().enumerate() {
        let targets = if only_one { json!(["Linear"]) } else { json!(names) };
        let group = json!({
            "targets": targets, "weights": scheme["weights"],
            "input_activations": scheme["input_activations"], "output_activations": null,
        });
        all.insert(format!("group_{i}"), group);
    }
    Ok(json!({
        "quant_method": NAME, "format": format, "quantization_status": "compressed",
        "global_compression_ratio": null, "kv_cache_scheme": null, "config_groups": all, "ignore": ignored,
    }))
}

/// The weight that a layer's tensors hold under its scheme.
pub(crate) fn read(
    typed: &Typed<'_>,
    tensors: Vec<(String, Tensor)>,
    shape: (usize, usize),
) -> Result<Arc<dyn Weight>> {
    let scheme = typed.object()?;
    let of = |name: &str| scheme.get(name).cloned().unwrap_or(Json::Null);
    let theirs =
        Theirs { weights: of("weights"), activations: of("input_activations"), tensors, shape };
    let format = of("format");
    let (kind, ours, tensors) = match format.as_str() {
        Some("pack-quantized") => theirs.packed()?,
        Some("int-quantized") => theirs.int8()?,
        Some("float-quantized") => theirs.float8()?,
        Some("naive-quantized") if theirs.weights["type"] == "float" => theirs.float8()?,
        Some("naive-quantized") => theirs.int8()?,
        _ => {
            return Err(Error::invalid(format!(
                "format {format} of {NAME} is not supported; wanted pack-quantized, int-quantized, float-quantized or naive-quantized"
            )));
        }
    };
    let meta = json!({ "_type": kind, "_version": 1, "_data": ours });
    let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    read_weight(&meta, tensors, shape)
}

struct Theirs {
    weights: Json,
    activations: Json,
    tensors: Vec<(String, Tensor)>,
    shape: (usize, usize),
}

type Read = (&'static str, Json, Vec<(&'static str, Tensor)>);

impl Theirs {
    fn tensor(&self, name: &str) -> Result<&Tensor> {
        let found = self.tensors.iter().find(|(known, _)| known == name);
        found.map(|(_, tensor)| tensor).ok_or_else(|| {
            let names: Vec<&str> = self.tensors.iter().map(|(name, _)| name.as_str()).collect();
            Error::invalid(format!("there is no tensor {name}; got {}", names.join(", ")))
        })
    }

    fn check(&self, kind: &str, bits: &[u64]) -> Result<()> {
        let (got, got_bits) = (&self.weights["type"], self.weights["num_bits"].as_u64());
        if got == kind && got_bits.is_some_and(|got| bits.contains(&got)) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "weights of {got} with {} bits; wanted {kind} of {bits:?}",
            self.weights["num_bits"]
        )))
    }

    /// Scales as a matrix, which have as many rows as the weight or one.
    fn scale(&self) -> Result<Tensor> {
        let (n, k) = self.shape;
        let scale = self.tensor("weight_scale")?;
        let groups = match self.weights["strategy"].as_str() {
            Some("tensor") => return scale.reshape(&[1, 1]),
            Some("channel") => 1,
            Some("group") => {
                let size =
                    self.weights["group_size"].as_u64().and_then(|s| usize::try_from(s).ok());
                let divides = |size: &usize| *size > 0 && k.is_multiple_of(*size);
                let size = size.filter(divides).ok_or_else(|| {
                    let got = &self.weights["group_size"];
                    Error::invalid(format!("group_size is {got}; wanted a divisor of {k}"))
                })?;
                k / size
            }
            _ => {
                let got = &self.weights["strategy"];
                return Err(Error::invalid(format!("strategy {got} is not supported")));
            }
        };
        scale.reshape(&[n, groups])
    }

    fn dtype(scale: &Tensor) -> Json {
        // The layout does not say what the weights were; their scales keep it.
        dtype_to_dict(if scale.dtype() == DType::F16 { DType::F16 } else { scale.dtype() })
    }

    fn packed(&self) -> Result<Read> {
        self.check("int", &[4, 8])?;
        let (n, k) = self.shape;
        let bits = if self.weights["num_bits"] == 4 { 4 } else { 8 };
        let scale = self.scale()?;
        let groups = scale.shape()[1];
        let codes = from_words(self.tensor("weight_packed")?, bits, (n, k))?;
        if !self.activations.is_null() {
            return Err(Error::invalid(
                "packed codes with quantized activations are not supported",
            ));
        }
        if self.tensors.iter().any(|(name, _)| name == "weight_g_idx") {
            return Err(Error::invalid(
                "columns in another order (weight_g_idx) are not supported",
            ));
        }
        let asymmetric = self.weights["symmetric"] == false;
        let mut tensors = vec![("qdata", packed(&codes, bits, (n, k))?), ("scale", scale.clone())];
        if asymmetric {
            let turned = transposed(self.tensor("weight_zero_point")?)?;
            let zeros = signed(&from_words(&turned, bits, (groups, n))?, bits);
            tensors.push(("zero_point", transposed(&Tensor::new(zeros, &[groups, n])?)?));
        }
        let mapping = if asymmetric { "ASYMMETRIC" } else { "SYMMETRIC" };
        let ours = json!({
            "dtype": Self::dtype(&scale), "group_size": k / groups.max(1),
            "weight_dtype": { "_type": "torch.dtype", "_data": format!("int{bits}") },
            "mapping_type": { "_type": "MappingType", "_data": mapping },
        });
        Ok(("IntxWeight", ours, tensors))
    }

    /// Whether activations are dynamic, and a row or all of them share a scale.
    fn dynamic(&self) -> Result<Option<Json>> {
        let activations = &self.activations;
        match (activations["dynamic"].as_bool(), activations["strategy"].as_str()) {
            (Some(true), Some("token")) => {
                Ok(Some(json!({ "_type": "PerRow", "_data": { "dim": -1 } })))
            }
            (Some(true), Some("tensor")) => Ok(Some(json!({ "_type": "PerTensor", "_data": {} }))),
            _ if activations.is_null() => Ok(None),
            _ => Err(Error::invalid(format!("input_activations {activations} are not supported"))),
        }
    }

    fn int8(&self) -> Result<Read> {
        self.check("int", &[8])?;
        let scale = self.scale()?;
        let float = scale.to_dtype(DType::F32)?;
        let tensors = vec![("qdata", self.tensor("weight")?.clone()), ("scale", float)];
        let dtype = Self::dtype(&scale);
        let Some(granularity) = self.dynamic()? else {
            let ours = json!({ "dtype": dtype, "scale_shape": scale.shape() });
            return Ok(("Int8Weight", ours, tensors));
        };
        let mapping = match self.activations["symmetric"] == false {
            true => "ASYMMETRIC",
            false => "SYMMETRIC",
        };
        let kwargs = json!({
            "granularity": granularity, "reduce_range": false,
            "mapping_type": { "_type": "MappingType", "_data": mapping },
        });
        let of_weights = match scale.numel() == 1 {
            true => json!({ "_type": "PerTensor", "_data": {} }),
            false => json!({ "_type": "PerRow", "_data": { "dim": -1 } }),
        };
        let ours = json!({ "dtype": dtype, "granularity": of_weights, "act_quant_kwargs": kwargs });
        Ok(("Int8DynamicWeight", ours, tensors))
    }

    fn float8(&self) -> Result<Read> {
        self.check("float", &[8])?;
        let e4m3 = json!({ "_type": "torch.dtype", "_data": "float8_e4m3fn" });
        let scale = self.scale()?;
        let granularity = match scale.numel() == 1 {
            true => json!({ "_type": "PerTensor", "_data": {} }),
            false => json!({ "_type": "PerRow", "_data": { "dim": -1 } }),
        };
        let activation = if self.activations["dynamic"] == false {
            let scale = self.tensor("input_scale")?.to_f32_vec();
            json!({ "static": { "float8_dtype": e4m3, "scale": scale.first(), "output_scale": null } })
        } else {
            match self.dynamic()? {
                None => json!("as_is"),
                Some(granularity) => json!({ "dynamic": {
                    "float8_dtype": e4m3, "granularity": granularity,
                    "hp_value_lb": null, "hp_value_ub": null } }),
            }
        };
        let ours = json!({
            "dtype": Self::dtype(&scale), "float8_dtype": e4m3, "granularity": granularity,
            "act_quant_kwargs": activation,
        });
        let float = scale.to_dtype(DType::F32)?;
        Ok((
            "Float8Weight",
            ours,
            vec![("qdata", self.tensor("weight")?.clone()), ("scale", float)],
        ))
    }
}
