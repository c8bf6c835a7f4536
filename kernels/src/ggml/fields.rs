//! Where each format keeps its bits: one table for reading and writing blocks.

use super::BlockType;

/// Some bits of one byte of a block.
#[derive(Clone, Copy)]
struct Place {
    byte: usize,
    shift: usize,
    width: usize,
}

/// A block taken apart. Types without minimums, or without sub-blocks, leave those fields zero.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    /// The f16 scale, as bits.
    pub(super) d: [u8; 2],
    /// The f16 minimum (Q4_1, Q5_1) or scale of the minimums (K types), as bits.
    pub(super) m: [u8; 2],
    /// Scales of the sub-blocks (K types).
    pub(super) scales: [i8; 16],
    /// Minimums of the sub-blocks (K types).
    pub(super) mins: [i8; 16],
    /// Codes, before their bias is taken away; `block_len` of them are used.
    pub(super) codes: [i8; 256],
}

impl Fields {
    pub(super) const ZERO: Fields =
        Fields { d: [0; 2], m: [0; 2], scales: [0; 16], mins: [0; 16], codes: [0; 256] };
}

impl BlockType {
    /// What is taken away from a code: `w = scale·(code − bias) …`.
    pub(super) const fn bias(self) -> i8 {
        match self {
            BlockType::Q4_0 => 8,
            BlockType::Q5_0 => 16,
            BlockType::Q3K => 4,
            BlockType::Q6K => 32,
            _ => 0,
        }
    }

    /// Whether a minimum is added (Q4_1, Q5_1) or taken away (K types).
    pub(super) const fn has_min(self) -> bool {
        self.min_at().is_some()
    }

    /// How many numbers share a scale.
    pub(super) const fn sub_len(self) -> usize {
        match self {
            BlockType::Q2K | BlockType::Q3K | BlockType::Q6K => 16,
            _ => 32,
        }
    }

    /// Sub-blocks with scales of their own in a block; none but in the K types.
    pub(super) const fn sub_scales(self) -> usize {
        match self.block_len() {
            256 => 256 / self.sub_len(),
            _ => 0,
        }
    }

    const fn scale_at(self) -> usize {
        match self {
            BlockType::Q2K => 80,
            BlockType::Q3K => 108,
            BlockType::Q6K => 208,
            _ => 0,
        }
    }

    const fn min_at(self) -> Option<usize> {
        match self {
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => Some(2),
            BlockType::Q2K => Some(82),
            _ => None,
        }
    }

    /// What is taken away from a stored sub-block scale: only Q3_K stores them with an offset.
    const fn scale_bias(self) -> i8 {
        if matches!(self, BlockType::Q3K) { 32 } else { 0 }
    }

    /// The low bits of code `k` and, where a code is split, its high bits.
    const fn code_places(self, k: usize) -> (Place, Option<Place>) {
        let lane = k % 32;
        // Position in the nibbles of 32 numbers: k and k + 16 share a byte.
        let (nibble, upper) = (k % 16, 4 * (k / 16));
        match self {
            BlockType::Q4_0 => (at(2 + nibble, upper, 4), None),
            BlockType::Q4_1 => (at(4 + nibble, upper, 4), None),
            BlockType::Q5_0 => (at(6 + nibble, upper, 4), Some(at(2 + k / 8, k % 8, 1))),
            BlockType::Q5_1 => (at(8 + nibble, upper, 4), Some(at(4 + k / 8, k % 8, 1))),
            BlockType::Q2K => (at(16 + 32 * (k / 128) + lane, 2 * (k / 32 % 4), 2), None),
            BlockType::Q3K => {
                (at(32 + 32 * (k / 128) + lane, 2 * (k / 32 % 4), 2), Some(at(lane, k / 32, 1)))
            }
            BlockType::Q4K => (at(16 + 32 * (k / 64) + lane, 4 * (k / 32 % 2), 4), None),
            BlockType::Q5K => {
                (at(48 + 32 * (k / 64) + lane, 4 * (k / 32 % 2), 4), Some(at(16 + lane, k / 32, 1)))
            }
            BlockType::Q6K => (
                at(64 * (k / 128) + k % 64, 4 * (k / 64 % 2), 4),
                Some(at(128 + 32 * (k / 128) + lane, 2 * (k / 32 % 4), 2)),
            ),
            _ => (at(2 + k, 0, 8), None),
        }
    }

