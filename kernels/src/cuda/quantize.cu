// Activations and weights to low precision, bit for bit as torchao's formulas have it. One block a row unless said otherwise.

__device__ __forceinline__ u32 block_max_bits(u32 v, u32* scratch) {
  v = __reduce_max_sync(~0u, v);
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
  __syncthreads();
  u32 all = 0;
  for (int i = 0; i < (int)(blockDim.x >> 5); ++i) all = max(all, scratch[i]);
  return all;
}
__device__ __forceinline__ u32 to_int8(float a, float b, float c, float d) {
  const float v[4] = {a, b, c, d};
  u32 out = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int q = max(-128, min(127, __float2int_rn(v[i])));
    out |= (u32)(q & 255) << (8 * i);
  }
  return out;
}

// Most of a row stays in registers between finding its largest value and dividing by it: 32 numbers a thread.
#define AO_HELD 4
enum Kind { E4M3 = 0, INT8 = 1 };

// q (M, K) = x (M, K) bf16 / scale, scale (M) f32; K is a multiple of 8.
// E4M3: scale = amax / 448 rounded to bf16 as x is, then x / scale in f32 and the cast; a row of zeros has scale 0 and NaN codes.
// INT8: scale = max(amax / 127.5, eps), x · (1 / scale) rounded to an integer.
template <int kind> __device__ __forceinline__ u32 cast4(u32 a, u32 b, float scale, float inv_scale) {
  float v[4] = {low_bf16(a), high_bf16(a), low_bf16(b), high_bf16(b)};
  if (kind == E4M3) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = __fdiv_rn(v[i], scale);
    return to_e4m3(v[0], v[1], v[2], v[3]);
  }
  return to_int8(v[0] * inv_scale, v[1] * inv_scale, v[2] * inv_scale, v[3] * inv_scale);
}
template <int kind> __device__ __forceinline__ void quantize_rows(const u16* x, u32* q, float* scales, int k) {
  __shared__ u32 scratch[32];
  wait_for_previous();
  const u16* row = x + (size_t)blockIdx.x * k;
  uint2* out = (uint2*)(q + (size_t)blockIdx.x * k / 4);
  const int pieces = k / 8;
  uint4 held[AO_HELD];
  u32 bits = 0;
#pragma unroll
  for (int j = 0; j < AO_HELD; ++j) {
    int i = threadIdx.x + j * blockDim.x;
    if (i < pieces) held[j] = load16(row + 8 * i);
    else held[j] = make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int j = 0; j < AO_HELD; ++j) bits = largest_bits(held[j], bits);
  for (int i = threadIdx.x + AO_HELD * blockDim.x; i < pieces; i += blockDim.x) bits = largest_bits(load16(row + 8 * i), bits);
  float amax = low_bf16(block_max_bits(bits, scratch));
  float scale = kind == E4M3 ? e4m3_scale(amax) : __fdiv_rn(amax, 127.5f);
  if (kind == INT8 && scale < 1.1920928955078125e-7f) scale = 1.1920928955078125e-7f;
  float inv_scale = __fdiv_rn(1.f, scale);
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
#pragma unroll
  for (int j = 0; j < AO_HELD; ++j) {
    int i = threadIdx.x + j * blockDim.x;
    uint4 v = held[j];
    if (i < pieces) out[i] = make_uint2(cast4<kind>(v.x, v.y, scale, inv_scale), cast4<kind>(v.z, v.w, scale, inv_scale));
  }
  for (int i = threadIdx.x + AO_HELD * blockDim.x; i < pieces; i += blockDim.x) {
    uint4 v = load16(row + 8 * i);
    out[i] = make_uint2(cast4<kind>(v.x, v.y, scale, inv_scale), cast4<kind>(v.z, v.w, scale, inv_scale));
  }
}
extern "C" __global__ void __launch_bounds__(512) quantize_e4m3_rows(const u16* x, u32* q, float* scales, int k) { quantize_rows<E4M3>(x, q, scales, k); }
extern "C" __global__ void __launch_bounds__(512) quantize_int8_rows(const u16* x, u32* q, float* scales, int k) { quantize_rows<INT8>(x, q, scales, k); }

