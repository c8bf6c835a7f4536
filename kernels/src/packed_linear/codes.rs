//! Codes of 1 to 8 bits, sixteen rows side by side.

use crate::Cpu;

/// Rows in a panel: one 512-bit vector of i32 sums, or two of 256 bits.
pub(super) const LANES: usize = 16;

/// Columns that share a scale of the activations; a panel is a run of steps.
pub(super) const STEP: usize = 32;

/// A cache line: panels start on one.
const LINE_NBYTES: usize = 64;

/// Codes (N, K), packed without loss. Rows and columns that the last panel and step lack hold code 0.
///
/// A step of 32 columns and sixteen rows is one to three planes of 8, 4, 2 or 1 bits, the low bits first. In a plane
/// of w bits, each 64 bytes hold a byte for each of four neighbouring columns, row after row, with 8/w such fours in
/// it, the first in the lowest bits. So bytes are fours of columns, and words are pairs of them: two and two apart.
#[derive(Clone, Debug)]
pub struct Codes {
    n: usize,
    k: usize,
    bits: u32,
    bytes: Vec<u8>,
    /// Where the first panel starts in `bytes`, so that it starts on a cache line.
    start: usize,
}

/// The widths of the planes.
pub(super) const fn planes(bits: u32) -> [usize; 3] {
    match bits {
        1 => [1, 0, 0],
        2 => [2, 0, 0],
        3 => [2, 1, 0],
        4 => [4, 0, 0],
        5 => [4, 1, 0],
        6 => [4, 2, 0],
        7 => [4, 2, 1],
        _ => [8, 0, 0],
    }
}

/// Bytes of a step.
pub(super) const fn step_nbytes(bits: u32) -> usize {
    bits as usize * STEP * LANES / 8
}

impl Codes {
    /// Packs the rows that `row(n, codes)` writes. A code of more than `bits` bits is a mistake of the caller.
    pub fn pack(
        cpu: &Cpu,
        (n, k): (usize, usize),
        bits: u32,
        row: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Codes {
        assert!((1..=8).contains(&bits), "codes of {bits} bits: wanted 1 to 8");
        let panel_nbytes = k.div_ceil(STEP) * step_nbytes(bits);
        let mut bytes = vec![0; n.div_ceil(LANES) * panel_nbytes + LINE_NBYTES];
        let start = bytes.as_ptr().align_offset(LINE_NBYTES).min(LINE_NBYTES);
        let end = bytes.len() - LINE_NBYTES + start;
        cpu.threads().chunks_mut(&mut bytes[start..end], panel_nbytes.max(1), |p, panel| {
            let mut codes = vec![0; k];
            for lane in 0..LANES.min(n - p * LANES) {
                row(p * LANES + lane, &mut codes);
                put_row(panel, bits, lane, &codes);
            }
        });
        crate::pages::gather(&bytes);
        Codes { n, k, bits, bytes, start }
    }

    /// Rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Bytes that are kept in memory for the codes.
    pub fn nbytes(&self) -> usize {
        self.n.div_ceil(LANES) * self.panel_nbytes()
    }

    /// Steps of 32 columns.
    pub(super) fn steps(&self) -> usize {
        self.k.div_ceil(STEP)
    }

    fn panel_nbytes(&self) -> usize {
        self.steps() * step_nbytes(self.bits)
    }

    pub(super) fn panel(&self, p: usize) -> &[u8] {
        &self.bytes[self.start + p * self.panel_nbytes()..][..self.panel_nbytes()]
    }

    /// Writes the codes of row `n`.
    pub fn row(&self, n: usize, codes: &mut [u8]) {
        assert!(
            n < self.n && codes.len() == self.k,
            "packed codes: row {n}, {} codes",
            codes.len()
        );
        let (panel, lane) = (self.panel(n / LANES), n % LANES);
        codes.fill(0);
        let steps = panel.chunks_exact(step_nbytes(self.bits)).zip(codes.chunks_mut(STEP));
        for (step, codes) in steps {
            let mut below = 0;
            let mut rest = step;
            for width in planes(self.bits).into_iter().filter(|width| *width > 0) {
                let (plane, after) = rest.split_at(width * STEP * LANES / 8);
                let mask = 0xff_u8 >> (8 - width);
                for (j, code) in codes.iter_mut().enumerate() {
                    let (byte, shift) = place(width, lane, j);
                    *code |= ((plane[byte] >> shift) & mask) << below;
                }
                below += width;
                rest = after;
            }
        }
    }
}

fn put_row(panel: &mut [u8], bits: u32, lane: usize, codes: &[u8]) {
    let steps = panel.chunks_exact_mut(step_nbytes(bits)).zip(codes.chunks(STEP));
    for (step, codes) in steps {
        let mut below = 0;
        let mut rest = step;
        for width in planes(bits).into_iter().filter(|width| *width > 0) {
            let (plane, after) = rest.split_at_mut(width * STEP * LANES / 8);
            let mask = 0xff_u8 >> (8 - width);
            for (j, code) in codes.iter().enumerate() {
                let (byte, shift) = place(width, lane, j);
                plane[byte] |= ((code >> below) & mask) << shift;
            }
            below += width;
            rest = after;
        }
    }
}

/// Byte and shift, in a plane of `width` bits, of column `j` of a step in row `lane`.
#[inline]
fn place(width: usize, lane: usize, j: usize) -> (usize, usize) {
    let (four, column) = (j / 4, j % 4);
    let per_byte = 8 / width;
    (four / per_byte * 4 * LANES + 4 * lane + column, four % per_byte * width)
}
