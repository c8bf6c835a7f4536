// Causal attention with grouped queries and its gradient: FlashAttention-2's loops with tensor cores.
//
// qkv (B · S, heads + 2 kv_heads, D) bf16, turned; out (B · S, heads, D) bf16; lse and delta (B, heads, S) f32; dqkv as qkv.
// lse = log2 Σ 2^(score · log2 e) of scores q · k / √D, delta = out · dout. The gradient takes two kernels, each of which owns what it writes, so
// that no sum depends on an order: keys and values over queries, queries over keys.

// Grid (S / QUERIES, heads, B).
extern "C" __global__ void __launch_bounds__(128) attention_forward(const u16* qkv, u16* out, float* lse, int s, int heads, int kv_heads, float scale) {
  extern __shared__ __align__(128) u8 shared[];
  const int head = blockIdx.y, kv = head / (heads / kv_heads), batch = blockIdx.z;
  // Long rows first: the last blocks of queries see the most keys.
  const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const size_t stride = (size_t)(heads + 2 * kv_heads) * D;
  const u16* keys = qkv + batch * s * stride + (heads + kv) * D;
  const u16* values = keys + kv_heads * D;
  u8 *k_shared = shared, *v_shared = shared + ROOM * ROW;
  wait_for_previous();
  const int end = min(s, first + QUERIES);
  // Queries stay in registers; they pass through the room of the keys.
  fetch<QUERIES>(k_shared, qkv + batch * s * stride + head * D, first, s, stride);
  fetch<STEP>(v_shared, values, 0, end, stride);
  copies_commit();
  copies_wait<0>();
  __syncthreads();
  u32 q_frag[D / 16][TILES][4];
#pragma unroll
  for (int i = 0; i < D / 16; ++i)
#pragma unroll
    for (int r = 0; r < TILES; ++r) left<TILES>(q_frag[i][r], k_shared, r, i);
  __syncthreads();
  fetch<STEP>(k_shared, keys, 0, end, stride);
  copies_commit();

  float sum[TILES][D / 8][4], largest[TILES][2], total[TILES][2];
  clear(sum);
#pragma unroll
  for (int r = 0; r < TILES; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) { largest[r][h] = -1e30f; total[r][h] = 0.f; }
  const float to_log2 = scale * LOG2E;
  const int row = first + warp * 16 * TILES + g;
  int buffer = 0;
  for (int base = 0; base < end; base += STEP, buffer ^= 1) {
    if (base + STEP < end) {
      fetch<STEP>(k_shared + (buffer ^ 1) * STEP * ROW, keys, base + STEP, end, stride);
      fetch<STEP>(v_shared + (buffer ^ 1) * STEP * ROW, values, base + STEP, end, stride);
    }
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    // A warp whose queries all come before these keys has nothing to do.
    if (base < first + (warp + 1) * 16 * TILES) {
      // scores = q · keysᵀ
      float score[TILES][STEP / 8][4];
      clear(score);
#pragma unroll
      for (int i = 0; i < D / 16; ++i) by_rows(score, q_frag[i], k_shared + buffer * STEP * ROW, i);
#pragma unroll
      for (int r = 0; r < TILES; ++r) {
        if (base + STEP > first + (warp * TILES + r) * 16 + 1) {
#pragma unroll
          for (int j = 0; j < STEP / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              if (base + j * 8 + 2 * t + (i & 1) > row + 16 * r + 8 * (i >> 1)) score[r][j][i] = -1e30f;
        }
        float most[2] = {largest[r][0], largest[r][1]}, keep[2], own[2];
#pragma unroll
        for (int j = 0; j < STEP / 8; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) most[i >> 1] = fmaxf(most[i >> 1], score[r][j][i]);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 1));
          most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 2));
          keep[h] = power_of_two((largest[r][h] - most[h]) * to_log2);
          largest[r][h] = most[h];
          own[h] = most[h] * to_log2;
          total[r][h] *= keep[h];
        }
