// The small operations of training: rotation, SwiGLU, the embedding's gradient, and the sums of a loss.

// Turns heads in place, by −angle where `sign` is −1: rows of `stride` numbers whose first `heads · 2 · pairs` are heads; cos and sin
// (tokens, pairs) of the place in the sequence. Pair i is (i, i + pairs), with `interleaved` (2i, 2i + 1). Grid (M), any threads.
extern "C" __global__ void __launch_bounds__(256) rope(u16* x, const float* cos, const float* sin, int tokens, int stride, int heads, int pairs, int interleaved, float sign) {
  wait_for_previous();
  u16* row = x + (size_t)blockIdx.x * stride;
  const size_t at = (size_t)(blockIdx.x % tokens) * pairs;
  for (int i = threadIdx.x; i < heads * pairs; i += blockDim.x) {
    int head = i / pairs, pair = i % pairs;
    u16* a = row + head * 2 * pairs + (interleaved ? 2 * pair : pair);
    u16* b = a + (interleaved ? 1 : pairs);
    float c = load_f32(cos + at + pair), s = sign * load_f32(sin + at + pair);
    float va = bf16_to_f32(load_u16(a)), vb = bf16_to_f32(load_u16(b));
    *a = f32_to_bf16(va * c - vb * s);
    *b = f32_to_bf16(vb * c + va * s);
  }
}

__device__ __forceinline__ void widen(float* v, uint4 w) {
  const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) { v[2 * i] = low_bf16(words[i]); v[2 * i + 1] = high_bf16(words[i]); }
}
__device__ __forceinline__ uint4 narrow(const float* v) {
  return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}
__device__ __forceinline__ void tell_largest(u32* amax, float most, float* scratch) {
  if (!amax) return;
  most = block_max(most, scratch);
  if (threadIdx.x == 0) atomicMax(amax, (u32)f32_to_bf16(most) << 16);
}

// h (M, F) = silu(gate) · up of gate_up (M, 2 F): gate, then up; F is a multiple of 8. Grid (M, F / 8 / 256).
extern "C" __global__ void __launch_bounds__(256) swiglu_forward(const u16* gate_up, u16* h, u32* amax, int f) {
  __shared__ float scratch[33];
  wait_for_previous();
  const int c = (blockIdx.y * 256 + threadIdx.x) * 8;
  const size_t row = blockIdx.x;
  float most = 0.f;
  if (c < f) {
    float g[8], u[8];
    widen(g, load16(gate_up + row * 2 * f + c));
    widen(u, load16(gate_up + row * 2 * f + f + c));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      g[i] = g[i] / (1.f + __expf(-g[i])) * u[i];
      most = fmaxf(most, fabsf(g[i]));
    }
    *(uint4*)(h + row * f + c) = narrow(g);
  }
  tell_largest(amax, most, scratch);
}

// d (M, 2 F) of gate and up from dh (M, F); s = sigmoid(gate): dgate = dh · up · s · (1 + gate · (1 − s)), dup = dh · gate · s.
extern "C" __global__ void __launch_bounds__(256) swiglu_backward(const u16* gate_up, const u16* dh, u16* d, u32* amax, int f) {
  __shared__ float scratch[33];
  wait_for_previous();
  const int c = (blockIdx.y * 256 + threadIdx.x) * 8;
  const size_t row = blockIdx.x;
  float most = 0.f;
  if (c < f) {
    float g[8], u[8], up[8];
    widen(g, load16(gate_up + row * 2 * f + c));
    widen(u, load16(gate_up + row * 2 * f + f + c));
    widen(up, load16(dh + row * f + c));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float s = 1.f / (1.f + __expf(-g[i]));
      float dg = up[i] * u[i] * s * (1.f + g[i] * (1.f - s)), du = up[i] * g[i] * s;
      g[i] = dg;
      u[i] = du;
      most = fmaxf(most, fmaxf(fabsf(dg), fabsf(du)));
    }
    *(uint4*)(d + row * 2 * f + c) = narrow(g);
    *(uint4*)(d + row * 2 * f + f + c) = narrow(u);
  }
  tell_largest(amax, most, scratch);
}

// dtable[token] += Σ of dx's rows at the token's places, in order: token i of the list has places starts[i] .. starts[i + 1] − 1. Grid (count).
extern "C" __global__ void __launch_bounds__(256) embedding_backward(const float* dx, const int* tokens, const int* starts, const int* places, float* dtable, int k) {
  wait_for_previous();
  const int token = load_int(tokens + blockIdx.x), first = load_int(starts + blockIdx.x), end = load_int(starts + blockIdx.x + 1);
  for (int c = threadIdx.x; c < k; c += blockDim.x) {
    float sum = 0.f;
    for (int i = first; i < end; ++i) sum += load_f32(dx + (size_t)load_int(places + i) * k + c);
    float* to = dtable + (size_t)token * k + c;
    *to = load_f32(to) + sum;
  }
}

// out[0] += Σ x, in f64 and in one order. One block.
extern "C" __global__ void __launch_bounds__(256) sum_all(const float* x, float* out, int n) {
  __shared__ double sums[256];
  wait_for_previous();
  double sum = 0.;
  for (int i = threadIdx.x; i < n; i += 256) sum += load_f32(x + i);
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = 128; half; half >>= 1) {
    if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[0] = (float)(load_f32(out) + sums[0]);
}

// to[i] = from[0].
extern "C" __global__ void __launch_bounds__(256) repeat_one(const float* from, float* to, int n) {
  wait_for_previous();
  int i = blockIdx.x * 256 + threadIdx.x;
  if (i < n) to[i] = load_f32(from);
}
