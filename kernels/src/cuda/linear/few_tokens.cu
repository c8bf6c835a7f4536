// y (M, N) = x (M, K) · W (N, K)ᵀ for up to 64 tokens: W is read once, decoded in registers and multiplied by tensor cores.
//
// A warp takes 16 rows by AO_KT columns at a time: lane (g, t) holds rows g and g + 8, and step s of the tensor cores takes
// four columns of each thread t. Codes of 4 bits and, with AO_PACKED, of 8 are in the order of decode.cuh, natural in x. Others stay
// row-major: the order of columns inside a chunk is free as long as x has the same, so that a lane reads 16 bytes of both of its rows.
//
// A warp takes AO_RT tiles of 16 rows; AO_RW warps of a block take different rows and share x in shared memory; AO_KW take different columns and are summed at the end.
#ifndef AO_RT
#define AO_RT 1
#endif
#ifndef AO_U
#define AO_U 4
#endif
#ifndef AO_FLUSH
#define AO_FLUSH 4
#endif
#ifndef AO_STAGES
#define AO_STAGES 4
#endif
#ifndef AO_MIN_BLOCKS
#define AO_MIN_BLOCKS 1
#endif
#if AO_BITS == 16
#define AO_KT 32                        // columns of a chunk
#define AO_LOADS 2                      // loads of a lane for a chunk
#define AO_COLUMN(s, t) (8 * (t) + 4 * (s))  // the first column that thread t has in step s
#elif AO_BITS == 8
#define AO_KT 64
#define AO_LOADS 2
#define AO_COLUMN(s, t) (16 * (t) + 4 * (s))
#else
#define AO_KT 64
#define AO_LOADS 1
#endif
#if AO_BITS == 4 || defined(AO_PACKED)
#define AO_NATURAL 1                    // the columns of a step are 2 t, 2 t + 1, 2 t + 8 and 2 t + 9
#endif
#define AO_STEPS (AO_KT / 16)           // tensor-core steps of a chunk
#define AO_THREADS (32 * AO_RW * AO_KW)
#define AO_STAGE_K (AO_KW * AO_U * AO_KT)  // columns that a block takes at once
// Bytes of a row of x in shared memory: the padding keeps the rows that are read together in different banks.
#define AO_XROW (AO_STAGE_K * 2 + 16)
#define AO_XSTAGE (AO_NT * 8 * AO_XROW)
// Few tokens keep W exact: whole codes are multiplied and each group's sum is scaled. Many round W to bf16 once.
#if AO_BITS == 4 && AO_NT <= 2
#define AO_EXACT 1
#endif
// Where all of x is there, its sums over each flush are taken once, not once a row tile.
#if defined(AO_EXACT) && AO_RW == 1 && !defined(AO_TABLE)
#define AO_SUMS_ONCE 1
#endif
#define AO_XPAD 16
// Bytes of x in shared memory: stages where several row warps share them, else all of it.
#if AO_RW > 1
#define AO_XBYTES(k) (AO_STAGES * AO_XSTAGE)
#else
// Behind x, where they are wanted, its sums: a float for each flush of each token.
#define AO_XALL(k) ((AO_NT == 1 ? m : AO_NT * 8) * ((k) * 2 + AO_XPAD))
#define AO_XBYTES(k) (AO_XALL(k) + (AO_BITS == 4 ? (AO_NT == 1 ? m : AO_NT * 8) * ((k) / 4) : 0))
#endif
#define AO_ROWS (AO_RW * AO_RT * 16)    // rows of a block
#define AO_SUMS (AO_KW * AO_NT * 8 * (AO_ROWS + 4))  // floats: the column warps' sums, four of padding a token
#define AO_FLUSHES (AO_STEPS / AO_FLUSH)
#ifdef AO_F32_SCALE
#define AO_PIECES 8                     // pieces of 16 bytes that a row tile's params take
#else
#define AO_PIECES 4
#endif
#define AO_WBYTES (AO_U * AO_RT * AO_LOADS * 512)
#define AO_WSTAGE (AO_WBYTES + AO_U * AO_RT * AO_FLUSHES * AO_PIECES * 16)

// What becomes of a sum.
enum Epilogue { STORE_BF16 = 0, ADD_F32 = 1, STORE_F32 = 2, SILU_MUL_BF16 = 3 };

struct Fragments { u32 a[AO_STEPS][4]; };

struct Raw { uint4 part[AO_LOADS]; };

