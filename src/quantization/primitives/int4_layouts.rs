//! Layouts of 4-bit codes for other kernels than ours: tinygemm's tiles (L01), ATen's for AVX-512, plain 32-bit words (L03).
//!
//! Each holds the codes `(N, K)`, 0 ..= 15, without loss and gives them back.

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Rows of a tile of tinygemm, and columns of one of its 16-column steps.
const TILE: (usize, usize) = (8, 16);
/// Lanes that read a tile.
const LANES: usize = 32;
/// Where in its two 16-column steps the codes of a lane's word lie, from the lowest nibble on.
const COLUMNS: [usize; 8] = [0, 8, 16, 24, 1, 9, 17, 25];

fn wrong_shape(what: &str, shape: &[usize], wanted: &str) -> Error {
    Error::invalid(format!("{what} is {shape:?}; wanted {wanted}"))
}

/// `aten._convert_weight_to_int4pack` on a GPU (L01): codes u8 `(N, K)` to i32 `(N/8, K/(16·ikt), 32, ikt/2)`, `ikt` the inner tiles
/// along K: 2, 4 or 8.
pub fn pack_tinygemm_tiles(codes: &Tensor, inner_k_tiles: usize) -> Result<Tensor> {
    let (n, k) = codes.dims2()?;
    let q = codes.as_slice::<u8>()?;
    let shape = tile_shape((n, k), inner_k_tiles)?;
    let mut words = vec![0_i32; shape.iter().product()];
    for_each_code(&shape, inner_k_tiles, |word, nibble, row, column| {
        words[word] |= i32::from(q[row * k + column] & 15) << (4 * nibble);
    });
    Tensor::new(words, &shape)
}

/// The codes of [`pack_tinygemm_tiles`].
pub fn unpack_tinygemm_tiles(packed: &Tensor) -> Result<Tensor> {
    let shape: [usize; 4] = packed.shape().try_into().map_err(|_| {
        wrong_shape("a tile-packed weight", packed.shape(), "(N/8, K/(16·ikt), 32, ikt/2)")
    })?;
    let inner_k_tiles = 2 * shape[3];
    let (n, k) = (shape[0] * TILE.0, shape[1] * TILE.1 * inner_k_tiles);
    if tile_shape((n, k), inner_k_tiles)? != shape {
        return Err(wrong_shape("a tile-packed weight", &shape, "(N/8, K/(16·ikt), 32, ikt/2)"));
    }
    let words = packed.as_slice::<i32>()?;
    let mut codes = vec![0_u8; n * k];
    for_each_code(&shape, inner_k_tiles, |word, nibble, row, column| {
        let shifted = words[word].cast_unsigned() >> (4 * nibble);
        codes[row * k + column] = shifted.to_le_bytes()[0] & 15;
    });
    Tensor::new(codes, &[n, k])
}

fn tile_shape((n, k): (usize, usize), inner_k_tiles: usize) -> Result<[usize; 4]> {
    let known = [2, 4, 8].contains(&inner_k_tiles);
    if known && n.is_multiple_of(TILE.0) && k.is_multiple_of(TILE.1 * inner_k_tiles) {
        return Ok([n / TILE.0, k / (TILE.1 * inner_k_tiles), LANES, inner_k_tiles / 2]);
    }
    Err(Error::invalid(format!(
        "N = {n}, K = {k}, inner_k_tiles {inner_k_tiles}: wanted N a multiple of 8, K of 16 · inner_k_tiles, and that 2, 4 or 8"
    )))
}

/// Calls `f(word, nibble, row, column)` for every code.
fn for_each_code(
    &[tiles, outer, _, words]: &[usize; 4],
    inner_k_tiles: usize,
    mut f: impl FnMut(usize, usize, usize, usize),
) {
    for word in 0..tiles * outer * LANES * words {
        let (pair, lane) = (word % words, word / words % LANES);
        let (step, tile) = (word / words / LANES % outer, word / words / LANES / outer);
        let row = TILE.0 * tile + lane / 4;
        let first = (step * inner_k_tiles + 2 * pair) * TILE.1 + lane % 4 * 2;
        for (nibble, column) in COLUMNS.iter().enumerate() {
            f(word, nibble, row, first + column);
        }
    }
}

/// Rows of a block of ATen's layout for AVX-512.
const CPU_BLOCK: usize = 64;

/// `aten._convert_weight_to_int4pack_for_cpu` on a processor with AVX-512: codes u8 `(N, K)` to u8 `(N, K/2)`. N is a multiple of 16.
pub fn pack_int4_for_avx512(codes: &Tensor) -> Result<Tensor> {
    let (n, k) = codes.dims2()?;
    check_avx512((n, k))?;
    let q = codes.as_slice::<u8>()?;
    let mut bytes = vec![0; n * k / 2];
    for_each_avx512((n, k), |byte, low, high| bytes[byte] = (q[low] & 15) | q[high] << 4);
    Tensor::new(bytes, &[n, k / 2])
}

