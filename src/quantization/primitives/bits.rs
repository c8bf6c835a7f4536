//! Codes of fewer than 8 bits in bytes: shards of uintx (N26), bit streams of rows (L12), BitNet's two bits (L13).

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The widths of the shards of codes of `bits` bits, the low bits first (N26).
pub fn shard_widths(bits: u32) -> Result<&'static [u32]> {
    match bits {
        1 => Ok(&[1]),
        2 => Ok(&[2]),
        3 => Ok(&[2, 1]),
        4 => Ok(&[4]),
        5 => Ok(&[4, 1]),
        6 => Ok(&[4, 2]),
        7 => Ok(&[4, 2, 1]),
        other => {
            Err(Error::invalid(format!("codes of {other} bits have no shards; wanted 1 to 7")))
        }
    }
}

/// The shards of u8 codes `(N, K)` along K (N26), each u8 `(N, K · width / 8)`.
///
/// A row is cut into `8 / width` neighbouring slices; byte i holds code i of each, the first slice's in the lowest bits.
pub fn pack_shards(codes: &Tensor, bits: u32) -> Result<Vec<Tensor>> {
    let (n, k) = codes.dims2()?;
    check_shards(k)?;
    let values = codes.as_slice::<u8>()?;
    let mut below = 0;
    let mut shards = Vec::new();
    for &width in shard_widths(bits)? {
        let slices = 8 / width as usize;
        let len = k / slices;
        let mask = 0xff_u8 >> (8 - width);
        let byte = |row: &[u8], i: usize| {
            (0..slices).fold(0, |byte, j| {
                byte | (((row[j * len + i] >> below) & mask) << (j * width as usize))
            })
        };
        let rows = values.chunks_exact(k.max(1));
        let bytes: Vec<u8> =
            rows.flat_map(|row| (0..len).map(|i| byte(row, i)).collect::<Vec<_>>()).collect();
        shards.push(Tensor::new(bytes, &[n, len])?);
        below += width;
    }
    Ok(shards)
}

/// The codes of [`pack_shards`], u8 `(N, K)`.
pub fn unpack_shards(shards: &[Tensor], bits: u32) -> Result<Tensor> {
    let widths = shard_widths(bits)?;
    if shards.len() != widths.len() {
        let got = shards.len();
        return Err(Error::invalid(format!("{bits} bits are {} shards; got {got}", widths.len())));
    }
    let (n, bytes) = shards[0].dims2()?;
    let k = bytes * 8 / widths[0] as usize;
    let mut codes = vec![0_u8; n * k];
    let mut below = 0;
    for (shard, &width) in shards.iter().zip(widths) {
        let len = k * width as usize / 8;
        if shard.shape() != [n, len] {
            return Err(Error::invalid(format!(
                "a shard is {:?}; wanted ({n}, {len})",
                shard.shape()
            )));
        }
        let mask = 0xff_u8 >> (8 - width);
        let rows =
            codes.chunks_exact_mut(k.max(1)).zip(shard.as_slice::<u8>()?.chunks_exact(len.max(1)));
        for (row, bytes) in rows {
            for (j, code) in row.iter_mut().enumerate() {
                *code |= ((bytes[j % len] >> (j / len * width as usize)) & mask) << below;
            }
        }
        below += width;
    }
    Tensor::new(codes, &[n, k])
}

fn check_shards(k: usize) -> Result<()> {
    if k.is_multiple_of(8) {
        return Ok(());
    }
    Err(Error::invalid(format!("K = {k}: shards hold whole bytes; wanted a multiple of 8")))
}

/// How many bytes a row of `k` codes takes as a stream of bits.
pub fn stream_nbytes(k: usize, bits: u32) -> Option<usize> {
    Some(k.checked_mul(bits as usize)?.div_ceil(8))
}

/// Appends a row of codes to `bytes` as one stream of bits, the lowest first (L12); the last byte is filled up with zeros.
#[expect(clippy::cast_possible_truncation, reason = "the low byte, after which it is shifted out")]
pub fn push_stream(codes: &[u8], bits: u32, bytes: &mut Vec<u8>) {
    let (mut buffer, mut held) = (0_u32, 0);
    for &code in codes {
        buffer |= u32::from(code) << held;
        held += bits;
        while held >= 8 {
            bytes.push(buffer as u8);
            (buffer, held) = (buffer >> 8, held - 8);
        }
    }
    if held > 0 {
        bytes.push(buffer as u8);
    }
}

/// Reads a row back from its stream of bits.
#[expect(clippy::cast_possible_truncation, reason = "masked to at most 8 bits")]
pub fn read_stream(bytes: &[u8], bits: u32, codes: &mut [u8]) {
    let (mut buffer, mut held) = (0_u32, 0);
    let mut bytes = bytes.iter();
    for code in codes {
        if held < bits {
            buffer |= u32::from(bytes.next().copied().unwrap_or(0)) << held;
            held += 8;
        }
        *code = (buffer & ((1 << bits) - 1)) as u8;
        (buffer, held) = (buffer >> bits, held - bits);
    }
}

