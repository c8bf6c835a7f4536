// The end of a step: the norm of all gradients, and AdamW over all parameters at once.

// parts[block] = Σ g² of a block's share, in one order. n is a multiple of 4.
extern "C" __global__ void __launch_bounds__(256) sum_squares(const float* g, double* parts, u64 n) {
  __shared__ double sums[256];
  wait_for_previous();
  double all = 0.;
  float sum = 0.f;
  int taken = 0;
  for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < n / 4; i += (u64)gridDim.x * 256) {
    uint4 w = load16(g + 4 * i);
    float a = __uint_as_float(w.x), b = __uint_as_float(w.y), c = __uint_as_float(w.z), d = __uint_as_float(w.w);
    sum += a * a + b * b + c * c + d * d;
    // f32 sums stay short: 2⁻²⁴ of each of 64 terms.
    if (++taken == 16) { all += sum; sum = 0.f; taken = 0; }
  }
  sums[threadIdx.x] = all + sum;
  __syncthreads();
  for (int half = 128; half; half >>= 1) {
    if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) parts[blockIdx.x] = sums[0];
}

// out[0] = share · √Σ parts, out[1] = what a gradient is multiplied by: share, less where the norm is above `clip` > 0. One block.
extern "C" __global__ void __launch_bounds__(256) clip_scale(const double* parts, float* out, int count, float share, float clip) {
  __shared__ double sums[256];
  wait_for_previous();
  double sum = 0.;
  for (int i = threadIdx.x; i < count; i += 256) sum += __longlong_as_double((long long)load_u64((const u64*)parts + i));
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = 128; half; half >>= 1) {
    if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    double norm = sqrt(sums[0]) * (double)share;
    out[0] = (float)norm;
    out[1] = clip > 0.f && norm > (double)clip ? (float)((double)share * (double)clip / norm) : share;
  }
}

struct Adam { float lr, decay, coupled, weight1, weight2, eps, first, root_second; };
__device__ __forceinline__ float lerp(float start, float end, float weight) {
  bool near_start = fabsf(weight) < 0.5f;
  return fmaf(near_start ? weight : weight - 1.f, end - start, near_start ? start : end);
}
// One number, as kernels/src/adam has it.
__device__ __forceinline__ void move(float& p, float g, float& m, float& v, const Adam& c, bool decays) {
  if (decays) {
    g = __fadd_rn(g, __fmul_rn(c.coupled, p));
    p = __fsub_rn(p, __fmul_rn(c.decay, p));
  }
  m = lerp(m, g, c.weight1);
  v = lerp(v, __fmul_rn(g, g), c.weight2);
  float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), c.root_second), c.eps);
  p = __fsub_rn(p, __fdiv_rn(__fmul_rn(c.lr, __fdiv_rn(m, c.first)), denominator));
}

// p, m, v ← a step along g · norm[1]; copy = p in bf16. The first `decayed` numbers decay. A norm that is not finite moves nothing.
// n and decayed are multiples of 4.
extern "C" __global__ void __launch_bounds__(256) adam_step(float* p, const float* g, float* m, float* v, u16* copy, const float* norm, u64 n, u64 decayed,
                                                            float lr, float decay, float coupled, float weight1, float weight2, float eps, float first, float root_second) {
  wait_for_previous();
  const Adam c = {lr, decay, coupled, weight1, weight2, eps, first, root_second};
  const float all = load_f32(norm), scale = load_f32(norm + 1);
  if (!(fabsf(all) <= 3.4028234e38f)) return;
  u64 i = ((u64)blockIdx.x * 256 + threadIdx.x) * 4;
  if (i >= n) return;
  uint4 pw = load16(p + i), gw = load16(g + i), mw = load16(m + i), vw = load16(v + i);
  float pv[4] = {__uint_as_float(pw.x), __uint_as_float(pw.y), __uint_as_float(pw.z), __uint_as_float(pw.w)};
  float gv[4] = {__uint_as_float(gw.x), __uint_as_float(gw.y), __uint_as_float(gw.z), __uint_as_float(gw.w)};
  float mv[4] = {__uint_as_float(mw.x), __uint_as_float(mw.y), __uint_as_float(mw.z), __uint_as_float(mw.w)};
  float vv[4] = {__uint_as_float(vw.x), __uint_as_float(vw.y), __uint_as_float(vw.z), __uint_as_float(vw.w)};
#pragma unroll
  for (int e = 0; e < 4; ++e) move(pv[e], __fmul_rn(gv[e], scale), mv[e], vv[e], c, i < decayed);
  *(float4*)(p + i) = make_float4(pv[0], pv[1], pv[2], pv[3]);
  *(float4*)(m + i) = make_float4(mv[0], mv[1], mv[2], mv[3]);
  *(float4*)(v + i) = make_float4(vv[0], vv[1], vv[2], vv[3]);
  *(uint2*)(copy + i) = make_uint2(pack_bf16(pv[0], pv[1]), pack_bf16(pv[2], pv[3]));
}

// copy = x in bf16; n is a multiple of 4.
extern "C" __global__ void __launch_bounds__(256) round_to_bf16(const float* x, u16* copy, u64 n) {
  wait_for_previous();
  u64 i = ((u64)blockIdx.x * 256 + threadIdx.x) * 4;
  if (i >= n) return;
  uint4 w = load16(x + i);
  *(uint2*)(copy + i) = make_uint2(pack_bf16(__uint_as_float(w.x), __uint_as_float(w.y)), pack_bf16(__uint_as_float(w.z), __uint_as_float(w.w)));
}
