// Attention of one new token over the cache: turns q and the new key (RoPE), stores key and value, attends. In one kernel,
// because at short contexts each of these is shorter than starting it.
//
// qkv (heads + 2 kv_heads, D) bf16 · cache keys, values (kv_heads, capacity, D) bf16 · cos, sin (capacity, D / 2) f32
// → out (heads, D) bf16. `state[0]` is how many positions the cache holds before this token.
// Grid (kv_heads, splits): the AO_GROUP query heads of a key head are done together, so that the cache is read once. Each
// split takes a part of the positions; the last to end adds the parts up (`tickets` count them and return to zero).
#define D AO_HEAD_DIM
#define LANES (D / 8)          // lanes that share a position, 8 numbers each
#define WARPS (AO_GROUP > 4 ? 4 : 8)  // what their parts take of shared memory
#define AT_ONCE (WARPS * 32 / LANES)  // positions that a block reads at once
#define LEAST 256              // positions below which a split is not worth it

__device__ __forceinline__ void unpack8(uint4 v, float* f) {
  f[0] = low_bf16(v.x); f[1] = high_bf16(v.x); f[2] = low_bf16(v.y); f[3] = high_bf16(v.y);
  f[4] = low_bf16(v.z); f[5] = high_bf16(v.z); f[6] = low_bf16(v.w); f[7] = high_bf16(v.w);
}

// Norm (where there is a weight) and rotation of one head, by one warp, from global to shared memory.
__device__ __forceinline__ void turn_head(const u16* from, float* to, const float* norm, float eps, const float* cos, const float* sin) {
  const int lane = threadIdx.x & 31;
  float scale = 1.f;
  if (norm) {
    float sum = 0.f;
    for (int i = lane; i < D; i += 32) { float v = bf16_to_f32(load_u16(from + i)); sum += v * v; }
    scale = rsqrtf(warp_sum(sum) / D + eps);
  }
  for (int i = lane; i < D / 2; i += 32) {
    float a = bf16_to_f32(load_u16(from + i)) * scale, b = bf16_to_f32(load_u16(from + i + D / 2)) * scale;
    if (norm) { a *= norm[i]; b *= norm[i + D / 2]; }
    to[i] = a * cos[i] - b * sin[i];
    to[i + D / 2] = b * cos[i] + a * sin[i];
  }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) attention_decode(
    const u16* qkv, u16* keys, u16* values, const float* cos, const float* sin, const float* q_norm, const float* k_norm,
    u16* out, float* parts, int* tickets, const int* state, int heads, int kv_heads, int capacity, int window, float scale, float eps) {
  __shared__ __align__(16) float q_shared[AO_GROUP][D];
  __shared__ __align__(16) float k_shared[D];
  __shared__ float partial[WARPS * 32 / LANES][AO_GROUP][D + 4];  // sums, then largest and total
  __shared__ bool last;
  const int head = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  wait_for_previous();
  const int past = load_int(state), length = past + 1;
  const int first_seen = window > 0 && length > window ? length - window : 0;
  const int seen = length - first_seen;
  const int share = max(LEAST, ((seen + gridDim.y - 1) / (int)gridDim.y + AT_ONCE - 1) / AT_ONCE * AT_ONCE);
  const int splits = (seen + share - 1) / share;
  if ((int)blockIdx.y >= splits) return;
  const int start = first_seen + blockIdx.y * share, end = min(length, start + share);
  u16* head_keys = keys + (size_t)head * capacity * D;
  u16* head_values = values + (size_t)head * capacity * D;
  const float *c = cos + (size_t)past * (D / 2), *s = sin + (size_t)past * (D / 2);
  for (int h = warp; h < AO_GROUP; h += WARPS)
    turn_head(qkv + (size_t)(head * AO_GROUP + h) * D, q_shared[h], q_norm, eps, c, s);
  const bool has_new = end == length;
  if (has_new) {
    if (warp == WARPS - 1) turn_head(qkv + (size_t)(heads + head) * D, k_shared, k_norm, eps, c, s);
    const u16* v = qkv + (size_t)(heads + kv_heads + head) * D;
    for (int i = threadIdx.x; i < D; i += WARPS * 32) head_values[(size_t)past * D + i] = load_u16(v + i);
  }
  __syncthreads();
  if (has_new) {
    for (int i = threadIdx.x; i < D; i += WARPS * 32) head_keys[(size_t)past * D + i] = f32_to_bf16(k_shared[i]);
    __syncthreads();
  }

  const int part = threadIdx.x / LANES, at = threadIdx.x % LANES;
  float q[AO_GROUP][8], sum[AO_GROUP][8], largest[AO_GROUP], total[AO_GROUP];
#pragma unroll
  for (int h = 0; h < AO_GROUP; ++h) {
    largest[h] = -1e30f;
    total[h] = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) { q[h][i] = q_shared[h][at * 8 + i] * scale; sum[h][i] = 0.f; }
  }
  uint4 k_next = make_uint4(0, 0, 0, 0), v_next = k_next;
  int p = start + part;
  if (p < end) { k_next = load16(head_keys + (size_t)p * D + at * 8); v_next = load16(head_values + (size_t)p * D + at * 8); }
  // Every lane takes every step, so that all of a warp are there for the shuffles.
  for (int base = start; base < end; base += AT_ONCE, p += AT_ONCE) {
    uint4 k_bits = k_next, v_bits = v_next;
    int after = p + AT_ONCE;
    if (after < end) { k_next = load16(head_keys + (size_t)after * D + at * 8); v_next = load16(head_values + (size_t)after * D + at * 8); }
    float k[8], v[8];
    unpack8(k_bits, k);
    unpack8(v_bits, v);
#pragma unroll
    for (int h = 0; h < AO_GROUP; ++h) {
      float score = 0.f;
#pragma unroll
      for (int i = 0; i < 8; ++i) score += q[h][i] * k[i];
#pragma unroll
      for (int far = LANES / 2; far; far >>= 1) score += __shfl_xor_sync(~0u, score, far);
      if (p < end) {
        float most = fmaxf(largest[h], score), keep = __expf(largest[h] - most), weight = __expf(score - most);
        largest[h] = most;
        total[h] = total[h] * keep + weight;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[h][i] = sum[h][i] * keep + weight * v[i];
      }
    }
  }