// A lane's weights as bf16 pairs: for int4 and int8 the codes themselves, exactly. a0 and a2 are row g, a1 and a3 row g + 8.
__device__ __forceinline__ Fragments decode(const Raw& raw, const Table& table) {
  Fragments f;
#if AO_BITS == 4
  const u32 words[4] = {raw.part[0].x, raw.part[0].y, raw.part[0].z, raw.part[0].w};
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#ifdef AO_TABLE
    decode_table_exact(words[s], table, f.a[s]);
#else
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // 0x4300 is 128 in bf16, whose last seven bits count ones: 128 + q.
      u32 shifted = and_or(words[s] >> (4 * i), 0x000f000fu, 0x43004300u);
#ifdef AO_EXACT
      f.a[s][i] = shifted;  // the 136 too much are taken off each group's sum
#else
      f.a[s][i] = fma_bf16x2(shifted, 0x3f803f80u, 0xc308c308u);  // − 136, exact
#endif
    }
#endif
  }
#elif defined(AO_PACKED)
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    const uint4 v = raw.part[s / 2];
    const u32 w0 = s % 2 ? v.z : v.x, w1 = s % 2 ? v.w : v.y;
#ifdef AO_FLOAT8
    decode_float8(w0, w1, f.a[s]);
#else
    decode_int8(w0, w1, f.a[s]);
#endif
  }
#elif AO_BITS == 8
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 v = raw.part[half];
    const u32 words[4] = {v.x ^ 0x80808080u, v.y ^ 0x80808080u, v.z ^ 0x80808080u, v.w ^ 0x80808080u};
#pragma unroll
    for (int s = 0; s < 4; ++s)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // 0x4b000000 is 2²³ in f32, whose last bits count ones; subtracting 2²³ + 128 is exact, and |q| ≤ 128 fits bf16.
        float low = __uint_as_float(pick_bytes(words[s], 0x4b000000u, i ? 0x7442 : 0x7440)) - 8388736.f;
        float high = __uint_as_float(pick_bytes(words[s], 0x4b000000u, i ? 0x7443 : 0x7441)) - 8388736.f;
        f.a[s][2 * i + half] = pick_bytes(__float_as_uint(low), __float_as_uint(high), 0x7632);
      }
  }
#else
  const uint4 v = raw.part[0], w = raw.part[1];
  f.a[0][0] = v.x; f.a[0][1] = w.x; f.a[0][2] = v.y; f.a[0][3] = w.y;
  f.a[1][0] = v.z; f.a[1][1] = w.z; f.a[1][2] = v.w; f.a[1][3] = w.w;
#endif
  return f;
}

// Eight columns of x to their place in a token.
__device__ __forceinline__ void put_x(u8* token, int piece, uint4 v) {
#ifdef AO_NATURAL
  // What thread t takes of a chunk in its four steps lies together: 32 bytes.
  u8* to = token + piece / 8 * 128 + piece % 8 * 4;
  *(u32*)to = v.x;
  *(u32*)(to + 32) = v.y;
  *(u32*)(to + 64) = v.z;
  *(u32*)(to + 96) = v.w;
#else
  *(uint4*)(token + piece * 16) = v;
#endif
}

// A group's scale and zero for rows g and g + 8, from its 16 pairs.
struct Params { float scale[2], zero[2]; };
__device__ __forceinline__ Params read_params(const void* pairs, int g) {
  Params p;
#ifdef AO_F32_SCALE
  float2 a = ((const float2*)pairs)[g], b = ((const float2*)pairs)[g + 8];
  p.scale[0] = a.x; p.zero[0] = a.y; p.scale[1] = b.x; p.zero[1] = b.y;
#else
  u32 a = ((const u32*)pairs)[g], b = ((const u32*)pairs)[g + 8];
  p.scale[0] = low_bf16(a); p.zero[0] = high_bf16(a); p.scale[1] = low_bf16(b); p.zero[1] = high_bf16(b);
#endif
  return p;
}

