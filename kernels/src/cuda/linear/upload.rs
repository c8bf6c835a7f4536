//! Copying weights to the GPU, and there into the order that kernels read.

use super::{Data, Float8Scales, HostWeight, Rows, packed_rows};
use crate::cuda::launch::int;
use crate::cuda::sources::PACK;
use crate::cuda::{Buffer, CudaError, CudaResult, Device, Grid};

/// (N, K, K padded).
type Sizes = (usize, usize, usize);

type Parts<'a, 'b> = &'a [(HostWeight<'b>, usize)];

pub(super) fn upload(
    device: &Device,
    parts: Parts<'_, '_>,
    sizes: Sizes,
    rows: Rows,
) -> CudaResult<Data> {
    match parts.first().map(|(weight, _)| *weight) {
        Some(
            HostWeight::Int4 { group_size, .. }
            | HostWeight::Table4 { group_size, .. }
            | HostWeight::Float8Int4 { group_size, .. },
        ) => upload_codes4(device, parts, sizes, group_size, rows),
        Some(HostWeight::Bf16(_)) | None => upload_bf16(device, parts, sizes),
        Some(_) => upload_8bits(device, parts, sizes, rows),
    }
}

fn wrong_parts(n: usize, k: usize) -> CudaError {
    CudaError::new(format!("the parts of a layer of {n} × {k} differ in format or are not whole"))
}

/// Rows of `k` numbers with zeros behind them up to `k_padded`.
pub(super) fn padded<T: Copy + Default>(rows: &[T], k: usize, k_padded: usize) -> Vec<T> {
    let mut all = vec![T::default(); rows.len() / k * k_padded];
    for (to, from) in all.chunks_exact_mut(k_padded).zip(rows.chunks_exact(k)) {
        to[..k].copy_from_slice(from);
    }
    all
}

/// The bytes of sixteen bf16 numbers: low ones, then high ones.
fn table_bytes(table: &[f32; 16]) -> [u32; 8] {
    let mut bytes = [0_u32; 8];
    for (i, value) in table.iter().enumerate() {
        let bits = u32::from(half::bf16::from_f32(*value).to_bits());
        bytes[i / 4] |= (bits & 255) << (8 * (i % 4));
        bytes[4 + i / 4] |= (bits >> 8) << (8 * (i % 4));
    }
    bytes
}

/// What the parts of a 4-bit layer have in common, and their parameters under one another.
#[derive(Default)]
struct Gathered {
    scales: Vec<f32>,
    zeros: Vec<f32>,
    table: Option<[u32; 8]>,
    all_bf16: bool,
    float8: bool,
}

fn upload_codes4(
    device: &Device,
    parts: Parts<'_, '_>,
    (n, k, k_padded): Sizes,
    group: usize,
    rows: Rows,
) -> CudaResult<Data> {
    if group == 0 || !group.is_multiple_of(16) || !k.is_multiple_of(group) || k % 4 != 0 {
        return Err(CudaError::new(format!(
            "groups of {group} over K = {k} have no 4-bit kernel; wanted a multiple of 16 that divides K"
        )));
    }
    let (groups, padded_groups) = (k / group, k_padded.div_ceil(group));
    let raw = device.uninit::<u8>(n * k / 2)?;
    let mut all = Gathered { all_bf16: true, ..Gathered::default() };
    let (mut start, mut kind) = (0, None);
    for (part, part_n) in parts {
        let (q, scale, zero, bf16) = match part {
            HostWeight::Int4 { q, scale, zero, bf16, .. } => (q, scale, Some(zero), bf16),
            HostWeight::Table4 { q, scale, bf16, table, .. } => {
                let table = table_bytes(table);
                if all.table.is_some_and(|other| other != table) {
                    return Err(wrong_parts(n, k));
                }
                all.table = Some(table);
                (q, scale, None, bf16)
            }
            HostWeight::Float8Int4 { q, scale, bf16, .. } => {
                all.float8 = true;
                (q, scale, None, bf16)
            }
            _ => return Err(wrong_parts(n, k)),
        };
        let this = std::mem::discriminant(part);
        let counts = (part_n * k / 2, part_n * groups, part_n * groups);
        let lens = (q.len(), scale.len(), zero.map_or(counts.2, |zero| zero.len()));
        if lens != counts || *kind.get_or_insert(this) != this {
            return Err(wrong_parts(n, k));
        }
        raw.part(start..start + q.len()).write(q)?;
        start += q.len();
        all.all_bf16 &= bf16;
        all.scales.extend(padded(scale, groups, padded_groups));
        if let Some(zero) = zero {
            all.zeros.extend(padded(zero, groups, padded_groups));
        }
    }
    pack_codes4(device, &raw, &all, (n, k, k_padded), (group, rows))
}

