//! Dense products through cuBLASLt: `y (M, N) = x (M, K) · W (N, K)ᵀ`, its algorithm asked for once a shape.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};
use sys::cublasLtMatmulDescAttributes_t as Attribute;

use super::{Buffer, CudaResult, Device};
use crate::Shape;

/// Scratch space for algorithms that split K; 32 MiB is what NVIDIA advises on Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;

/// The types of a dense product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenseType {
    /// bf16 × bf16, summed in f32, to bf16.
    Bf16,
    /// bf16 × bf16, summed in f32, to f32.
    Bf16ToF32,
    /// e4m3 × e4m3, summed in f32 (Hopper keeps 14 bits between partial sums), to bf16; one scale a row of each.
    Float8Rows,
    /// The same with one scale for each matrix.
    Float8Tensor,
    /// int8 × int8 to int32.
    Int8,
}

/// The scales of a float8 product: of x, then of W.
#[derive(Clone, Copy, Debug)]
pub struct MatmulScales<'a> {
    /// `(M)` or one.
    pub x: &'a Buffer<f32>,
    /// `(N)` or one.
    pub w: &'a Buffer<f32>,
}

/// The library's handle, its scratch space and the plans so far.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Mutex<Option<Buffer<u8>>>,
    plans: Mutex<HashMap<(DenseType, Shape), Plan>>,
}

// SAFETY: cuBLASLt's handle may be used by several threads at once, says its documentation.
unsafe impl Send for Blas {}
// SAFETY: as above; the plans are behind a mutex.
unsafe impl Sync for Blas {}

/// A product of one shape, ready to run.
#[derive(Clone, Copy)]
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algo: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: the descriptors are plain memory of the library, used under the mutex alone.
unsafe impl Send for Plan {}

impl fmt::Debug for Blas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blas")
    }
}

impl Blas {
    pub(super) fn new() -> CudaResult<Blas> {
        let handle = result::create_handle()?;
        Ok(Blas { handle, workspace: Mutex::default(), plans: Mutex::default() })
    }

    pub(super) fn handle(&self) -> sys::cublasLtHandle_t {
        self.handle
    }

    pub(super) fn workspace(&self, device: &Device) -> CudaResult<u64> {
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = &*workspace {
            return Ok(buffer.address());
        }
        let buffer = device.uninit::<u8>(WORKSPACE)?;
        let address = buffer.address();
        // The device owns this and the block owns the device: both live until the process ends.
        *workspace = Some(buffer);
        Ok(address)
    }
}

impl DenseType {
    fn is_float8(self) -> bool {
        matches!(self, DenseType::Float8Rows | DenseType::Float8Tensor)
    }

    /// Element types of the factors and of the result.
    fn types(self) -> (sys::cudaDataType, sys::cudaDataType) {
        use sys::cudaDataType_t as Type;
        match self {
            DenseType::Bf16 => (Type::CUDA_R_16BF, Type::CUDA_R_16BF),
            DenseType::Bf16ToF32 => (Type::CUDA_R_16BF, Type::CUDA_R_32F),
            DenseType::Float8Rows | DenseType::Float8Tensor => {
                (Type::CUDA_R_8F_E4M3, Type::CUDA_R_16BF)
            }
            DenseType::Int8 => (Type::CUDA_R_8I, Type::CUDA_R_32I),
        }
    }

    fn bytes(self) -> (usize, usize) {
        match self {
            DenseType::Bf16 => (2, 2),
            DenseType::Bf16ToF32 => (2, 4),
            DenseType::Float8Rows | DenseType::Float8Tensor => (1, 2),
            DenseType::Int8 => (1, 4),
        }
    }
}

pub(super) fn set<T>(
    desc: sys::cublasLtMatmulDesc_t,
    attribute: Attribute,
    value: &T,
) -> CudaResult<()> {
    let pointer = std::ptr::from_ref(value).cast::<c_void>();
    // SAFETY: the descriptor is alive and the library copies `size_of::<T>()` bytes at once.
    unsafe { result::set_matmul_desc_attribute(desc, attribute, pointer, size_of::<T>()) }?;
    Ok(())
}

fn plan(
    handle: sys::cublasLtHandle_t,
    kind: DenseType,
    shape: Shape,
    scales: [u64; 2],
) -> CudaResult<Plan> {
    let Shape { m, n, k } = shape;
    let (of, to) = kind.types();
    let (compute, scale) = match kind {
        DenseType::Int8 => {
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32I, sys::cudaDataType_t::CUDA_R_32I)
        }
        _ => (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F),
    };
    let desc = result::create_matmul_desc(compute, scale)?;
    // The library is column-major: its result (N, M) is our (M, N), its first factor our W, transposed.
    set(desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &1_i32)?;
    if kind.is_float8() {
        set_scales(desc, scales)?;
        set(desc, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &1_i8)?;
    }
    if kind == DenseType::Float8Rows {
        let mode = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
        set(desc, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode)?;
        set(desc, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode)?;
    }
    let (n, m, k) = (n as u64, m as u64, k as u64);
    let w = result::create_matrix_layout(of, k, n, k.cast_signed())?;
    let x = result::create_matrix_layout(of, k, m, k.cast_signed())?;
    let y = result::create_matrix_layout(to, n, m, n.cast_signed())?;
    let algo = find_algorithm(handle, desc, [w, x, y])
        .map_err(|error| error.within(&format!("{kind:?} of M {m}, N {n}, K {k}")))?;
    Ok(Plan { desc, w, x, y, algo })
}

