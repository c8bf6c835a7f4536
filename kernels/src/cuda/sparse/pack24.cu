// 2:4 weights from their stored numbers and codes of three bits to what the sparse tensor cores read.
//
// A code says whether columns 0, 1 and 2 of four are stored; column 3 is where that makes two. Tensor cores want two places of two bits, the lower
// one in the low bits, eight fours a word (the order within a warpgroup is that of `wgmma.mma_async.sp` and `mma.sp`).

// The places of code c are in nibble c; 0 and 7, which no four has, are the first two.
__device__ __forceinline__ u32 places_of(u32 code) { return 0x498e4dc4u >> (4 * code) & 15; }

// Four number `at` of a row's codes; behind the row's end the first two.
__device__ __forceinline__ u32 places_at(const u8* codes, int at, int fours) {
  if (at >= fours) return places_of(0);
  const int bit = 3 * (at % 16);
  const u8* from = codes + 6 * (at / 16) + bit / 8;
  return places_of(((u32)from[0] | (u32)from[1] << 8) >> (bit % 8) & 7);
}

// Pieces of 64 rows by 64 stored bytes for sparse24.cu; one block a piece, one thread a row. `element` is 1 or 2 bytes.
extern "C" __global__ void pack24_wide(const u8* values, const u8* codes, u8* to, int n, int k, int element, int pieces) {
  wait_for_previous();
  const int piece = blockIdx.x, r = threadIdx.x, row = blockIdx.y * 64 + r, bytes = k / 2 * element;
  u8* out = to + ((size_t)blockIdx.y * pieces + piece) * (4096 + (element == 1 ? 1024 : 512));
  const u8* from = values + (size_t)row * bytes;
  for (int c = 0; c < 4; ++c)
    for (int i = 0; i < 16; ++i) {
      const int at = piece * 64 + c * 16 + i;
      out[r * 64 + ((c ^ (r >> 1 & 3)) << 4) + i] = row < n && at < bytes ? from[at] : 0;
    }
  const u8* row_codes = codes + (size_t)row * (6 * ((k + 63) / 64));
  const int w = r >> 4, h = r >> 3 & 1, g = r & 7, fours = row < n ? k / 4 : 0;
  if (element == 1) {
    // 32 columns a word: thread t of four has row g + 8 (t & 1), columns 32 (t >> 1); word i is of the i-th 64 columns.
    for (int j = 0; j < 4; ++j) {
      u32 word = 0;
      for (int i = 0; i < 8; ++i) word |= places_at(row_codes, piece * 32 + j * 8 + i, fours) << (4 * i);
      ((u32*)(out + 4096))[(w * 32 + g * 4 + (j & 1) * 2 + h) * 2 + (j >> 1)] = word;
    }
  } else {
    // 16 columns a half word: low ones of row g, high ones of row g + 8; threads 0 and 1 of four have the first 32 columns.
    for (int j = 0; j < 4; ++j) {
      u32 half = 0;
      for (int i = 0; i < 4; ++i) half |= places_at(row_codes, piece * 16 + j * 4 + i, fours) << (4 * i);
      ((u16*)(out + 4096))[(w * 32 + g * 4 + j) * 2 + h] = (u16)half;
    }
  }
}

// Stored number i of a packed int4 row.
__device__ __forceinline__ u32 code4_at(const u8* row, int i) {
  u32 byte = row[i / 64 * 32 + i % 32];
  return i % 64 < 32 ? byte & 15 : byte >> 4;
}