fn pack_codes4(
    device: &Device,
    raw: &Buffer<u8>,
    all: &Gathered,
    (n, k, k_padded): Sizes,
    (group, rows): (usize, Rows),
) -> CudaResult<Data> {
    let (tiles, groups) = (packed_rows(n, rows).div_ceil(64), k_padded.div_ceil(group));
    let packed = device.uninit::<u32>(tiles * k_padded * 8)?;
    let pairs = int(usize::from(rows == Rows::GatePairs));
    let kernel = device.kernel(&PACK, &[], "pack_codes4")?;
    let arguments = [raw.into(), (&packed).into(), int(n), int(k), int(k_padded), pairs];
    kernel.launch(Grid::line(packed.len().div_ceil(256), 256), &arguments)?;
    let scales = device.upload(&all.scales)?;
    let zeros = match all.zeros.is_empty() {
        true => None,
        false => Some(device.upload(&all.zeros)?),
    };
    let count = tiles * groups * 64;
    let params = device.uninit::<u32>(count * if all.all_bf16 { 1 } else { 2 })?;
    let kernel = device.kernel(&PACK, &[], "pack_params")?;
    let arguments = [
        (&scales).into(),
        zeros.as_ref().into(),
        (&params).into(),
        int(n),
        int(groups),
        int(usize::from(!all.all_bf16)),
        pairs,
    ];
    kernel.launch(Grid::line(count.div_ceil(256), 256), &arguments)?;
    device.synchronize()?;
    let (bf16, table, float8) = (all.all_bf16, all.table, all.float8);
    Ok(Data::Codes4 { packed, params, bf16, group, table, float8 })
}

/// How 8-bit codes are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind8 {
    Int8,
    Float8,
    Int8Dynamic,
    Float8Dynamic(Float8Scales),
}

fn upload_8bits(
    device: &Device,
    parts: Parts<'_, '_>,
    (n, k, k_padded): Sizes,
    rows: Rows,
) -> CudaResult<Data> {
    let raw = device.uninit::<u8>(n * k)?;
    let (mut scales, mut start, mut kind) = (Vec::new(), 0, None);
    for (part, part_n) in parts {
        let (q, scale, this): (&[u8], _, _) = match part {
            HostWeight::Int8 { q, scale } => (bytes(q), scale, Kind8::Int8),
            HostWeight::Int8Dynamic { q, scale } => (bytes(q), scale, Kind8::Int8Dynamic),
            HostWeight::Float8 { q, scale } => (q, scale, Kind8::Float8),
            HostWeight::Float8Dynamic { q, scale, activations } => {
                (q, scale, Kind8::Float8Dynamic(*activations))
            }
            _ => return Err(wrong_parts(n, k)),
        };
        let whole = (q.len(), scale.len()) == (part_n * k, *part_n);
        if !whole || *kind.get_or_insert(this) != this {
            return Err(wrong_parts(n, k));
        }
        raw.part(start..start + q.len()).write(q)?;
        start += q.len();
        scales.extend_from_slice(scale);
    }
    let scale = device.upload(&scales)?;
    let Some(kind) = kind else { return Err(wrong_parts(n, k)) };
    if matches!(kind, Kind8::Float8Dynamic(_)) && !device.has_wgmma() {
        return Err(CudaError::new(format!(
            "float8 activations have a kernel on Hopper alone; this is {}",
            device.name()
        )));
    }
    let pairs = usize::from(rows == Rows::GatePairs);
    let packed = packed_rows(n, rows);
    let data = match kind {
        Kind8::Int8 | Kind8::Float8 => {
            let codes = device.uninit::<u32>(packed.div_ceil(64) * k_padded * 16)?;
            let kernel = device.kernel(&PACK, &[], "pack_codes8")?;
            let sizes = [int(n), int(k), int(k_padded), int(pairs)];
            let arguments = [&[(&raw).into(), (&codes).into()], &sizes[..]].concat();
            kernel.launch(Grid::line(codes.len().div_ceil(256), 256), &arguments)?;
            Data::Codes8 { packed: codes, scale, float8: kind == Kind8::Float8 }
        }
        Kind8::Int8Dynamic | Kind8::Float8Dynamic(_) => {
            // Where there is no wgmma, kernels find the partners of gates by themselves.
            let (pairs, count) = if device.has_wgmma() { (pairs, packed) } else { (0, n) };
            let q = device.uninit::<u8>(count * k_padded)?;
            let kernel = device.kernel(&PACK, &[], "pack_rows8")?;
            let sizes = [int(n), int(k), int(k_padded), int(pairs)];
            let arguments = [&[(&raw).into(), (&q).into()], &sizes[..]].concat();
            kernel.launch(Grid::line(q.len().div_ceil(256), 256), &arguments)?;
            let float8 = match kind {
                Kind8::Float8Dynamic(scales) => Some(scales),
                _ => None,
            };
            Data::Rows8 { q, scale, float8 }
        }
    };
    device.synchronize()?;
    Ok(data)
}

/// Codes as they lie in memory.
fn bytes(q: &[i8]) -> &[u8] {
    // SAFETY: both types take one byte each and every byte is a value of both.
    unsafe { std::slice::from_raw_parts(q.as_ptr().cast(), q.len()) }
}

fn upload_bf16(device: &Device, parts: Parts<'_, '_>, (n, k, k_padded): Sizes) -> CudaResult<Data> {
    let all = device.uninit::<u16>(n * k_padded)?;
    let mut start = 0;
    for (part, part_n) in parts {
        let HostWeight::Bf16(w) = part else { return Err(wrong_parts(n, k)) };
        if w.len() != part_n * k {
            return Err(wrong_parts(n, k));
        }
        let part = all.part(start..start + part_n * k_padded);
        if k == k_padded {
            part.write(w)?;
        } else {
            part.write(&padded(w, k, k_padded))?;
        }
        start += part_n * k_padded;
    }
    device.synchronize()?;
    Ok(Data::Bf16 { w: all })
}