// W: int4's chunks, or rows; params: int4's (scale, zero) pairs by (row tile, group, row); row_scale and token_scale: factors
// of the results. x (M, ldx) bf16; y (M, ldy) as `epilogue` says; K is a multiple of AO_KT, and columns of x beyond its own are
// zero. With `pairs` a tile is 8 rows of the first half of W and their partners of the second. A block takes
// AO_ROWS rows; what it fetches runs ahead of what it multiplies.
extern "C" __global__ void __launch_bounds__(AO_THREADS, AO_MIN_BLOCKS) few_tokens(
    const u8* W, const void* params, const float* row_scale, const float* token_scale, const float* bias, const u16* x, void* y,
    int m, int n, int k, int ldx, int ldy, int group, int epilogue, const __grid_constant__ Table table, const float* norm, float eps) {
  extern __shared__ __align__(128) u8 shared[];
  start_next();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int row_warp = warp % AO_RW, k_warp = warp / AO_RW;
  const bool pairs = epilogue == SILU_MUL_BF16;
  const int tiles = pairs ? (n / 2 + 7) / 8 : (n + 15) / 16, tile = (blockIdx.x * AO_RW + row_warp) * AO_RT;
  const int chunks = k / AO_KT, stages = (chunks + AO_KW * AO_U - 1) / (AO_KW * AO_U);

  // What is fetched next: its stage, and its place in the ring.
  int f_stage = 0, f_slot = 0;
  auto chunk_of = [&](int stage, int u) { return (stage * AO_KW + k_warp) * AO_U + u; };
  auto advance = [&]() {
    ++f_stage;
    if (++f_slot == AO_STAGES) f_slot = 0;
  };
#if AO_BITS == 4
  // Every warp has a ring of its own for W and its params, AO_STAGES deep: its lanes read back what they asked for themselves.
  u8* ring = shared + AO_XBYTES(k) + warp * (AO_STAGES * AO_WSTAGE);
  const int groups = (k + group - 1) / group;
  const float inv_group = 1.f / group;  // the half below keeps quotients of small whole numbers exact
  auto fetch = [&]() {
    u8* to = ring + f_slot * AO_WSTAGE;
    // 64 rows by 64 columns lie together.
    const u8* from = W + ((size_t)(tile >> 2) * chunks + chunk_of(f_stage, 0)) * 2048 + (tile & 3) * 512 + lane * 16;
#pragma unroll
    for (int u = 0; u < AO_U; ++u)
#pragma unroll
      for (int r = 0; r < AO_RT; ++r) {
        int c = chunk_of(f_stage, u);
        bool there = c < chunks && tile + r < tiles;
        copy16_async(to + (u * AO_RT + r) * 512 + lane * 16, there ? from + u * 2048 + r * 512 : W, there);
      }
    // A piece is 16 bytes of the params of a row tile and a flush: AO_PIECES for each.
#pragma unroll
    for (int i = lane; i < AO_U * AO_RT * AO_FLUSHES * AO_PIECES; i += 32) {
      int piece = i % AO_PIECES, flush = i / AO_PIECES % AO_FLUSHES, r = i / (AO_PIECES * AO_FLUSHES) % AO_RT, u = i / (AO_PIECES * AO_FLUSHES * AO_RT);
      int c = chunk_of(f_stage, u);
      bool there = c < chunks && tile + r < tiles;
      size_t at = ((size_t)(tile >> 2) * groups + (int)((c * AO_KT + flush * AO_FLUSH * 16 + 0.5f) * inv_group)) * 4 + (tile & 3) + r;
      copy16_async(to + AO_WBYTES + i * 16, there ? (const u8*)params + (at * AO_PIECES + piece) * 16 : W, there);
    }
  };
#else
  // Rows of int8 and bf16 wait in registers. Rows behind the last are read as the last, and dropped.
  Raw w[AO_RT][AO_U], w_next[AO_RT][AO_U];
  auto fetch = [&]() {
    const size_t row_bytes = (size_t)k * (AO_BITS / 8);
#pragma unroll
    for (int r = 0; r < AO_RT; ++r) {
      int at = min(tile + r, tiles - 1);
#ifdef AO_PACKED
#pragma unroll
      for (int u = 0; u < AO_U; ++u) {
        int c = chunk_of(f_stage, u);
        const u8* from = W + ((size_t)(at >> 2) * chunks + c) * 4096 + (at & 3) * 1024 + lane * 16;
        w_next[r][u].part[0] = c < chunks ? load_once(from) : make_uint4(0, 0, 0, 0);
        w_next[r][u].part[1] = c < chunks ? load_once(from + 512) : make_uint4(0, 0, 0, 0);
      }
      continue;
#endif
      int r0 = pairs ? min(at * 8 + g, n / 2 - 1) : min(at * 16 + g, n - 1), r1 = pairs ? n / 2 + r0 : min(at * 16 + g + 8, n - 1);
#pragma unroll
      for (int u = 0; u < AO_U; ++u) {
        int c = chunk_of(f_stage, u);
        bool there = c < chunks;
        w_next[r][u].part[0] = there ? load_once(W + r0 * row_bytes + c * 64 + t * 16) : make_uint4(0, 0, 0, 0);
        w_next[r][u].part[1] = there ? load_once(W + r1 * row_bytes + c * 64 + t * 16) : make_uint4(0, 0, 0, 0);
      }
    }
  };
#endif
#if AO_RW > 1
  auto fetch_x = [&](int slot, int stage) {
    u8* to = shared + slot * AO_XSTAGE;
    const int pieces = AO_STAGE_K / 8;
    for (int i = threadIdx.x; i < AO_NT * 8 * pieces; i += AO_THREADS) {
      int token = i / pieces, piece = i % pieces, column = stage * AO_STAGE_K + piece * 8;
      bool there = token < m && column < k;
      copy16_async(to + token * AO_XROW + piece * 16, there ? x + (size_t)token * ldx + column : x, there);
    }
  };
#endif

  // W is a constant: it is asked for while the kernel before still works.
#if AO_BITS == 4
#pragma unroll
  for (int s = 0; s < AO_STAGES - 1; ++s) {
    if (f_stage < stages) fetch();
    copies_commit();
    advance();
  }
#else
  fetch();
  advance();
#endif
#ifdef AO_NORM
  // x is one token of the residual stream, f32, that is normed on its way: x · norm now, 1 / √(mean x² + eps) with the result.
  __shared__ float scratch[33];
  float4 norm_held[2][2];
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int i = threadIdx.x + j * AO_THREADS;
      norm_held[j][h] = i < k / 8 ? *(const float4*)(norm + i * 8 + h * 4) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#endif
  wait_for_previous();
#ifdef AO_NORM
  float squares = 0.f;
  auto make = [&](int piece, float4 w0, float4 w1) {
    const uint4 a = load16((const float*)x + piece * 8), b = load16((const float*)x + piece * 8 + 4);
    const float v[8] = {__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w),
                        __uint_as_float(b.x), __uint_as_float(b.y), __uint_as_float(b.z), __uint_as_float(b.w)};
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += v[i] * v[i];
    put_x(shared, piece, make_uint4(pack_bf16(v[0] * w0.x, v[1] * w0.y), pack_bf16(v[2] * w0.z, v[3] * w0.w),
                                    pack_bf16(v[4] * w1.x, v[5] * w1.y), pack_bf16(v[6] * w1.z, v[7] * w1.w)));
  };