/// Refuses rows of `k` codes whose last byte has bits beyond them: the row was longer, or something else.
pub fn check_streams(bytes: &[u8], k: usize, bits: u32) -> Result<()> {
    let used = k * bits as usize % 8;
    let nbytes = stream_nbytes(k, bits).unwrap_or(0);
    let over = |row: &[u8]| row.last().is_some_and(|last| used > 0 && last >> used != 0);
    if nbytes == 0 || !bytes.chunks_exact(nbytes).any(over) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a row of codes goes on behind K = {k}: its last byte has more than {used} bits; wanted zeros"
    )))
}

/// Ternary codes −1, 0, 1, four a byte, the first in the top bits, as two's complement (L13).
pub fn pack_i2_in_i8(codes: &Tensor) -> Result<Tensor> {
    let (n, k) = codes.dims2()?;
    if !k.is_multiple_of(4) {
        return Err(Error::invalid(format!(
            "K = {k}: four codes share a byte; wanted a multiple of 4"
        )));
    }
    let (fours, _) = codes.as_slice::<i8>()?.as_chunks::<4>();
    let byte = |[a, b, c, d]: &[i8; 4]| (a << 6) | ((b & 3) << 4) | ((c & 3) << 2) | (d & 3);
    Tensor::new(fours.iter().map(byte).collect::<Vec<i8>>(), &[n, k / 4])
}

/// The codes of [`pack_i2_in_i8`], i8 `(N, K)`.
pub fn unpack_i2_in_i8(packed: &Tensor) -> Result<Tensor> {
    let (n, bytes) = packed.dims2()?;
    let four = |byte: &i8| [byte >> 6, byte << 2 >> 6, byte << 4 >> 6, byte << 6 >> 6];
    let codes: Vec<i8> = packed.as_slice::<i8>()?.iter().flat_map(four).collect();
    Tensor::new(codes, &[n, 4 * bytes])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn random(n: usize, k: usize, bits: u32) -> Tensor {
        let mut rng = Rng::new(u64::from(bits));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 2⁸")]
        let code = |_| (rng.uniform() * f64::from(1 << bits)) as u8;
        Tensor::new((0..n * k).map(code).collect::<Vec<u8>>(), &[n, k]).expect("a matrix")
    }

    #[test]
    fn shards_are_those_of_the_feature_map() {
        let codes = vec![0x30_u8, 0x29, 0x17, 0x05, 0x20, 0x16, 0x09, 0x22];
        let shards = pack_shards(&Tensor::new(codes, &[1, 8]).expect("a row"), 6).expect("packs");
        assert_eq!(shards[0].as_slice::<u8>().expect("bytes"), [0, 105, 151, 37]);
        assert_eq!(shards[1].as_slice::<u8>().expect("bytes"), [39, 146]);
    }

    #[test]
    fn every_packing_gives_its_codes_back() {
        for bits in 1..=8 {
            for (n, k) in [(1, 8), (3, 16), (2, 64)] {
                let codes = random(n, k, bits);
                if bits < 8 {
                    let shards = pack_shards(&codes, bits).expect("packs");
                    let nbytes: usize = shards.iter().map(Tensor::nbytes).sum();
                    assert_eq!(nbytes, n * k * bits as usize / 8);
                    let back = unpack_shards(&shards, bits).expect("unpacks");
                    assert_eq!(back.bytes(), codes.bytes(), "{bits} bits ({n}, {k})");
                }
            }
            for k in [0, 1, 3, 7, 8, 13, 100] {
                let codes = random(1, k, bits);
                let mut stream = Vec::new();
                push_stream(codes.bytes(), bits, &mut stream);
                assert_eq!(Some(stream.len()), stream_nbytes(k, bits));
                let mut back = vec![9; k];
                read_stream(&stream, bits, &mut back);
                assert_eq!(back, codes.bytes(), "{bits} bits, {k}");
            }
        }
        assert!(pack_shards(&random(1, 12, 3), 3).is_err());
        assert!(pack_shards(&random(1, 8, 8), 8).is_err());
    }

    #[test]
    fn ternary_bytes_are_twos_complement_the_first_on_top() {
        let codes = Tensor::new(vec![-1_i8, 0, 1, -1, 1, 1, 0, 0], &[1, 8]).expect("a row");
        let packed = pack_i2_in_i8(&codes).expect("packs");
        let bytes: Vec<u8> = packed.bytes().to_vec();
        assert_eq!(bytes, [0b1100_0111, 0b0101_0000]);
        assert_eq!(unpack_i2_in_i8(&packed).expect("unpacks").bytes(), codes.bytes());
    }
}