// Int4 for few24.cu: 16 rows by 128 columns are 768 bytes: 16 of codes for each lane, then 8 of places. One warp each.
extern "C" __global__ void pack24_int4(const u8* q, const u8* codes, u8* to, int n, int k) {
  wait_for_previous();
  const int group = blockIdx.x, groups = gridDim.x, lane = threadIdx.x, g = lane >> 2, t = lane & 3;
  u8* out = to + ((size_t)blockIdx.y * groups + group) * 768;
  const int q_bytes = 32 * ((k + 127) / 128), code_bytes = 6 * ((k + 63) / 64);
  for (int s = 0; s < 4; ++s) {
    // Nibble i is the even number of register i, nibble i + 4 the odd one; registers 1 and 3 are of row g + 8.
    u32 word = 0;
    for (int i = 0; i < 8; ++i) {
      const int row = blockIdx.y * 16 + g + 8 * (i & 1), at = group * 64 + s * 16 + 2 * t + 8 * (i >> 1 & 1) + (i >> 2);
      word |= (row < n && at < k / 2 ? code4_at(q + (size_t)row * q_bytes, at) : 8u) << (4 * i);
    }
    ((u32*)out)[lane * 4 + s] = word;
  }
  for (int i = 0; i < 2; ++i) {
    u32 word = 0;
    for (int h = 0; h < 2; ++h) {
      // Threads 0 and 1 have the columns of step 2 i, threads 2 and 3 those of step 2 i + 1.
      const int row = blockIdx.y * 16 + g + 8 * h, at = group * 32 + i * 16 + t * 4;
      for (int j = 0; j < 4; ++j) word |= places_at(codes + (size_t)row * code_bytes, at + j, row < n ? k / 4 : 0) << (16 * h + 4 * j);
    }
    ((u32*)(out + 512))[lane * 2 + i] = word;
  }
}

// W for few24.cu to bf16 pieces for sparse24.cu: (q − 8) · scale, rounded once, and the places as they are. One block of 256 a piece of 64 rows by
// 64 columns: four threads a row, each eight stored numbers, so that a warp writes 512 bytes in a row.
extern "C" __global__ void __launch_bounds__(256) unpack24_int4(const u8* W, const void* scale, u8* to, int n, int k, int pieces, int per_group, int scales, int is_f32) {
  wait_for_previous();
  const int piece = blockIdx.x, r = threadIdx.x >> 2, place = threadIdx.x & 3, row = blockIdx.y * 64 + r, groups = (k + 127) / 128, group = piece >> 1;
  // Sixteen bytes lie where the swizzle of 64 bytes puts them.
  const int h = r >> 3 & 1, g = r & 7, tile = row >> 4, c = place ^ (r >> 1 & 3);
  u8* out = to + ((size_t)blockIdx.y * pieces + piece) * 4608;
  const bool there = row < n && group < groups;
  const u8* from = W + ((size_t)tile * groups + group) * 768;
  u32 words[4] = {0, 0, 0, 0}, places = places_of(0) * 0x1111;
  if (there) {
    const size_t at = ((size_t)tile * scales + group / per_group) * 16 + (r & 15);
    const float by = is_f32 ? __ldg((const float*)scale + at) : bf16_to_f32(__ldg((const u16*)scale + at));
    // Stored numbers 8 c to 8 c + 7 of the piece are one half of step `step` of the group, of each lane two.
    const int step = (piece & 1) * 2 + (c >> 1);
    u32 codes[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) codes[t] = __ldg((const u32*)from + (g * 4 + t) * 4 + step);
    places = __ldg((const u32*)(from + 512) + (g * 4 + place) * 2 + (piece & 1)) >> (16 * h) & 0xffff;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const u32 two = codes[t] >> (4 * (h | (c & 1) << 1));
      const u16 low = f32_to_bf16(((float)(int)(two & 15) - 8.f) * by), high = f32_to_bf16(((float)(int)(two >> 16 & 15) - 8.f) * by);
      words[t] = (u32)low | (u32)high << 16;
    }
  }
  *(uint4*)(out + r * 64 + (place << 4)) = make_uint4(words[0], words[1], words[2], words[3]);
  ((u16*)(out + 4096))[((r >> 4) * 32 + g * 4 + place) * 2 + h] = (u16)places;
}
