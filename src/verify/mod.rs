//! Golden vectors, computed again: every tensor that torchao or llama.cpp gave against what this program gives.
//!
//! A folder of golden vectors holds one safetensors file a family and a `MANIFEST.md` that says what each tensor is. The names
//! of the tensors are the layout (`int4.sym.g32.scale`), so that vectors of other shapes, seeds and group sizes are
//! read by the same code. Inputs are taken from the file, everything else in it is computed and compared:
//! bit for bit where the arithmetic is exact, within a named tolerance where torch's order of additions decides.
//!
//! [`golden`] is what `aolab verify golden` shows and what `tests/golden_vectors.rs` asserts. To add a family: a function here that
//! takes `Checks`, and a line in `FAMILIES`.

mod affine;
mod calibrated;
mod checks;
mod floats;
mod folder;
mod int4;
mod linear;
mod lowbit;
mod qat;
mod recipes;
mod report;
mod sparse;
mod training;
mod training_values;

use std::path::Path;

use self::checks::Checks;
use self::folder::Folder;
pub use self::report::{FamilyReport, Outcome, table};
use crate::error::{Error, Result};
use crate::kernels::Cpu;

/// Computes one family.
type Verify = fn(&mut Checks) -> Result<()>;

/// The families that this program computes.
const FAMILIES: &[(&str, Verify)] = &[
    ("affine_4bit", affine::per_group),
    ("affine_8bit", affine::per_group),
    ("affine_dtypes", affine::dtypes),
    ("affine_granularity", affine::granularity),
    ("affine_lowbit", affine::low_bit),
    ("affine_zp_domain", affine::zero_point_domain),
    ("awq", calibrated::awq),
    ("bitpacking", lowbit::bitpacking),
    ("codebook", lowbit::codebook),
    ("float8", floats::float8),
    ("float8_block128", floats::float8_block128),
    ("float8_training", training::float8),
    ("floatx", floats::floatx),
    ("ggml_quantize", lowbit::ggml_quantize),
    ("gguf_q4k", lowbit::gguf_q4k),
    ("gptq", calibrated::gptq),
    ("hadamard", calibrated::hadamard),
    ("hqq", int4::hqq),
    ("int4_mslk", int4::mslk),
    ("int8_dynamic_act", linear::int8_dynamic_act),
    ("linear_inference", linear::linear_inference),
    ("lowbit_adam", training::lowbit_adam),
    ("lowbit_optim", training::lowbit_optim),
    ("mx_fp6_fp4", floats::mx),
    ("mx_fp8", floats::mx),
    ("nf4", lowbit::nf4),
    ("nvfp4", floats::nvfp4),
    ("paretoq", training_values::paretoq),
    ("parq", training_values::parq),
    ("qat", qat::fake_quantizers),
    ("qat_linear", qat::layers),
    ("quantized_training", training::quantized),
    ("recipes", recipes::recipes),
    ("smoothquant", calibrated::smoothquant),
    ("sparsity", sparse::sparsity),
    ("tinygemm_int4", int4::tinygemm),
];

/// Told how many families are done and how many there are; `false` stops.
pub type Progress<'a> = dyn FnMut(usize, usize) -> bool + 'a;

/// Verifies every family in `folder`, or only those that `wanted` names. What is wrong with one family's file is that
/// family's report; a folder that cannot be read is an error.
pub fn golden(
    cpu: &Cpu,
    folder: &Path,
    wanted: &[String],
    progress: &mut Progress<'_>,
) -> Result<Vec<FamilyReport>> {
    let folder = Folder::open(folder)?;
    folder.check_names(wanted)?;
    let names: Vec<&String> =
        folder.families().filter(|name| wanted.is_empty() || wanted.contains(name)).collect();
    let mut reports = Vec::with_capacity(names.len());
    for (done, name) in names.iter().enumerate() {
        if !progress(done, names.len()) {
            return Err(Error::Cancelled);
        }
        let report = family(cpu, &folder, name)
            .unwrap_or_else(|error| FamilyReport::of_fault(name, &error.to_string()));
        reports.push(report);
    }
    progress(names.len(), names.len());
    Ok(reports)
}

fn family(cpu: &Cpu, folder: &Folder, name: &str) -> Result<FamilyReport> {
    let mut checks = Checks::new(cpu, folder.family(name)?);
    if let Some((_, verify)) = FAMILIES.iter().find(|(known, _)| *known == name) {
        // What was compared before the fault is kept: the fault is told beside it.
        let fault = verify(&mut checks).err();
        return Ok(checks.report(name, fault));
    }
    Ok(checks.report(name, None))
}