#pragma unroll
  for (int j = 0; j < 2; ++j)
    if ((int)threadIdx.x + j * AO_THREADS < k / 8) make(threadIdx.x + j * AO_THREADS, norm_held[j][0], norm_held[j][1]);
  for (int i = threadIdx.x + 2 * AO_THREADS; i < k / 8; i += AO_THREADS) make(i, *(const float4*)(norm + i * 8), *(const float4*)(norm + i * 8 + 4));
  const float inv_rms = rsqrtf(block_sum(squares, scratch) / k + eps);
#elif AO_RW > 1
#pragma unroll
  for (int s = 0; s < AO_STAGES - 1; ++s) {
    if (s < stages) fetch_x(s, s);
    copies_commit();
  }
#else
  const int x_pieces = k / 8;
  for (int i = threadIdx.x; i < m * x_pieces; i += AO_THREADS) {
    int token = i / x_pieces, piece = i % x_pieces;
    u8* to = shared + token * (k * 2 + AO_XPAD);
#ifdef AO_NATURAL
    put_x(to, piece, load16(x + (size_t)token * ldx + piece * 8));
#else
    copy16_async(to + piece * 16, x + (size_t)token * ldx + piece * 8, true);
#endif
  }
  copies_commit();
  copies_wait<0>();
  __syncthreads();
#endif
#ifdef AO_SUMS_ONCE
  // Four threads a sum, so that their rows lie in different banks. Made once a block, before the first product.
  float* x_sums = (float*)(shared + AO_XALL(k));
  const int flushes = k / (AO_FLUSH * 16);
  for (int i = threadIdx.x; i < (m * flushes * 4 + 31) / 32 * 32; i += AO_THREADS) {
    int quarter = i % 4, flush = i / 4 % flushes, token = i / 4 / flushes;
    float all = 0.f;
    if (token < m) {
      const u32* from = (const u32*)(shared + token * (k * 2 + AO_XPAD)) + flush / AO_FLUSHES * 32 + quarter * 8 + flush % AO_FLUSHES * AO_FLUSH * 2;
#pragma unroll
      for (int j = 0; j < AO_FLUSH * 2; ++j) all += low_bf16(from[j]) + high_bf16(from[j]);
    }
    all += __shfl_xor_sync(~0u, all, 1);
    all += __shfl_xor_sync(~0u, all, 2);
    if (quarter == 0 && token < m) x_sums[token * flushes + flush] = all;
  }
  __syncthreads();
