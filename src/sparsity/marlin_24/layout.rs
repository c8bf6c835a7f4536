//! The order in which Sparse-Marlin's GPU kernel reads a 2:4 weight of int4 (L14).
//!
//! Codes `(N, K)`, 8 for zero, become `(K / 2, N)` of what is stored, cut into tiles of 16 × 64; a tile's 1024 codes go to 128 words of eight, in the order of a
//! tensor core's fragments. Which two of four are stored is nibbles of two places, four a word of 16 bits, rows and columns interwoven. Scales `(K / group, N)`
//! go by 64: `0 4 1 5 2 6 3 7` of each eight, or as they are where a row has one.
//! Source: torchao `pack_to_marlin_24` (v0.13), Frantar and others' Sparse-Marlin.

use crate::error::{Error, Result};
use crate::sparsity::semi_structured::{index_bits, kept};

/// A weight in the order of Sparse-Marlin's kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Marlin24 {
    /// Eight codes a word, `(K / 32, 2 · N)`.
    pub q: Vec<u32>,
    /// Places, `(K / 32, 2 · N)` as torch shapes them.
    pub meta: Vec<u16>,
    /// `(K / group, N)`, by 64.
    pub scale: Vec<f32>,
}

/// Rows of a tile.
const TILE: usize = 16;

/// Columns of a tile, of N.
const TILE_N: usize = 64;

/// Codes of a tile.
const CODES: usize = TILE * TILE_N;

fn check((n, k): (usize, usize), group: usize) -> Result<()> {
    if n == 0 || k == 0 || !n.is_multiple_of(TILE_N) || !k.is_multiple_of(2 * TILE) {
        return Err(Error::invalid(format!(
            "{n} × {k} has no Marlin 2:4 layout; wanted N in multiples of {TILE_N} and K of {}",
            2 * TILE
        )));
    }
    if group == 0 || !k.is_multiple_of(group) {
        return Err(Error::invalid(format!("groups of {group} do not divide K = {k}")));
    }
    Ok(())
}

/// Packs codes `(N, K)` from 0 to 15, of which each four have at most two that are not 8, and scales `(N, K / group)`.
pub fn pack_marlin_24(
    codes: &[u8],
    scale: &[f32],
    (n, k): (usize, usize),
    group: usize,
) -> Result<Marlin24> {
    check((n, k), group)?;
    if codes.len() != n * k || scale.len() != n * (k / group) || codes.iter().any(|q| *q > 15) {
        return Err(Error::invalid(format!(
            "{} codes and {} scales; wanted {n} × {k} from 0 to 15 and {n} × {}",
            codes.len(),
            scale.len(),
            k / group
        )));
    }
    let mut packed = Marlin24 {
        q: vec![0; n * k / 16],
        meta: vec![0; n * k / 16],
        scale: vec![0.0; scale.len()],
    };
    // (K / 2, N)
    let mut stored = vec![0_u8; n * k / 2];
    for (at, four) in codes.as_chunks::<4>().0.iter().enumerate() {
        let (row, column) = (at / (k / 4), at % (k / 4));
        let [first, second] = kept(&four.map(|q| q.wrapping_sub(8)))?;
        stored[2 * column * n + row] = four[first];
        stored[(2 * column + 1) * n + row] = four[second];
        let nibble = low16(index_bits(first, second)) << (4 * (column % 4));
        packed.meta[meta_place((row, column / 4), n)] |= nibble;
    }
    for at in 0..stored.len() {
        packed.q[at / 8] |= u32::from(stored[code_place(at, n)]) << (4 * (at % 8));
    }
    for (at, to) in packed.scale.iter_mut().enumerate() {
        let (row, column) = scale_place(at, n, k == group);
        *to = scale[column * (k / group) + row];
    }
    Ok(packed)
}

