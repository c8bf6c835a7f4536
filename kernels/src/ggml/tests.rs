#![expect(clippy::float_cmp, reason = "these values are exact in f32")]

use super::*;

/// A 64-bit linear congruential generator; its upper byte is random enough for blocks.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn u8(&mut self) -> u8 {
        const MULTIPLIER: u64 = 6_364_136_223_846_793_005; // Knuth's MMIX
        self.0 = self.0.wrapping_mul(MULTIPLIER).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 56) as u8
    }

    /// Uniform in [−1, 1).
    pub(super) fn f32(&mut self) -> f32 {
        let bits = u32::from_le_bytes([0, self.u8(), self.u8(), self.u8()]) >> 8;
        bits as f32 / 8_388_608.0 - 1.0
    }

    /// Blocks of random codes whose f16 scales are normal numbers of either sign.
    pub(super) fn blocks(&mut self, ty: BlockType, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..count * ty.block_bytes()).map(|_| self.u8()).collect();
        for block in bytes.chunks_mut(ty.block_bytes()) {
            for &at in halves(ty) {
                block[at + 1] = block[at + 1] & 0x93 | 0x20;
            }
        }
        bytes
    }
}

/// Where a block keeps its f16 fields.
pub(super) fn halves(ty: BlockType) -> &'static [usize] {
    match ty {
        BlockType::F32 | BlockType::Bf16 => &[],
        BlockType::F16 | BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => &[0],
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q2K => &[80, 82],
        BlockType::Q3K => &[108],
        BlockType::Q6K => &[208],
    }
}

pub(super) fn quantized() -> impl Iterator<Item = BlockType> {
    BlockType::ALL.into_iter().filter(|ty| ty.is_quantized())
}

fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[test]
fn dequantize_gives_the_bits_of_gguf_py() {
    // Hashes of the f32 bytes that gguf 0.19.0 (PyPI) computes for these 64 blocks.
    let golden = [
        (BlockType::Q4_0, 0x6c78_422f_4afb_b570),
        (BlockType::Q4_1, 0x30c8_96ec_5942_d20e),
        (BlockType::Q5_0, 0x0f18_fc15_3b1b_625d),
        (BlockType::Q5_1, 0x19d9_970d_8965_1913),
        (BlockType::Q8_0, 0xd060_98f8_0c5a_8517),
        (BlockType::Q2K, 0xafaf_b720_1d59_4234),
        (BlockType::Q3K, 0x19bb_ae10_c285_75d1),
        (BlockType::Q4K, 0x0c01_6cee_1434_74e1),
        (BlockType::Q5K, 0x83fc_8571_6319_aa6e),
        (BlockType::Q6K, 0x4543_74bc_faf7_b038),
    ];
    for (ty, hash) in golden {
        let blocks = Random(7).blocks(ty, 64);
        let mut y = vec![f32::NAN; 64 * ty.block_len()];
        dequantize(ty, &blocks, &mut y);
        let bytes = y.iter().flat_map(|v| v.to_le_bytes());
        assert_eq!(fnv1a(bytes), hash, "{}: starts with {:?}", ty.name(), &y[..4]);
    }
}

#[test]
fn quantize_gives_the_bytes_of_gguf_py() {
    let mut random = Random(11);
    let mut draw = || {
        let mantissa = f32::from(random.u8()) - 128.0;
        mantissa / 64.0 * f32::from(1_u8 << (random.u8() % 4))
    };
    let w: Vec<f32> = (0..64 * 32).map(|_| draw()).collect();
    let golden = [
        (BlockType::Q8_0, 0xaeb5_05c0_8c33_6a41),
        (BlockType::Q4_0, 0xa9a3_befe_2ffe_4d5c),
        (BlockType::Q4_1, 0xbda7_c399_ec11_e8fc),
    ];
    for (ty, hash) in golden {
        let mut blocks = vec![0xff; 64 * ty.block_bytes()];
        quantize(ty, &w, &mut blocks);
        assert_eq!(fnv1a(blocks.iter().copied()), hash, "{}", ty.name());
    }
}