#pragma unroll
        for (int j = 0; j < D / 8; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[r][j][i] *= keep[i >> 1];
        // Key 0 is seen by every row, so that no largest is a mask's.
#pragma unroll
        for (int j = 0; j < STEP / 8; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            score[r][j][i] = power_of_two(fmaf(score[r][j][i], to_log2, -own[i >> 1]));
            total[r][i >> 1] += score[r][j][i];
          }
    }
    by_columns(sum, score, v_shared + buffer * STEP * ROW);
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < TILES; ++r) {
    float by[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      total[r][h] += __shfl_xor_sync(~0u, total[r][h], 1);
      total[r][h] += __shfl_xor_sync(~0u, total[r][h], 2);
      by[h] = 1.f / total[r][h];
      int at = row + 16 * r + 8 * h;
      if (t == 0 && at < s) lse[((size_t)batch * heads + head) * s + at] = largest[r][h] * to_log2 + log2f(total[r][h]);
    }
    store_tile(out + ((size_t)batch * s * heads + head) * D, (size_t)heads * D, sum[r], row + 16 * r, s, by);
  }
}

// delta = out · dout of each token and head, D / 8 lanes for each. Grid (B · S · heads · D / 8 / 128).
extern "C" __global__ void __launch_bounds__(128) attention_delta(const u16* out, const u16* dout, float* delta, int s, int heads, int all) {
  wait_for_previous();
  const int at = (blockIdx.x * 128 + threadIdx.x) / (D / 8), piece = threadIdx.x % (D / 8);
  float sum = 0.f;
  if (at < all) {
    const uint4 a = load16(out + (size_t)at * D + piece * 8), b = load16(dout + (size_t)at * D + piece * 8);
    sum = low_bf16(a.x) * low_bf16(b.x) + high_bf16(a.x) * high_bf16(b.x) + low_bf16(a.y) * low_bf16(b.y) + high_bf16(a.y) * high_bf16(b.y) +
          low_bf16(a.z) * low_bf16(b.z) + high_bf16(a.z) * high_bf16(b.z) + low_bf16(a.w) * low_bf16(b.w) + high_bf16(a.w) * high_bf16(b.w);
  }
#pragma unroll
  for (int far = D / 16; far; far >>= 1) sum += __shfl_xor_sync(~0u, sum, far);
  const int token = at / heads, head = at % heads;
  if (at < all && piece == 0) delta[((size_t)(token / s) * heads + head) * s + token % s] = sum;
}

// dk and dv of 64 keys of one key head, over all query heads of its group and all queries behind. Grid (S / 64, kv_heads, B).
extern "C" __global__ void __launch_bounds__(128) attention_backward_kv(const u16* qkv, const u16* dout, const float* lse, const float* delta, u16* dqkv, int s,
                                                                        int heads, int kv_heads, float scale) {
  extern __shared__ __align__(128) u8 shared[];
  const int kv = blockIdx.y, group = heads / kv_heads, batch = blockIdx.z, first = blockIdx.x * KEYS;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const size_t stride = (size_t)(heads + 2 * kv_heads) * D, out_stride = (size_t)heads * D;
  const u16* keys = qkv + batch * s * stride + (heads + kv) * D;
  u8 *q_shared = shared, *o_shared = shared + 2 * KV_STEP * ROW;
  float* row_lse = (float*)(shared + 4 * KV_STEP * ROW);
  float* row_delta = row_lse + 2 * KV_STEP;
  wait_for_previous();
#if KEEP
  u8 *k_shared = q_shared, *v_shared = o_shared;
#else
  u8 *k_shared = shared + 4 * KV_STEP * ROW + 16 * KV_STEP, *v_shared = k_shared + KEYS * ROW;
#endif
  fetch<KEYS>(k_shared, keys, first, s, stride);
  fetch<KEYS>(v_shared, keys + kv_heads * D, first, s, stride);
  copies_commit();
#if KEEP
  copies_wait<0>();
  __syncthreads();
  u32 k_frag[D / 16][1][4], v_frag[D / 16][1][4];
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    left<1>(k_frag[i][0], k_shared, 0, i);
    left<1>(v_frag[i][0], v_shared, 0, i);
  }
  __syncthreads();
