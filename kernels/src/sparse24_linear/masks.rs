//! The codes of three bits as masks: 512 columns of a row at a time.

use std::arch::x86_64::*;

use super::STEP;

/// Steps of 64 columns that are decoded together.
pub(super) const CHUNK: usize = 8;

/// Columns of a chunk.
pub(super) const CHUNK_K: usize = CHUNK * STEP;

/// Bytes of codes of a chunk.
pub(super) const CODE_BYTES: usize = 6 * CHUNK;

/// Column k of step s is stored where bit k of mask s is set.
///
/// Six bytes go to each eight, six bits to each byte; a byte's two codes then become two nibbles, whose highest bit is the sum (without
/// carry) of the other three: a multiplication of bits by a constant matrix.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
pub(super) fn masks(codes: &[u8; CODE_BYTES], out: &mut [u64; CHUNK]) {
    let places: [u8; 64] = const {
        let (mut places, mut i, mut place) = ([0; 64], 0, 0);
        while i < 64 {
            // The last two of eight are not read: any place will do.
            if i % 8 < 6 {
                places[i] = place;
                place += 1;
            }
            i += 1;
        }
        places
    };
    let shifts = _mm512_set1_epi64(0x2a24_1e18_120c_0600);
    // Bit i of a byte is the sum of the bits that row i names; the last byte is row 0.
    let rows = _mm512_set1_epi64(0x0102_0407_0810_2038);
    // SAFETY: the mask allows the 48 bytes of `codes` to be read and no more.
    let bytes = unsafe { _mm512_maskz_loadu_epi8((1 << CODE_BYTES) - 1, codes.as_ptr().cast()) };
    // SAFETY: `places` is 64 readable bytes; loadu has no alignment need.
    let places = unsafe { _mm512_loadu_si512(places.as_ptr().cast()) };
    let sixes = _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(places, bytes));
    let masks = _mm512_gf2p8affine_epi64_epi8::<0>(sixes, rows);
    // SAFETY: `out` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), masks) }
}
