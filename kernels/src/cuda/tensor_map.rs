//! Descriptions of matrices for Hopper's tensor copy engine.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::{CudaError, CudaResult, Device};

/// A matrix whose boxes of rows by 128 bytes are copied to shared memory, in the swizzle of 128 bytes; what lies outside of it reads as
/// zeros.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub(super) struct TensorMap([u64; 16]);

impl TensorMap {
    /// One that is never read, for kernels that do not use it.
    pub(super) const NONE: TensorMap = TensorMap([0; 16]);
}

impl Device {
    /// Describes the matrix (rows, columns) at `address`, whose elements take `element` bytes, 1 or 2; boxes have `box_rows` rows.
    pub(super) fn tensor_map(
        &self,
        address: u64,
        (rows, columns): (usize, usize),
        element: usize,
        box_rows: usize,
    ) -> CudaResult<TensorMap> {
        self.bind()?;
        let kind = match element {
            1 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let small = |size: usize| {
            u32::try_from(size).map_err(|_| CudaError::new(format!("a box of {size} rows")))
        };
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let sizes = [columns as u64, rows as u64];
        let strides = [(columns * element) as u64];
        let (boxes, steps) = ([small(128 / element)?, small(box_rows)?], [1_u32, 1]);
        // SAFETY: the arrays have the two and one numbers that rank two asks for, and `map` is of this frame; the address is
        // stored, not read.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                kind,
                2,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()?;
        Ok(TensorMap(map.opaque))
    }
}
