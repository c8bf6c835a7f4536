//! What the kernels are called.

#[cfg(target_arch = "x86_64")]
use super::gemm;
use super::{GEMV_MAX_M, Values, Weight, in_bf16};
#[cfg(target_arch = "x86_64")]
use crate::isa::Avx512Vbmi2;
use crate::{Cpu, Isa};

/// The kernel that multiplies `m` finite tokens on `cpu`.
pub fn kernel_name(cpu: &Cpu, w: Weight<'_>, m: usize) -> String {
    let types = match w.values {
        Values::F32(_) => "f32",
        Values::Bf16(_) => "bf16xf32",
        Values::Int8 { .. } => "int8",
        Values::Int4 { .. } => "int4",
    };
    let integers = matches!(w.values, Values::Int8 { .. } | Values::Int4 { .. });
    let x = if integers { "xf32" } else { "" };
    if m > GEMV_MAX_M && in_bf16(cpu, w) && matches!(cpu.isa(), Isa::Avx512Vnni(_)) {
        return "x86-24-bf16xbf16-avx512bf16-gemm".to_owned();
    }
    match cpu.isa() {
        Isa::Scalar => format!("scalar-24-{types}{x}"),
        Isa::Neon(_) if m <= GEMV_MAX_M => format!("aarch64-24-{types}{x}-neon-rows"),
        Isa::Neon(_) => format!("aarch64-24-{types}{x}-neon-gemm"),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(_) if m <= GEMV_MAX_M && Avx512Vbmi2::detect().is_some() => {
            let x = if integers { "xint16" } else { "" };
            format!("x86-24-{types}{x}-avx512vbmi2-gemv")
        }
        _ if m <= GEMV_MAX_M => format!("x86-24-{types}{x}-avx2-rows"),
        Isa::Avx2(_) => format!("x86-24-{types}{x}-avx2-gemm"),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(_)
            if Avx512Vbmi2::detect().is_some() && gemm::block(w.values).is_some() =>
        {
            format!("x86-24-{types}xint16-avx512vnni-gemm")
        }
        _ => format!("x86-24-{types}{x}-avx512-gemm"),
    }
}

/// The kernel that [`dynamic`](super::dynamic) runs.
pub fn dynamic_kernel_name(cpu: &Cpu, m: usize) -> String {
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512Vnni(_), Some(_)) = (cpu.isa(), Avx512Vbmi2::detect()) {
        let kind = if m <= GEMV_MAX_M { "vbmi2-gemv" } else { "vnni-gemm" };
        return format!("x86-24-int8xint8-avx512{kind}");
    }
    format!("spread + {}", crate::int8_linear::dynamic_kernel_name(cpu.isa(), m))
}
