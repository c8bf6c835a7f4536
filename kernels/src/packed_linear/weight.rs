//! A weight: codes, what they mean, scales and offsets of groups.

use half::{bf16, f16};

use super::codes::{Codes, LANES, STEP};

/// What a code stands for, before its scale.
#[derive(Clone, Debug)]
pub enum Values {
    /// `code − bias`.
    Integers {
        /// What code stands for 0.
        bias: i16,
    },
    /// `table[code]`.
    Table(Table),
}

/// Up to 32 values, as 16-bit integers with one scale.
#[derive(Clone, Debug)]
pub struct Table {
    values: Vec<f32>,
    pub(super) integers: [i16; 32],
    pub(super) scale: f32,
}

/// The most that a table's integers reach: with activations of at most [`TABLE_X_MAX`], 32 products fit 32 bits.
const TABLE_MAX: f32 = 10_000.0;

/// The largest integer of activations that meet a table: 32 · 6700 · 10000 < 2³¹.
const TABLE_X_MAX: f32 = 6_700.0;

/// The largest integer of activations that meet codes of one bit: three times as much fits 16 bits (see `Block::chained`).
const ONE_BIT_X_MAX: f32 = 10_922.0;

/// The largest integer of activations that meet integers: 32 · 32639 · 255 < 2³¹.
const X_MAX: f32 = 32_639.0;

impl Table {
    /// A table of 1 to 32 finite values, as many as codes of 5 bits name. Their integers are in steps of 1/10000 or 1/8192 of the largest, or of 1, whichever
    /// comes nearest.
    #[expect(clippy::cast_possible_truncation, reason = "rounded to integers of at most ±10000")]
    pub fn new(values: &[f32]) -> Table {
        assert!(
            (1..=32).contains(&values.len()) && values.iter().all(|v| v.is_finite()),
            "a table wants 1 to 32 finite values"
        );
        let amax = values.iter().fold(0.0_f32, |amax, v| amax.max(v.abs()));
        let error = |steps: f32| {
            let step = f64::from(amax) / f64::from(steps);
            let off =
                |v: &f32| (f64::from(*v) - (f64::from(*v) / step).round_ties_even() * step).abs();
            values.iter().map(off).fold(0.0, f64::max)
        };
        let mut steps = TABLE_MAX;
        for other in [8192.0, amax] {
            if (1.0..=TABLE_MAX).contains(&other) && error(other) < error(steps) {
                steps = other;
            }
        }
        let scale = if amax < 1e-30 { 0.0 } else { amax / steps };
        let inv_scale = if scale > 0.0 { f64::from(steps) / f64::from(amax) } else { 0.0 };
        let mut integers = [0; 32];
        for (i, integer) in integers.iter_mut().enumerate() {
            // Repeated, so that bits beyond an index change nothing.
            let value = values.get(i % values.len().next_power_of_two()).copied().unwrap_or(0.0);
            *integer = (f64::from(value) * inv_scale).round_ties_even() as i16;
        }
        Table { values: values.to_vec(), integers, scale }
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// Numbers in a dtype: of groups, in the order of the panels or (N, K/G).
#[derive(Clone, Debug)]
pub enum Floats {
    /// As f32.
    F32(Vec<f32>),
    /// As bf16.
    Bf16(Vec<bf16>),
    /// As f16.
    F16(Vec<f16>),
}

impl Floats {
    fn len(&self) -> usize {
        match self {
            Floats::F32(v) => v.len(),
            Floats::Bf16(v) => v.len(),
            Floats::F16(v) => v.len(),
        }
    }

    fn get(&self, at: usize) -> f32 {
        match self {
            Floats::F32(v) => v[at],
            Floats::Bf16(v) => v[at].to_f32(),
            Floats::F16(v) => v[at].to_f32(),
        }
    }

    fn nbytes(&self) -> usize {
        match self {
            Floats::F32(v) => 4 * v.len(),
            Floats::Bf16(v) => 2 * v.len(),
            Floats::F16(v) => 2 * v.len(),
        }
    }

    fn in_large_pages(&self) {
        match self {
            Floats::F32(v) => crate::pages::gather(v),
            Floats::Bf16(v) => crate::pages::gather(v),
            Floats::F16(v) => crate::pages::gather(v),
        }
    }

    /// From (N, G) to (N/16, G, 16).
    fn to_panels(&self, n: usize, groups: usize) -> Floats {
        match self {
            Floats::F32(v) => Floats::F32(to_panels(v, n, groups, 0.0)),
            Floats::Bf16(v) => Floats::Bf16(to_panels(v, n, groups, bf16::ZERO)),
            Floats::F16(v) => Floats::F16(to_panels(v, n, groups, f16::ZERO)),
        }
    }

    /// From (N/16, G, 16) to (N, G).
    fn to_rows(&self, n: usize, groups: usize) -> Floats {
        match self {
            Floats::F32(v) => Floats::F32(to_rows(v, n, groups)),
            Floats::Bf16(v) => Floats::Bf16(to_rows(v, n, groups)),
            Floats::F16(v) => Floats::F16(to_rows(v, n, groups)),
        }
    }

    /// Sixteen numbers, widened.
    #[inline(always)]
    pub(super) fn lanes(&self, chunk: usize) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        match self {
            Floats::F32(v) => lanes.copy_from_slice(&v[chunk * LANES..][..LANES]),
            Floats::Bf16(v) => {
                for (lane, v) in lanes.iter_mut().zip(&v[chunk * LANES..][..LANES]) {
                    // Written out so that it becomes a shift in registers; `to_f32` quiets NaNs first.
                    *lane = f32::from_bits(u32::from(v.to_bits()) << 16);
                }
            }
            Floats::F16(v) => {
                for (lane, v) in lanes.iter_mut().zip(&v[chunk * LANES..][..LANES]) {
                    *lane = v.to_f32();
                }
            }
        }
        lanes
    }
}

fn to_panels<T: Copy>(rows: &[T], n: usize, groups: usize, fill: T) -> Vec<T> {
    let at = |i: usize| {
        let (panel, group, lane) = (i / LANES / groups, i / LANES % groups, i % LANES);
        let row = panel * LANES + lane;
        if row < n { rows[row * groups + group] } else { fill }
    };
    (0..n.div_ceil(LANES) * groups * LANES).map(at).collect()
}

fn to_rows<T: Copy>(panels: &[T], n: usize, groups: usize) -> Vec<T> {
    let at = |i: usize| {
        let (row, group) = (i / groups, i % groups);
        panels[(row / LANES * groups + group) * LANES + row % LANES]
    };
    (0..n * groups).map(at).collect()
}

/// What a group adds to each of its values.
#[derive(Clone, Debug)]
pub enum Offset {
    /// Nothing.
    None,
    /// `−zero · scale`: zeros are codes. (N, K/G).
    Zeros(Vec<i8>),
    /// The value itself, (N, K/G).
    Values(Floats),
}

/// See the head of this folder. Made by [`Weight::new`], which checks.
#[derive(Clone, Debug)]
pub struct Weight {
    codes: Codes,
    pub(super) values: Values,
    group_size: usize,
    pub(super) scale: Floats,
    pub(super) offset: Offset,
}

/// One panel with what belongs to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel<'a> {
    pub(super) codes: &'a [u8],
    pub(super) weight: &'a Weight,
    /// The first of its groups.
    pub(super) first_group: usize,
    pub(super) groups: usize,
    pub(super) steps_per_group: usize,
}

