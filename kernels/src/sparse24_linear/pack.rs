//! The codes of three bits, and int4 numbers in the order in which they are spread.

/// Bytes of codes of a row of `k` columns.
pub fn code_bytes(k: usize) -> usize {
    6 * k.div_ceil(64)
}

/// Bytes of int4 numbers of a row of `k` columns.
pub fn int4_bytes(k: usize) -> usize {
    32 * k.div_ceil(128)
}

/// The codes of rows of `k` columns from which of them are kept. A four that keeps fewer than two keeps one or two zeros besides, the first it
/// has; one that keeps more is refused: `None`.
pub fn codes_of(keeps: impl Fn(usize, usize) -> bool, (n, k): (usize, usize)) -> Option<Vec<u8>> {
    let stride = code_bytes(k);
    let mut codes = vec![0; n * stride + 2];
    for row in 0..n {
        let codes = &mut codes[row * stride..];
        for at in 0..k / 4 {
            let mut four: [bool; 4] = std::array::from_fn(|i| keeps(row, 4 * at + i));
            let mut count = four.iter().filter(|keep| **keep).count();
            if count > 2 {
                return None;
            }
            for keep in &mut four {
                if count < 2 && !*keep {
                    (*keep, count) = (true, count + 1);
                }
            }
            let code = u8::from(four[0]) | u8::from(four[1]) << 1 | u8::from(four[2]) << 2;
            let bit = 3 * (at % 16);
            let word = u16::from(code) << (bit % 8);
            let [low, high] = word.to_le_bytes();
            let byte = 6 * (at / 16) + bit / 8;
            codes[byte] |= low;
            codes[byte + 1] |= high;
        }
    }
    Some(codes)
}

/// Whether `codes` are those of a weight `(n, k)`: each four stores two, and nothing lies behind a row's end.
pub fn are_codes(codes: &[u8], (n, k): (usize, usize)) -> bool {
    let stride = code_bytes(k);
    let good = |row: usize| {
        let codes = &codes[row * stride..];
        let fours = (0..k / 4).all(|at| !matches!(code(codes, at), 0 | 7));
        fours && (k / 4..stride / 6 * 16).all(|at| code(codes, at) == 0)
    };
    k.is_multiple_of(4) && codes.len() == n * stride + 2 && (0..n).all(good)
}

/// Whether column `column` of row `row` is stored.
pub fn is_stored(codes: &[u8], (row, column): (usize, usize), k: usize) -> bool {
    places(&codes[row * code_bytes(k)..], column / 4).contains(&(column % 4))
}

/// The code of four number `at` of a row.
fn code(codes: &[u8], at: usize) -> usize {
    let bit = 3 * (at % 16);
    let byte = 6 * (at / 16) + bit / 8;
    usize::from(u16::from_le_bytes([codes[byte], codes[byte + 1]]) >> (bit % 8) & 7)
}

/// Which two columns of four number `at` are stored. The codes 0 and 7, which no row has, read as the first two.
pub(super) fn places(codes: &[u8], at: usize) -> [usize; 2] {
    [[0, 1], [0, 3], [1, 3], [0, 1], [2, 3], [0, 2], [1, 2], [0, 1]][code(codes, at)]
}

/// The stored numbers of rows of `k` columns of a dense weight.
pub fn kept_of<T: Copy>(dense: &[T], codes: &[u8], k: usize) -> Vec<T> {
    let stride = code_bytes(k);
    let rows = dense.chunks_exact(k.max(1)).enumerate();
    let row = |(n, row): (usize, &[T])| {
        let codes = &codes[n * stride..];
        let fours = row.as_chunks::<4>().0.iter().enumerate();
        let two = |(at, four): (usize, &[T; 4])| places(codes, at).map(|place| four[place]);
        fours.flat_map(two).collect::<Vec<T>>()
    };
    rows.flat_map(row).collect()
}

/// A weight of `(N, K)` numbers: those stored at their places, `zero` elsewhere. The inverse of [`kept_of`].
pub fn expanded<T: Copy>(stored: &[T], codes: &[u8], (n, k): (usize, usize), zero: T) -> Vec<T> {
    let mut all = vec![zero; n * k];
    let rows = all.chunks_exact_mut(k.max(1)).zip(stored.chunks_exact((k / 2).max(1)));
    for (row, (dense, stored)) in rows.enumerate() {
        let codes = &codes[row * code_bytes(k)..];
        let fours = dense.as_chunks_mut::<4>().0.iter_mut().zip(stored.as_chunks::<2>().0);
        for (at, (four, two)) in fours.enumerate() {
            for (place, value) in places(codes, at).into_iter().zip(two) {
                four[place] = *value;
            }
        }
    }
    all
}

/// Packs stored numbers, codes 0 to 15, of rows of `k` columns.
pub fn pack_int4(stored: &[u8], k: usize) -> Vec<u8> {
    let bytes = int4_bytes(k);
    let mut packed = Vec::with_capacity(stored.len() / (k / 2).max(1) * bytes);
    for row in stored.chunks_exact((k / 2).max(1)) {
        for step in row.chunks(64) {
            let at = |i: usize| step.get(i).copied().unwrap_or(8);
            packed.extend((0..32).map(|j| at(j) & 15 | at(32 + j) << 4));
        }
    }
    packed
}

/// Number `at` of a packed row.
pub(super) fn int4_at(row: &[u8], at: usize) -> u8 {
    let byte = row[at / 64 * 32 + at % 32];
    if at % 64 < 32 { byte & 15 } else { byte >> 4 }
}

/// What [`pack_int4`] packed.
pub fn unpack_int4(packed: &[u8], k: usize) -> Vec<u8> {
    let rows = packed.chunks_exact(int4_bytes(k).max(1));
    rows.flat_map(|row| (0..k / 2).map(move |at| int4_at(row, at))).collect()
}

#[cfg(test)]
mod tests {
    use super::{codes_of, expanded, kept_of};
    use crate::sample::Sample;

    #[test]
    fn what_is_kept_goes_back_to_its_places() {
        let mut sample = Sample(0x24_1234);
        for (n, k) in [(1, 4), (3, 12), (5, 72), (2, 128)] {
            let mut dense = vec![-1_i8; n * k];
            for four in dense.as_chunks_mut::<4>().0 {
                for _ in 0..2 {
                    four[sample.below(4) as usize] = sample.bits().to_le_bytes()[6].cast_signed();
                }
            }
            let codes = codes_of(|row, column| dense[row * k + column] != -1, (n, k));
            let codes = codes.expect("2:4");
            assert_eq!(expanded(&kept_of(&dense, &codes, k), &codes, (n, k), -1), dense);
        }
    }
}
