// RMSNorm and its gradient. A block takes whole rows; a thread keeps its columns in registers.
#define AO_MOST 16  // columns of a thread

template <int width> struct Columns;
template <> struct Columns<4> {
  static __device__ __forceinline__ void load(float* v, const float* p) { *(float4*)v = *(const float4*)&(const uint4&)load16(p); }
  static __device__ __forceinline__ void load_bf16(float* v, const u16* p) {
    uint2 w = load8(p);
    v[0] = low_bf16(w.x); v[1] = high_bf16(w.x); v[2] = low_bf16(w.y); v[3] = high_bf16(w.y);
  }
  static __device__ __forceinline__ void store(float* p, const float* v) { *(float4*)p = *(const float4*)v; }
  static __device__ __forceinline__ void store_bf16(u16* p, const float* v) { *(uint2*)p = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])); }
};
template <> struct Columns<1> {
  static __device__ __forceinline__ void load(float* v, const float* p) { *v = load_f32(p); }
  static __device__ __forceinline__ void load_bf16(float* v, const u16* p) { *v = bf16_to_f32(load_u16(p)); }
  static __device__ __forceinline__ void store(float* p, const float* v) { *p = *v; }
  static __device__ __forceinline__ void store_bf16(u16* p, const float* v) { *p = f32_to_bf16(*v); }
};

// y (M, K) bf16 = x (M, K) f32 · weight · inv_rms, inv_rms (M) = 1 / √(mean x² + eps). Grid (M).
template <int width>
__device__ __forceinline__ void forward(const float* x, const float* weight, u16* y, float* inv_rms, u32* amax, int k, float eps) {
  __shared__ float scratch[33];
  const int row = blockIdx.x;
  wait_for_previous();
  alignas(16) float held[AO_MOST / width][width];
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < AO_MOST / width; ++j) {
    int c = (j * blockDim.x + threadIdx.x) * width;
    if (c < k) Columns<width>::load(held[j], x + (size_t)row * k + c);
    else
#pragma unroll
      for (int e = 0; e < width; ++e) held[j][e] = 0.f;
#pragma unroll
    for (int e = 0; e < width; ++e) sum += held[j][e] * held[j][e];
  }
  sum = block_sum(sum, scratch);
  float scale = 1.f / sqrtf(sum / k + eps);
  if (threadIdx.x == 0) inv_rms[row] = scale;
  float most = 0.f;
#pragma unroll
  for (int j = 0; j < AO_MOST / width; ++j) {
    int c = (j * blockDim.x + threadIdx.x) * width;
    if (c >= k) continue;
    alignas(16) float v[width];
    Columns<width>::load(v, weight + c);
#pragma unroll
    for (int e = 0; e < width; ++e) {
      v[e] *= held[j][e] * scale;
      most = fmaxf(most, fabsf(v[e]));
    }
    Columns<width>::store_bf16(y + (size_t)row * k + c, v);
  }
  if (amax) {
    most = block_max(most, scratch);
    // What is stored is rounded; bits of positive floats compare as integers.
    if (threadIdx.x == 0) atomicMax(amax, (u32)f32_to_bf16(most) << 16);
  }
}
extern "C" __global__ void __launch_bounds__(512) rms_norm_forward4(const float* x, const float* weight, u16* y, float* inv_rms, u32* amax, int k, float eps) {
  forward<4>(x, weight, y, inv_rms, amax, k, eps);
}
extern "C" __global__ void __launch_bounds__(512) rms_norm_forward1(const float* x, const float* weight, u16* y, float* inv_rms, u32* amax, int k, float eps) {
  forward<1>(x, weight, y, inv_rms, amax, k, eps);
}

// With x̂ = x · inv_rms and d = dy · weight: dx (M, K) f32 (+)= inv_rms · (d − x̂ · mean(d · x̂)), also in bf16 where `dx_bf16` is;
// parts (blocks, K) = Σ dy · x̂ over the rows of a block, added up by `sum_parts`.
template <int width>
__device__ __forceinline__ void backward(const float* x, const float* weight, const float* inv_rms, const u16* dy, float* dx, u16* dx_bf16,
                                         float* parts, u32* amax, int m, int k, int add) {
  __shared__ float scratch[33];
  wait_for_previous();
  float sums[AO_MOST / width][width];
#pragma unroll
  for (int j = 0; j < AO_MOST / width; ++j)
#pragma unroll
    for (int e = 0; e < width; ++e) sums[j][e] = 0.f;
  float most = 0.f;
  for (int row = blockIdx.x; row < m; row += gridDim.x) {
    const float scale = load_f32(inv_rms + row);
    const size_t at = (size_t)row * k;
    alignas(16) float hat[AO_MOST / width][width], d[AO_MOST / width][width];
    float dot = 0.f;
#pragma unroll
    for (int j = 0; j < AO_MOST / width; ++j) {
      int c = (j * blockDim.x + threadIdx.x) * width;
      if (c >= k) continue;
      alignas(16) float w[width];
      Columns<width>::load(hat[j], x + at + c);
      Columns<width>::load_bf16(d[j], dy + at + c);
      Columns<width>::load(w, weight + c);
#pragma unroll
      for (int e = 0; e < width; ++e) {
        hat[j][e] *= scale;
        sums[j][e] += d[j][e] * hat[j][e];
        d[j][e] *= w[e];
        dot += d[j][e] * hat[j][e];
      }
    }
    dot = block_sum(dot, scratch) / k;
#pragma unroll
    for (int j = 0; j < AO_MOST / width; ++j) {
      int c = (j * blockDim.x + threadIdx.x) * width;
      if (c >= k) continue;
      alignas(16) float v[width];
      if (add) Columns<width>::load(v, dx + at + c);
#pragma unroll
      for (int e = 0; e < width; ++e) {
        float own = scale * (d[j][e] - hat[j][e] * dot);
        v[e] = add ? v[e] + own : own;
        most = fmaxf(most, fabsf(v[e]));
      }
      Columns<width>::store(dx + at + c, v);
      if (dx_bf16) Columns<width>::store_bf16(dx_bf16 + at + c, v);
    }
  }
#pragma unroll
  for (int j = 0; j < AO_MOST / width; ++j) {
    int c = (j * blockDim.x + threadIdx.x) * width;
    if (c < k) Columns<width>::store(parts + (size_t)blockIdx.x * k + c, sums[j]);
  }
  if (amax) {
    most = block_max(most, scratch);
    if (threadIdx.x == 0) atomicMax(amax, (u32)f32_to_bf16(most) << 16);
  }
}
#define AO_BACKWARD(name, width)                                                                                                             \
  extern "C" __global__ void __launch_bounds__(512) name(const float* x, const float* weight, const float* inv_rms, const u16* dy, float* dx, \
                                                          u16* dx_bf16, float* parts, u32* amax, int m, int k, int add) {                    \
    backward<width>(x, weight, inv_rms, dy, dx, dx_bf16, parts, amax, m, k, add);                                                            \
  }
AO_BACKWARD(rms_norm_backward4, 4)
AO_BACKWARD(rms_norm_backward1, 1)

// to (K) += Σ parts (count, K), in order.
extern "C" __global__ void sum_parts(const float* parts, float* to, int count, int k) {
  wait_for_previous();
  int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= k) return;
  float sum = 0.f;
  for (int i = 0; i < count; ++i) sum += load_f32(parts + (size_t)i * k + c);
  to[c] = load_f32(to + c) + sum;
}
