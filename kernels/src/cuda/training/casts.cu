// Factors of low-precision products: what a matrix's largest numbers are, and its codes along rows and, turned, along columns.
//
// E4M3, E5M2: scale = (448 or 57344) / max(amax, 1e-12) in f64, rounded to f32, its mantissa cut off with `power_of_two`; code = x · scale.
// INT8: code = round(x · 1 / max(amax / 127, 1e-12)). What a code is multiplied by to come back is written beside them.
enum Kind { E4M3 = 0, E5M2 = 1, INT8 = 2 };

// Largest |x| of x (M, K) bf16 as bits of f32: of all, of each row, of each column, where a place for them is given (zeros before).
// K is a multiple of 8. Grid (K / 256, M / 64).
extern "C" __global__ void __launch_bounds__(256) largest(const u16* x, u32* all, u32* rows, u32* columns, int m, int k) {
  __shared__ u32 of_columns[8][256 + 8];
  wait_for_previous();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, c = blockIdx.x * 256 + lane * 8;
  u32 most[8] = {}, most_of_all = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = blockIdx.y * 64 + i * 8 + warp;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (row < m && c < k) v = load16(x + (size_t)row * k + c);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
    u32 of_row = 0;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      u32 bits = e & 1 ? words[e / 2] >> 16 & 0x7fff : words[e / 2] & 0x7fff;
      most[e] = max(most[e], bits);
      of_row = max(of_row, bits);
    }
    most_of_all = max(most_of_all, of_row);
    if (rows) {
      of_row = __reduce_max_sync(~0u, of_row);
      if (lane == 0 && row < m) atomicMax(rows + row, of_row << 16);
    }
  }
  if (all) {
    most_of_all = __reduce_max_sync(~0u, most_of_all);
    if (lane == 0) atomicMax(all, most_of_all << 16);
  }
  if (columns) {
#pragma unroll
    for (int e = 0; e < 8; ++e) of_columns[warp][lane * 8 + e] = most[e];
    __syncthreads();
    u32 v = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) v = max(v, of_columns[i][threadIdx.x]);
    const int column = blockIdx.x * 256 + threadIdx.x;
    if (column < k) atomicMax(columns + column, v << 16);
  }
}

// x is multiplied by `by`, a code by `back`.
struct Scale { float by, back; };
template <int kind> __device__ __forceinline__ Scale scale_of(u32 amax_bits, int power_of_two) {
  const float amax = __uint_as_float(amax_bits);
  if (kind == INT8) {
    float scale = __fdiv_rn(amax, 127.f);
    return {__fdiv_rn(1.f, fmaxf(scale, 1e-12f)), scale};
  }
  double least = (double)amax < 1e-12 ? 1e-12 : (double)amax;
  float by = (float)((kind == E4M3 ? 448.0 : 57344.0) / least);
  if (power_of_two) by = __uint_as_float(__float_as_uint(by) & 0xff800000u);
  return {by, __fdiv_rn(1.f, by)};
}
template <int kind> __device__ __forceinline__ u32 code4(const float* v) {
  if (kind == E4M3) return to_e4m3(v[0], v[1], v[2], v[3]);
  u32 out = 0;
  if (kind == INT8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out |= (u32)(max(-128, min(127, __float2int_rn(v[i]))) & 255) << (8 * i);
    return out;
  }
#if __CUDA_ARCH__ >= 890
  u16 low, high;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;\n" : "=h"(low) : "f"(v[1]), "f"(v[0]));
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;\n" : "=h"(high) : "f"(v[3]), "f"(v[2]));
  out = low | (u32)high << 16;
#else
  out = 0x7f7f7f7fu;  // NaN: without float8 products nobody asks for it.
#endif
  return out;
}

#define TILE 128
#define PITCH 132  // bytes of a turned row in shared memory: neighbours in different banks