#endif

  float sum[AO_RT][AO_NT][4];
#pragma unroll
  for (int r = 0; r < AO_RT; ++r)
#pragma unroll
    for (int j = 0; j < AO_NT; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[r][j][i] = 0.f;

  int slot = 0;
  for (int stage = 0; stage < stages; ++stage) {
#if AO_RW > 1 || AO_BITS == 4
    copies_wait<AO_STAGES - 2>();
#endif
#if AO_RW > 1
    __syncthreads();
    if (stage + AO_STAGES - 1 < stages) fetch_x(slot == 0 ? AO_STAGES - 1 : slot - 1, stage + AO_STAGES - 1);
    const u8* x_stage = shared + slot * AO_XSTAGE;
#else
    __syncwarp();
#endif
#if AO_BITS == 4
    if (f_stage < stages) fetch();
    const u8* w_stage = ring + slot * AO_WSTAGE;
#else
#pragma unroll
    for (int r = 0; r < AO_RT; ++r)
#pragma unroll
      for (int u = 0; u < AO_U; ++u) w[r][u] = w_next[r][u];
    if (f_stage < stages) fetch();
#endif
    advance();
    copies_commit();
    if (++slot == AO_STAGES) slot = 0;

#pragma unroll
    for (int u = 0; u < AO_U; ++u) {
      const int c = chunk_of(stage, u);
      if (c >= chunks) break;
      Fragments f[AO_RT];
#pragma unroll
      for (int r = 0; r < AO_RT; ++r) {
#if AO_BITS == 4
        Raw raw;
        raw.part[0] = *(const uint4*)(w_stage + (u * AO_RT + r) * 512 + lane * 16);
        f[r] = decode(raw, table);
#else
        f[r] = decode(w[r][u], table);
#endif
      }
#if AO_BITS == 4
      Params now[AO_RT];
#endif
#ifdef AO_EXACT
      float part[AO_RT][AO_NT][4], x_sum[AO_NT][4];
#endif
#if defined(AO_NATURAL) && AO_RW == 1
      uint4 mine[AO_NT][2];
#pragma unroll
      for (int j = 0; j < AO_NT; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          int token = j * 8 + g;
          mine[j][h] = token < m ? *(const uint4*)(shared + token * (k * 2 + AO_XPAD) + c * 128 + t * 32 + h * 16) : make_uint4(0, 0, 0, 0);
        }
#endif
#pragma unroll
      for (int s = 0; s < AO_STEPS; ++s) {
        uint2 b[AO_NT];
#pragma unroll
        for (int j = 0; j < AO_NT; ++j) {
#if AO_RW > 1
          const u8* row = x_stage + (j * 8 + g) * AO_XROW + (k_warp * AO_U + u) * AO_KT * 2;
          const bool there = true;
#else
          const int token = j * 8 + g;
          const u8* row = shared + token * (k * 2 + AO_XPAD) + c * AO_KT * 2;
          const bool there = token < m;
#endif
#if defined(AO_NATURAL) && AO_RW == 1
          const uint4 both = mine[j][s / 2];
          b[j] = s % 2 ? make_uint2(both.z, both.w) : make_uint2(both.x, both.y);
#elif defined(AO_NATURAL)
          b[j] = make_uint2(*(const u32*)(row + 32 * s + 4 * t), *(const u32*)(row + 32 * s + 4 * t + 16));
#else
          b[j] = there ? *(const uint2*)(row + AO_COLUMN(s, t) * 2) : make_uint2(0, 0);
#endif
        }
#ifdef AO_EXACT
        if (s % AO_FLUSH == 0) {
#pragma unroll
          for (int j = 0; j < AO_NT; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#ifdef AO_SUMS_ONCE
              int token = j * 8 + 2 * t + (i & 1);
              x_sum[j][i] = token < m ? x_sums[token * flushes + c * AO_FLUSHES + s / AO_FLUSH] : 0.f;
#else
              x_sum[j][i] = 0.f;
#endif
#pragma unroll
              for (int r = 0; r < AO_RT; ++r) part[r][j][i] = 0.f;
            }
        }
#if !defined(AO_SUMS_ONCE) && !defined(AO_TABLE)
        // Ones in place of W: the sum of x, by which zeros and the 136 count.
#pragma unroll
        for (int j = 0; j < AO_NT; ++j) mma_bf16(x_sum[j], 0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u, b[j].x, b[j].y);
#endif
#endif
#pragma unroll
        for (int r = 0; r < AO_RT; ++r) {
#if AO_BITS == 4
          if (s % AO_FLUSH == 0) now[r] = read_params(w_stage + AO_WBYTES + ((u * AO_RT + r) * AO_FLUSHES + s / AO_FLUSH) * AO_PIECES * 16, g);
#endif
          u32* a = f[r].a[s];
#if AO_BITS == 4 && !defined(AO_EXACT)
          // (q − 8) · scale + zero, rounded to bf16 once; a0 and a2 are row g, a1 and a3 row g + 8.
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            u32 scale = pack_bf16(now[r].scale[i & 1], now[r].scale[i & 1]);
#ifdef AO_TABLE
            a[i] = mul_bf16x2(a[i], scale);
#else
            u32 zero = pack_bf16(now[r].zero[i & 1], now[r].zero[i & 1]);
            a[i] = fma_bf16x2(a[i], scale, zero);
#endif
          }
#endif
#pragma unroll
          for (int j = 0; j < AO_NT; ++j) {
#ifdef AO_EXACT
            mma_bf16(part[r][j], a[0], a[1], a[2], a[3], b[j].x, b[j].y);
            if (s % AO_FLUSH == AO_FLUSH - 1) {
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                float scale = now[r].scale[i >> 1];
#ifdef AO_TABLE
                sum[r][j][i] += part[r][j][i] * scale;
#else
                float zero = now[r].zero[i >> 1];
                sum[r][j][i] += part[r][j][i] * scale + x_sum[j][i] * (zero - 136.f * scale);
#endif
              }
            }
#else
            mma_bf16(sum[r][j], a[0], a[1], a[2], a[3], b[j].x, b[j].y);
#endif
          }
        }
      }
    }
  }

  // The column warps' sums (k_warp, token, row) take the place of x and W, and are added up.
  copies_wait<0>();
  __syncthreads();
  float* sums = (float*)shared;
