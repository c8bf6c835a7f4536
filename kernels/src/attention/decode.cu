// Attention of one new token over the cache: turns q and the new key (RoPE), stores key and value, attends. In one kernel,
// because at short contexts each of these is shorter than starting it.
//
// qkv (heads + 2 kv_heads, D) bf16 · cache keys, values (kv_heads, capacity, D) bf16 · cos, sin (capacity, D / 2) f32
// → out (heads, D) bf16. `state[0]` is how many positions the cache holds before this token.
// Grid (heads / AO_GROUP, splits): a block does AO_GROUP of the AO_SHARE query heads of a key head. All of them read the cache once; fewer
// are done sooner, which is what counts while the cache is short. Each
// split takes a part of the positions; the last to end adds the parts up (`tickets` count them and return to zero).
// `state` and the cache are constants until the new position is stored: they are read while the kernel before still works, so
// that a step's first kernel must not start before the step before has ended.
#define D AO_HEAD_DIM
#ifndef AO_SHARE
#define AO_SHARE AO_GROUP
#endif
#define LANES (D / 8)          // lanes that share a position, 8 numbers each
#define WARPS (AO_GROUP > 4 ? 4 : 8)  // what their parts take of shared memory
#define AT_ONCE (WARPS * 32 / LANES)  // positions that a block reads at once
#define HELD (AO_GROUP > 4 ? 2 : AO_GROUP > 1 ? 4 : 8)                 // rounds of positions that are read before the new one is there
#define LEAST 256              // positions below which a split is not worth it

__device__ __forceinline__ void unpack8(uint4 v, float* f) {
  f[0] = low_bf16(v.x); f[1] = high_bf16(v.x); f[2] = low_bf16(v.y); f[3] = high_bf16(v.y);
  f[4] = low_bf16(v.z); f[5] = high_bf16(v.z); f[6] = low_bf16(v.w); f[7] = high_bf16(v.w);
}

#define PAIRS ((D + 63) / 64)  // pairs of a head that a lane turns
struct Turn { float cos[PAIRS], sin[PAIRS]; };

// Norm (where there is a weight) and rotation of one head, by one warp, from global to shared memory.
__device__ __forceinline__ void turn_head(const u16* from, float* to, const float* norm, float eps, const Turn& turn) {
  const int lane = threadIdx.x & 31;
  float a[PAIRS], b[PAIRS], scale = 1.f;
#pragma unroll
  for (int j = 0; j < PAIRS; ++j) {
    const int i = lane + 32 * j;
    a[j] = i < D / 2 ? bf16_to_f32(load_u16(from + i)) : 0.f;
    b[j] = i < D / 2 ? bf16_to_f32(load_u16(from + i + D / 2)) : 0.f;
  }
  if (norm) {
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) sum += a[j] * a[j] + b[j] * b[j];
    scale = rsqrtf(warp_sum(sum) / D + eps);
  }
#pragma unroll
  for (int j = 0; j < PAIRS; ++j) {
    const int i = lane + 32 * j;
    if (i >= D / 2) break;
    if (norm) { a[j] *= scale * norm[i]; b[j] *= scale * norm[i + D / 2]; }
    to[i] = a[j] * turn.cos[j] - b[j] * turn.sin[j];
    to[i + D / 2] = b[j] * turn.cos[j] + a[j] * turn.sin[j];
  }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) attention_decode(
    const u16* qkv, u16* keys, u16* values, const float* cos, const float* sin, const float* q_norm, const float* k_norm,
    u16* out, float* parts, int* tickets, const int* state, int heads, int kv_heads, int capacity, int window, float scale, float eps) {
  __shared__ __align__(16) float q_shared[AO_GROUP][D];
  __shared__ __align__(16) float k_shared[D];
  __shared__ __align__(16) u16 k_new[D], v_new[D];
  __shared__ float partial[WARPS][AO_GROUP][D + 4];  // sums, then largest and total
  __shared__ bool last;
  start_next();
  const int first = blockIdx.x * AO_GROUP, head = first / AO_SHARE, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int past = load_int(state), length = past + 1;
  const int first_seen = window > 0 && length > window ? length - window : 0;
  const int seen = length - first_seen;
  const int share = max(LEAST, ((seen + gridDim.y - 1) / (int)gridDim.y + AT_ONCE - 1) / AT_ONCE * AT_ONCE);
  const int splits = (seen + share - 1) / share;
  if ((int)blockIdx.y >= splits) return;
  const int start = first_seen + blockIdx.y * share, end = min(length, start + share);
  u16* head_keys = keys + (size_t)head * capacity * D;
  u16* head_values = values + (size_t)head * capacity * D;
  Turn turn;
#pragma unroll
  for (int j = 0; j < PAIRS; ++j) {
    const int i = lane + 32 * j;
    turn.cos[j] = i < D / 2 ? cos[(size_t)past * (D / 2) + i] : 0.f;
    turn.sin[j] = i < D / 2 ? sin[(size_t)past * (D / 2) + i] : 0.f;
  }
  const int part = threadIdx.x / LANES, at = threadIdx.x % LANES;
  uint4 k_held[HELD], v_held[HELD];
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    const int p = start + i * AT_ONCE + part;
    const bool there = p < end && p < past;
    k_held[i] = there ? load16(head_keys + (size_t)p * D + at * 8) : make_uint4(0, 0, 0, 0);
    v_held[i] = there ? load16(head_values + (size_t)p * D + at * 8) : make_uint4(0, 0, 0, 0);
  }
  wait_alone();
  for (int h = warp; h < AO_GROUP; h += WARPS)
    turn_head(qkv + (size_t)(first + h) * D, q_shared[h], q_norm, eps, turn);
  const bool has_new = end == length;
  if (has_new) {
    if (warp == WARPS - 1) {
      turn_head(qkv + (size_t)(heads + head) * D, k_shared, k_norm, eps, turn);
      __syncwarp();
      for (int i = lane; i < D; i += 32) {
        k_new[i] = f32_to_bf16(k_shared[i]);
        if (first % AO_SHARE == 0) head_keys[(size_t)past * D + i] = k_new[i];
      }
    }
    if (warp == WARPS - 2) {
      const u16* v = qkv + (size_t)(heads + kv_heads + head) * D;
#pragma unroll
      for (int i = lane; i < D; i += 32) {
        const u16 bits = load_u16(v + i);
        v_new[i] = bits;
        if (first % AO_SHARE == 0) head_values[(size_t)past * D + i] = bits;
      }
    }
  }
  __syncthreads();

  float q[AO_GROUP][8], sum[AO_GROUP][8], largest[AO_GROUP], total[AO_GROUP];
