//! The three products of a linear layer, through cuBLASLt; its algorithm is asked for once a shape.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;

use cudarc::cublaslt::{result, sys};
use sys::cublasLtMatmulDescAttributes_t as Attribute;

use super::super::matmul::{WORKSPACE, find_algorithm, set, set_scales};
use super::super::{Buffer, CudaError, CudaResult, Device};
use crate::Shape;

/// Where a product goes.
#[derive(Clone, Copy, Debug)]
pub enum Into<'a> {
    /// Rounded.
    Bf16(&'a Buffer<u16>),
    /// As it is.
    F32(&'a Buffer<f32>),
    /// `to = product + onto`; both may be the same.
    Sum {
        /// The sum.
        to: &'a Buffer<f32>,
        /// What the product is added to.
        onto: &'a Buffer<f32>,
    },
}

/// Codes of a float8 factor with one scale, e4m3 or e5m2.
#[derive(Clone, Copy, Debug)]
pub struct Float8<'a> {
    /// Row after row.
    pub codes: &'a Buffer<u8>,
    /// What a code is multiplied by; one number.
    pub scale: &'a Buffer<f32>,
    /// Whether they are e5m2.
    pub e5m2: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Which {
    Forward,
    InputGradient,
    WeightGradient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Element {
    Bf16,
    E4m3,
    E5m2,
}

/// What decides about the algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    which: Which,
    /// Rows, columns and inner size of the result.
    shape: Shape,
    left: Element,
    right: Element,
    f32_result: bool,
    adds: bool,
}

struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algo: sys::cublasLtMatmulAlgo_t,
}

/// Products and what is known of their shapes.
pub struct Products {
    device: Device,
    plans: HashMap<Key, Plan>,
}

// SAFETY: the descriptors are plain memory of the library, used through `&mut self` alone.
unsafe impl Send for Products {}

impl fmt::Debug for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Products of {} shapes on {:?}", self.plans.len(), self.device)
    }
}

impl Into<'_> {
    fn len(&self) -> usize {
        match self {
            Into::Bf16(y) => y.len(),
            Into::F32(y) | Into::Sum { to: y, .. } => y.len(),
        }
    }

    /// The result's address, and the address of what is added.
    fn addresses(&self) -> (u64, u64) {
        match self {
            Into::Bf16(y) => (y.address(), y.address()),
            Into::F32(y) => (y.address(), y.address()),
            Into::Sum { to, onto } => (to.address(), onto.address()),
        }
    }
}

impl Float8<'_> {
    fn element(&self) -> Element {
        if self.e5m2 { Element::E5m2 } else { Element::E4m3 }
    }
}

impl Products {
    /// None so far.
    pub fn new(device: &Device) -> CudaResult<Products> {
        device.blas()?;
        Ok(Products { device: device.clone(), plans: HashMap::new() })
    }

    /// `y (M, N) = x (M, K) · W (N, K)ᵀ`.
    pub fn forward(
        &mut self,
        shape: Shape,
        x: &Buffer<u16>,
        w: &Buffer<u16>,
        y: &Into<'_>,
    ) -> CudaResult<()> {
        let Shape { m, n, k } = shape;
        assert!((x.len(), w.len()) == (m * k, n * k), "{shape:?} of other lengths");
        let operands = [x.address(), w.address()];
        self.bf16(Which::Forward, shape, operands, y)
    }

    /// `dx (M, K) = dy (M, N) · W (N, K)`.
    pub fn input_gradient(
        &mut self,
        Shape { m, n, k }: Shape,
        dy: &Buffer<u16>,
        w: &Buffer<u16>,
        dx: &Into<'_>,
    ) -> CudaResult<()> {
        assert!((dy.len(), w.len()) == (m * n, n * k), "{m} × {n} × {k} of other lengths");
        let shape = Shape { m, n: k, k: n };
        self.bf16(Which::InputGradient, shape, [dy.address(), w.address()], dx)
    }

    /// `dW (N, K) = dy (M, N)ᵀ · x (M, K)`.
    pub fn weight_gradient(
        &mut self,
        Shape { m, n, k }: Shape,
        dy: &Buffer<u16>,
        x: &Buffer<u16>,
        dw: &Into<'_>,
    ) -> CudaResult<()> {
        assert!((dy.len(), x.len()) == (m * n, m * k), "{m} × {n} × {k} of other lengths");
        let shape = Shape { m: n, n: k, k: m };
        self.bf16(Which::WeightGradient, shape, [dy.address(), x.address()], dw)
    }

