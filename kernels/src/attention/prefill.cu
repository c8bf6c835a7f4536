// Attention of M tokens over the cache that already holds them: FlashAttention-2's loop with tensor cores.
//
// q (M, heads, D) bf16, turned · keys, values (kv_heads, capacity, D) bf16 → out (M, heads, D) bf16.
// Token i sees positions past + i - window + 1 .. past + i. Grid (M / 64, heads): a block takes 64 tokens of a head, a warp 16 of
// them; keys and values come in blocks of 64 positions, two under way.
#define D AO_HEAD_DIM
#define BLOCK 64
#define ROW (D * 2 + 16)  // bytes of a row in shared memory; 16 more keep eight rows in different banks

// qkv (M, heads + 2 kv_heads, D) bf16 → q turned (M, heads, D), keys turned and values into the cache. Grid (M, heads + 2 kv_heads).
extern "C" __global__ void __launch_bounds__(32) rope_store(
    const u16* qkv, u16* q, u16* keys, u16* values, const float* cos, const float* sin, const float* q_norm, const float* k_norm,
    int heads, int kv_heads, int capacity, int past, float eps) {
  wait_for_previous();
  const int token = blockIdx.x, head = blockIdx.y, lane = threadIdx.x;
  const u16* from = qkv + ((size_t)token * (heads + 2 * kv_heads) + head) * D;
  if (head >= heads + kv_heads) {
    u16* to = values + ((size_t)(head - heads - kv_heads) * capacity + past + token) * D;
    for (int i = lane; i < D; i += 32) to[i] = load_u16(from + i);
    return;
  }
  u16* to = head < heads ? q + ((size_t)token * heads + head) * D : keys + ((size_t)(head - heads) * capacity + past + token) * D;
  const float* norm = head < heads ? q_norm : k_norm;
  float scale = 1.f;
  if (norm) {
    float sum = 0.f;
    for (int i = lane; i < D; i += 32) { float v = bf16_to_f32(load_u16(from + i)); sum += v * v; }
    scale = rsqrtf(warp_sum(sum) / D + eps);
  }
  const float *c = cos + (size_t)(past + token) * (D / 2), *s = sin + (size_t)(past + token) * (D / 2);
  for (int i = lane; i < D / 2; i += 32) {
    float a = bf16_to_f32(load_u16(from + i)) * scale, b = bf16_to_f32(load_u16(from + i + D / 2)) * scale;
    if (norm) { a *= norm[i]; b *= norm[i + D / 2]; }
    to[i] = f32_to_bf16(a * c[i] - b * s[i]);
    to[i + D / 2] = f32_to_bf16(b * c[i] + a * s[i]);
  }
}

// Four 8 × 8 matrices of 16-bit numbers, one row address a lane; `transposed` hands them out column by column.
__device__ __forceinline__ void load_matrices(u32* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)));
}
__device__ __forceinline__ void load_matrices_transposed(u32* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)));
}

// Rows first .. first + 63 of a matrix with D columns, zeros behind `end`.
__device__ __forceinline__ void fetch_rows(u8* to, const u16* from, int first, int end, size_t stride) {
  for (int i = threadIdx.x; i < BLOCK * (D / 8); i += 128) {
    int row = i / (D / 8), piece = i % (D / 8);
    bool there = first + row < end;
    copy16_async(to + row * ROW + piece * 16, there ? from + (size_t)(first + row) * stride + piece * 8 : from, there);
  }
}