    /// The bits of the scale of sub-block `j`.
    const fn scale_places(self, j: usize) -> (Place, Option<Place>) {
        match self {
            BlockType::Q2K => (at(j, 0, 4), None),
            BlockType::Q3K => {
                (at(96 + j % 8, 4 * (j / 8), 4), Some(at(104 + j % 4, 2 * (j / 4), 2)))
            }
            BlockType::Q6K => (at(192 + j, 0, 8), None),
            // Q4_K and Q5_K: six bits together for the first four, split for the others.
            _ if j < 4 => (at(4 + j, 0, 6), None),
            _ => (at(8 + j, 0, 4), Some(at(j, 6, 2))),
        }
    }

    /// The bits of the minimum of sub-block `j`.
    const fn min_places(self, j: usize) -> (Place, Option<Place>) {
        match self {
            BlockType::Q2K => (at(j, 4, 4), None),
            _ if j < 4 => (at(8 + j, 0, 6), None),
            _ => (at(8 + j, 4, 4), Some(at(4 + j, 6, 2))),
        }
    }
}

const fn at(byte: usize, shift: usize, width: usize) -> Place {
    Place { byte, shift, width }
}

fn half(bytes: &[u8], at: usize) -> [u8; 2] {
    [bytes[at], bytes[at + 1]]
}

#[inline]
fn get(block: &[u8], (low, high): (Place, Option<Place>)) -> u8 {
    let bits = |p: Place| (block[p.byte] >> p.shift) & (0xff >> (8 - p.width));
    bits(low) | high.map_or(0, |high| bits(high) << low.width)
}

/// Sets bits of a block that was zero.
fn put(block: &mut [u8], (low, high): (Place, Option<Place>), value: u8) {
    let mut bits = |p: Place, value: u8| {
        block[p.byte] |= (value & (0xff >> (8 - p.width))) << p.shift;
    };
    bits(low, value);
    if let Some(high) = high {
        bits(high, value >> low.width);
    }
}

/// How blocks of a quantized type are taken apart; chosen once, outside of loops.
pub(super) fn reader(ty: BlockType) -> fn(&[u8], &mut Fields) {
    match ty {
        BlockType::Q4_0 => read::<{ BlockType::Q4_0 as u8 }>,
        BlockType::Q4_1 => read::<{ BlockType::Q4_1 as u8 }>,
        BlockType::Q5_0 => read::<{ BlockType::Q5_0 as u8 }>,
        BlockType::Q5_1 => read::<{ BlockType::Q5_1 as u8 }>,
        BlockType::Q2K => read::<{ BlockType::Q2K as u8 }>,
        BlockType::Q3K => read::<{ BlockType::Q3K as u8 }>,
        BlockType::Q4K => read::<{ BlockType::Q4K as u8 }>,
        BlockType::Q5K => read::<{ BlockType::Q5K as u8 }>,
        BlockType::Q6K => read::<{ BlockType::Q6K as u8 }>,
        _ => read::<{ BlockType::Q8_0 as u8 }>,
    }
}

/// The type is a constant here so that its table becomes shifts and masks.
fn read<const T: u8>(block: &[u8], out: &mut Fields) {
    let ty = const { BlockType::from_index(T) };
    let block = &block[..ty.block_bytes()];
    out.d = half(block, ty.scale_at());
    out.m = ty.min_at().map_or([0; 2], |at| half(block, at));
    for j in 0..ty.sub_scales() {
        out.scales[j] = get(block, ty.scale_places(j)).cast_signed() - ty.scale_bias();
        if ty.has_min() {
            out.mins[j] = get(block, ty.min_places(j)).cast_signed();
        }
    }
    for k in 0..ty.block_len() {
        out.codes[k] = get(block, ty.code_places(k)).cast_signed();
    }
}

/// Writes a block; the inverse of [`reader`].
pub(super) fn write(ty: BlockType, fields: &Fields, block: &mut [u8]) {
    block.fill(0);
    block[ty.scale_at()..][..2].copy_from_slice(&fields.d);
    if let Some(at) = ty.min_at() {
        block[at..][..2].copy_from_slice(&fields.m);
    }
    for j in 0..ty.sub_scales() {
        let scale = fields.scales[j] + ty.scale_bias();
        put(block, ty.scale_places(j), scale.cast_unsigned());
        if ty.has_min() {
            put(block, ty.min_places(j), fields.mins[j].cast_unsigned());
        }
    }
    for k in 0..ty.block_len() {
        put(block, ty.code_places(k), fields.codes[k].cast_unsigned());
    }
}
