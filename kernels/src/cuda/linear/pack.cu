// int4 weights as files keep them, to the chunks of few_tokens.cu; and weights to bf16 rows, for products with many tokens.
//
// A chunk: 16 rows by 64 columns, 512 bytes, 16 bytes a lane (g, t): word s holds columns 16 s + 4 t .. + 3 of rows g and g + 8.

// The row of the source that becomes row `row` of the packed weight, -1 where there is none: with pairs, a tile is 8 gates
// and their 8 partners.
__device__ __forceinline__ int source_row(int row, int n, int pairs) {
  if (!pairs) return row < n ? row : -1;
  int tile = row / 16, r = row % 16, at = tile * 8 + r % 8;
  if (at >= n / 2) return -1;
  return r < 8 ? at : n / 2 + at;
}

// q (N, K/2), the even column in the low nibble → chunks. One thread a word of eight codes.
extern "C" __global__ void pack_int4(const u8* q, u32* packed, int n, int k, int k_padded, int pairs) {
  wait_for_previous();
  size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  int chunks = k_padded / 64, tiles = (n + 15) / 16;
  if (i >= (size_t)tiles * chunks * 128) return;
  int s = i % 4, lane = i / 4 % 32, g = lane >> 2, t = lane & 3;
  int chunk = i / 128 % chunks, tile = i / 128 / chunks;
  u32 word = 0;
  for (int part = 0; part < 4; ++part) {
    int row = tile * 16 + g + 8 * (part & 1), column = chunk * 64 + s * 16 + 4 * t + 2 * (part >> 1);
    int source = source_row(row, n, pairs);
    u32 pair = 0x88;
    if (source >= 0 && column < k) pair = q[((size_t)source * k + column) / 2];
    word |= (pair & 15) << (4 * part) | (pair >> 4) << (16 + 4 * part);
  }
  packed[i] = word;
}

// Scales and zeros (N, K/G) f32 → pairs (row tile, group, row), bf16 or f32. Missing rows get 0.
extern "C" __global__ void pack_params(const float* scale, const float* zero, void* packed, int n, int groups, int as_f32, int pairs) {
  wait_for_previous();
  size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  int tiles = (n + 15) / 16;
  if (i >= (size_t)tiles * groups * 16) return;
  int r = i % 16, group = i / 16 % groups, row = i / 16 / groups * 16 + r;
  float s = 0.f, z = 0.f;
  int source = source_row(row, n, pairs);
  if (source >= 0) {
    size_t at = (size_t)source * groups + group;
    s = scale[at];
    z = zero[at];
  }
  if (as_f32) ((float2*)packed)[i] = make_float2(s, z);
  else ((u32*)packed)[i] = pack_bf16(s, z);
}

// int4 chunks → bf16 rows (N, K): (q − 8) · scale + zero in f32, rounded to bf16. One thread a word: eight weights.
extern "C" __global__ void unpack_int4(const u32* packed, const void* params, u32* w, int n, int k, int k_padded, int group, int f32_params, int pairs) {
  wait_for_previous();
  size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  int chunks = k_padded / 64, tiles = (n + 15) / 16;
  if (i >= (size_t)tiles * chunks * 128) return;
  // Neighbouring threads take neighbouring columns of one row pair, so that writes are whole sectors.
  int t = i % 4, s = i / 4 % 4, g = i / 16 % 8, chunk = i / 128 % chunks, tile = i / 128 / chunks;
  u32 word = packed[((size_t)tile * chunks + chunk) * 128 + (g * 4 + t) * 4 + s];
  int column = chunk * 64 + s * 16 + 4 * t;
  if (column >= k) return;
  for (int half = 0; half < 2; ++half) {
    int source = source_row(tile * 16 + g + 8 * half, n, pairs);
    if (source < 0) continue;
    size_t at = ((size_t)tile * ((k_padded + group - 1) / group) + column / group) * 16 + g + 8 * half;
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
    u32 out[2];
    for (int part = 0; part < 2; ++part) {
      int shift = 4 * (2 * part + half);
      float low = (float)((word >> shift) & 15) - 8.f, high = (float)((word >> (16 + shift)) & 15) - 8.f;
      out[part] = pack_bf16(low * scale + zero, high * scale + zero);
    }
    u32* to = w + ((size_t)source * k + column) / 2;
    to[0] = out[0];
    if (column + 2 < k) to[1] = out[1];
  }
}

// q (N, K) int8 · scale (N) → w (N, K) bf16. Four codes a thread.
extern "C" __global__ void int8_to_bf16(const u32* q, const float* row_scale, uint2* w, int k, u64 len4) {
  wait_for_previous();
  u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
  if (i >= len4) return;
  u32 word = q[i];
  float scale = row_scale[i * 4 / k], v[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) v[j] = (float)(s8)(word >> (8 * j)) * scale;
  w[i] = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}
