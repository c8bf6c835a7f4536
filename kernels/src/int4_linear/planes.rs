//! Activations as the 4-bit kernels read them: 16-bit integers as two int8 planes, even k apart from odd k.

use crate::Isa;
use crate::block_int16::BlockInt16;

/// 64 activations, in the order in which 32 bytes of codes meet them: the low nibbles are even k, the high ones odd k.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane64 {
    /// `q = 256 · high + low`.
    pub(super) high: Halves,
    pub(super) low: Halves,
}

/// 32 numbers of even k and 32 of odd k.
#[derive(Clone, Copy, Debug)]
pub(super) struct Halves {
    pub(super) even: [i8; 32],
    pub(super) odd: [i8; 32],
}

/// All activations of a call.
#[derive(Debug)]
pub(super) struct Planes {
    planes: Vec<Plane64>,
    integers: BlockInt16,
    sums: GroupSums,
}

/// What is to be added for each group.
#[derive(Debug)]
pub(super) struct GroupSums {
    /// (M, K/G): −8 times the sum of a group's rounded activations, what `scale` is still to be multiplied with.
    minus_eight: Vec<f32>,
    /// (M, K/G): the sum of a group's activations, what `zero` is multiplied with.
    sum: Vec<f32>,
    groups: usize,
}

/// One row of activations.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlaneRow<'a> {
    pub(super) planes: &'a [Plane64],
    pub(super) scale: &'a [f32],
    pub(super) minus_eight: &'a [f32],
    pub(super) sum: &'a [f32],
}

impl Planes {
    /// `x` (rows of K, groups of G) in blocks; `None` as [`BlockInt16::new`].
    pub(super) fn new(isa: Isa, x: &[f32], (k, g): (usize, usize), block: usize) -> Option<Planes> {
        let integers = BlockInt16::new(isa, x, k, block)?;
        let planes = integers.q.as_chunks::<64>().0.iter().map(Plane64::new).collect();
        let sums = GroupSums::new(x, &integers, (k, g));
        Some(Planes { planes, integers, sums })
    }

    /// How many activations share a scale.
    pub(super) fn block(&self) -> usize {
        self.integers.block
    }

    /// M.
    pub(super) fn rows(&self) -> usize {
        self.integers.q.len() / self.integers.padded_k
    }

    pub(super) fn row(&self, m: usize) -> PlaneRow<'_> {
        let length = self.integers.padded_k / 64;
        let (minus_eight, sum) = self.sums.row(m);
        PlaneRow {
            planes: &self.planes[m * length..][..length],
            scale: self.integers.row_scale(m),
            minus_eight,
            sum,
        }
    }
}

impl GroupSums {
    /// Of `x` (rows of K, groups of G), which `integers` stand for.
    pub(super) fn new(x: &[f32], integers: &BlockInt16, (k, g): (usize, usize)) -> GroupSums {
        let rows = x.len() / k.max(1);
        let minus_eight = (0..rows).flat_map(|m| group_sums(integers, m, (k, g))).collect();
        GroupSums { minus_eight, sum: x.chunks_exact(g).map(sum_f32).collect(), groups: k / g }
    }

    /// Row `m` of both.
    pub(super) fn row(&self, m: usize) -> (&[f32], &[f32]) {
        let groups = m * self.groups..(m + 1) * self.groups;
        (&self.minus_eight[groups.clone()], &self.sum[groups])
    }
}

impl Plane64 {
    #[inline]
    fn new(q: &[i16; 64]) -> Plane64 {
        let empty = Halves { even: [0; 32], odd: [0; 32] };
        let mut plane = Plane64 { high: empty, low: empty };
        for (i, &[even, odd]) in q.as_chunks::<2>().0.iter().enumerate() {
            (plane.high.even[i], plane.low.even[i]) = bytes(even);
            (plane.high.odd[i], plane.low.odd[i]) = bytes(odd);
        }
        plane
    }
}

/// `q = 256 · high + low`, both signed: 128 is added so that what the low byte lacks is carried.
#[inline]
fn bytes(q: i16) -> (i8, i8) {
    let [_, high] = (q + 128).to_le_bytes();
    let [low, _] = q.to_le_bytes();
    (high.cast_signed(), low.cast_signed())
}

/// In eight sums, so that one addition need not wait for another.
#[expect(clippy::cast_possible_truncation, reason = "rounded once, to f32")]
fn sum_f32(x: &[f32]) -> f32 {
    let mut sums = [0.0_f64; 8];
    let (body, tail) = x.as_chunks::<8>();
    for x in body {
        sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let tail: f64 = tail.iter().map(|&x| f64::from(x)).sum();
    (sums.iter().sum::<f64>() + tail) as f32
}

/// −8 · Σ q · scale over each group of row `m`.
#[expect(clippy::cast_possible_truncation, reason = "rounded once, to f32")]
fn group_sums(
    integers: &BlockInt16,
    m: usize,
    (k, g): (usize, usize),
) -> impl Iterator<Item = f32> {
    // A group of 32 shares its block with its neighbour; a longer one has whole blocks.
    let piece = g.min(integers.block);
    let (q, scale) = (&integers.row(m)[..k], integers.row_scale(m));
    let block = integers.block;
    q.chunks_exact(g).enumerate().map(move |(i, q)| {
        let pieces = q.chunks_exact(piece).enumerate().map(|(j, q)| {
            let sum: i32 = q.iter().map(|&q| i32::from(q)).sum();
            f64::from(sum) * f64::from(scale[(i * g + j * piece) / block])
        });
        (-8.0 * pieces.sum::<f64>()) as f32
    })
}