/// The codes and scales that were packed.
pub fn unpack_marlin_24(
    packed: &Marlin24,
    (n, k): (usize, usize),
    group: usize,
) -> Result<(Vec<u8>, Vec<f32>)> {
    check((n, k), group)?;
    let lens = (packed.q.len(), packed.meta.len(), packed.scale.len());
    let wanted = (n * k / 16, n * k / 16, n * (k / group));
    if lens != wanted {
        return Err(Error::invalid(format!(
            "words, places and scales {lens:?}; wanted {wanted:?}"
        )));
    }
    let mut stored = vec![0_u8; n * k / 2];
    for at in 0..stored.len() {
        let [code, ..] = (packed.q[at / 8] >> (4 * (at % 8))).to_le_bytes();
        stored[code_place(at, n)] = code & 15;
    }
    let mut codes = vec![8_u8; n * k];
    for (at, four) in codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let (row, column) = (at / (k / 4), at % (k / 4));
        let bits = packed.meta[meta_place((row, column / 4), n)] >> (4 * (column % 4));
        let (first, second) = (usize::from(bits & 3), usize::from(bits >> 2 & 3));
        if first >= second {
            return Err(Error::invalid(format!("places {first} and {second} are not in order")));
        }
        four[first] = stored[2 * column * n + row];
        four[second] = stored[(2 * column + 1) * n + row];
    }
    let mut scale = vec![0.0; packed.scale.len()];
    for (at, from) in packed.scale.iter().enumerate() {
        let (row, column) = scale_place(at, n, k == group);
        scale[column * (k / group) + row] = *from;
    }
    Ok((codes, scale))
}

