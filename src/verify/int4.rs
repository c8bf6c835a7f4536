//! 4-bit weights and what fits their parameters: tinygemm_int4, int4_mslk, hqq.

use serde_json::json;

use super::checks::{Allowed, Checks, number_behind, unknown};
use super::linear::transposed;
use crate::error::Result;
use crate::model::DenseWeight;
use crate::quantization::config::dtype_to_dict;
use crate::quantization::primitives::{
    HqqOptions, MappingType, ZeroPointDomain, choose_qparams_and_quantize_affine_hqq,
    choose_qparams_and_quantize_scale_only_hqq, choose_qparams_and_quantize_scale_only_sinq,
    get_group_qparams_symmetric, get_groupwise_affine_qparams,
    groupwise_affine_dequantize_tensor_from_qparams, groupwise_affine_quantize_tensor_from_qparams,
    int4_row_quantize, int4_row_quantize_zp, pack_int4, pack_int4_for_avx512,
    pack_tinygemm_scales_and_zeros,
};
use crate::quantization::{Int4WeightOnlyConfig, Recipe as _, read_weight};
use crate::tensor::{DType, Tensor};

/// `bf16.g32`, `int_pz`, `gsym3`
pub(super) fn tinygemm(checks: &mut Checks) -> Result<()> {
    let w = checks.input("w")?;
    let (_, k) = w.dims2()?;
    let float = ZeroPointDomain::Float;
    for prefix in checks.prefixes(".scales_and_zeros") {
        let Some((dtype, group)) = prefix.split_once('.') else { return Err(unknown(&prefix)) };
        let dtype = if dtype == "bf16" { DType::BF16 } else { DType::F32 };
        let (w, g) = (w.to_dtype(dtype)?, number_behind(group, "g")?);
        let (scale, zero) = get_groupwise_affine_qparams(&w, 4, g, dtype, float, false)?;
        let both = (&scale, &zero);
        let q = groupwise_affine_quantize_tensor_from_qparams(&w, both, 4, g, float)?;
        let dq = groupwise_affine_dequantize_tensor_from_qparams(&q, both, 4, g, float)?;
        checks.exact(format!("{prefix}.dq"), &dq)?;
        let packed = pack_tinygemm_scales_and_zeros(&scale, &zero)?;
        checks.exact(format!("{prefix}.scales_and_zeros"), &packed)?;
        if checks.contains(&format!("{prefix}.mm")) {
            let act = checks.matrix_of(&format!("{prefix}.act"), k)?;
            product(checks, &format!("{prefix}.mm"), &q, both, (&act, None))?;
        }
        if checks.contains(&format!("{prefix}.packed_avx512")) {
            checks.exact(format!("{prefix}.packed_avx512"), &pack_int4_for_avx512(&q)?)?;
        }
        checks.exact(format!("{prefix}.scale"), &scale)?;
        checks.exact(format!("{prefix}.zero"), &zero)?;
        checks.exact(format!("{prefix}.q"), &q)?;
    }
    for (name, preserve_zero) in [("int_pz", true), ("int_npz", false)] {
        let domain = ZeroPointDomain::Int;
        let (scale, zero) =
            get_groupwise_affine_qparams(&w, 4, 32, DType::F32, domain, preserve_zero)?;
        checks.exact(format!("{name}.scale"), &scale)?;
        checks.exact(format!("{name}.zero"), &zero)?;
    }
    for bits in [2, 3, 4, 8] {
        let symmetric = MappingType::Symmetric;
        let (scale, zero) = get_group_qparams_symmetric(&w, bits, 32, DType::F32, symmetric)?;
        checks.exact(format!("gsym{bits}.scale"), &scale)?;
        checks.exact(format!("gsym{bits}.zp"), &zero)?;
    }
    Ok(())
}

/// An int4 weight of codes 0 ..= 15 `(N, K)`, read as a file's would be, times `act`.
pub(super) fn product(
    checks: &mut Checks,
    name: &str,
    q: &Tensor,
    (scale, zero): (&Tensor, &Tensor),
    (act, bias): (&Tensor, Option<&[f32]>),
) -> Result<()> {
    let (n, k) = q.dims2()?;
    let (pairs, _) = q.as_slice::<u8>()?.as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[even, odd]| even | (odd << 4)).collect();
    let group_size = k / scale.dims2()?.1.max(1);
    let meta = json!({ "_type": "Int4Weight", "_version": 1, "_data": {
        "dtype": dtype_to_dict(scale.dtype()), "group_size": group_size,
        "int4_packing_format": { "_type": "Int4PackingFormat", "_data": "TILE_PACKED_TO_4D" } } });
    let tensors = vec![
        ("qdata".to_owned(), Tensor::new(bytes, &[n, k / 2])?),
        ("scale".to_owned(), scale.clone()),
        ("zero_point".to_owned(), zero.clone()),
    ];
    let weight = read_weight(&meta, tensors, (n, k))?;
    // torch rounds dequantized weights, and the result too, to bf16 (8 bits); in f32 its order of additions differs.
    let part = if checks.golden(name)?.dtype() == DType::BF16 { -7 } else { -16 };
    super::linear::output(checks, name, weight.as_ref(), act, bias, 2.0_f64.powi(part))
}

