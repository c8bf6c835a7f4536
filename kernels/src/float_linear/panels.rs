//! Weights repacked, bit for bit, so that sixteen rows are multiplied side by side.

use std::ops::Range;

use super::element::{Arithmetic, Element};
use crate::Cpu;

/// Rows in a panel: one 512-bit vector of sums, or two of 256 bits.
pub(super) const LANES: usize = 16;

/// Columns that are packed together.
pub(super) const STEP: usize = 32;

/// A cache line: panels start on one.
const LINE: usize = 64;

/// The scales of a weight `(N, K)`, as files keep them: row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// One for all.
    Tensor(f32),
    /// `(N, K / group_size)`; fast where `group_size` is K or a multiple of 32.
    Groups {
        /// The scales.
        values: Vec<f32>,
        /// How many columns share one.
        group_size: usize,
    },
    /// `(⌈N / 128⌉, ⌈K / 128⌉)`: squares of 128.
    Blocks128(Vec<f32>),
    /// `(N, K / 32)` powers of two in e8m0.
    E8m0(Vec<u8>),
    /// `(N, K / 16)` in e4m3, times one for all.
    E4m3 {
        /// The scales of the blocks.
        codes: Vec<u8>,
        /// The scale of all.
        factor: f32,
    },
}

/// A weight `(N, K)` in panels of sixteen rows; the last panel and the last columns are filled up with zeros.
///
/// A panel is a run of steps of 32 columns: codes of 8 bits, or a plane of their low 4 bits and a plane of the bits
/// above. See `place`.
#[derive(Clone, Debug)]
pub struct Panels {
    element: Element,
    n: usize,
    k: usize,
    bytes: Vec<u8>,
    /// Where the first panel starts in `bytes`, so that it starts on a cache line.
    start: usize,
    /// `Groups`, `E8m0` and `E4m3` lie as `[panel][group][lane]`; the others as they came.
    scales: Scales,
    /// Whether every code and scale is a finite number that the fast kernels can take.
    plain: bool,
}

/// Byte and shift of the low and of the high part of a code: column `k` of 32, row `lane` of sixteen.
///
/// Four neighbouring columns of one row are the bytes of a 32-bit word. Where codes become 16 bits wide, the words
/// of pairs come first within each 128 bits, so that interleaving two registers leaves rows in their lanes.
fn place(element: Element, lane: usize, k: usize) -> [(usize, usize); 2] {
    let (quad, j) = (k / 4, k % 4);
    let byte = match element.arithmetic() {
        Arithmetic::Bytes => 4 * lane + j,
        _ => 16 * (lane / 4) + 8 * (j / 2) + 2 * (lane % 4) + j % 2,
    };
    match element.bits() {
        8 => [(64 * quad + byte, 0), (0, 0)],
        6 => [
            (64 * (quad / 2) + byte, 4 * (quad % 2)),
            (256 + 64 * (quad / 4) + byte, 2 * (quad % 4)),
        ],
        5 => [(64 * (quad / 2) + byte, 4 * (quad % 2)), (256 + byte, quad)],
        _ => [(64 * (quad / 2) + byte, 4 * (quad % 2)), (0, 0)],
    }
}

/// [`place`] of every lane and column, with masks: so that packing is table look-ups.
struct Places {
    at: Vec<[(usize, usize); 2]>,
    low_mask: u8,
    high_mask: u8,
}

impl Places {
    fn new(element: Element) -> Places {
        let at = (0..LANES * STEP).map(|i| place(element, i / STEP, i % STEP)).collect();
        let low_mask = if element.bits() == 8 { 0xFF } else { 0x0F };
        let high_mask = match element.bits() {
            6 => 3,
            5 => 1,
            _ => 0,
        };
        Places { at, low_mask, high_mask }
    }

    fn put(&self, step: &mut [u8], lane: usize, codes: &[u8]) {
        for (code, [low, high]) in codes.iter().zip(&self.at[lane * STEP..]) {
            step[low.0] |= (code & self.low_mask) << low.1;
            if self.high_mask != 0 {
                step[high.0] |= (code >> 4 & self.high_mask) << high.1;
            }
        }
    }

    fn get(&self, step: &[u8], lane: usize, codes: &mut [u8]) {
        for (code, [low, high]) in codes.iter_mut().zip(&self.at[lane * STEP..]) {
            *code = step[low.0] >> low.1 & self.low_mask;
            if self.high_mask != 0 {
                *code |= (step[high.0] >> high.1 & self.high_mask) << 4;
            }
        }
    }
}