/// Code `k` of a block before its offset is taken away, read bit by bit from (byte, bit) positions.
fn code(ty: BlockType, b: &[u8], k: usize) -> u32 {
    let bit = |byte: usize, bit: usize| u32::from(b[byte] >> bit & 1);
    let low = |first: usize, at: usize, width: usize, shift: usize| {
        (0..width).map(|i| bit(first + at, shift + i) << i).sum::<u32>()
    };
    // Position in a half of 128 numbers, for the types that interleave quarters of 32.
    let (half, quarter, lane) = (k / 128, k / 32 % 4, k % 32);
    match ty {
        BlockType::Q4_0 => low(2, k % 16, 4, k / 16 * 4),
        BlockType::Q4_1 => low(4, k % 16, 4, k / 16 * 4),
        BlockType::Q5_0 => low(6, k % 16, 4, k / 16 * 4) + 16 * bit(2 + k / 8, k % 8),
        BlockType::Q5_1 => low(8, k % 16, 4, k / 16 * 4) + 16 * bit(4 + k / 8, k % 8),
        BlockType::Q8_0 => low(2, k, 8, 0),
        BlockType::Q2K => low(16, half * 32 + lane, 2, quarter * 2),
        BlockType::Q3K => low(32, half * 32 + lane, 2, quarter * 2) + 4 * bit(lane, k / 32),
        BlockType::Q4K => low(16, k / 64 * 32 + lane, 4, k / 32 % 2 * 4),
        BlockType::Q5K => {
            low(48, k / 64 * 32 + lane, 4, k / 32 % 2 * 4) + 16 * bit(16 + lane, k / 32)
        }
        BlockType::Q6K => {
            low(0, half * 64 + quarter % 2 * 32 + lane, 4, quarter / 2 * 4)
                + 16 * low(128, half * 32 + lane, 2, quarter * 2)
        }
        _ => unreachable!("a float type has no codes"),
    }
}

/// Scale and offset of number `k`, in f64: `w = scale·code + offset`.
fn scale_and_offset(ty: BlockType, b: &[u8], k: usize) -> (f64, f64) {
    let halves: Vec<f64> = halves(ty)
        .iter()
        .map(|&at| half::f16::from_bits(u16::from_le_bytes([b[at], b[at + 1]])).to_f64())
        .collect();
    let d = halves[0];
    let sub = k / 32;
    let six_bits = |low: u8, high: u8| f64::from(low & 15) + 16.0 * f64::from(high & 3);
    match ty {
        BlockType::Q4_0 => (d, -8.0 * d),
        BlockType::Q5_0 => (d, -16.0 * d),
        BlockType::Q4_1 | BlockType::Q5_1 => (d, halves[1]),
        BlockType::Q8_0 => (d, if b[2 + k] > 127 { -256.0 * d } else { 0.0 }),
        BlockType::Q2K => {
            let s = b[k / 16];
            (d * f64::from(s % 16), -halves[1] * f64::from(s / 16))
        }
        BlockType::Q3K => {
            let (s, j) = (&b[96..108], k / 16);
            let low = if j < 8 { s[j] } else { s[j - 8] >> 4 };
            let scale = d * (six_bits(low, s[8 + j % 4] >> (j / 4 * 2)) - 32.0);
            (scale, -4.0 * scale)
        }
        BlockType::Q4K | BlockType::Q5K => {
            let s = &b[4..16];
            let (scale, min) = if sub < 4 {
                (f64::from(s[sub] % 64), f64::from(s[sub + 4] % 64))
            } else {
                let split = s[sub + 4];
                (six_bits(split, s[sub - 4] >> 6), six_bits(split >> 4, s[sub] >> 6))
            };
            (d * scale, -halves[1] * min)
        }
        BlockType::Q6K => {
            let scale = d * f64::from(b[192 + k / 16].cast_signed());
            (scale, -32.0 * scale)
        }
        _ => unreachable!("a float type has no scale"),
    }
}

#[test]
fn dequantize_follows_the_bits() {
    // Two or three f32 roundings, each at most 2^-24 of the larger of the two terms.
    const TOLERANCE: f64 = 4.0 / 16_777_216.0;
    for ty in quantized() {
        let blocks = Random(u64::from(ty.ggml_id()) + 100).blocks(ty, 50);
        let mut y = vec![f32::NAN; 50 * ty.block_len()];
        dequantize(ty, &blocks, &mut y);
        for (i, &got) in y.iter().enumerate() {
            let block = &blocks[i / ty.block_len() * ty.block_bytes()..][..ty.block_bytes()];
            let k = i % ty.block_len();
            let (scale, offset) = scale_and_offset(ty, block, k);
            let q = f64::from(code(ty, block, k));
            let (wanted, size) = (scale * q + offset, (scale * q).abs() + offset.abs());
            let error = (f64::from(got) - wanted).abs();
            assert!(error <= TOLERANCE * size, "{} {i}: {got}, wanted {wanted}", ty.name());
        }
    }
}

#[test]
fn writing_the_fields_gives_the_block_back() {
    for ty in quantized() {
        let blocks = Random(u64::from(ty.ggml_id()) + 200).blocks(ty, 30);
        let mut read = fields::Fields::ZERO;
        for block in blocks.chunks(ty.block_bytes()) {
            let mut written = vec![0xff; block.len()];
            fields::reader(ty)(block, &mut read);
            fields::write(ty, &read, &mut written);
            assert_eq!(written, block, "{}", ty.name());
        }
    }
}

