//! Every source compiles for every architecture, without a GPU; a hot kernel that spills registers fails.

use crate::cuda::Compiler;
use crate::cuda::sources::{SOURCES, Source};

const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_89", "sm_90a", "sm_100a"];

#[test]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    let compiler = match Compiler::find(&super::folders()) {
        Ok(compiler) => compiler,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    println!("NVRTC {}.{}", compiler.version.0, compiler.version.1);
    let mut complaints = Vec::new();
    for source in SOURCES {
        for variant in source.variants {
            for arch in ARCHITECTURES {
                if !source.hopper_only || arch == "sm_90a" {
                    complaints.extend(complaints_about(compiler, source, variant, arch));
                }
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// Compiles one specialisation and says what is wrong with it.
fn complaints_about(compiler: Compiler, source: &Source, variant: &str, arch: &str) -> Vec<String> {
    let hot = !variant.starts_with('!');
    let words = variant.trim_start_matches('!').split_whitespace();
    let defines: Vec<String> = words.map(str::to_owned).collect();
    let compiled = match compiler.compile(source, &defines, arch) {
        Ok(compiled) => compiled,
        Err(error) => return vec![error.to_string()],
    };
    // Where a driver is, NVRTC may answer from its own cache, and then reports no kernels.
    assert!(compiled.cubin.starts_with(b"\x7fELF"));
    let mut complaints = Vec::new();
    for kernel in compiled.kernels {
        let (name, spilled) = (&kernel.name, kernel.spill_bytes);
        let registers = kernel.registers;
        println!("{name} [{variant}] {arch}: {registers} registers, {spilled} bytes spilled");
        if hot && spilled > 0 {
            complaints.push(format!("{name} [{variant}] for {arch} spills {spilled} bytes"));
        }
    }
    complaints
}