/// What the library thinks is fastest for two factors and a result.
pub(super) fn find_algorithm(
    handle: sys::cublasLtHandle_t,
    desc: sys::cublasLtMatmulDesc_t,
    [a, b, y]: [sys::cublasLtMatrixLayout_t; 3],
) -> CudaResult<sys::cublasLtMatmulAlgo_t> {
    let preference = result::create_matmul_pref()?;
    let attribute =
        sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    let bytes = std::ptr::from_ref(&WORKSPACE).cast();
    // SAFETY: the library copies eight bytes at once.
    unsafe { result::set_matmul_pref_attribute(preference, attribute, bytes, 8) }?;
    // SAFETY: the caller made all descriptors and has them alive.
    let found = unsafe { result::get_matmul_algo_heuristic(handle, desc, a, b, y, y, preference) };
    // SAFETY: made above and used no more.
    unsafe { result::destroy_matmul_pref(preference) }?;
    Ok(found?.algo)
}

/// The scales of our first and second factor; the library's first is our second.
pub(super) fn set_scales(desc: sys::cublasLtMatmulDesc_t, [x, w]: [u64; 2]) -> CudaResult<()> {
    set(desc, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w)?;
    set(desc, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x)
}

/// Addresses of the three matrices.
pub(super) struct Operands {
    pub(super) x: u64,
    pub(super) w: u64,
    pub(super) y: u64,
}

impl Device {
    /// Runs a dense product. The lengths were checked by the caller, who knows the element types.
    pub(super) fn matmul(
        &self,
        kind: DenseType,
        shape: Shape,
        operands: &Operands,
        scales: Option<MatmulScales<'_>>,
    ) -> CudaResult<()> {
        if shape.m * shape.n == 0 {
            return Ok(());
        }
        let blas = self.blas()?;
        self.bind()?;
        let workspace = blas.workspace(self)?;
        let addresses = scales.map_or([0, 0], |s| [s.x.address(), s.w.address()]);
        let mut plans = blas.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.get(&(kind, shape)) {
            Some(plan) => *plan,
            None => {
                let plan = plan(blas.handle, kind, shape, addresses)?;
                plans.insert((kind, shape), plan);
                plan
            }
        };
        if kind.is_float8() {
            set_scales(plan.desc, addresses)?;
        }
        let (ones, zeros) = ((1_f32, 1_i32), (0_f32, 0_i32));
        let pick = |pair: &(f32, i32)| -> *const c_void {
            match kind {
                DenseType::Int8 => (&raw const pair.1).cast(),
                _ => (&raw const pair.0).cast(),
            }
        };
        let name = || format!("cublaslt {kind:?} {}x{}x{}", shape.m, shape.n, shape.k);
        self.launched(name, (0, 0), || {
            // SAFETY: the layouts describe the three matrices, whose lengths the caller checked; the workspace holds `WORKSPACE` bytes.
            unsafe {
                result::matmul(
                    blas.handle,
                    plan.desc,
                    pick(&ones),
                    pick(&zeros),
                    operands.w as *const c_void,
                    plan.w,
                    operands.x as *const c_void,
                    plan.x,
                    operands.y as *const c_void,
                    plan.y,
                    operands.y as *mut c_void,
                    plan.y,
                    &raw const plan.algo,
                    workspace as *mut c_void,
                    WORKSPACE,
                    self.stream().cu_stream().cast(),
                )
            }?;
            Ok(())
        })
    }

    /// `y = x · Wᵀ` of raw bytes; `x`, `w` and `y` hold `kind`'s element types. Baseline and building block.
    pub fn dense(
        &self,
        kind: DenseType,
        shape: Shape,
        (x, w, y): (&Buffer<u8>, &Buffer<u8>, &Buffer<u8>),
        scales: Option<MatmulScales<'_>>,
    ) -> CudaResult<()> {
        let (of, to) = kind.bytes();
        let Shape { m, n, k } = shape;
        let lens = (x.len(), w.len(), y.len());
        assert!(lens == (m * k * of, n * k * of, m * n * to), "{lens:?} bytes for {shape:?}");
        let operands = Operands { x: x.address(), w: w.address(), y: y.address() };
        self.matmul(kind, shape, &operands, scales)
    }
}