// The codes of quantize_…_rows as bf16, exactly, and zeros from K up to ldq: what products with bf16 factors take.
template <int kind> __device__ __forceinline__ void quantize_codes(const u16* x, u16* codes, float* scales, int k, int ldq) {
  __shared__ u32 scratch[32];
  wait_for_previous();
  const u16* row = x + (size_t)blockIdx.x * k;
  u16* out = codes + (size_t)blockIdx.x * ldq;
  u32 bits = 0;
  for (int i = threadIdx.x; i < k; i += blockDim.x) bits = max(bits, (u32)load_u16(row + i) & 0x7fffu);
  float amax = low_bf16(block_max_bits(bits, scratch));
  float scale = kind == E4M3 ? e4m3_scale(amax) : __fdiv_rn(amax, 127.5f);
  if (kind == INT8 && scale < 1.1920928955078125e-7f) scale = 1.1920928955078125e-7f;
  float inv_scale = __fdiv_rn(1.f, scale);
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  for (int i = threadIdx.x; i < ldq; i += blockDim.x) {
    float v = i < k ? bf16_to_f32(load_u16(row + i)) : 0.f;
    if (kind == E4M3) out[i] = i < k ? e4m3_to_bf16(to_e4m3(__fdiv_rn(v, scale), 0.f, 0.f, 0.f) & 255) : 0;
    else out[i] = f32_to_bf16((float)max(-128, min(127, __float2int_rn(v * inv_scale))));
  }
}
extern "C" __global__ void __launch_bounds__(512) quantize_e4m3_codes(const u16* x, u16* codes, float* scales, int k, int ldq) { quantize_codes<E4M3>(x, codes, scales, k, ldq); }
extern "C" __global__ void __launch_bounds__(512) quantize_int8_codes(const u16* x, u16* codes, float* scales, int k, int ldq) { quantize_codes<INT8>(x, codes, scales, k, ldq); }

// The largest |x| of all rows, as bits, to `amax`, which holds 0 before. One block a row.
extern "C" __global__ void __launch_bounds__(512) largest_of_all(const u16* x, u32* amax, int k) {
  __shared__ u32 scratch[32];
  wait_for_previous();
  const u16* row = x + (size_t)blockIdx.x * k;
  u32 bits = 0;
  for (int i = threadIdx.x; i < k / 8; i += blockDim.x) bits = largest_bits(load16(row + 8 * i), bits);
  bits = block_max_bits(bits, scratch);
  if (threadIdx.x == 0) atomicMax(amax, bits);
}
// q (M, K) e4m3 = x (M, K) bf16 / scale, one scale for all: amax / 448 rounded to bf16 as x is. `scales` (M) gets it for every row.
extern "C" __global__ void __launch_bounds__(512) quantize_e4m3_all(const u16* x, u32* q, const u32* amax, float* scales, int k) {
  wait_for_previous();
  float scale = e4m3_scale(low_bf16((u32)load_int((const int*)amax)));
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  const u16* row = x + (size_t)blockIdx.x * k;
  uint2* out = (uint2*)(q + (size_t)blockIdx.x * k / 4);
  for (int i = threadIdx.x; i < k / 8; i += blockDim.x) {
    uint4 v = load16(row + 8 * i);
    out[i] = make_uint2(cast4<E4M3>(v.x, v.y, scale, 1.f), cast4<E4M3>(v.z, v.w, scale, 1.f));
  }
}

// y (M, N) bf16 or f32 = sums (M, N) int32 · x_scale (M) · w_scale (N). Grid (columns / 4, M).
extern "C" __global__ void scale_int32(const int* sums, const float* x_scale, const float* w_scale, void* y, int n, int is_f32) {
  wait_for_previous();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  size_t at = (size_t)blockIdx.y * n + i;
  float v = (float)load_int(sums + at) * load_f32(x_scale + blockIdx.y) * w_scale[i];
  if (is_f32) ((float*)y)[at] = v;
  else ((u16*)y)[at] = f32_to_bf16(v);
}

// ---- blocks of columns; K is whole blocks, so that rows need not be told apart

#define AO_AT_ONCE 4  // pieces that a thread reads before it writes the first

enum Rounding { FLOOR = 0, RCEIL = 1 };