#endif
  const int begin = first / KV_STEP * KV_STEP, steps = (s - begin + KV_STEP - 1) / KV_STEP, count = steps * group;
  auto ask = [&](int it, int buffer) {
    const int head = kv * group + it / steps, base = begin + it % steps * KV_STEP;
    fetch<KV_STEP>(q_shared + buffer * KV_STEP * ROW, qkv + batch * s * stride + head * D, base, s, stride);
    fetch<KV_STEP>(o_shared + buffer * KV_STEP * ROW, dout + batch * s * out_stride + head * D, base, s, out_stride);
    if (threadIdx.x < KV_STEP) {
      const int row = base + threadIdx.x;
      const size_t at = ((size_t)batch * heads + head) * s + row;
      // Behind the end every weight is 2^−1e30.
      row_lse[buffer * KV_STEP + threadIdx.x] = row < s ? load_f32(lse + at) : 1e30f;
      row_delta[buffer * KV_STEP + threadIdx.x] = row < s ? load_f32(delta + at) : 0.f;
    }
  };
  float dk[1][D / 8][4], dv[1][D / 8][4];
  clear(dk);
  clear(dv);
  const float to_log2 = scale * LOG2E;
  ask(0, 0);
  copies_commit();
  int buffer = 0;
  for (int it = 0; it < count; ++it, buffer ^= 1) {
    if (it + 1 < count) ask(it + 1, buffer ^ 1);
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    const u8 *qs = q_shared + buffer * KV_STEP * ROW, *os = o_shared + buffer * KV_STEP * ROW;
    const int base = begin + it % steps * KV_STEP;
    // scoresᵀ (16 keys, queries) = keys · qᵀ, dpᵀ = values · doutᵀ
    float p[1][KV_STEP / 8][4], ds[1][KV_STEP / 8][4];
    clear(p);
    clear(ds);
#if KEEP
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      by_rows(p, k_frag[i], qs, i);
      by_rows(ds, v_frag[i], os, i);
    }
#else
    // Not unrolled as a whole: the two sums leave few registers.
#pragma unroll 2
    for (int i = 0; i < D / 16; ++i) {
      u32 a[1][4];
      left<1>(a[0], k_shared, 0, i);
      by_rows(p, a, qs, i);
      left<1>(a[0], v_shared, 0, i);
      by_rows(ds, a, os, i);
    }
#endif
    const int key = first + warp * 16 + g;
    const bool whole = first + warp * 16 + 15 <= base;
#pragma unroll
    for (int j = 0; j < KV_STEP / 8; ++j) {
      const float2 l = *(const float2*)(row_lse + buffer * KV_STEP + j * 8 + 2 * t), d = *(const float2*)(row_delta + buffer * KV_STEP + j * 8 + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i) p[0][j][i] = power_of_two(fmaf(p[0][j][i], to_log2, i & 1 ? -l.y : -l.x));
      if (!whole)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (key + 8 * (i >> 1) > base + j * 8 + 2 * t + (i & 1)) p[0][j][i] = 0.f;
#pragma unroll
      for (int i = 0; i < 4; ++i) ds[0][j][i] = p[0][j][i] * (ds[0][j][i] - (i & 1 ? d.y : d.x));
    }
    by_columns(dv, p, os);
    by_columns(dk, ds, qs);
    __syncthreads();
  }
  u16* to = dqkv + batch * s * stride + (heads + kv) * D;
  const float scales[2] = {scale, scale}, ones[2] = {1.f, 1.f};
  store_tile(to, stride, dk[0], first + warp * 16 + g, s, scales);
  store_tile(to + kv_heads * D, stride, dv[0], first + warp * 16 + g, s, ones);
}

