//! Codes of few bits: nf4, codebook, bitpacking, and GGUF's blocks.

use serde_json::json;

use super::checks::{Allowed, Checks, number_behind, of_each, unknown};
use crate::error::{Error, Result};
use crate::kernels::ggml::{self, BlockType};
use crate::model::DenseWeight;
use crate::quantization::primitives::{
    choose_qparams_gguf, dequantize_gguf, nf4_values, pack_int4_for_avx512, pack_shards,
    push_stream, quantize_gguf, read_stream, unpack_shards,
};
use crate::quantization::{
    CodeType, CodebookWeightOnlyConfig, NF4WeightOnlyConfig, Recipe as _, read_weight,
};
use crate::tensor::Tensor;

/// `bf16.b64s256`
pub(super) fn nf4(checks: &mut Checks) -> Result<()> {
    for prefix in checks.prefixes(".x") {
        let sizes = prefix.split_once(".b").and_then(|(_, sizes)| sizes.split_once('s'));
        let sizes = sizes.and_then(|(b, s)| b.parse().ok().zip(s.parse().ok()));
        let (block_size, scaler_block_size) = sizes.ok_or_else(|| unknown(&prefix))?;
        let x = checks.input(&format!("{prefix}.x"))?;
        let config = NF4WeightOnlyConfig { block_size, scaler_block_size };
        config.check(x.dims2()?)?;
        let made = config.quantize(&checks.cpu, &DenseWeight::new(x.clone())?)?;
        for (name, tensor) in made.tensors() {
            let name = format!("{prefix}.{name}");
            if checks.contains(&name) {
                let shape = checks.golden(&name)?.shape().to_vec();
                checks.exact(name, &tensor.reshape(&shape)?)?;
            }
        }
        let table = Tensor::new(nf4_values(x.dtype()).to_vec(), &[16])?.to_dtype(x.dtype())?;
        checks.exact(format!("{prefix}.nf4"), &table)?;
        let values = made.dequantize()?.to_dtype(x.dtype())?;
        checks.exact(format!("{prefix}.dq"), &values)?;
    }
    Ok(())
}

/// `u4v4`: k-means adds in torch's order, so that centroids are near, and codes those of the nearest; and `lut`.
pub(super) fn codebook(checks: &mut Checks) -> Result<()> {
    let x = checks.input("x")?;
    let (n, k) = x.dims2()?;
    for prefix in checks.prefixes(".scale") {
        let (bits, width) = match prefix.split_once('v') {
            Some((bits, _)) => (bits, number_behind(&prefix[bits.len()..], "v")?),
            None => (prefix.as_str(), 1),
        };
        let bits = u32::try_from(number_behind(bits, "u")?).map_err(|_| unknown(&prefix))?;
        let golden = checks.golden(&format!("{prefix}.scale"))?;
        let blocks = golden.shape().get(1).copied().unwrap_or(0);
        let config = CodebookWeightOnlyConfig {
            dtype: CodeType::uint(bits),
            block_size: [1, width],
            scale_block_size: Some(k.checked_div(blocks).unwrap_or(0)),
        };
        config.check((n, k))?;
        let made = config.quantize(&checks.cpu, &DenseWeight::new(x.clone())?)?;
        for (name, tensor) in made.tensors() {
            match name.as_str() {
                "scales" => {
                    let scale = tensor.reshape(golden.shape())?;
                    let near = of_each(&golden, 2.0_f64.powi(-21), 0.0);
                    checks.near(format!("{prefix}.scale"), &scale, &near)?;
                }
                "codebook" => {
                    let name = format!("{prefix}.codebook");
                    let wanted = checks.golden(&name)?;
                    let entries = tensor.reshape(wanted.shape())?;
                    checks.near(name, &entries, &of_each(&wanted, 2e-4, 1.0))?;
                }
                "codes" => {
                    let codes = unpacked(&tensor, bits, k / width)?;
                    checks.near(format!("{prefix}.codes"), &codes, &Allowed::But(0.005))?;
                }
                _ => {}
            }
        }
        // One code in 200 elsewhere costs less than a thousandth of the power.
        checks.near(format!("{prefix}.dq"), &made.dequantize()?, &Allowed::SqnrDb(30.0))?;
    }
    lut(checks)
}

/// Rows of `across` codes out of streams of bits.
fn unpacked(stream: &Tensor, bits: u32, across: usize) -> Result<Tensor> {
    let (n, row_nbytes) = stream.dims2()?;
    let mut codes = vec![0; n * across];
    let rows = stream.as_slice::<u8>()?.chunks_exact(row_nbytes.max(1));
    for (row, codes) in rows.zip(codes.chunks_exact_mut(across.max(1))) {
        read_stream(row, bits, codes);
    }
    Tensor::new(codes, &[n, across])
}

