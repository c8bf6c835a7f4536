//! Weights repacked, bit for bit, so that sixteen rows are multiplied side by side.

use crate::Cpu;
use crate::ggml::BlockType;
use crate::ggml::dequantize::values;
use crate::ggml::fields::{Fields, reader, write};

/// Rows in a panel: one 512-bit vector of i32 sums, or two of 256 bits.
pub(super) const LANES: usize = 16;

/// Columns that the kernels multiply before they scale.
pub(super) const STEP: usize = 32;

/// A cache line: panels start on one.
const LINE_NBYTES: usize = 64;

/// A quantized weight (N, K) in panels of sixteen rows. The last panel is filled up with zeros.
///
/// A panel is a run of units of `block_len` columns. A unit is sixteen f16 scales, sixteen f16 minimums where the
/// type has them, then for every 32 columns the sub-block scales and minimums (i8, sixteen rows each) and the codes.
#[derive(Clone, Debug)]
pub struct Panels {
    ty: BlockType,
    n: usize,
    k: usize,
    bytes: Vec<u8>,
    /// Where the first panel starts in `bytes`, so that it starts on a cache line.
    start: usize,
}

/// Sizes of the parts of a unit.
#[derive(Clone, Copy)]
pub(super) struct Unit {
    /// Bytes of f16 scales and minimums in front.
    pub(super) head: usize,
    /// Steps of 32 columns in a unit.
    pub(super) steps: usize,
    /// Sub-blocks in a step.
    pub(super) subs: usize,
    /// Bytes of sub-block scales and minimums in front of a step's codes.
    pub(super) step_head: usize,
    pub(super) step_nbytes: usize,
    pub(super) nbytes: usize,
}

impl BlockType {
    pub(super) const fn unit(self) -> Unit {
        let halves = if self.has_min() { 2 } else { 1 };
        let head = halves * 2 * LANES;
        let steps = self.block_len() / STEP;
        let subs = STEP / self.sub_len();
        let step_head = if self.sub_scales() > 0 { halves * subs * LANES } else { 0 };
        let step_nbytes = step_head + self.code_bits() * STEP * LANES / 8;
        Unit { head, steps, subs, step_head, step_nbytes, nbytes: head + steps * step_nbytes }
    }

    pub(super) const fn code_bits(self) -> usize {
        match self {
            BlockType::Q2K => 2,
            BlockType::Q3K => 3,
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q4K => 4,
            BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5K => 5,
            BlockType::Q6K => 6,
            _ => 8,
        }
    }

    /// Codes are cut into one or two planes of 8, 4, 2 or 1 bits; the low bits come first.
    const fn planes(self) -> (usize, Option<usize>) {
        match self.code_bits() {
            3 => (2, Some(1)),
            5 => (4, Some(1)),
            6 => (4, Some(2)),
            bits => (bits, None),
        }
    }
}

/// Byte and shift, in a plane of `bits`-wide codes, of column `k` of row `lane`. Two neighbouring columns are
/// the two 16-bit halves of a 32-bit word, as the instruction that multiplies pairs wants them.
fn place(bits: usize, lane: usize, k: usize) -> (usize, usize) {
    let (pair, upper) = (k / 2, k % 2);
    let per_word = 16 / bits;
    let bit = pair % per_word * bits;
    (pair / per_word * 4 * LANES + 4 * lane + 2 * upper + bit / 8, bit % 8)
}

fn put_code(ty: BlockType, codes: &mut [u8], lane: usize, k: usize, code: u8) {
    let (bits, above) = ty.planes();
    let (low, high) = codes.split_at_mut(bits * STEP * LANES / 8);
    let (byte, shift) = place(bits, lane, k);
    low[byte] |= (code & (0xff >> (8 - bits))) << shift;
    if let Some(width) = above {
        let (byte, shift) = place(width, lane, k);
        high[byte] |= (code >> bits & (0xff >> (8 - width))) << shift;
    }
}

fn get_code(ty: BlockType, codes: &[u8], lane: usize, k: usize) -> u8 {
    let (bits, above) = ty.planes();
    let (low, high) = codes.split_at(bits * STEP * LANES / 8);
    let (byte, shift) = place(bits, lane, k);
    let code = (low[byte] >> shift) & (0xff >> (8 - bits));
    above.map_or(code, |width| {
        let (byte, shift) = place(width, lane, k);
        code | (high[byte] >> shift & (0xff >> (8 - width))) << bits
    })
}

fn put_fields(ty: BlockType, unit: &mut [u8], lane: usize, fields: &Fields) {
    let u = ty.unit();
    unit[2 * lane..][..2].copy_from_slice(&fields.d);
    if ty.has_min() {
        unit[2 * (LANES + lane)..][..2].copy_from_slice(&fields.m);
    }
    for (s, step) in unit[u.head..].chunks_exact_mut(u.step_nbytes).enumerate() {
        let (heads, codes) = step.split_at_mut(u.step_head);
        for (j, head) in heads.chunks_exact_mut(LANES).enumerate() {
            let sub = s * u.subs + j % u.subs;
            let value = if j < u.subs { fields.scales[sub] } else { fields.mins[sub] };
            head[lane] = value.cast_unsigned();
        }
        for (k, code) in fields.codes[s * STEP..][..STEP].iter().enumerate() {
            put_code(ty, codes, lane, k, code.cast_unsigned());
        }
    }
}