#[test]
fn blocks_written_by_hand() {
    // 0x3c00 is 1.0 and 0xc000 is −2.0 in f16.
    let mut q4_1 = vec![0x00, 0x3c, 0x00, 0xc0];
    q4_1.extend((0..16).map(|j| j | (15 - j) << 4));
    let mut y = [f32::NAN; 32];
    dequantize(BlockType::Q4_1, &q4_1, &mut y);
    for (j, pair) in (0_u8..16).zip(y[..16].iter().zip(&y[16..])) {
        assert_eq!(pair, (&(f32::from(j) - 2.0), &(13.0 - f32::from(j))));
    }
    let mut q8_0 = vec![0x00, 0xc0];
    q8_0.extend((0..32_u8).map(|j| j.wrapping_mul(5).wrapping_sub(128)));
    dequantize(BlockType::Q8_0, &q8_0, &mut y);
    for (j, &got) in (0_u8..32).zip(&y) {
        assert_eq!(got, -2.0 * f32::from(j.wrapping_mul(5).wrapping_sub(128).cast_signed()));
    }
}

#[test]
fn float_types_keep_their_bits() {
    let values = [0.0, -0.0, 1.5, -65504.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for ty in [BlockType::F32, BlockType::F16, BlockType::Bf16] {
        let mut blocks = vec![0; values.len() * ty.block_bytes()];
        let mut y = [1.0; 7];
        quantize(ty, &values, &mut blocks);
        dequantize(ty, &blocks, &mut y);
        let rounded = if ty == BlockType::Bf16 { -65536.0_f32 } else { -65504.0 };
        assert_eq!(y.map(f32::to_bits)[..3], values.map(f32::to_bits)[..3], "{}", ty.name());
        assert_eq!(y[3..6], [rounded, f32::INFINITY, f32::NEG_INFINITY], "{}", ty.name());
        assert!(y[6].is_nan(), "{}", ty.name());
    }
}

#[test]
fn quantizers_stay_within_their_error() {
    let mut random = Random(3);
    for (ty, steps) in [(BlockType::Q8_0, 127.0), (BlockType::Q4_0, 8.0), (BlockType::Q4_1, 15.0)] {
        for scale in [1.0, 1e-3, 300.0] {
            let w: Vec<f32> = (0..32 * 20).map(|_| random.f32() * scale).collect();
            let mut blocks = vec![0; 20 * ty.block_bytes()];
            let mut y = vec![f32::NAN; w.len()];
            quantize(ty, &w, &mut blocks);
            dequantize(ty, &blocks, &mut y);
            for (w, y) in w.chunks(32).zip(y.chunks(32)) {
                let amax = w.iter().fold(0.0, |a: f32, v| a.max(v.abs()));
                let spread = if ty == BlockType::Q4_1 { 2.0 * amax } else { amax };
                // Half a step, or a whole one where Q4_0 cuts +8 off. Rounding d and m to f16 adds 2^-11 of the
                // range, or 2^-25 a step where they are subnormal.
                let step = spread / steps * if ty == BlockType::Q4_0 { 1.0 } else { 0.5 };
                let bound = step + 3.0 * amax / 2048.0 + (steps + 1.0) / 33_554_432.0;
                for (w, y) in w.iter().zip(y) {
                    assert!((w - y).abs() <= bound, "{}: {w} became {y}", ty.name());
                }
            }
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for ty in BlockType::ALL {
        let mut blocks = vec![0xff; 256 / ty.block_len() * ty.block_bytes()];
        for weighted in [false, true] {
            let mut y = [f32::NAN; 256];
            if weighted {
                quantize_weighted(ty, &[0.0; 256], &[1.0; 256], &mut blocks);
            } else {
                quantize(ty, &[0.0; 256], &mut blocks);
            }
            dequantize(ty, &blocks, &mut y);
            assert_eq!(y, [0.0; 256], "{} {weighted}", ty.name());
        }
    }
}

#[test]
fn names_ids_and_sizes() {
    for ty in BlockType::ALL {
        assert_eq!(BlockType::from_ggml_id(ty.ggml_id()), Some(ty));
        assert_eq!(BlockType::from_name(ty.name()), Some(ty));
        assert_eq!(ty.nbytes(3 * ty.block_len()), Some(3 * ty.block_bytes()));
        let fits = ty.block_bytes() <= ty.block_len();
        assert_eq!(ty.nbytes(usize::MAX / 256 * 256).is_some(), fits, "{}", ty.name());
    }
    assert_eq!(BlockType::Q4_0.nbytes(33), None);
    assert_eq!(BlockType::from_ggml_id(4), None);
    assert_eq!(BlockType::from_name("Q4_2"), None);
}

#[test]
#[should_panic(expected = "dequantize: blocks must be")]
fn a_block_too_few() {
    dequantize(BlockType::Q4_0, &[0; 18], &mut [0.0; 64]);
}

#[test]
#[should_panic(expected = "rows are as long as importance")]
fn importance_of_another_length() {
    quantize_weighted(BlockType::Q4_0, &[0.0; 64], &[1.0; 48], &mut [0; 36]);
}
