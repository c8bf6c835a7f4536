// Activations and weights to low precision, bit for bit as torchao's formulas have it. One block a row unless said otherwise.

// The largest |x| of a row of bf16, NaN if there is one. Bits without the sign compare as integers, and NaN is largest.
__device__ __forceinline__ u32 largest_bits(const uint4& v, u32 so_far) {
  const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    so_far = max(so_far, words[i] & 0x7fffu);
    so_far = max(so_far, words[i] >> 16 & 0x7fffu);
  }
  return so_far;
}
__device__ __forceinline__ u32 block_max_bits(u32 v, u32* scratch) {
  v = __reduce_max_sync(~0u, v);
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
  __syncthreads();
  u32 all = 0;
  for (int i = 0; i < (int)(blockDim.x >> 5); ++i) all = max(all, scratch[i]);
  return all;
}
// Four floats to e4m3, ties to even, beyond 448 saturated, NaN kept.
__device__ __forceinline__ u32 to_e4m3(float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 890
  u16 low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;\n" : "=h"(low) : "f"(b), "f"(a));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;\n" : "=h"(high) : "f"(d), "f"(c));
  return low | (u32)high << 16;
#else
  const float v[4] = {a, b, c, d};
  u32 out = 0;
  for (int i = 0; i < 4; ++i) {
    u32 bits = __float_as_uint(v[i]), sign = bits >> 24 & 0x80;
    float x = fminf(fabsf(v[i]), 448.f);
    u32 code;
    if (v[i] != v[i]) code = 0x7f;
    else if (x < 0.015625f) code = (u32)__float2int_rn(x * 512.f);
    else {
      u32 u = __float_as_uint(x);
      u += 0x7ffffu + (u >> 20 & 1);
      code = (u >> 20) - (120 << 3);
    }
    out |= (code | sign) << (8 * i);
  }
  return out;
#endif
}
// An e4m3 code as bf16, exactly.
__device__ __forceinline__ u16 e4m3_to_bf16(u32 code) {
  u32 bits = (code & 0x80) << 8 | (code & 0x7f) << 4;
  if ((code & 0x7f) == 0x7f) return (u16)(bits | 0x7fc0);
  // 2^120: e4m3's bias is 7, bf16's 127.
  return f32_to_bf16(bf16_to_f32((u16)bits) * __uint_as_float(0x7b800000u));
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
  float scale = kind == E4M3 ? bf16_to_f32(f32_to_bf16(__fdiv_rn(amax, 448.f))) : __fdiv_rn(amax, 127.5f);
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
  float scale = kind == E4M3 ? bf16_to_f32(f32_to_bf16(__fdiv_rn(amax, 448.f))) : __fdiv_rn(amax, 127.5f);
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
  float scale = bf16_to_f32(f32_to_bf16(__fdiv_rn(low_bf16((u32)load_int((const int*)amax)), 448.f)));
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