impl Panels {
    /// Repacks a weight of `n` rows of `k` codes; `row(i, codes)` writes the codes of row `i`, one a byte.
    pub fn pack(
        cpu: &Cpu,
        element: Element,
        (n, k): (usize, usize),
        scales: Scales,
        row: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Panels {
        scales.check(n, k);
        let steps = k.div_ceil(STEP);
        let step_nbytes = element.step_nbytes();
        let panel_nbytes = steps * step_nbytes;
        let mut bytes = vec![0; n.div_ceil(LANES) * panel_nbytes + LINE];
        let start = bytes.as_ptr().align_offset(LINE).min(LINE);
        let places = Places::new(element);
        let special = std::sync::atomic::AtomicBool::new(false);
        let end = bytes.len() - LINE + start;
        cpu.threads().chunks_mut(&mut bytes[start..end], panel_nbytes.max(1), |panel, bytes| {
            let mut codes = vec![Element::ZERO; k];
            for (lane, i) in (panel * LANES..n.min((panel + 1) * LANES)).enumerate() {
                row(i, &mut codes);
                if codes.iter().any(|code| element.is_special(*code)) {
                    special.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                for (codes, step) in codes.chunks(STEP).zip(bytes.chunks_exact_mut(step_nbytes)) {
                    places.put(step, lane, codes);
                }
            }
        });
        // Two scales a step are only compiled for fp4.
        let known = element == Element::E2m1 || !matches!(scales, Scales::E4m3 { .. });
        let plain = known && scales.plain(k) && !special.into_inner();
        crate::pages::gather(&bytes);
        let scales = scales.into_panels(n, k);
        scales.in_large_pages();
        Panels { element, n, k, bytes, start, scales, plain }
    }

    /// The format of the codes.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Rows of the weight.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns of the weight.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes of codes and scales.
    pub fn nbytes(&self) -> usize {
        self.count() * self.panel_nbytes() + self.scales.nbytes()
    }

    /// How many panels there are.
    pub(super) fn count(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    pub(super) fn plain(&self) -> bool {
        self.plain
    }

    fn panel_nbytes(&self) -> usize {
        self.k.div_ceil(STEP) * self.element.step_nbytes()
    }

    /// The codes of panel `p`.
    pub(super) fn panel(&self, p: usize) -> &[u8] {
        &self.bytes[self.start + p * self.panel_nbytes()..][..self.panel_nbytes()]
    }

    /// How the kernels find scales: see [`Scales`], with rows in lanes.
    pub(super) fn lanes(&self) -> &Scales {
        &self.scales
    }

    /// The codes of row `n`, one a byte.
    pub fn row_codes(&self, n: usize, codes: &mut [u8]) {
        self.unpack(&Places::new(self.element), n, 0..self.k, codes);
    }

    /// The codes of row `n` and some columns, `columns.start` a multiple of 32.
    fn unpack(&self, places: &Places, n: usize, columns: Range<usize>, codes: &mut [u8]) {
        let panel = self.panel(n / LANES);
        let steps = panel.chunks_exact(self.element.step_nbytes()).skip(columns.start / STEP);
        for (codes, step) in codes.chunks_mut(STEP).zip(steps) {
            places.get(step, n % LANES, codes);
        }
    }

    /// The scales as they came, row-major.
    pub fn scales(&self) -> Scales {
        self.scales.to_rows(self.n, self.k)
    }

    /// Columns `columns` (the start a multiple of 32) of rows `rows` in f32, row-major rows of `stride` numbers.
    pub fn dequantize(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        let (table, places) = (self.element.table(), Places::new(self.element));
        let mut codes = vec![0; columns.len()];
        for (n, out) in rows.zip(out.chunks_mut(stride.max(1))) {
            self.unpack(&places, n, columns.clone(), &mut codes);
            let mut at = columns.start;
            while at < columns.end {
                let end = ((at / self.unit() + 1) * self.unit()).min(columns.end);
                let scale = self.scale(n, at);
                let part = at - columns.start..end - columns.start;
                for (value, code) in out[part.clone()].iter_mut().zip(&codes[part]) {
                    *value = table[usize::from(*code)] * scale;
                }
                at = end;
            }
        }
    }

    /// Within so many columns, from a multiple on, the scale is the same.
    fn unit(&self) -> usize {
        match &self.scales {
            Scales::Tensor(_) => self.k.max(1),
            Scales::Groups { group_size, .. } => (*group_size).max(1),
            Scales::Blocks128(_) => 128,
            Scales::E8m0(_) => 32,
            Scales::E4m3 { .. } => 16,
        }
    }

    /// The scale of row `n` at column `k`.
    pub(super) fn scale(&self, n: usize, k: usize) -> f32 {
        let groups = self.k.div_ceil(self.unit());
        let at = (n / LANES * groups + k / self.unit()) * LANES + n % LANES;
        match &self.scales {
            Scales::Tensor(scale) => *scale,
            Scales::Groups { values, .. } => values[at],
            Scales::Blocks128(values) => values[n / 128 * groups + k / 128],
            Scales::E8m0(codes) => crate::dtypes::e8m0_decode(codes[at]),
            Scales::E4m3 { codes, factor } => *factor * crate::dtypes::e4m3fn_decode(codes[at]),
        }
    }
}

impl Scales {
    fn check(&self, n: usize, k: usize) {
        let (len, wanted) = match self {
            Scales::Tensor(_) => (1, 1),
            Scales::Groups { values, group_size } => {
                assert!(
                    *group_size > 0 && k.is_multiple_of(*group_size),
                    "groups of {group_size} do not divide K = {k}"
                );
                (values.len(), n * (k / group_size))
            }
            Scales::Blocks128(values) => (values.len(), n.div_ceil(128) * k.div_ceil(128)),
            Scales::E8m0(codes) => {
                assert!(k.is_multiple_of(32), "K = {k} is not of blocks of 32");
                (codes.len(), n * (k / 32))
            }
            Scales::E4m3 { codes, .. } => {
                assert!(k.is_multiple_of(16), "K = {k} is not of blocks of 16");
                (codes.len(), n * (k / 16))
            }
        };
        assert!(len == wanted, "{len} scales; a weight of {n} × {k} wants {wanted}");
    }

    fn nbytes(&self) -> usize {
        match self {
            Scales::Tensor(_) => 4,
            Scales::Groups { values, .. } | Scales::Blocks128(values) => 4 * values.len(),
            Scales::E8m0(codes) => codes.len(),
            Scales::E4m3 { codes, .. } => codes.len() + 4,
        }
    }

    fn in_large_pages(&self) {
        match self {
            Scales::Tensor(_) => {}
            Scales::Groups { values, .. } | Scales::Blocks128(values) => {
                crate::pages::gather(values)
            }
            Scales::E8m0(codes) | Scales::E4m3 { codes, .. } => crate::pages::gather(codes),
        }
    }

    /// Whether the fast kernels can take the scales: groups are whole steps, and a scale times a sum of products is
    /// finite where products of scaled numbers are.
    fn plain(&self, k: usize) -> bool {
        let sound = |scale: f32| scale.abs() < 1e30;
        match self {
            Scales::Tensor(scale) => sound(*scale),
            Scales::Groups { values, group_size } => {
                let whole = *group_size == k || group_size.is_multiple_of(STEP);
                whole && values.iter().all(|scale| sound(*scale))
            }
            Scales::Blocks128(values) => values.iter().all(|scale| sound(*scale)),
            Scales::E8m0(codes) => codes.iter().all(|code| *code < 227),
            Scales::E4m3 { codes, factor } => {
                sound(*factor) && codes.iter().all(|code| *code < 0x7F)
            }
        }
    }

    fn into_panels(self, n: usize, k: usize) -> Scales {
        match self {
            Scales::Groups { values, group_size } => {
                Scales::Groups { values: to_lanes(&values, n, k / group_size.max(1)), group_size }
            }
            Scales::E8m0(codes) => Scales::E8m0(to_lanes(&codes, n, k / 32)),
            Scales::E4m3 { codes, factor } => {
                Scales::E4m3 { codes: to_lanes(&codes, n, k / 16), factor }
            }
            other => other,
        }
    }

    fn to_rows(&self, n: usize, k: usize) -> Scales {
        match self {
            Scales::Groups { values, group_size } => Scales::Groups {
                values: from_lanes(values, n, k / (*group_size).max(1)),
                group_size: *group_size,
            },
            Scales::E8m0(codes) => Scales::E8m0(from_lanes(codes, n, k / 32)),
            Scales::E4m3 { codes, factor } => {
                Scales::E4m3 { codes: from_lanes(codes, n, k / 16), factor: *factor }
            }
            other => other.clone(),
        }
    }
}

/// `(N, groups)` as `[panel][group][lane]`, absent rows zero.
fn to_lanes<T: Copy + Default>(rows: &[T], n: usize, groups: usize) -> Vec<T> {
    let mut lanes = vec![T::default(); n.next_multiple_of(LANES) * groups];
    for (i, row) in rows.chunks_exact(groups.max(1)).enumerate() {
        for (g, value) in row.iter().enumerate() {
            lanes[(i / LANES * groups + g) * LANES + i % LANES] = *value;
        }
    }
    lanes
}

fn from_lanes<T: Copy + Default>(lanes: &[T], n: usize, groups: usize) -> Vec<T> {
    let at = |i: usize| (i / groups, i % groups);
    let lane = |(n, g): (usize, usize)| lanes[(n / LANES * groups + g) * LANES + n % LANES];
    (0..n * groups).map(|i| lane(at(i))).collect()
}
