//! Codes of fewer than 8 bits in bytes, as files have them, and block scales as cuBLAS reads them.

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Bytes of a row of `len` codes of `bits` bits.
pub fn packed_len(bits: usize, len: usize) -> usize {
    (bits * len).div_ceil(8)
}

/// A row of codes as a stream of bits, the first code in the lowest bits of the first byte. With 4 bits this is
/// L05's order: the even column in the low nibble.
pub fn pack_bits(bits: usize, codes: &[u8], bytes: &mut Vec<u8>) {
    let (mut held, mut count) = (0_u32, 0);
    for code in codes {
        held |= u32::from(*code) << count;
        count += bits;
        while count >= 8 {
            bytes.push(held.to_le_bytes()[0]);
            held >>= 8;
            count -= 8;
        }
    }
    if count > 0 {
        bytes.push(held.to_le_bytes()[0]);
    }
}

/// The reverse of [`pack_bits`]: fills `codes` from a row of [`packed_len`] bytes.
pub fn unpack_bits(bits: usize, bytes: &[u8], codes: &mut [u8]) {
    let (mut held, mut count) = (0_u32, 0);
    let mut bytes = bytes.iter();
    let mask = (1_u32 << bits) - 1;
    for code in codes {
        while count < bits {
            held |= u32::from(bytes.next().copied().unwrap_or(0)) << count;
            count += 8;
        }
        *code = (held & mask).to_le_bytes()[0];
        held >>= bits;
        count -= bits;
    }
}

/// A row of 6-bit codes as torchao 0.13 packs them (L07): four codes are the high four bits of the first and second,
/// of the fourth and third, then all low pairs.
pub fn pack_uint6(codes: &[u8], bytes: &mut Vec<u8>) {
    for [a, b, c, d] in codes.as_chunks::<4>().0 {
        bytes.push(b >> 2 | a << 2 & 0xF0);
        bytes.push(c >> 2 | d << 2 & 0xF0);
        bytes.push(a << 6 | b << 4 & 0x30 | d << 2 & 0x0C | c & 3);
    }
}

/// The reverse of [`pack_uint6`].
pub fn unpack_uint6(bytes: &[u8], codes: &mut [u8]) {
    let quads = codes.as_chunks_mut::<4>().0.iter_mut();
    for ([a, b, c, d], [ab, cd, low]) in quads.zip(bytes.as_chunks::<3>().0) {
        *a = ab >> 2 & 0x3C | low >> 6;
        *b = ab << 2 & 0x3C | low >> 4 & 3;
        *c = cd << 2 & 0x3C | low & 3;
        *d = cd >> 2 & 0x3C | low >> 2 & 3;
    }
}

/// A matrix of block scales in cuBLAS's order (L08, M10): tiles of 128 × 4, in which rows r, r + 32, r + 64 and r + 96
/// follow each other; what the last tiles lack is zero.
pub fn to_blocked(scales: &Tensor) -> Result<Tensor> {
    let (rows, columns) = scales.dims2()?;
    let from = scales.as_slice::<u8>()?;
    let mut to = vec![0; rows.next_multiple_of(128) * columns.next_multiple_of(4)];
    for (at, value) in from.iter().enumerate() {
        to[blocked_index(at / columns, at % columns, columns)] = *value;
    }
    let len = to.len();
    Tensor::new(to, &[len])
}

/// The reverse of [`to_blocked`] for a matrix of `rows` × `columns`.
pub fn from_blocked(blocked: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
    let from = blocked.as_slice::<u8>()?;
    let padded = |len: usize, to: usize| len.checked_next_multiple_of(to);
    let wanted = padded(rows, 128).zip(padded(columns, 4)).and_then(|(r, c)| r.checked_mul(c));
    if wanted != Some(from.len()) {
        let got = from.len();
        return Err(Error::invalid(format!(
            "{rows} × {columns} scales in tiles of 128 × 4 are {wanted:?} bytes; got {got}"
        )));
    }
    let values = (0..rows * columns)
        .map(|at| from[blocked_index(at / columns, at % columns, columns)])
        .collect::<Vec<u8>>();
    Tensor::new(values, &[rows, columns])
}

fn blocked_index(row: usize, column: usize, columns: usize) -> usize {
    let tile = row / 128 * columns.div_ceil(4) + column / 4;
    let row = row % 128;
    tile * 512 + row % 32 * 16 + row / 32 * 4 + column % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_every_width_come_back() {
        for bits in 1..=8 {
            for len in [0, 1, 3, 4, 7, 8, 64] {
                let codes: Vec<u8> = (0..len)
                    .map(|i| (37 * i + 11_usize).to_le_bytes()[0] & (0xFF >> (8 - bits)))
                    .collect();
                let (mut bytes, mut back) = (Vec::new(), vec![0; len]);
                pack_bits(bits, &codes, &mut bytes);
                assert_eq!(bytes.len(), packed_len(bits, len));
                unpack_bits(bits, &bytes, &mut back);
                assert_eq!(back, codes, "{bits} bits");
            }
        }
        let mut bytes = Vec::new();
        pack_bits(4, &[1, 2, 3, 4], &mut bytes);
        assert_eq!(bytes, [0x21, 0x43], "the even column in the low nibble");
    }

    #[test]
    fn six_bits_are_packed_as_torchao_did() {
        // pack_uint6_pytorch of torchao 0.13: 0b000001, 0b000010, 0b000011, 0b000100.
        let mut bytes = Vec::new();
        pack_uint6(&[1, 2, 3, 4], &mut bytes);
        assert_eq!(bytes, [0b0000_0000, 0b0001_0000, 0b0110_0011]);
        let codes: Vec<u8> = (0..64).map(|i| (i * 29 + 5) & 63).collect();
        let (mut bytes, mut back) = (Vec::new(), vec![0; 64]);
        pack_uint6(&codes, &mut bytes);
        unpack_uint6(&bytes, &mut back);
        assert_eq!(back, codes);
    }

    #[test]
    fn blocked_scales_come_back() {
        for (rows, columns) in [(1, 1), (128, 4), (140, 9), (256, 8), (33, 5)] {
            let values: Vec<u8> =
                (0..rows * columns).map(|i| (i * 7 + 1_usize).to_le_bytes()[0]).collect();
            let scales = Tensor::new(values, &[rows, columns]).expect("its shape");
            let blocked = to_blocked(&scales).expect("a matrix of bytes");
            assert_eq!(blocked.bytes().len() % 512, 0);
            let back = from_blocked(&blocked, rows, columns).expect("as many");
            assert_eq!(back.bytes(), scales.bytes());
            assert!(from_blocked(&blocked, rows + 128, columns).is_err());
            assert!(from_blocked(&blocked, usize::MAX, usize::MAX).is_err());
        }
    }
}