/// Tables for blocks of columns, as codebook_coreml and groupwise_lut read them.
fn lut(checks: &mut Checks) -> Result<()> {
    let (codes, lut) = (checks.input("lut.codes")?, checks.input("lut.lut")?);
    let (n, k) = codes.dims2()?;
    let tables = lut.shape().get(1).copied().unwrap_or(0);
    let width = k.checked_div(tables).unwrap_or(0);
    let mut stream = Vec::new();
    if codes.as_slice::<u8>()?.iter().any(|code| *code > 15) || !k.is_multiple_of(2) {
        return Err(Error::invalid("lut.codes are not rows of 4 bits"));
    }
    for row in codes.as_slice::<u8>()?.chunks_exact(k.max(1)) {
        push_stream(row, 4, &mut stream);
    }
    for weight_type in ["CodebookCoreMlWeight", "GroupwiseLutWeight"] {
        let meta = json!({ "_type": weight_type, "_version": 1, "_data": {
            "dtype": { "_type": "torch.dtype", "_data": "float32" },
            "code_dtype": { "_type": "torch.dtype", "_data": "uint4" },
            "block_size": [n, width] } });
        let tensors = vec![
            ("codes".to_owned(), Tensor::new(stream.clone(), &[n, k / 2])?),
            ("codebook".to_owned(), lut.clone()),
        ];
        let weight = read_weight(&meta, tensors, (n, k))?;
        checks.exact("lut.dq", &weight.dequantize()?)?;
    }
    Ok(())
}

/// `u3.x` and its shards, nibbles in pairs, ATen's layout for AVX-512.
pub(super) fn bitpacking(checks: &mut Checks) -> Result<()> {
    for prefix in checks.prefixes(".x") {
        let name = format!("{prefix}.x");
        let x = checks.input(&name)?;
        match prefix.as_str() {
            "uint4" => {
                let (rows, k) = x.dims2()?;
                let mut stream = Vec::new();
                push_stream(x.as_slice::<u8>()?, 4, &mut stream);
                checks.exact("uint4.packed", &Tensor::new(stream, &[rows, k / 2])?)?;
            }
            "int4pack_cpu" => checks.exact("int4pack_cpu.packed", &pack_int4_for_avx512(&x)?)?,
            other => {
                let bits = u32::try_from(number_behind(other, "u")?).map_err(|_| unknown(other))?;
                let shards = pack_shards(&x, bits)?;
                for (i, shard) in shards.iter().enumerate() {
                    checks.exact(format!("{prefix}.shard{i}"), shard)?;
                }
                // Not asked for by name: packed and back is what it was.
                checks.exact(name, &unpack_shards(&shards, bits)?)?;
            }
        }
    }
    Ok(())
}

/// `Q4_K`, `Q4_K.weighted`: blocks as llama.cpp's own library writes them.
pub(super) fn ggml_quantize(checks: &mut Checks) -> Result<()> {
    let x = checks.input("x")?;
    let importance = checks.floats("importance")?;
    let (n, k) = x.dims2()?;
    if importance.len() != k {
        return Err(Error::invalid(format!(
            "importance has {} numbers for K = {k}",
            importance.len()
        )));
    }
    let values = x.to_f32_vec();
    for ty in BlockType::ALL.into_iter().filter(|ty| ty.is_quantized()) {
        if !k.is_multiple_of(ty.block_len()) {
            return Err(Error::invalid(format!("K = {k} is no multiple of {}", ty.block_len())));
        }
        let row_nbytes = k / ty.block_len() * ty.block_bytes();
        let mut blocks = vec![0xa5; n * row_nbytes];
        ggml::quantize(ty, &values, &mut blocks);
        checks.exact(ty.name(), &Tensor::new(blocks.clone(), &[n, row_nbytes])?)?;
        ggml::quantize_weighted(ty, &values, &importance, &mut blocks);
        let name = format!("{}.weighted", ty.name());
        checks.exact(name, &Tensor::new(blocks, &[n, row_nbytes])?)?;
    }
    Ok(())
}

/// torchao's outline of one of them (P14), which rounds nothing.
pub(super) fn gguf_q4k(checks: &mut Checks) -> Result<()> {
    let w = checks.input("w")?;
    let qparams = choose_qparams_gguf(&w)?;
    let q = quantize_gguf(&w, &qparams)?;
    checks.exact("dq", &dequantize_gguf(&q, &qparams)?)?;
    checks.exact("super_scale", &qparams.super_block_scale_scale)?;
    checks.exact("super_min", &qparams.super_block_min_scale)?;
    checks.exact("qscale", &qparams.quantized_block_scale)?;
    checks.exact("qmin", &qparams.quantized_block_min)?;
    checks.exact("q", &q)
}