/// `zp.g32`, `sym.g128`: MSLK's numerics, and the workflow that stores them.
pub(super) fn mslk(checks: &mut Checks) -> Result<()> {
    let x = checks.input("x")?;
    for prefix in checks.prefixes(".scale") {
        let Some((how, group)) = prefix.split_once('.') else { return Err(unknown(&prefix)) };
        let g = number_behind(group, "g")?;
        if how == "sym" {
            let rows = int4_row_quantize(&x, g)?;
            checks.exact(format!("{prefix}.q"), &rows.codes)?;
            checks.exact(format!("{prefix}.scale"), &transposed(&rows.scale)?)?;
            continue;
        }
        let rows = int4_row_quantize_zp(&x, g)?;
        let zero = rows.zero.ok_or_else(|| unknown(&prefix))?;
        checks.exact(format!("{prefix}.packed"), &pack_int4(&rows.codes)?)?;
        checks.exact(format!("{prefix}.q"), &rows.codes)?;
        checks.exact(format!("{prefix}.scale"), &transposed(&rows.scale)?)?;
        checks.exact(format!("{prefix}.zero"), &transposed(&zero)?)?;
        let config = Int4WeightOnlyConfig { group_size: g, ..Int4WeightOnlyConfig::default() };
        let stored = config.quantize(&checks.cpu, &DenseWeight::new(x.clone())?)?;
        for (name, tensor) in stored.tensors() {
            match name.as_str() {
                // The workflow keeps codes 0 ..= 15 where MSLK keeps −8 ..= 7: the top bit of each nibble differs.
                "qdata" => {
                    let bytes = tensor.as_slice::<u8>()?.iter();
                    let signed = bytes.map(|byte| (byte ^ 0x88).cast_signed()).collect::<Vec<i8>>();
                    let signed = Tensor::new(signed, tensor.shape())?;
                    checks.exact(format!("{prefix}.packed"), &signed)?;
                }
                "scale" => checks.exact(format!("{prefix}.scale"), &transposed(&tensor)?)?,
                _ => checks.exact(format!("{prefix}.zero"), &transposed(&tensor)?)?,
            }
        }
    }
    Ok(())
}

const OPTIONS: HqqOptions = HqqOptions {
    nbits: 4,
    group_size: 64,
    optimize: true,
    compute_dtype: DType::F32,
    raw_output: false,
};

/// `b4.g64.opt`, `raw.b4.g64`, `const`, `so.b2.g32`, `sinq`
pub(super) fn hqq(checks: &mut Checks) -> Result<()> {
    let (w, constant) = (checks.input("w")?, checks.input("w_const")?);
    for prefix in checks.prefixes(".q") {
        let words: Vec<&str> = prefix.split('.').collect();
        let bits = |word| {
            let bits = number_behind(word, "b")?;
            u32::try_from(bits).map_err(|_| unknown(&prefix))
        };
        match words[..] {
            ["const"] => fitted(checks, &prefix, &constant, OPTIONS)?,
            ["sinq"] => {
                let sinq =
                    choose_qparams_and_quantize_scale_only_sinq(&w, (-8, 7), 64, DType::F32)?;
                checks.exact("sinq.q", &sinq.codes)?;
                checks.exact("sinq.scale_row", &sinq.scale_row)?;
                checks.exact("sinq.scale_col", &sinq.scale_col)?;
            }
            ["so", nbits, group] => {
                let half = 1 << (bits(nbits)?.clamp(1, 8) - 1);
                let range = (-half, half - 1);
                let group_size = number_behind(group, "g")?;
                let fit = choose_qparams_and_quantize_scale_only_hqq(&w, group_size, range)?;
                checks.exact(format!("{prefix}.q"), &fit.codes)?;
                checks.exact(format!("{prefix}.scale"), &fit.scale)?;
            }
            ["raw", nbits, group] => {
                let (nbits, group_size) = (bits(nbits)?, number_behind(group, "g")?);
                let options = HqqOptions { nbits, group_size, raw_output: true, ..OPTIONS };
                fitted(checks, &prefix, &w, options)?;
            }
            [nbits, group, how] => {
                let (nbits, group_size) = (bits(nbits)?, number_behind(group, "g")?);
                let options = HqqOptions { nbits, group_size, optimize: how == "opt", ..OPTIONS };
                fitted(checks, &prefix, &w, options)?;
            }
            _ => return Err(unknown(&prefix)),
        }
    }
    Ok(())
}

/// torchao's tinygemm form has one scale a row of groups, its raw form one row a row of the weight.
fn fitted(checks: &mut Checks, prefix: &str, w: &Tensor, options: HqqOptions) -> Result<()> {
    let found = choose_qparams_and_quantize_affine_hqq(&checks.cpu, w, &options)?;
    let shape = [found.scale.numel(), 1];
    let shaped = |t: &Tensor| if options.raw_output { Ok(t.clone()) } else { t.reshape(&shape) };
    checks.near(format!("{prefix}.q"), &found.codes, &Allowed::Nothing)?;
    checks.exact(format!("{prefix}.scale"), &shaped(&found.scale)?)?;
    checks.exact(format!("{prefix}.zero"), &shaped(&found.zero)?)
}