// codes (M, K) with scales of rows, turned (K, M) with scales of columns, each where given; `…_step` is 0 where one scale holds for all, else 1.
// M and K are multiples of 16. Grid (K / 128, M / 128).
template <int kind>
__device__ __forceinline__ void cast(const u16* x, u8* codes, const u32* row_amax, float* row_back, u8* turned, const u32* column_amax, float* column_back,
                                     int m, int k, int row_step, int column_step, int power_of_two) {
  __shared__ __align__(16) u8 tile[TILE * PITCH];
  __shared__ float row_by[TILE], column_by[TILE];
  wait_for_previous();
  const int row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE;
  {
    const bool of_row = threadIdx.x < TILE;
    const int i = threadIdx.x % TILE, at = (of_row ? row0 : column0) + i;
    const u32* amax = of_row ? row_amax : column_amax;
    if ((of_row ? codes : turned) && at < (of_row ? m : k)) {
      const int step = of_row ? row_step : column_step;
      Scale scale = scale_of<kind>((u32)load_int((const int*)amax + at * step), power_of_two);
      (of_row ? row_by : column_by)[i] = scale.by;
      float* back = of_row ? row_back : column_back;
      // Each scale is written by the first tile along its row or column.
      if ((of_row ? column0 : row0) == 0 && (step || at == 0)) back[at * step] = scale.back;
    }
  }
  __syncthreads();
#pragma unroll
  for (int p = 0; p < TILE * TILE / 8 / 256; ++p) {
    const int at = p * 256 + threadIdx.x, r = at / (TILE / 8), c = at % (TILE / 8) * 8;
    if (row0 + r >= m || column0 + c >= k) continue;
    uint4 w = load16(x + (size_t)(row0 + r) * k + column0 + c);
    const float v[8] = {low_bf16(w.x), high_bf16(w.x), low_bf16(w.y), high_bf16(w.y), low_bf16(w.z), high_bf16(w.z), low_bf16(w.w), high_bf16(w.w)};
    float s[8];
    if (codes) {
      const float by = row_by[r];
#pragma unroll
      for (int e = 0; e < 8; ++e) s[e] = v[e] * by;
      *(uint2*)(codes + (size_t)(row0 + r) * k + column0 + c) = make_uint2(code4<kind>(s), code4<kind>(s + 4));
    }
    if (turned) {
#pragma unroll
      for (int e = 0; e < 8; ++e) s[e] = v[e] * column_by[c + e];
      const u32 words[2] = {code4<kind>(s), code4<kind>(s + 4)};
#pragma unroll
      for (int e = 0; e < 8; ++e) tile[(c + e) * PITCH + r] = (u8)(words[e / 4] >> (8 * (e % 4)));
    }
  }
  if (!turned) return;
  __syncthreads();
#pragma unroll
  for (int p = 0; p < TILE * TILE / 16 / 256; ++p) {
    const int at = p * 256 + threadIdx.x, c = at / (TILE / 16), r = at % (TILE / 16) * 16;
    if (row0 + r >= m || column0 + c >= k) continue;
    const u32* from = (const u32*)(tile + c * PITCH + r);
    *(uint4*)(turned + (size_t)(column0 + c) * m + row0 + r) = make_uint4(from[0], from[1], from[2], from[3]);
  }
}
#define AO_CAST(name, kind)                                                                                                                      \
  extern "C" __global__ void __launch_bounds__(256) name(const u16* x, u8* codes, const u32* row_amax, float* row_back, u8* turned,              \
                                                         const u32* column_amax, float* column_back, int m, int k, int row_step, int column_step, \
                                                         int power_of_two) {                                                                     \
    cast<kind>(x, codes, row_amax, row_back, turned, column_amax, column_back, m, k, row_step, column_step, power_of_two);                       \
  }
AO_CAST(cast_e4m3, E4M3)
AO_CAST(cast_e5m2, E5M2)
AO_CAST(cast_int8, INT8)
