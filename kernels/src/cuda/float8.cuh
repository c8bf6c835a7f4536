// bf16 to e4m3 and back, as torchao has it.

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
// The scale of numbers up to amax: amax / 448, rounded to bf16 as they are.
__device__ __forceinline__ float e4m3_scale(float amax) { return bf16_to_f32(f32_to_bf16(__fdiv_rn(amax, 448.f))); }