fn put_row(ty: BlockType, panel: &mut [u8], lane: usize, row: &[u8]) {
    let read = reader(ty);
    let mut fields = Fields::ZERO;
    let units = panel.chunks_exact_mut(ty.unit().nbytes);
    for (block, unit) in row.chunks_exact(ty.block_bytes()).zip(units) {
        read(block, &mut fields);
        put_fields(ty, unit, lane, &fields);
    }
}

/// The block of row `lane` of a unit.
pub(super) fn get_fields(ty: BlockType, unit: &[u8], lane: usize, fields: &mut Fields) {
    let u = ty.unit();
    let half = |at: usize| [unit[2 * at], unit[2 * at + 1]];
    fields.d = half(lane);
    if ty.has_min() {
        fields.m = half(LANES + lane);
    }
    for (s, step) in unit[u.head..].chunks_exact(u.step_nbytes).enumerate() {
        let (heads, codes) = step.split_at(u.step_head);
        for (j, head) in heads.chunks_exact(LANES).enumerate() {
            let sub = s * u.subs + j % u.subs;
            let values = if j < u.subs { &mut fields.scales } else { &mut fields.mins };
            values[sub] = head[lane].cast_signed();
        }
        for (k, code) in fields.codes[s * STEP..][..STEP].iter_mut().enumerate() {
            *code = get_code(ty, codes, lane, k).cast_signed();
        }
    }
}

impl Panels {
    /// Repacks a weight of `n` rows of `k` numbers, stored as blocks of a quantized type.
    pub fn pack(cpu: &Cpu, ty: BlockType, blocks: &[u8], n: usize, k: usize) -> Panels {
        assert!(ty.is_quantized(), "ggml panels: the float types have no blocks to repack");
        assert!(k.is_multiple_of(ty.block_len()), "ggml panels: K must be whole blocks");
        assert!(
            ty.nbytes(n * k) == Some(blocks.len()),
            "ggml panels: blocks must be N rows of K / block_len blocks"
        );
        let panel_nbytes = panel_nbytes(ty, k);
        let mut bytes = vec![0_u8; n.div_ceil(LANES) * panel_nbytes + LINE_NBYTES];
        let start = bytes.as_ptr().align_offset(LINE_NBYTES).min(LINE_NBYTES);
        let row_nbytes = k / ty.block_len() * ty.block_bytes();
        let end = bytes.len() - LINE_NBYTES + start;
        if row_nbytes > 0 {
            cpu.threads().chunks_mut(&mut bytes[start..end], panel_nbytes, |p, panel| {
                let rows = &blocks[p * LANES * row_nbytes..];
                for (lane, row) in rows.chunks_exact(row_nbytes).take(LANES).enumerate() {
                    put_row(ty, panel, lane, row);
                }
            });
        }
        crate::pages::gather(&bytes);
        Panels { ty, n, k, bytes, start }
    }

    /// The blocks as they were before [`Panels::pack`].
    pub fn unpack(&self) -> Vec<u8> {
        let mut blocks = vec![0; self.n * (self.k / self.ty.block_len()) * self.ty.block_bytes()];
        let mut at = blocks.chunks_exact_mut(self.ty.block_bytes());
        let mut fields = Fields::ZERO;
        for row in 0..self.n {
            for (unit, block) in self.units(row).zip(&mut at) {
                get_fields(self.ty, unit, row % LANES, &mut fields);
                write(self.ty, &fields, block);
            }
        }
        blocks
    }

    /// Row `row` as f32, the bits of [`dequantize`](crate::ggml::dequantize).
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n && out.len() == self.k, "ggml panels: a row of K numbers is wanted");
        let mut fields = Fields::ZERO;
        for (unit, out) in self.units(row).zip(out.chunks_exact_mut(self.ty.block_len())) {
            get_fields(self.ty, unit, row % LANES, &mut fields);
            values(self.ty, &fields, out);
        }
    }

    fn units(&self, row: usize) -> impl Iterator<Item = &[u8]> {
        self.panel(row / LANES).chunks_exact(self.ty.unit().nbytes)
    }

    /// The type of the blocks.
    pub fn ty(&self) -> BlockType {
        self.ty
    }

    /// Rows: output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns: input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The bytes that a multiplication reads.
    pub fn nbytes(&self) -> usize {
        self.count() * panel_nbytes(self.ty, self.k)
    }

    pub(super) fn count(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    pub(super) fn panel(&self, index: usize) -> &[u8] {
        let nbytes = panel_nbytes(self.ty, self.k);
        // What is behind the last unit only fills the cache line.
        let used = self.k / self.ty.block_len() * self.ty.unit().nbytes;
        &self.bytes[self.start + index * nbytes..][..used]
    }
}

fn panel_nbytes(ty: BlockType, k: usize) -> usize {
    (k / ty.block_len() * ty.unit().nbytes).next_multiple_of(LINE_NBYTES)
}