extern "C" __global__ void __launch_bounds__(128) attention_prefill(
    const u16* q, const u16* keys, const u16* values, u16* out, int m, int heads, int kv_heads, int capacity, int past, int window, float scale) {
  extern __shared__ __align__(128) u8 shared[];
  const int head = blockIdx.y, kv = head / (heads / kv_heads);
  // Long rows first: the last blocks of tokens see the most positions.
  const int first = (gridDim.x - 1 - blockIdx.x) * BLOCK;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const u16* k_head = keys + (size_t)kv * capacity * D;
  const u16* v_head = values + (size_t)kv * capacity * D;
  u8* k_shared = shared;
  u8* v_shared = shared + 2 * BLOCK * ROW;
  wait_for_previous();
  const int end = past + min(m, first + BLOCK);
  const int begin = window > 0 ? max(0, past + first - window + 1) / BLOCK * BLOCK : 0;

  // q stays in registers; it passes through the room of the second keys.
  fetch_rows(k_shared + BLOCK * ROW, q + head * D, first, m, (size_t)heads * D);
  copies_commit();
  fetch_rows(k_shared, k_head, begin, end, D);
  fetch_rows(v_shared, v_head, begin, end, D);
  copies_commit();
  copies_wait<1>();
  __syncthreads();
  u32 q_frag[D / 16][4];
#pragma unroll
  for (int i = 0; i < D / 16; ++i)
    load_matrices(q_frag[i], k_shared + BLOCK * ROW + (warp * 16 + lane % 16) * ROW + i * 32 + lane / 16 * 16);
  __syncthreads();

  float sum[D / 8][4], largest[2] = {-1e30f, -1e30f}, total[2] = {0.f, 0.f};
#pragma unroll
  for (int i = 0; i < D / 8; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[i][j] = 0.f;
  const float to_log2 = scale * 1.4426950408889634f;
  int buffer = 0;
  for (int base = begin; base < end; base += BLOCK, buffer ^= 1) {
    if (base + BLOCK < end) {
      fetch_rows(k_shared + (buffer ^ 1) * BLOCK * ROW, k_head, base + BLOCK, end, D);
      fetch_rows(v_shared + (buffer ^ 1) * BLOCK * ROW, v_head, base + BLOCK, end, D);
    }
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    const u8* kb = k_shared + buffer * BLOCK * ROW;
    const u8* vb = v_shared + buffer * BLOCK * ROW;

    // scores (16, 64) = q · keysᵀ
    float score[BLOCK / 8][4];
#pragma unroll
    for (int j = 0; j < BLOCK / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) score[j][i] = 0.f;
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
#pragma unroll
      for (int j = 0; j < BLOCK / 16; ++j) {
        u32 b[4];
        load_matrices(b, kb + (j * 16 + lane % 8 + lane / 16 * 8) * ROW + i * 32 + lane / 8 % 2 * 16);
        mma_bf16(score[2 * j], q_frag[i][0], q_frag[i][1], q_frag[i][2], q_frag[i][3], b[0], b[1]);
        mma_bf16(score[2 * j + 1], q_frag[i][0], q_frag[i][1], q_frag[i][2], q_frag[i][3], b[2], b[3]);
      }
    const int row = past + first + warp * 16 + g;
    const bool whole = base + BLOCK <= past + first + warp * 16 + 1 && window <= 0;
    float most[2] = {largest[0], largest[1]};
#pragma unroll
    for (int j = 0; j < BLOCK / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int position = base + j * 8 + 2 * t + (i & 1), token = row + 8 * (i >> 1);
        score[j][i] *= to_log2;
        if (!whole && (position > token || (window > 0 && position <= token - window))) score[j][i] = -1e30f;
        most[i >> 1] = fmaxf(most[i >> 1], score[j][i]);
      }
    float keep[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(~0u, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(~0u, most[r], 2));
      keep[r] = exp2f(largest[r] - most[r]);
      largest[r] = most[r];
      total[r] *= keep[r];
    }
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[j][i] *= keep[i >> 1];
#pragma unroll
    for (int j = 0; j < BLOCK / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Everything masked so far: the weight is 0, not exp(0).
        score[j][i] = score[j][i] <= -1e29f ? 0.f : exp2f(score[j][i] - most[i >> 1]);
        total[i >> 1] += score[j][i];
      }
    // sum (16, D) += weights (16, 64) · values (64, D)
#pragma unroll
    for (int i = 0; i < BLOCK / 16; ++i) {
      u32 a0 = pack_bf16(score[2 * i][0], score[2 * i][1]), a1 = pack_bf16(score[2 * i][2], score[2 * i][3]);
      u32 a2 = pack_bf16(score[2 * i + 1][0], score[2 * i + 1][1]), a3 = pack_bf16(score[2 * i + 1][2], score[2 * i + 1][3]);
#pragma unroll
      for (int j = 0; j < D / 16; ++j) {
        u32 b[4];
        load_matrices_transposed(b, vb + (i * 16 + lane % 16) * ROW + j * 32 + lane / 16 * 16);
        mma_bf16(sum[2 * j], a0, a1, a2, a3, b[0], b[1]);
        mma_bf16(sum[2 * j + 1], a0, a1, a2, a3, b[2], b[3]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] += __shfl_xor_sync(~0u, total[r], 1);
    total[r] += __shfl_xor_sync(~0u, total[r], 2);
    int token = first + warp * 16 + g + 8 * r;
    if (token >= m) continue;
    float inv = 1.f / total[r];
    u16* to = out + ((size_t)token * heads + head) * D;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) *(u32*)(to + j * 8 + 2 * t) = pack_bf16(sum[j][2 * r] * inv, sum[j][2 * r + 1] * inv);
  }
}
