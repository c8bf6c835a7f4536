// Weights as files keep them to the order of decode.cuh; and back to bf16 rows, for products with many tokens where there is no wgmma.
//
// With `pairs`, a tile of 16 rows is 8 of the first half of W and their 8 partners of the second.

// The row of the source that becomes row `row` of the packed weight, -1 where there is none.
__device__ __forceinline__ int source_row(int row, int n, int pairs) {
  if (!pairs) return row < n ? row : -1;
  int tile = row / 16, r = row % 16, at = tile * 8 + r % 8;
  if (at >= n / 2) return -1;
  return r < 8 ? at : n / 2 + at;
}
__device__ __forceinline__ int packed_rows(int n, int pairs) { return pairs ? (n / 2 + 7) / 8 * 16 : n; }

// q (N, K/2), the even column in the low nibble → chunks. One thread a word of eight codes.
extern "C" __global__ void pack_codes4(const u8* q, u32* packed, int n, int k, int k_padded, int pairs) {
  wait_for_previous();
  size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  int chunks = k_padded / 64;
  if (i >= (size_t)(packed_rows(n, pairs) + 63) / 64 * chunks * 512) return;
  int s = i % 4, lane = i / 4 % 32, sub = i / 128 % 4, g = lane >> 2, t = lane & 3;
  int chunk = i / 512 % chunks, tile = i / 512 / chunks;
  u32 word = 0;
  for (int part = 0; part < 4; ++part) {
    int row = tile * 64 + sub * 16 + g + 8 * (part & 1), column = chunk * 64 + s * 16 + 2 * t + 8 * (part >> 1);
    int source = source_row(row, n, pairs);
    u32 pair = 0x88;
    if (source >= 0 && column < k) pair = q[((size_t)source * k + column) / 2];
    word |= (pair & 15) << (4 * part) | (pair >> 4) << (16 + 4 * part);
  }
  packed[i] = word;
}

// Scales and zeros (N, K/G) f32 → pairs (64 rows, group, row), bf16 or f32. Missing rows get 0; without zeros they are 0.
extern "C" __global__ void pack_params(const float* scale, const float* zero, void* packed, int n, int groups, int as_f32, int pairs) {
  wait_for_previous();
  size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  if (i >= (size_t)(packed_rows(n, pairs) + 63) / 64 * groups * 64) return;
  int r = i % 64, group = i / 64 % groups, row = i / 64 / groups * 64 + r;
  float s = 0.f, z = 0.f;
  int source = source_row(row, n, pairs);
  if (source >= 0) {
    size_t at = (size_t)source * groups + group;
    s = scale[at];
    if (zero) z = zero[at];
  }
  if (as_f32) ((float2*)packed)[i] = make_float2(s, z);
  else ((u32*)packed)[i] = pack_bf16(s, z);
}

// q (N, K) of bytes → chunks. One thread a word: four columns of a row.
extern "C" __global__ void pack_codes8(const u8* q, u32* packed, int n, int k, int k_padded, int pairs) {
  wait_for_previous();
  size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  int chunks = k_padded / 64;
  if (i >= (size_t)(packed_rows(n, pairs) + 63) / 64 * chunks * 1024) return;
  int half = i % 2, step = i / 2 % 2 + 2 * (i / 128 % 2), lane = i / 4 % 32, sub = i / 256 % 4, g = lane >> 2, t = lane & 3;
  int chunk = i / 1024 % chunks, tile = i / 1024 / chunks;
  int source = source_row(tile * 64 + sub * 16 + g + 8 * half, n, pairs);
  u32 word = 0;
  for (int j = 0; j < 4; ++j) {
    int column = chunk * 64 + step * 16 + 2 * t + 8 * (j >> 1) + (j & 1);
    if (source >= 0 && column < k) word |= (u32)q[(size_t)source * k + column] << (8 * j);
  }
  packed[i] = word;
}