/// The codes of [`pack_int4_for_avx512`].
pub fn unpack_int4_for_avx512(packed: &Tensor) -> Result<Tensor> {
    let (n, half) = packed.dims2()?;
    check_avx512((n, 2 * half))?;
    let bytes = packed.as_slice::<u8>()?;
    let mut codes = vec![0; 2 * n * half];
    for_each_avx512((n, 2 * half), |byte, low, high| {
        (codes[low], codes[high]) = (bytes[byte] & 15, bytes[byte] >> 4);
    });
    Tensor::new(codes, &[n, 2 * half])
}

fn check_avx512((n, k): (usize, usize)) -> Result<()> {
    if n.is_multiple_of(16) && k.is_multiple_of(2) {
        return Ok(());
    }
    Err(Error::invalid(format!("N = {n}, K = {k}: wanted N a multiple of 16 and an even K")))
}

/// Calls `f(byte, low code, high code)` for every byte: of 64 rows, those 32 apart share one; of a shorter block, neighbours.
fn for_each_avx512((n, k): (usize, usize), mut f: impl FnMut(usize, usize, usize)) {
    for first in (0..n).step_by(CPU_BLOCK) {
        let rows = CPU_BLOCK.min(n - first);
        for column in 0..k {
            for i in 0..rows / 2 {
                let (low, high) = if rows == CPU_BLOCK {
                    (i % 16 + i / 16 * 16, i % 16 + i / 16 * 16 + 32)
                } else {
                    (2 * i, 2 * i + 1)
                };
                let byte = first * k / 2 + column * (rows / 2) + i;
                f(byte, (first + low) * k + column, (first + high) * k + column);
            }
        }
    }
}

/// `Int4PlainInt32Tensor`'s words on XPU (L03): codes u8 `(N, K)` to i32 `(N, K/8)`, the first code in the lowest nibble.
pub fn pack_plain_int32(codes: &Tensor) -> Result<Tensor> {
    let (n, k) = codes.dims2()?;
    if !k.is_multiple_of(8) {
        return Err(Error::invalid(format!(
            "K = {k}: eight codes share a word; wanted a multiple of 8"
        )));
    }
    let (eights, _) = codes.as_slice::<u8>()?.as_chunks::<8>();
    let word = |eight: &[u8; 8]| {
        eight.iter().rev().fold(0_u32, |word, code| word << 4 | u32::from(code & 15)).cast_signed()
    };
    Tensor::new(eights.iter().map(word).collect::<Vec<i32>>(), &[n, k / 8])
}

/// The codes of [`pack_plain_int32`].
pub fn unpack_plain_int32(packed: &Tensor) -> Result<Tensor> {
    let (n, words) = packed.dims2()?;
    let code = |word: &i32| {
        let bytes = word.to_le_bytes();
        bytes.into_iter().flat_map(|byte| [byte & 15, byte >> 4])
    };
    let codes: Vec<u8> = packed.as_slice::<i32>()?.iter().flat_map(code).collect();
    Tensor::new(codes, &[n, 8 * words])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(n: usize, k: usize) -> Tensor {
        let code = |i: usize| ((i * 2_654_435_761) >> 7).to_le_bytes()[0] & 15;
        Tensor::new((0..n * k).map(code).collect::<Vec<u8>>(), &[n, k]).expect("a matrix")
    }

    #[test]
    fn every_layout_gives_its_codes_back() {
        for (n, k) in [(8, 128), (24, 256), (64, 128), (128, 384)] {
            let q = codes(n, k);
            for inner_k_tiles in [2, 4, 8] {
                let packed = pack_tinygemm_tiles(&q, inner_k_tiles).expect("whole tiles");
                assert_eq!(packed.shape()[..3], [n / 8, k / 16 / inner_k_tiles, 32]);
                assert_eq!(unpack_tinygemm_tiles(&packed).expect("unpacks").bytes(), q.bytes());
            }
            let packed = pack_plain_int32(&q).expect("whole words");
            assert_eq!(unpack_plain_int32(&packed).expect("unpacks").bytes(), q.bytes());
        }
        for n in [16, 32, 48, 64, 80, 128] {
            let q = codes(n, 32);
            let packed = pack_int4_for_avx512(&q).expect("whole blocks");
            assert_eq!(unpack_int4_for_avx512(&packed).expect("unpacks").bytes(), q.bytes());
        }
        assert!(pack_tinygemm_tiles(&codes(7, 128), 8).is_err());
        assert!(pack_tinygemm_tiles(&codes(8, 64), 8).is_err());
        assert!(pack_tinygemm_tiles(&codes(8, 128), 3).is_err());
        assert!(pack_int4_for_avx512(&codes(8, 32)).is_err());
        assert!(pack_plain_int32(&codes(8, 12)).is_err());
    }

    #[test]
    fn a_lane_holds_the_codes_of_its_row_in_tinygemms_order() {
        let mut q = vec![0_u8; 8 * 32];
        // Lane 5 reads row 1 from column 2 on.
        for (nibble, column) in [2, 10, 18, 26, 3, 11, 19, 27].into_iter().enumerate() {
            q[32 + column] = u8::try_from(nibble + 1).expect("small");
        }
        let packed = pack_tinygemm_tiles(&Tensor::new(q, &[8, 32]).expect("a tile"), 2);
        let words = packed.expect("a tile");
        assert_eq!(words.as_slice::<i32>().expect("i32")[5].cast_unsigned(), 0x8765_4321);
    }
}