// dq of a block's queries of a head. Grid (S / QUERIES, heads, B).
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_q(const u16* qkv, const u16* dout, const float* lse, const float* delta, u16* dqkv, int s,
                                                                       int heads, int kv_heads, float scale) {
  extern __shared__ __align__(128) u8 shared[];
  const int head = blockIdx.y, kv = head / (heads / kv_heads), batch = blockIdx.z;
  const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const size_t stride = (size_t)(heads + 2 * kv_heads) * D, out_stride = (size_t)heads * D;
  const u16* q = qkv + batch * s * stride + head * D;
  const u16* keys = qkv + batch * s * stride + (heads + kv) * D;
  const u16* values = keys + kv_heads * D;
  u8 *k_shared = shared, *v_shared = shared + Q_ROOM * ROW;
  wait_for_previous();
  // Both left factors pass through rooms that hold them or two steps of keys and of values.
  fetch<QUERIES>(k_shared, q, first, s, stride);
  fetch<QUERIES>(v_shared, dout + batch * s * out_stride + head * D, first, s, out_stride);
  copies_commit();
  copies_wait<0>();
  __syncthreads();
  u32 q_frag[D / 16][TILES][4], o_frag[D / 16][TILES][4];
#pragma unroll
  for (int i = 0; i < D / 16; ++i)
#pragma unroll
    for (int r = 0; r < TILES; ++r) {
      left<TILES>(q_frag[i][r], k_shared, r, i);
      left<TILES>(o_frag[i][r], v_shared, r, i);
    }
  __syncthreads();
  const int end = min(s, first + QUERIES), row = first + warp * 16 * TILES + g;
  float row_lse[TILES][2], row_delta[TILES][2];
#pragma unroll
  for (int r = 0; r < TILES; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int at = row + 16 * r + 8 * h;
      const size_t place = ((size_t)batch * heads + head) * s + at;
      row_lse[r][h] = at < s ? load_f32(lse + place) : 1e30f;
      row_delta[r][h] = at < s ? load_f32(delta + place) : 0.f;
    }
  float dq[TILES][D / 8][4];
  clear(dq);
  const float to_log2 = scale * LOG2E;
  fetch<Q_STEP>(k_shared, keys, 0, end, stride);
  fetch<Q_STEP>(v_shared, values, 0, end, stride);
  copies_commit();
  int buffer = 0;
  for (int base = 0; base < end; base += Q_STEP, buffer ^= 1) {
    if (base + Q_STEP < end) {
      fetch<Q_STEP>(k_shared + (buffer ^ 1) * Q_STEP * ROW, keys, base + Q_STEP, end, stride);
      fetch<Q_STEP>(v_shared + (buffer ^ 1) * Q_STEP * ROW, values, base + Q_STEP, end, stride);
    }
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    const u8 *ks = k_shared + buffer * Q_STEP * ROW, *vs = v_shared + buffer * Q_STEP * ROW;
    if (base < first + (warp + 1) * 16 * TILES) {
      float p[TILES][Q_STEP / 8][4], ds[TILES][Q_STEP / 8][4];
      clear(p);
      clear(ds);
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        by_rows(p, q_frag[i], ks, i);
        by_rows(ds, o_frag[i], vs, i);
    }
#pragma unroll
    for (int r = 0; r < TILES; ++r) {
#pragma unroll
      for (int j = 0; j < Q_STEP / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) p[r][j][i] = power_of_two(fmaf(p[r][j][i], to_log2, -row_lse[r][i >> 1]));
      if (base + Q_STEP > first + (warp * TILES + r) * 16 + 1) {
#pragma unroll
        for (int j = 0; j < Q_STEP / 8; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (base + j * 8 + 2 * t + (i & 1) > row + 16 * r + 8 * (i >> 1)) p[r][j][i] = 0.f;
      }
#pragma unroll
      for (int j = 0; j < Q_STEP / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) ds[r][j][i] = p[r][j][i] * (ds[r][j][i] - row_delta[r][i >> 1]);
    }
    by_columns(dq, ds, ks);
    }
    __syncthreads();
  }
  const float scales[2] = {scale, scale};
#pragma unroll
  for (int r = 0; r < TILES; ++r) store_tile(dqkv + batch * s * stride + head * D, stride, dq[r], row + 16 * r, s, scales);
}