// The e8m0 byte of a block whose largest |x| has these bits in bf16, and what its numbers are multiplied by: the quotients of torchao's 0.18 by
// powers of two, exactly.
template <int rounding> __device__ __forceinline__ u32 mx_scale(u32 amax, float& factor) {
  if (amax > 0x7f80u) {
    factor = rounding == RCEIL ? __uint_as_float(0x7fc00000u) : 0.f;
    return 255;
  }
  if (rounding == FLOOR) {
    const u32 code = max((int)(amax >> 7) - 8, 0);
    factor = __uint_as_float((code == 0 ? 253u : 254u - code) << 23);
    return code;
  }
  if (amax == 0x7f80u) {
    factor = __uint_as_float(0x00400000u);
    return 254;
  }
  // No bf16 number over 448 comes so near a power of two that its logarithm in f32 would be rounded to it.
  const u32 bits = __float_as_uint(__fdiv_rn(low_bf16(amax), 448.f));
  const u32 code = bits < 0x00800000u ? (bits > 0x00400000u ? 1u : 0u) : (bits >> 23) + ((bits & 0x7fffffu) ? 1u : 0u);
  factor = code == 0 ? 1.f : __uint_as_float((254u - code) << 23);
  return code;
}
// q (M, K) e4m3, scales (M, K / 32) e8m0 = x (M, K) bf16. `pieces` of 8 numbers, four to a block.
template <int rounding> __device__ __forceinline__ void quantize_mxfp8(const u16* x, u32* q, u8* scales, u64 pieces) {
  wait_for_previous();
  const u64 first = blockIdx.x * (u64)(AO_AT_ONCE * blockDim.x) + threadIdx.x;
  uint4 v[AO_AT_ONCE];
#pragma unroll
  for (int j = 0; j < AO_AT_ONCE; ++j) {
    const u64 i = first + j * blockDim.x;
    v[j] = i < pieces ? load16(x + 8 * i) : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int j = 0; j < AO_AT_ONCE; ++j) {
    const u64 i = first + j * blockDim.x;
    u32 amax = largest_bits(v[j], 0);
    amax = max(amax, __shfl_xor_sync(~0u, amax, 1));
    amax = max(amax, __shfl_xor_sync(~0u, amax, 2));
    float by;
    const u32 code = mx_scale<rounding>(amax, by);
    if (i >= pieces) continue;
    if (i % 4 == 0) scales[i / 4] = code;
    ((uint2*)q)[i] = make_uint2(to_e4m3(low_bf16(v[j].x) * by, high_bf16(v[j].x) * by, low_bf16(v[j].y) * by, high_bf16(v[j].y) * by),
                                to_e4m3(low_bf16(v[j].z) * by, high_bf16(v[j].z) * by, low_bf16(v[j].w) * by, high_bf16(v[j].w) * by));
  }
}
extern "C" __global__ void __launch_bounds__(256) quantize_mxfp8_floor(const u16* x, u32* q, u8* scales, u64 pieces) { quantize_mxfp8<FLOOR>(x, q, scales, pieces); }
extern "C" __global__ void __launch_bounds__(256) quantize_mxfp8_rceil(const u16* x, u32* q, u8* scales, u64 pieces) { quantize_mxfp8<RCEIL>(x, q, scales, pieces); }

// The fp4 code of v, ties to even, beyond 6 saturated. A step of v's power of two (of 1 below it) is the last bit of the number that is added.
__device__ __forceinline__ u32 to_e2m1(float v) {
  const float size = fminf(fabsf(v), 6.f);
  const u32 power = max(__float_as_uint(size) & 0x7f800000u, 0x3f800000u), magic = power + (22u << 23);
  const u32 steps = __float_as_uint(size + __uint_as_float(magic)) - magic;
  return (steps + (power >> 22) - 254u) | (__float_as_uint(v) >> 28 & 8);
}
__device__ __forceinline__ u32 to_e2m1_8(uint4 v, float by) {
  const u32 words[4] = {v.x, v.y, v.z, v.w};
  u32 out = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) out |= to_e2m1(low_bf16(words[i]) * by) << (8 * i) | to_e2m1(high_bf16(words[i]) * by) << (8 * i + 4);
  return out;
}
// q (M, K / 2) fp4, the even column in the low nibble, scales (M, K / 16) e4m3 = x (M, K) bf16: e4m3(amax / 6), or with a scale above all
// e4m3(amax / 6 / above), at least 2⁻⁶. `pieces` of 8 numbers, two to a block.
extern "C" __global__ void __launch_bounds__(256) quantize_nvfp4(const u16* x, u32* q, u8* scales, u64 pieces, float above, int has_above) {
  wait_for_previous();
  const u64 first = blockIdx.x * (u64)(AO_AT_ONCE * blockDim.x) + threadIdx.x;
  uint4 v[AO_AT_ONCE];
#pragma unroll
  for (int j = 0; j < AO_AT_ONCE; ++j) {
    const u64 i = first + j * blockDim.x;
    v[j] = i < pieces ? load16(x + 8 * i) : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int j = 0; j < AO_AT_ONCE; ++j) {
    const u64 i = first + j * blockDim.x;
    u32 amax = largest_bits(v[j], 0);
    amax = max(amax, __shfl_xor_sync(~0u, amax, 1));
    float scale = __fdiv_rn(low_bf16(amax), 6.f);
    if (has_above) scale = __fdiv_rn(scale, above);
    if (scale < 0.015625f) scale = 0.015625f;
    const u32 code = to_e4m3(scale, 0.f, 0.f, 0.f) & 255;
    const float decoded = bf16_to_f32(e4m3_to_bf16(code));
    const float by = has_above ? __fdiv_rn(__fdiv_rn(1.f, above), decoded) : __fdiv_rn(1.f, decoded);
    if (i >= pieces) continue;
    if (i % 2 == 0) scales[i / 2] = code;
    q[i] = to_e2m1_8(v[j], by);
  }
}