#pragma unroll
  for (int r = 0; r < AO_RT; ++r)
#pragma unroll
    for (int j = 0; j < AO_NT; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int token = j * 8 + 2 * t + (i & 1), row = (row_warp * AO_RT + r) * 16 + g + 8 * (i >> 1);
        sums[(k_warp * AO_NT * 8 + token) * (AO_ROWS + 4) + row] = sum[r][j][i];
      }
  __syncthreads();
  const int outputs = pairs ? AO_ROWS / 2 : AO_ROWS;
  for (int i = threadIdx.x; i < outputs * min(m, AO_NT * 8); i += AO_THREADS) {
    int token = i / outputs, at = i % outputs, out = blockIdx.x * outputs + at;
    if (out >= (pairs ? n / 2 : n)) continue;
    // With pairs, row r < 8 of a tile is a gate and row r + 8 its partner.
    int row = pairs ? at / 8 * 16 + at % 8 : at;
    float value[2] = {0.f, 0.f};
    for (int part = 0; part < (pairs ? 2 : 1); ++part) {
#pragma unroll
      for (int kw = 0; kw < AO_KW; ++kw) value[part] += sums[(kw * AO_NT * 8 + token) * (AO_ROWS + 4) + row + 8 * part];
      // Scales and biases are in the order of the source's rows.
      int source = part ? n / 2 + out : out;
      if (row_scale) value[part] *= __ldg(row_scale + source);
#ifdef AO_NORM
      value[part] *= inv_rms;
#endif
      if (token_scale) value[part] *= load_f32(token_scale + token);
      if (bias) value[part] += __ldg(bias + source);
    }
    size_t to = (size_t)token * ldy + out;
    if (epilogue == STORE_BF16) ((u16*)y)[to] = f32_to_bf16(value[0]);
    if (epilogue == ADD_F32) ((float*)y)[to] = load_f32((const float*)y + to) + value[0];
    if (epilogue == STORE_F32) ((float*)y)[to] = value[0];
    if (pairs) ((u16*)y)[to] = f32_to_bf16(value[0] / (1.f + __expf(-value[0])) * value[1]);
  }
}