fn low16(bits: u32) -> u16 {
    let [low, high, ..] = bits.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// Where in `(K / 2, N)` the code lies that is packed at `at`.
fn code_place(at: usize, n: usize) -> usize {
    let (tile, in_tile) = (at / CODES, at % CODES);
    // Of eight neighbours the even ones come first.
    let at = in_tile / 8 * 8 + [0, 2, 4, 6, 1, 3, 5, 7][in_tile % 8];
    let (lane, j, block, place) = (at / 32, at / 8 % 4, at / 4 % 2, at % 4);
    let row = 2 * (lane % 4) + place % 2 + 8 * (place / 2);
    let column = lane / 8 * 16 + lane / 4 % 2 * 8 + 4 * block + j;
    let tiles_n = n / TILE_N;
    (tile / tiles_n * TILE + row) * n + tile % tiles_n * TILE_N + column
}

/// Where the word of places `(row, word)` of `(N, K / 16)` lies.
fn meta_place((row, word): (usize, usize), n: usize) -> usize {
    let mut to = row / 64 * 64 + row % 2 * 2 + row % 8 / 4 + row % 4 / 2 * 32 + row % 64 / 8 * 4;
    let mut column = word;
    match (to % 2, column % 2) {
        (0, 1) => (to, column) = (to + 1, column - 1),
        (1, 0) => (to, column) = (to - 1, column + 1),
        _ => {}
    }
    column / 2 * n * 2 + to * 2 + column % 2
}

/// Which group and row of W the scale is of that is packed at `at`.
fn scale_place(at: usize, n: usize, one: bool) -> (usize, usize) {
    let (row, column) = (at / n, at % n);
    let eighth = if one { column % 8 } else { [0, 4, 1, 5, 2, 6, 3, 7][column % 8] };
    (row, column / 8 * 8 + eighth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Codes of which two of each four or fewer are not 8.
    fn random((n, k): (usize, usize), rng: &mut Rng) -> Vec<u8> {
        let mut codes = vec![8; n * k];
        for four in codes.as_chunks_mut::<4>().0 {
            for _ in 0..2 {
                let [a, b, ..] = rng.next_u64().to_le_bytes();
                four[usize::from(a % 4)] = b % 16;
            }
        }
        codes
    }

    /// torchao's lists, built as it builds them.
    fn lists() -> (Vec<usize>, Vec<usize>) {
        let mut perm = Vec::new();
        for i in 0..32 {
            let (mut one, column) = (Vec::new(), i / 4);
            for block in 0..2 {
                let rows = [2 * (i % 4), 2 * (i % 4) + 1, 2 * (i % 4 + 4), 2 * (i % 4 + 4) + 1];
                for row in rows {
                    one.push(16 * row + column / 2 * 256 + 8 * (column % 2) + 4 * block);
                }
            }
            for j in 0..4 {
                perm.extend(one.iter().map(|p| p + j));
            }
        }
        let order = [0, 2, 4, 6, 1, 3, 5, 7];
        let perm = perm.as_chunks::<8>().0.iter().flat_map(|eight| order.map(|i| eight[i]));
        let scales = (0..8).flat_map(|i| [0, 4, 1, 5, 2, 6, 3, 7].map(|j| 8 * i + j));
        (perm.collect(), scales.collect())
    }

    #[test]
    fn words_and_scales_are_in_torchaos_order() {
        let ((n, k), group) = ((128, 128), 64);
        let mut rng = Rng::new(14);
        let codes = random((n, k), &mut rng);
        let scale: Vec<f32> = (0..n * k / group).map(|_| rng.normal()).collect();
        let packed = pack_marlin_24(&codes, &scale, (n, k), group).expect("2:4");
        let stored: Vec<u8> = {
            let mut stored = vec![0; n * k / 2];
            for (at, four) in codes.as_chunks::<4>().0.iter().enumerate() {
                let places = kept(&four.map(|q| q.wrapping_sub(8))).expect("2:4");
                for (i, place) in places.into_iter().enumerate() {
                    stored[(at % (k / 4) * 2 + i) * n + at / (k / 4)] = four[place];
                }
            }
            stored
        };
        // Tiles of 16 × 16, row of tiles by row of tiles; then 1024 at a time through the list.
        let mut tiled = Vec::new();
        for rows in 0..k / 32 {
            for columns in 0..n / 16 {
                for row in 0..16 {
                    let start = (16 * rows + row) * n + 16 * columns;
                    tiled.extend_from_slice(&stored[start..start + 16]);
                }
            }
        }
        let (perm, scale_perm) = lists();
        let wanted = tiled.chunks_exact(1024).flat_map(|tile| perm.iter().map(|p| tile[*p]));
        let wanted: Vec<u8> = wanted.collect();
        let got = packed.q.iter().flat_map(|word| (0..8).map(move |i| word >> (4 * i) & 15));
        assert!(got.map(u64::from).eq(wanted.into_iter().map(u64::from)));
        let by_group: Vec<f32> =
            (0..n * k / group).map(|at| scale[at % n * (k / group) + at / n]).collect();
        let wanted: Vec<f32> = by_group
            .chunks_exact(64)
            .flat_map(|part| scale_perm.iter().map(|p| part[*p]).collect::<Vec<f32>>())
            .collect();
        assert_eq!(packed.scale, wanted);
    }

    #[test]
    fn what_is_packed_comes_back() {
        let mut rng = Rng::new(24);
        for ((n, k), group) in [((64, 32), 32), ((128, 256), 128), ((192, 96), 96)] {
            let codes = random((n, k), &mut rng);
            let scale: Vec<f32> = (0..n * k / group).map(|_| rng.normal()).collect();
            let packed = pack_marlin_24(&codes, &scale, (n, k), group).expect("2:4");
            let all: std::collections::HashSet<usize> =
                (0..n * k / 16).map(|i| meta_place((i / (k / 16), i % (k / 16)), n)).collect();
            assert_eq!(all.len(), n * k / 16, "every word of places has its own place");
            let back = unpack_marlin_24(&packed, (n, k), group).expect("packed");
            assert_eq!(back, (codes, scale), "{n} × {k}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let scale = [1.0; 64];
        assert!(pack_marlin_24(&[8; 60 * 32], &scale, (60, 32), 32).is_err());
        assert!(pack_marlin_24(&[9; 64 * 32], &scale, (64, 32), 32).is_err());
        assert!(pack_marlin_24(&[200; 64 * 32], &scale, (64, 32), 32).is_err());
        let broken = Marlin24 { q: vec![0; 128], meta: vec![0; 128], scale: scale.to_vec() };
        assert!(unpack_marlin_24(&broken, (64, 32), 32).is_err());
    }
}
