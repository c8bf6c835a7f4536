//! Memory shared with libtorch in both directions, without a copy and without a view that could outlive it.
//!
//! A vector that becomes a tensor is kept until the last storage over it is gone. A tensor whose memory we read is held, and only
//! taken when nothing else refers to it: torch writes in place through any of its aliases, and our slices must not change.

use std::ffi::{CStr, c_char, c_int, c_void};

use half::{bf16, f16};
use tch::Tensor;

unsafe extern "C" {
    fn aolab_from_blob(
        data: *mut c_void,
        dims: *const i64,
        rank: c_int,
        kind: c_int,
        context: *mut c_void,
        drop: extern "C" fn(*mut c_void),
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn aolab_sole_owner(tensor: *mut c_void) -> c_int;
    fn aolab_built_with() -> *const c_char;
    fn aolab_show_config() -> *mut c_char;
    fn aolab_open_cuda() -> *mut c_char;
}

mod sealed {
    /// Keeps [`super::Element`] to types whose every bit pattern both sides understand.
    #[expect(unnameable_types, reason = "what nobody can name, nobody can implement")]
    pub trait Sealed {}
}

/// A number that both sides store alike.
pub trait Element: sealed::Sealed + Copy + 'static {
    /// `c10::ScalarType`
    #[doc(hidden)]
    const SCALAR_TYPE: c_int;
}

macro_rules! elements {
    ($($ty:ty => $scalar_type:expr),+) => {$(
        impl sealed::Sealed for $ty {}
        impl Element for $ty {
            const SCALAR_TYPE: c_int = $scalar_type;
        }
    )+};
}

elements!(u8 => 0, i8 => 1, i16 => 2, i32 => 3, i64 => 4, f16 => 5, f32 => 6, f64 => 7, bf16 => 15);

/// The vector as a tensor of `shape` over the same memory, which is freed with the last tensor over it.
pub fn from_vec<T: Element>(values: Vec<T>, shape: &[i64]) -> Result<Tensor, String> {
    let numel =
        shape.iter().try_fold(1_i64, |all, dim| all.checked_mul(*dim).filter(|_| *dim >= 0));
    if numel.and_then(|numel| usize::try_from(numel).ok()) != Some(values.len()) {
        return Err(format!("shape {shape:?} does not fit {} elements", values.len()));
    }
    let rank = c_int::try_from(shape.len()).map_err(|_| "too many dimensions".to_owned())?;
    extern "C" fn drop_vec<T>(context: *mut c_void) {
        // SAFETY: `context` is the box that `from_vec` gave away, and libtorch calls this once.
        drop(unsafe { Box::from_raw(context.cast::<Vec<T>>()) });
    }
    let mut boxed = Box::new(values);
    let data = boxed.as_mut_ptr().cast();
    let context = Box::into_raw(boxed).cast();
    let mut out = std::ptr::null_mut();
    // SAFETY: `data` is as many elements as `shape` says and lives until `drop_vec` is called with `context`;
    // `shape` is `rank` readable numbers.
    let error = unsafe {
        aolab_from_blob(
            data,
            shape.as_ptr(),
            rank,
            T::SCALAR_TYPE,
            context,
            drop_vec::<T>,
            &raw mut out,
        )
    };
    if !error.is_null() {
        return Err(owned_text(error));
    }
    // SAFETY: without an error `out` is a new tensor that nobody else frees.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// The bytes of a tensor that nothing else refers to.
#[derive(Debug)]
pub struct Lent {
    tensor: Tensor,
    nbytes: usize,
}

impl Lent {
    /// Takes a dense, contiguous CPU tensor that is the only one over its memory and needs no gradient; any other comes back.
    pub fn new(mut tensor: Tensor) -> Result<Lent, Tensor> {
        let Ok(kind) = tensor.f_kind() else { return Err(tensor) };
        let pointer = tensor.as_mut_ptr().cast();
        // SAFETY: `pointer` is the C++ tensor that `tensor` keeps alive.
        if unsafe { aolab_sole_owner(pointer) } == 0 {
            return Err(tensor);
        }
        let nbytes = tensor.numel() * kind.elt_size_in_bytes();
        Ok(Lent { tensor, nbytes })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        let data = self.tensor.data_ptr();
        if self.nbytes == 0 || data.is_null() {
            return &[];
        }
        // SAFETY: a contiguous tensor has `nbytes` bytes at `data`; it is held by `self`, nothing else refers to it, and we
        // hand out no way to write to it.
        unsafe { std::slice::from_raw_parts(data.cast(), self.nbytes) }
    }
}

// SAFETY: the tensor is only read, through a pointer to plain memory; nobody else refers to it.
unsafe impl Sync for Lent {}

/// The version of libtorch that this program was built for.
pub fn built_for() -> String {
    // SAFETY: it takes nothing and gives a constant text.
    let pointer = unsafe { aolab_built_with() };
    // SAFETY: a constant text of the program, which ends with a zero.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// The version of libtorch that was loaded, if it says.
pub fn loaded_version() -> Option<String> {
    // SAFETY: it takes nothing, and an exception in it comes back as an empty text.
    let config = owned_text(unsafe { aolab_show_config() });
    let after = config.split("TORCH_VERSION=").nth(1)?;
    Some(after.split([',', ' ', '\n']).next()?.to_owned())
}

/// Loads the CUDA half of libtorch, which registers itself; the error says why not. Call it before the first question
/// about CUDA.
pub fn open_cuda() -> Result<(), String> {
    // SAFETY: it takes nothing; loading a library runs its initializers, which are libtorch's own.
    let error = unsafe { aolab_open_cuda() };
    if error.is_null() { Ok(()) } else { Err(owned_text(error)) }
}

/// A text of C's `malloc`, as ours.
fn owned_text(text: *mut c_char) -> String {
    // SAFETY: the functions above give texts that end with a zero.
    let words = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: it came from `strdup`, and is not used again.
    unsafe { libc::free(text.cast()) };
    words
}
