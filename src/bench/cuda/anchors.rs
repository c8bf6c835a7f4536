//! The figures that others are measured by, in one run.

use aolab_kernels::cuda::Device;

use super::decode::decode;
use super::linear::{Baselines, LinearBench, empty, linear};
use super::llama::{Format, llama_3_8b, random_weight};
use super::measure_ceilings;
use super::quantize::quantize;
use crate::error::{Error, Result};
use crate::eval::Progress;
use crate::kernels::Cpu;
use crate::table::Table;

/// Layers of Llama-3-8B and a square one.
const SHAPES: [(usize, usize); 4] = [(14336, 4096), (4096, 14336), (4096, 4096), (8192, 8192)];

/// Tokens.
const TOKENS: [usize; 6] = [1, 8, 16, 64, 256, 2048];

/// Formats of the model.
const DECODED_FORMATS: [Format; 3] = [Format::Bf16, Format::Int8, Format::Int4];

/// Tokens timed of the model.
const DECODED: usize = 32;

/// Measures ceilings, linear layers, quantizing and, `with_llama`, decoding with a model of Llama-3-8B's shape, which takes 20 GB on
/// the GPU; one table each.
pub fn anchors(
    device: &Device,
    cpu: &Cpu,
    with_llama: bool,
    progress: Progress,
) -> Result<Vec<Table>> {
    let total = 2
        + SHAPES.len() * Format::ALL.len()
        + Format::SPARSE.len()
        + if with_llama { DECODED_FORMATS.len() } else { 0 };
    let mut done = 0;
    let mut next = || {
        done += 1;
        if progress(done - 1, total) { Ok(()) } else { Err(Error::Cancelled) }
    };
    next()?;
    let ceilings = measure_ceilings(device)?;
    let (mut layers, mut baselines) = (empty()?, Baselines::new());
    for (n, k) in SHAPES {
        for format in Format::ALL {
            next()?;
            let bench = LinearBench { weight: random_weight(format, (n, k)), m: TOKENS.to_vec() };
            layers.append(linear(device, &ceilings, &bench, &mut baselines, None)?)?;
        }
    }
    for format in Format::SPARSE {
        next()?;
        let bench = LinearBench { weight: random_weight(format, SHAPES[0]), m: TOKENS.to_vec() };
        layers.append(linear(device, &ceilings, &bench, &mut baselines, None)?)?;
    }
    next()?;
    let quantized = quantize(device, &ceilings, &[(16, 4096), (8192, 4096)])?;
    let mut tables = vec![ceilings.table(device)?, layers, quantized];
    if with_llama {
        let mut decoded: Option<(Table, Table)> = None;
        for format in DECODED_FORMATS {
            next()?;
            // Memory of the layers above and of the model before goes back first.
            device.trim()?;
            let model = llama_3_8b(format)?.on(Some(device));
            let (table, parts) = decode(&model, cpu, &ceilings, (128, DECODED))?;
            match &mut decoded {
                Some((all, all_parts)) => {
                    all.append(table)?;
                    all_parts.append(parts)?;
                }
                None => decoded = Some((table, parts)),
            }
        }
        tables.extend(decoded.into_iter().flat_map(|(table, parts)| [table, parts]));
    }
    progress(total, total);
    Ok(tables)
}