    /// `y (M, N) = x (M, K) · W (N, K)ᵀ` of float8 codes, M, N and K multiples of 16, not both e5m2.
    pub fn float8(
        &mut self,
        shape: Shape,
        x: &Float8<'_>,
        w: &Float8<'_>,
        y: &Into<'_>,
    ) -> CudaResult<()> {
        let Shape { m, n, k } = shape;
        assert!((x.codes.len(), w.codes.len()) == (m * k, n * k), "{shape:?} of other lengths");
        let key = Key {
            which: Which::Forward,
            shape,
            left: x.element(),
            right: w.element(),
            f32_result: !matches!(y, Into::Bf16(_)),
            adds: matches!(y, Into::Sum { .. }),
        };
        let scales = [x.scale.address(), w.scale.address()];
        self.run(key, [x.codes.address(), w.codes.address()], Some(scales), y)
    }

    fn bf16(
        &mut self,
        which: Which,
        shape: Shape,
        operands: [u64; 2],
        y: &Into<'_>,
    ) -> CudaResult<()> {
        let key = Key {
            which,
            shape,
            left: Element::Bf16,
            right: Element::Bf16,
            f32_result: !matches!(y, Into::Bf16(_)),
            adds: matches!(y, Into::Sum { .. }),
        };
        self.run(key, operands, None, y)
    }

    fn run(
        &mut self,
        key: Key,
        [left, right]: [u64; 2],
        scales: Option<[u64; 2]>,
        y: &Into<'_>,
    ) -> CudaResult<()> {
        let Shape { m, n, k } = key.shape;
        assert!(y.len() == m * n, "{} results for {:?}", y.len(), key.shape);
        if m * n * k == 0 {
            return Err(CudaError::new(format!("a product of {m} × {n} × {k} is none")));
        }
        self.device.bind()?;
        let blas = self.device.blas()?;
        let workspace = blas.workspace(&self.device)?;
        let plan = match self.plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(plan) => plan.into_mut(),
            std::collections::hash_map::Entry::Vacant(room) => {
                room.insert(plan(blas.handle(), &key, scales)?)
            }
        };
        if let Some(scales) = scales {
            set_scales(plan.desc, scales)?;
        }
        let (one, beta) = (1_f32, if key.adds { 1_f32 } else { 0.0 });
        let (to, onto) = y.addresses();
        // SAFETY: the layouts describe the matrices, whose lengths were checked above and by the caller; the workspace holds
        // `WORKSPACE` bytes.
        unsafe {
            result::matmul(
                blas.handle(),
                plan.desc,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                right as *const c_void,
                plan.a,
                left as *const c_void,
                plan.b,
                onto as *const c_void,
                plan.y,
                to as *mut c_void,
                plan.y,
                &raw const plan.algo,
                workspace as *mut c_void,
                WORKSPACE,
                self.device.stream().cu_stream().cast(),
            )
        }?;
        Ok(())
    }
}

impl Element {
    fn of(self) -> sys::cudaDataType {
        match self {
            Element::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
            Element::E4m3 => sys::cudaDataType_t::CUDA_R_8F_E4M3,
            Element::E5m2 => sys::cudaDataType_t::CUDA_R_8F_E5M2,
        }
    }
}

/// The library is column-major: its result (N, M) is our (M, N), and its first factor our second.
fn plan(handle: sys::cublasLtHandle_t, key: &Key, scales: Option<[u64; 2]>) -> CudaResult<Plan> {
    let (m, n, k) = (key.shape.m as u64, key.shape.n as u64, key.shape.k as u64);
    let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let desc = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)?;
    // Whether the second and the first factor lie with the inner size along a row.
    let (second_inner, first_inner) = match key.which {
        Which::Forward => (true, true),
        Which::InputGradient => (false, true),
        Which::WeightGradient => (false, false),
    };
    set(desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(second_inner))?;
    set(desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(!first_inner))?;
    if let Some(scales) = scales {
        set_scales(desc, scales)?;
        set(desc, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &1_i8)?;
    }
    let layout = |element: Element, inner: bool, other: u64| {
        let (rows, columns) = if inner { (k, other) } else { (other, k) };
        result::create_matrix_layout(element.of(), rows, columns, rows.cast_signed())
    };
    let a = layout(key.right, second_inner, n)?;
    let b = layout(key.left, first_inner, m)?;
    let to = match key.f32_result {
        true => sys::cudaDataType_t::CUDA_R_32F,
        false => sys::cudaDataType_t::CUDA_R_16BF,
    };
    let y = result::create_matrix_layout(to, n, m, n.cast_signed())?;
    let algo = find_algorithm(handle, desc, [a, b, y])
        .map_err(|error| error.within(&format!("{key:?}")))?;
    Ok(Plan { desc, a, b, y, algo })
}
