// Softmax cross-entropy and its gradient, a row of logits a block.
//
// losses (M) = scale · (log Σ exp(logits) − logits[target]); d (M, N) bf16 = scale · (softmax(logits) − [target]). A target below 0 is not
// counted: loss and gradient 0. The second reading of a row comes from the second cache.

struct Sum { float most, sum; };
__device__ __forceinline__ Sum join(Sum a, Sum b) {
  float most = fmaxf(a.most, b.most);
  return {most, a.sum * exp2f(a.most - most) + b.sum * exp2f(b.most - most)};
}
__device__ __forceinline__ void take(Sum& s, float v) {
  if (v > s.most) { s.sum = s.sum * exp2f(s.most - v) + 1.f; s.most = v; }
  else s.sum += exp2f(v - s.most);
}
#define LOG2E 1.4426950408889634f

extern "C" __global__ void __launch_bounds__(512) cross_entropy(const float* logits, const int* targets, u16* d, float* losses, int n, float scale) {
  __shared__ Sum sums[17];
  wait_for_previous();
  const float* x = logits + (size_t)blockIdx.x * n;
  u16* to = d + (size_t)blockIdx.x * n;
  const int target = load_int(targets + blockIdx.x), fours = n % 4 ? 0 : n / 4;
  // −1e30 and not −∞: the difference of two of them is a number. A NaN stays one through the sum.
  Sum own = {-1e30f, 0.f};
  for (int i = threadIdx.x; i < fours; i += blockDim.x) {
    uint4 w = load16(x + 4 * i);
    take(own, __uint_as_float(w.x) * LOG2E);
    take(own, __uint_as_float(w.y) * LOG2E);
    take(own, __uint_as_float(w.z) * LOG2E);
    take(own, __uint_as_float(w.w) * LOG2E);
  }
  for (int i = 4 * fours + threadIdx.x; i < n; i += blockDim.x) take(own, load_f32(x + i) * LOG2E);
#pragma unroll
  for (int far = 16; far; far >>= 1) {
    Sum other = {__shfl_xor_sync(~0u, own.most, far), __shfl_xor_sync(~0u, own.sum, far)};
    own = join(own, other);
  }
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    Sum all = sums[0];
    for (int i = 1; i < (int)(blockDim.x >> 5); ++i) all = join(all, sums[i]);
    sums[16] = all;
    float loss = (all.most + log2f(all.sum)) / LOG2E - (target >= 0 ? load_f32(x + target) : 0.f);
    losses[blockIdx.x] = target >= 0 ? scale * loss : 0.f;
  }
  __syncthreads();
  const Sum all = sums[16];
  const float by = target >= 0 ? scale / all.sum : 0.f;
  for (int i = threadIdx.x; i < fours; i += blockDim.x) {
    uint4 w = load16(x + 4 * i);
    float v[4] = {__uint_as_float(w.x), __uint_as_float(w.y), __uint_as_float(w.z), __uint_as_float(w.w)};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      v[e] = exp2f(v[e] * LOG2E - all.most) * by;
      if (4 * i + e == target) v[e] -= scale;
    }
    *(uint2*)(to + 4 * i) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
  }
  for (int i = 4 * fours + threadIdx.x; i < n; i += blockDim.x) {
    float v = exp2f(load_f32(x + i) * LOG2E - all.most) * by;
    if (i == target) v -= scale;
    to[i] = f32_to_bf16(v);
  }
}