// q (N, K) of bytes → rows (packed rows, padded K) in the order of pairs, zeros where there is nothing. One thread a byte.
extern "C" __global__ void pack_rows8(const u8* q, u8* rows, int n, int k, int k_padded, int pairs) {
  wait_for_previous();
  size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  if (i >= (size_t)packed_rows(n, pairs) * k_padded) return;
  int column = i % k_padded, source = source_row(i / k_padded, n, pairs);
  rows[i] = source >= 0 && column < k ? q[(size_t)source * k + column] : 0;
}

// Chunks of 4 bits → bf16 rows (N, K): (q − 8) · scale + zero, or table[q] · scale, in f32 and rounded once. One thread a word: eight weights.
extern "C" __global__ void unpack_codes4(const u32* packed, const void* params, u32* w, int n, int k_padded, int group, int f32_params, int pairs, int has_table,
                                         const __grid_constant__ Table table) {
  wait_for_previous();
  size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  int chunks = k_padded / 64;
  if (i >= (size_t)(packed_rows(n, pairs) + 63) / 64 * chunks * 512) return;
  // Neighbouring threads take neighbouring columns of one row pair.
  int t = i % 4, s = i / 4 % 4, g = i / 16 % 8, sub = i / 128 % 4, chunk = i / 512 % chunks, tile = i / 512 / chunks;
  u32 word = packed[((size_t)tile * chunks + chunk) * 512 + sub * 128 + (g * 4 + t) * 4 + s];
  for (int part = 0; part < 4; ++part) {
    int row = sub * 16 + g + 8 * (part & 1), source = source_row(tile * 64 + row, n, pairs);
    if (source < 0) continue;
    int column = chunk * 64 + s * 16 + 2 * t + 8 * (part >> 1);
    size_t at = ((size_t)tile * ((k_padded + group - 1) / group) + column / group) * 64 + row;
    float scale, zero;
    if (f32_params) {
      float2 pair = ((const float2*)params)[at];
      scale = pair.x;
      zero = pair.y;
    } else {
      u32 pair = ((const u32*)params)[at];
      scale = low_bf16(pair);
      zero = high_bf16(pair);
    }
    int even = word >> (4 * part) & 15, odd = word >> (16 + 4 * part) & 15;
    float low = (float)even - 8.f, high = (float)odd - 8.f;
    if (has_table) {
      low = bf16_to_f32((u16)((table.low[even / 4] >> (8 * (even % 4)) & 255) | (table.high[even / 4] >> (8 * (even % 4)) & 255) << 8));
      high = bf16_to_f32((u16)((table.low[odd / 4] >> (8 * (odd % 4)) & 255) | (table.high[odd / 4] >> (8 * (odd % 4)) & 255) << 8));
    }
    w[((size_t)source * k_padded + column) / 2] = pack_bf16(low * scale + zero, high * scale + zero);
  }
}

// Chunks of 8 bits · scale (N) → w (N, K) bf16. One thread a word: four codes of a row.
extern "C" __global__ void unpack_codes8(const u32* packed, const float* row_scale, u32* w, int n, int k_padded, int pairs, int is_float8) {
  wait_for_previous();
  size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  int chunks = k_padded / 64;
  if (i >= (size_t)(packed_rows(n, pairs) + 63) / 64 * chunks * 1024) return;
  int half = i % 2, step = i / 2 % 2 + 2 * (i / 128 % 2), lane = i / 4 % 32, sub = i / 256 % 4, g = lane >> 2, t = lane & 3;
  int chunk = i / 1024 % chunks, tile = i / 1024 / chunks;
  int source = source_row(tile * 64 + sub * 16 + g + 8 * half, n, pairs);
  if (source < 0) return;
  u32 pairs_of_both[4];
  if (is_float8) decode_float8(packed[i], packed[i], pairs_of_both);
  else decode_int8(packed[i], packed[i], pairs_of_both);
  float scale = row_scale[source];
  for (int part = 0; part < 2; ++part) {
    u32 pair = pairs_of_both[2 * part];
    w[((size_t)source * k_padded + chunk * 64 + step * 16 + 2 * t + 8 * part) / 2] = pack_bf16(low_bf16(pair) * scale, high_bf16(pair) * scale);
  }
}
