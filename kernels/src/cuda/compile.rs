//! NVRTC: CUDA C++ to machine code of one architecture.

use std::ffi::{CStr, CString};

use cudarc::nvrtc::{result, sys};

use super::sources::Source;
use super::{CudaError, CudaResult, library};

/// NVRTC, found and asked for its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// `(13, 0)`.
    pub version: (i32, i32),
}

/// Machine code and what the assembler said about it.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The CUBIN.
    pub cubin: Vec<u8>,
    /// One for each kernel in it.
    pub kernels: Vec<KernelResources>,
}

/// What a kernel takes of a multiprocessor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelResources {
    /// Its `extern "C"` name.
    pub name: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes that did not fit into registers and are written to memory.
    pub spill_bytes: u32,
}

impl Compiler {
    /// Looks for NVRTC in `folders` and where the system looks.
    pub fn find(folders: &[std::path::PathBuf]) -> CudaResult<Compiler> {
        library::open(folders).need_nvrtc()?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both point to integers of this frame; the library is there.
        unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result()?;
        Ok(Compiler { version: (major, minor) })
    }

    /// Compiles `source` for `arch` (`sm_90a`), specialised by `defines` (`AO_NT=2`).
    pub fn compile(&self, source: &Source, defines: &[String], arch: &str) -> CudaResult<Compiled> {
        let fail = |error: CudaError| error.within(&format!("{} for {arch}", source.name));
        let text = CString::new(source.full_text())
            .map_err(|_| fail(CudaError::new("the source holds a zero byte")))?;
        let name = CString::new(source.name).map_err(|_| fail(CudaError::new("a bad name")))?;
        let program = result::create_program(&text, Some(&name)).map_err(|e| fail(e.into()))?;
        let compiled = compile_program(program, defines, arch).map_err(fail);
        // SAFETY: the program was created above and is used no more.
        let _ = unsafe { result::destroy_program(program) };
        compiled
    }
}

/// The flags of every compilation.
pub(super) fn flags(defines: &[String], arch: &str) -> Vec<String> {
    let mut flags = vec![
        format!("--gpu-architecture={arch}"),
        "--std=c++17".to_owned(),
        "--ptxas-options=-v".to_owned(),
    ];
    flags.extend(defines.iter().map(|define| format!("-D{define}")));
    flags
}

fn compile_program(
    program: sys::nvrtcProgram,
    defines: &[String],
    arch: &str,
) -> CudaResult<Compiled> {
    let flags = flags(defines, arch);
    // SAFETY: `program` is alive until its caller destroys it.
    let outcome = unsafe { result::compile_program(program, &flags) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(program) }?;
    // SAFETY: NVRTC ends its log with a zero byte.
    let log = unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned();
    if let Err(error) = outcome {
        return Err(CudaError::new(format!("{}\n{log}", CudaError::from(error))));
    }
    let mut size = 0;
    // SAFETY: `size` is a number of this frame; the program is compiled.
    unsafe { sys::nvrtcGetCUBINSize(program, &raw mut size) }.result()?;
    let mut cubin = vec![0_u8; size];
    // SAFETY: NVRTC writes the number of bytes that it just told.
    unsafe { sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()) }.result()?;
    Ok(Compiled { cubin, kernels: resources(&log) })
}

/// Reads ptxas' report.
fn resources(log: &str) -> Vec<KernelResources> {
    let mut all: Vec<KernelResources> = Vec::new();
    let mut spills = 0;
    for line in log.lines() {
        if let Some(name) = line.split("Compiling entry function '").nth(1) {
            let name = name.split('\'').next().unwrap_or_default().to_owned();
            all.push(KernelResources { name, ..Default::default() });
            spills = 0;
        }
        if let Some(bytes) = number_before(line, " bytes spill stores") {
            spills = bytes;
        }
        if let Some(registers) = number_before(line, " registers")
            && let Some(kernel) = all.last_mut()
        {
            kernel.registers = registers;
            kernel.spill_bytes = spills;
        }
    }
    all
}

/// The number that stands before `words` in `line`.
fn number_before(line: &str, words: &str) -> Option<u32> {
    let before = line.split(words).next().filter(|before| before.len() < line.len())?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_report_is_read() {
        let log = "ptxas info    : Compiling entry function 'rms_norm' for 'sm_90a'\n\
            ptxas info    : Function properties for rms_norm\n    \
            0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 37 registers, used 1 barriers, 36 bytes smem\n";
        let name = "rms_norm".to_owned();
        let wanted = KernelResources { name, registers: 37, spill_bytes: 8 };
        assert_eq!(resources(log), [wanted]);
    }
}