#pragma unroll
  for (int h = 0; h < AO_GROUP; ++h) {
    largest[h] = -1e30f;
    total[h] = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) { q[h][i] = q_shared[h][at * 8 + i] * scale; sum[h][i] = 0.f; }
  }
  auto attend = [&](int p, uint4 k_bits, uint4 v_bits) {
    if (p == past) {
      k_bits = *(const uint4*)(k_new + at * 8);
      v_bits = *(const uint4*)(v_new + at * 8);
    }
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
  };
  // Every lane takes every step, so that all of a warp are there for the shuffles.
#pragma unroll
  for (int i = 0; i < HELD; ++i)
    if (start + i * AT_ONCE < end) attend(start + i * AT_ONCE + part, k_held[i], v_held[i]);
  int base = start + HELD * AT_ONCE, p = base + part;
  auto read = [&](const u16* from, int p) { return p < end && p < past ? load16(from + (size_t)p * D + at * 8) : make_uint4(0, 0, 0, 0); };
  uint4 k_next = read(head_keys, p), v_next = read(head_values, p);
  for (; base < end; base += AT_ONCE, p += AT_ONCE) {
    const uint4 k_bits = k_next, v_bits = v_next;
    k_next = read(head_keys, p + AT_ONCE);
    v_next = read(head_values, p + AT_ONCE);
    attend(p, k_bits, v_bits);
  }
  // A warp's parts, then the block's, then, where there are several blocks, the blocks'.
#pragma unroll
  for (int h = 0; h < AO_GROUP; ++h) {
#pragma unroll
    for (int far = LANES; far < 32; far <<= 1) {
      float most = fmaxf(largest[h], __shfl_xor_sync(~0u, largest[h], far)), keep = __expf(largest[h] - most);
      largest[h] = most;
      total[h] *= keep;
      total[h] += __shfl_xor_sync(~0u, total[h], far);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sum[h][i] *= keep;
        sum[h][i] += __shfl_xor_sync(~0u, sum[h][i], far);
      }
    }
    if (lane < LANES) {
#pragma unroll
      for (int i = 0; i < 8; ++i) partial[warp][h][at * 8 + i] = sum[h][i];
      if (at == 0) { partial[warp][h][D] = largest[h]; partial[warp][h][D + 1] = total[h]; }
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i < AO_GROUP * D; i += WARPS * 32) {
    int h = i / D, d = i % D;
    float most = -1e30f, all = 0.f, value = 0.f;
#pragma unroll
    for (int j = 0; j < WARPS; ++j) most = fmaxf(most, partial[j][h][D]);
#pragma unroll
    for (int j = 0; j < WARPS; ++j) {
      float weight = __expf(partial[j][h][D] - most);
      all += partial[j][h][D + 1] * weight;
      value += partial[j][h][d] * weight;
    }
    if (splits == 1) {
      out[(size_t)(first + h) * D + d] = f32_to_bf16(value / all);
    } else {
      float* to = parts + ((size_t)(blockIdx.x * gridDim.y + blockIdx.y) * AO_GROUP + h) * (D + 2);
      to[d] = value;
      if (d == 0) { to[D] = most; to[D + 1] = all; }
    }
  }
  if (splits == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(tickets + blockIdx.x, 1) == splits - 1;
    if (last) tickets[blockIdx.x] = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int i = threadIdx.x; i < AO_GROUP * D; i += WARPS * 32) {
    int h = i / D, d = i % D;
    const float* from = parts + ((size_t)blockIdx.x * gridDim.y * AO_GROUP + h) * (D + 2);
    const size_t far = (size_t)AO_GROUP * (D + 2);
    float most = -1e30f, all = 0.f, value = 0.f;
    for (int j = 0; j < splits; ++j) most = fmaxf(most, load_f32(from + j * far + D));
    for (int j = 0; j < splits; ++j) {
      float weight = __expf(load_f32(from + j * far + D) - most);
      all += load_f32(from + j * far + D + 1) * weight;
      value += load_f32(from + j * far + d) * weight;
    }
    out[(size_t)(first + h) * D + d] = f32_to_bf16(value / all);
  }
}
