//! The layout in which CUTLASS, and with it torch, keeps a 2:4 weight (L16).
//!
//! Of each four neighbours two values are kept, in order, and two indices of 2 bits: the first value's in the low bits. Four or eight such
//! nibbles make a word of metadata (int16 for 16-bit values, int32 for int8). Words are reordered for the GPU's fragments: rows
//! interwoven within 32 or 16, 2 × 2 words swapped, columns interleaved by two. Fours with fewer than two numbers keep zeros at fixed places.

use crate::error::{Error, Result};

/// Values `(M, K / 2)` and words of metadata `(M, K / (4 · nibbles))`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cutlass24<T> {
    /// The two kept of each four.
    pub values: Vec<T>,
    /// As torch has them: the low 16 or all 32 bits count.
    pub meta: Vec<u32>,
}

/// How many nibbles a word of metadata has for values of so many bytes.
fn nibbles(nbytes: usize) -> Result<usize> {
    match nbytes {
        1 => Ok(8),
        2 => Ok(4),
        _ => Err(Error::invalid(format!(
            "values of {nbytes} bytes have no 2:4 layout here; wanted 1 or 2"
        ))),
    }
}

fn check<T>(len: usize, (m, k): (usize, usize)) -> Result<usize> {
    let per_word = nibbles(size_of::<T>())?;
    let rows = if per_word == 8 { 16 } else { 32 };
    if len != m * k || !m.is_multiple_of(rows) || !k.is_multiple_of(4 * per_word) {
        return Err(Error::invalid(format!(
            "{len} values as {m} × {k}: the 2:4 layout wants rows in multiples of {rows} and columns of {}",
            4 * per_word
        )));
    }
    Ok(per_word)
}

/// Packs a weight `(M, K)`, row-major, of which each four have at most two that are not zero.
pub fn pack_cutlass<T: Copy + Default + PartialEq>(
    dense: &[T],
    (m, k): (usize, usize),
) -> Result<Cutlass24<T>> {
    let per_word = check::<T>(dense.len(), (m, k))?;
    let words = k / (4 * per_word);
    let mut values = Vec::with_capacity(m * k / 2);
    let mut meta = vec![0; m * words];
    for (row, numbers) in dense.chunks_exact(k).enumerate() {
        for (word, numbers) in numbers.chunks_exact(4 * per_word).enumerate() {
            let mut bits = 0;
            for (place, four) in numbers.as_chunks::<4>().0.iter().enumerate() {
                let [first, second] = kept(four)?;
                values.extend([four[first], four[second]]);
                bits |= index_bits(first, second) << (4 * place);
            }
            meta[place_of((row, word), m, per_word)] = bits;
        }
    }
    Ok(Cutlass24 { values, meta })
}

/// The weight `(M, K)` that was packed.
pub fn unpack_cutlass<T: Copy + Default>(
    packed: &Cutlass24<T>,
    (m, k): (usize, usize),
) -> Result<Vec<T>> {
    let per_word = check::<T>(2 * packed.values.len(), (m, k))?;
    let words = k / (4 * per_word);
    if packed.meta.len() != m * words {
        let got = packed.meta.len();
        return Err(Error::invalid(format!("{got} words of metadata; wanted {m} × {words}")));
    }
    let mut dense = vec![T::default(); m * k];
    let fours = dense.as_chunks_mut::<4>().0.iter_mut().zip(packed.values.as_chunks::<2>().0);
    for (at, (four, values)) in fours.enumerate() {
        let (row, column) = (at / (k / 4), at % (k / 4));
        let word = packed.meta[place_of((row, column / per_word), m, per_word)];
        let bits = word >> (4 * (column % per_word));
        let (first, second) = ((bits & 3) as usize, (bits >> 2 & 3) as usize);
        if first >= second {
            return Err(Error::invalid(format!("indices {first} and {second} are not in order")));
        }
        (four[first], four[second]) = (values[0], values[1]);
    }
    Ok(dense)
}

pub(in crate::sparsity) fn index_bits(first: usize, second: usize) -> u32 {
    // Both are below 4.
    [0, 1, 2, 3][first] | [0, 1, 2, 3][second] << 2
}

/// Which two of four stay, as torch's logic chooses where fewer than two are not zero.
pub(in crate::sparsity) fn kept<T: PartialEq + Default>(four: &[T; 4]) -> Result<[usize; 2]> {
    let is = |i: usize| four[i] != T::default();
    if (0..4).filter(|i| is(*i)).count() > 2 {
        return Err(Error::invalid(
            "four neighbours have more than two numbers; prune to 2:4 first",
        ));
    }
    let (first, second) = (is(0) && is(1), !is(0) && is(1));
    let neither = !is(0) && !is(1);
    let low = usize::from(second) | usize::from(neither) << 1;
    let high = usize::from(first || neither || is(3)) | usize::from(second || !is(1)) << 1;
    Ok([low, high])
}

/// Where the word `(row, word)` lies.
fn place_of((row, word): (usize, usize), m: usize, per_word: usize) -> usize {
    let (group, interweave) = if per_word == 4 { (32, 4) } else { (16, 2) };
    let mut to = row / group * group + row % 8 * interweave + row % group / 8;
    let mut column = word;
    match (to % 2, column % 2) {
        (0, 1) => (to, column) = (to + 1, column - 1),
        (1, 0) => (to, column) = (to - 1, column + 1),
        _ => {}
    }
    column / 2 * m * 2 + to * 2 + column % 2
}
