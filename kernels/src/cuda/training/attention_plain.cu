// The attention of attention.cu for heads of any size up to 256: a warp takes a row, its lanes the columns. Right first, slow.
#define MOST 8  // columns of a lane

__device__ __forceinline__ void load_row(float* v, const u16* row, int d) {
#pragma unroll
  for (int j = 0; j < MOST; ++j) {
    int c = (threadIdx.x & 31) + 32 * j;
    v[j] = c < d ? bf16_to_f32(load_u16(row + c)) : 0.f;
  }
}
__device__ __forceinline__ float dot(const float* a, const float* b) {
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < MOST; ++j) sum += a[j] * b[j];
  return warp_sum(sum);
}
__device__ __forceinline__ void store_row(u16* row, const float* v, int d, float by) {
#pragma unroll
  for (int j = 0; j < MOST; ++j) {
    int c = (threadIdx.x & 31) + 32 * j;
    if (c < d) row[c] = f32_to_bf16(v[j] * by);
  }
}
#define LOG2E 1.4426950408889634f

// Grid (S, heads, B), a warp.
extern "C" __global__ void __launch_bounds__(32) plain_forward(const u16* qkv, u16* out, float* lse, int s, int heads, int kv_heads, float scale, int d) {
  const int row = blockIdx.x, head = blockIdx.y, batch = blockIdx.z, kv = head / (heads / kv_heads);
  const size_t stride = (size_t)(heads + 2 * kv_heads) * d;
  const u16* keys = qkv + batch * s * stride + (heads + kv) * d;
  wait_for_previous();
  float q[MOST], k[MOST], sum[MOST] = {}, most = -1e30f, total = 0.f;
  load_row(q, qkv + (batch * s + row) * stride + head * d, d);
  for (int key = 0; key <= row; ++key) {
    load_row(k, keys + key * stride, d);
    float score = dot(q, k) * scale * LOG2E, largest = fmaxf(most, score);
    float keep = exp2f(most - largest), p = exp2f(score - largest);
    most = largest;
    total = total * keep + p;
    load_row(k, keys + key * stride + kv_heads * d, d);
#pragma unroll
    for (int j = 0; j < MOST; ++j) sum[j] = sum[j] * keep + p * k[j];
  }
  store_row(out + ((size_t)(batch * s + row) * heads + head) * d, sum, d, 1.f / total);
  if (threadIdx.x == 0) lse[((size_t)batch * heads + head) * s + row] = most + log2f(total);
}

// Grid (S, heads, B), a warp.
extern "C" __global__ void __launch_bounds__(32) plain_backward_q(const u16* qkv, const u16* dout, const float* lse, const float* delta, u16* dqkv, int s, int heads, int kv_heads, float scale, int d) {
  const int row = blockIdx.x, head = blockIdx.y, batch = blockIdx.z, kv = head / (heads / kv_heads);
  const size_t stride = (size_t)(heads + 2 * kv_heads) * d, at = ((size_t)batch * heads + head) * s + row;
  const u16* keys = qkv + batch * s * stride + (heads + kv) * d;
  wait_for_previous();
  float q[MOST], o[MOST], k[MOST], v[MOST], dq[MOST] = {};
  load_row(q, qkv + (batch * s + row) * stride + head * d, d);
  load_row(o, dout + ((size_t)(batch * s + row) * heads + head) * d, d);
  const float all = load_f32(lse + at), own = load_f32(delta + at);
  for (int key = 0; key <= row; ++key) {
    load_row(k, keys + key * stride, d);
    load_row(v, keys + key * stride + kv_heads * d, d);
    float p = exp2f(dot(q, k) * scale * LOG2E - all), ds = p * (dot(o, v) - own);
#pragma unroll
    for (int j = 0; j < MOST; ++j) dq[j] += ds * k[j];
  }
  store_row(dqkv + (batch * s + row) * stride + head * d, dq, d, scale);
}

// Grid (S, kv_heads, B), a warp.
extern "C" __global__ void __launch_bounds__(32) plain_backward_kv(const u16* qkv, const u16* dout, const float* lse, const float* delta, u16* dqkv, int s, int heads, int kv_heads, float scale, int d) {
  const int key = blockIdx.x, kv = blockIdx.y, batch = blockIdx.z, group = heads / kv_heads;
  const size_t stride = (size_t)(heads + 2 * kv_heads) * d, mine = (batch * s + key) * stride + (heads + kv) * d;
  wait_for_previous();
  float q[MOST], o[MOST], k[MOST], v[MOST], dk[MOST] = {}, dv[MOST] = {};
  load_row(k, qkv + mine, d);
  load_row(v, qkv + mine + kv_heads * d, d);
  for (int head = kv * group; head < (kv + 1) * group; ++head)
    for (int row = key; row < s; ++row) {
      const size_t at = ((size_t)batch * heads + head) * s + row;
      load_row(q, qkv + (batch * s + row) * stride + head * d, d);
      load_row(o, dout + ((size_t)(batch * s + row) * heads + head) * d, d);
      float p = exp2f(dot(q, k) * scale * LOG2E - load_f32(lse + at)), ds = p * (dot(o, v) - load_f32(delta + at));
#pragma unroll
      for (int j = 0; j < MOST; ++j) {
        dk[j] += ds * q[j];
        dv[j] += p * o[j];
      }
    }
  store_row(dqkv + mine, dk, d, scale);
  store_row(dqkv + mine + kv_heads * d, dv, d, 1.f);
}

// delta = out · dout of each token and head. Grid (B · S, heads), a warp.
extern "C" __global__ void __launch_bounds__(32) plain_delta(const u16* out, const u16* dout, float* delta, int s, int heads, int d) {
  wait_for_previous();
  const int token = blockIdx.x, head = blockIdx.y;
  float a[MOST], b[MOST];
  load_row(a, out + ((size_t)token * heads + head) * d, d);
  load_row(b, dout + ((size_t)token * heads + head) * d, d);
  float sum = dot(a, b);
  if (threadIdx.x == 0) delta[((size_t)(token / s) * heads + head) * s + token % s] = sum;
}