impl Weight {
    /// A weight from its codes, and scales and offsets (N, K / group_size).
    pub fn new(
        codes: Codes,
        values: Values,
        group_size: usize,
        scale: &Floats,
        offset: &Offset,
    ) -> Weight {
        let (n, k) = (codes.n(), codes.k());
        assert!(group_size > 0 || k == 0, "groups of 0 columns");
        let groups = k.checked_div(group_size).unwrap_or(0);
        assert!(groups * group_size == k, "groups of {group_size} do not divide K = {k}");
        assert!(scale.len() == n * groups, "{} scales are not {n} × {groups}", scale.len());
        if let Values::Table(table) = &values {
            let wanted = 1 << codes.bits();
            assert!(table.values.len() == wanted, "a table of {wanted} values is wanted");
        }
        let offset = match offset {
            Offset::None => Offset::None,
            Offset::Zeros(zeros) => {
                assert!(zeros.len() == n * groups, "{} zeros are not {n} × {groups}", zeros.len());
                Offset::Zeros(to_panels(zeros, n, groups, 0))
            }
            Offset::Values(v) => {
                assert!(v.len() == n * groups, "{} offsets are not {n} × {groups}", v.len());
                Offset::Values(v.to_panels(n, groups))
            }
        };
        let scale = scale.to_panels(n, groups);
        scale.in_large_pages();
        Weight { codes, values, group_size, scale, offset }
    }

    /// Rows.
    pub fn n(&self) -> usize {
        self.codes.n()
    }

    /// Columns.
    pub fn k(&self) -> usize {
        self.codes.k()
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        self.codes.bits()
    }

    /// Columns that share a scale.
    pub fn group_size(&self) -> usize {
        self.group_size
    }

