//! The element types of GGUF files and how many bytes their blocks take.

/// How a GGUF tensor stores its numbers. The `K` types hold 256 numbers a block, the other quantized ones
/// 32, and the float types one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// IEEE single precision, little-endian.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// 4 bits, scale: `w = (q − 8)·d`.
    Q4_0,
    /// 4 bits, scale and minimum: `w = q·d + m`.
    Q4_1,
    /// 5 bits, scale: `w = (q − 16)·d`.
    Q5_0,
    /// 5 bits, scale and minimum: `w = q·d + m`.
    Q5_1,
    /// 8 bits, scale: `w = q·d`.
    Q8_0,
    /// 2 bits, 16 sub-blocks of 16 with 4-bit scales and minimums.
    Q2K,
    /// 3 bits, 16 sub-blocks of 16 with signed 6-bit scales.
    Q3K,
    /// 4 bits, 8 sub-blocks of 32 with 6-bit scales and minimums.
    Q4K,
    /// 5 bits, 8 sub-blocks of 32 with 6-bit scales and minimums.
    Q5K,
    /// 6 bits, 16 sub-blocks of 16 with signed 8-bit scales.
    Q6K,
}

pub(super) const Q4_0_NBYTES: usize = 2 + 16;
pub(super) const Q4_1_NBYTES: usize = 2 + 2 + 16;
pub(super) const Q5_0_NBYTES: usize = 2 + 4 + 16;
pub(super) const Q5_1_NBYTES: usize = 2 + 2 + 4 + 16;
pub(super) const Q8_0_NBYTES: usize = 2 + 32;
pub(super) const Q2K_NBYTES: usize = 16 + 64 + 2 + 2;
pub(super) const Q3K_NBYTES: usize = 32 + 64 + 12 + 2;
pub(super) const Q4K_NBYTES: usize = 2 + 2 + 12 + 128;
pub(super) const Q5K_NBYTES: usize = 2 + 2 + 12 + 32 + 128;
pub(super) const Q6K_NBYTES: usize = 128 + 64 + 16 + 2;

// The sums above follow the fields; these are the sizes that files are made of.
const _: () = assert!(Q4_0_NBYTES == 18 && Q4_1_NBYTES == 20);
const _: () = assert!(Q5_0_NBYTES == 22 && Q5_1_NBYTES == 24 && Q8_0_NBYTES == 34);
const _: () = assert!(Q2K_NBYTES == 84 && Q3K_NBYTES == 110 && Q4K_NBYTES == 144);
const _: () = assert!(Q5K_NBYTES == 176 && Q6K_NBYTES == 210);

impl BlockType {
    /// Every type, in the order of llama.cpp's numbers.
    pub const ALL: [BlockType; 13] = [
        BlockType::F32,
        BlockType::F16,
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q2K,
        BlockType::Q3K,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
        BlockType::Bf16,
    ];

    /// The type of discriminant `index`, for functions that have it as a constant parameter.
    pub(super) const fn from_index(index: u8) -> BlockType {
        let mut i = 0;
        while i < BlockType::ALL.len() {
            if BlockType::ALL[i] as u8 == index {
                return BlockType::ALL[i];
            }
            i += 1;
        }
        BlockType::F32
    }

    /// The type that a GGUF file calls `id`.
    pub fn from_ggml_id(id: u32) -> Option<BlockType> {
        BlockType::ALL.into_iter().find(|ty| ty.ggml_id() == id)
    }

    /// The type called `name` (see [`BlockType::name`]).
    pub fn from_name(name: &str) -> Option<BlockType> {
        BlockType::ALL.into_iter().find(|ty| ty.name() == name)
    }

    /// The number of this type in a GGUF file (`enum ggml_type`).
    pub const fn ggml_id(self) -> u32 {
        match self {
            BlockType::F32 => 0,
            BlockType::F16 => 1,
            BlockType::Q4_0 => 2,
            BlockType::Q4_1 => 3,
            BlockType::Q5_0 => 6,
            BlockType::Q5_1 => 7,
            BlockType::Q8_0 => 8,
            BlockType::Q2K => 10,
            BlockType::Q3K => 11,
            BlockType::Q4K => 12,
            BlockType::Q5K => 13,
            BlockType::Q6K => 14,
            BlockType::Bf16 => 30,
        }
    }

    /// llama.cpp's name: `Q4_K`, `F16`, ….
    pub const fn name(self) -> &'static str {
        match self {
            BlockType::F32 => "F32",
            BlockType::F16 => "F16",
            BlockType::Bf16 => "BF16",
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q5_0 => "Q5_0",
            BlockType::Q5_1 => "Q5_1",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q2K => "Q2_K",
            BlockType::Q3K => "Q3_K",
            BlockType::Q4K => "Q4_K",
            BlockType::Q5K => "Q5_K",
            BlockType::Q6K => "Q6_K",
        }
    }

    /// How many numbers a block holds; a row's length must be a multiple of it.
    pub const fn block_len(self) -> usize {
        match self {
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 => 1,
            BlockType::Q4_0
            | BlockType::Q4_1
            | BlockType::Q5_0
            | BlockType::Q5_1
            | BlockType::Q8_0 => 32,
            BlockType::Q2K | BlockType::Q3K | BlockType::Q4K | BlockType::Q5K | BlockType::Q6K => {
                256
            }
        }
    }

    /// How many bytes a block takes.
    pub const fn block_bytes(self) -> usize {
        match self {
            BlockType::F32 => 4,
            BlockType::F16 | BlockType::Bf16 => 2,
            BlockType::Q4_0 => Q4_0_NBYTES,
            BlockType::Q4_1 => Q4_1_NBYTES,
            BlockType::Q5_0 => Q5_0_NBYTES,
            BlockType::Q5_1 => Q5_1_NBYTES,
            BlockType::Q8_0 => Q8_0_NBYTES,
            BlockType::Q2K => Q2K_NBYTES,
            BlockType::Q3K => Q3K_NBYTES,
            BlockType::Q4K => Q4K_NBYTES,
            BlockType::Q5K => Q5K_NBYTES,
            BlockType::Q6K => Q6K_NBYTES,
        }
    }

    /// Whether this is not one of the three float types.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// The bytes of `len` numbers; `None` if `len` does not fill whole blocks or the bytes overflow.
    pub const fn nbytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }
}