#pragma unroll
  for (int h = 0; h < AO_GROUP; ++h) {
#pragma unroll
    for (int i = 0; i < 8; ++i) partial[part][h][at * 8 + i] = sum[h][i];
    if (at == 0) { partial[part][h][D] = largest[h]; partial[part][h][D + 1] = total[h]; }
  }
  __syncthreads();

  // The block's parts, then, where there are several blocks, the blocks' parts.
  for (int i = threadIdx.x; i < AO_GROUP * D; i += WARPS * 32) {
    int h = i / D, d = i % D;
    float most = -1e30f, all = 0.f, value = 0.f;
    for (int j = 0; j < AT_ONCE; ++j) most = fmaxf(most, partial[j][h][D]);
    for (int j = 0; j < AT_ONCE; ++j) {
      float weight = __expf(partial[j][h][D] - most);
      all += partial[j][h][D + 1] * weight;
      value += partial[j][h][d] * weight;
    }
    if (splits == 1) {
      out[(size_t)(head * AO_GROUP + h) * D + d] = f32_to_bf16(value / all);
    } else {
      float* to = parts + ((size_t)(head * gridDim.y + blockIdx.y) * AO_GROUP + h) * (D + 2);
      to[d] = value;
      if (d == 0) { to[D] = most; to[D + 1] = all; }
    }
  }
  if (splits == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(tickets + head, 1) == splits - 1;
    if (last) tickets[head] = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int i = threadIdx.x; i < AO_GROUP * D; i += WARPS * 32) {
    int h = i / D, d = i % D;
    const float* from = parts + ((size_t)head * gridDim.y * AO_GROUP + h) * (D + 2);
    const size_t far = (size_t)AO_GROUP * (D + 2);
    float most = -1e30f, all = 0.f, value = 0.f;
    for (int j = 0; j < splits; ++j) most = fmaxf(most, load_f32(from + j * far + D));
    for (int j = 0; j < splits; ++j) {
      float weight = __expf(load_f32(from + j * far + D) - most);
      all += load_f32(from + j * far + D + 1) * weight;
      value += load_f32(from + j * far + d) * weight;
    }
    out[(size_t)(head * AO_GROUP + h) * D + d] = f32_to_bf16(value / all);
  }
}