    /// The codes.
    pub fn codes(&self) -> &Codes {
        &self.codes
    }

    /// What the codes stand for.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The scales, (N, K/G).
    pub fn scale(&self) -> Floats {
        self.scale.to_rows(self.n(), self.groups())
    }

    /// The offsets, (N, K/G).
    pub fn offset(&self) -> Offset {
        match &self.offset {
            Offset::None => Offset::None,
            Offset::Zeros(zeros) => Offset::Zeros(to_rows(zeros, self.n(), self.groups())),
            Offset::Values(values) => Offset::Values(values.to_rows(self.n(), self.groups())),
        }
    }

    /// Bytes that are kept in memory.
    pub fn nbytes(&self) -> usize {
        let offset = match &self.offset {
            Offset::None => 0,
            Offset::Zeros(zeros) => zeros.len(),
            Offset::Values(values) => values.nbytes(),
        };
        self.codes.nbytes() + self.scale.nbytes() + offset
    }

    fn groups(&self) -> usize {
        self.k().checked_div(self.group_size).unwrap_or(0)
    }

    /// Whether groups are whole steps, so that panels can be multiplied as they are.
    pub fn has_panels(&self) -> bool {
        self.group_size == self.k() || self.group_size.is_multiple_of(STEP)
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.values, Values::Table(_))
    }

    pub(super) fn bias(&self) -> i16 {
        match self.values {
            Values::Integers { bias } => bias,
            Values::Table(_) => 0,
        }
    }

    /// What sums of integer products are still to be multiplied with, besides the scales.
    pub(super) fn table_scale(&self) -> f32 {
        match &self.values {
            Values::Integers { .. } => 1.0,
            Values::Table(table) => table.scale,
        }
    }

    /// The largest integer that activations may have.
    pub(super) fn x_max(&self) -> f32 {
        match (self.is_table(), self.bits()) {
            (true, _) => TABLE_X_MAX,
            (false, 1) => ONE_BIT_X_MAX,
            (false, _) => X_MAX,
        }
    }

    pub(super) fn panel(&self, p: usize) -> Panel<'_> {
        let groups = self.groups();
        Panel {
            codes: self.codes.panel(p),
            weight: self,
            first_group: p * groups,
            groups,
            steps_per_group: self.group_size.div_ceil(STEP),
        }
    }

    /// Row `n` in f32: `(code − bias − zero) · scale`, `(code − bias) · scale + offset`, or the same of a table.
    pub fn dequantize_row(&self, n: usize, row: &mut [f32]) {
        let mut codes = vec![0; self.k()];
        self.codes.row(n, &mut codes);
        let (first, lane) = (n / LANES * self.groups(), n % LANES);
        let groups =
            row.chunks_mut(self.group_size.max(1)).zip(codes.chunks(self.group_size.max(1)));
        for (g, (row, codes)) in groups.enumerate() {
            let at = (first + g) * LANES + lane;
            let scale = self.scale.get(at);
            let (zero, offset) = match &self.offset {
                Offset::None => (0.0, 0.0),
                Offset::Zeros(zeros) => (f32::from(zeros[at]), 0.0),
                Offset::Values(values) => (0.0, values.get(at)),
            };
            for (w, &code) in row.iter_mut().zip(codes) {
                let value = match &self.values {
                    Values::Integers { bias } => f32::from(i16::from(code) - bias),
                    Values::Table(table) => table.values[usize::from(code)],
                };
                *w = (value - zero) * scale;
                if offset != 0.0 {
                    *w += offset;
                }
            }
        }
    }
}

impl Panel<'_> {
    /// The scales of group `g`.
    #[inline(always)]
    pub(super) fn scale(&self, g: usize) -> [f32; LANES] {
        self.weight.scale.lanes(self.first_group + g)
    }

    #[inline(always)]
    pub(super) fn has_offset(&self) -> bool {
        !matches!(self.weight.offset, Offset::None)
    }

    /// What group `g` adds to its values, its scales being `scale`.
    #[inline(always)]
    pub(super) fn offset(&self, g: usize, scale: &[f32; LANES]) -> [f32; LANES] {
        match &self.weight.offset {
            Offset::None => [0.0; LANES],
            Offset::Values(values) => values.lanes(self.first_group + g),
            Offset::Zeros(zeros) => {
                let mut lanes = *scale;
                let zeros = &zeros[(self.first_group + g) * LANES..][..LANES];
                for (lane, zero) in lanes.iter_mut().zip(zeros) {
                    *lane *= -f32::from(*zero);
                }
                lanes
            }
        }
    }
}
