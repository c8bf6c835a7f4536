// y (N) = x (K) · W (N, K)ᵀ for one token: what a decoding step spends its time in.
//
// Blocks stay and take tiles of 16 rows one after another, neighbours neighbouring tiles, so that 64 rows that lie together are read together;
// the warps of a block take different columns of a tile and meet once in AO_BATCH tiles. Each warp has a ring of copies under way in
// shared memory and refills what it has multiplied, so that memory never waits for arithmetic. The ring is filled before the kernel before
// has ended, and the next kernel is let in when the last of W was asked for: then its ring is filled while this one ends. x is made where it is needed: by a norm of the residual stream, or rounded to e4m3.
//
// The tensor cores multiply eight columns of x at a time where one would do. So 4-bit codes put the columns of W that share a scale in
// a column of x of their own: a product then has eight groups' sums side by side, and one pass scales them all.
//
// W is in the order of decode.cuh.
#ifndef AO_KW
#define AO_KW 16       // warps: all take different columns
#endif
#ifndef AO_STAGES
#define AO_STAGES 2    // copies under way, the one in use included
#endif
#ifndef AO_MIN_BLOCKS
#define AO_MIN_BLOCKS 2
#endif
#ifndef AO_FLUSH
#define AO_FLUSH 8     // steps of 16 columns that share a scale, up to the eight of two chunks
#endif
#define PLAIN 0        // x (K) bf16
#define NORM 1         // x (K) f32 · norm (K) / √(mean x² + eps)
#define E4M3 2         // x (K) bf16 as e4m3 codes, and their scale
#ifndef AO_X
#define AO_X PLAIN
#endif

#define AO_THREADS (32 * AO_KW)
#define AO_BATCH 8                      // tiles whose sums are added up at once
#define AO_U 4                          // chunks of a stage and warp
#define AO_CHUNK_BYTES 2048             // of 64 rows by 64 columns
#define AO_UNITS (16 / AO_FLUSH)        // scales of a stage and row
#define AO_TURNS (AO_UNITS < 8 ? 8 / AO_UNITS : 1)  // stages that share a pass of scaling
#ifdef AO_F32_SCALE
#define AO_PIECES 8                     // pieces of 16 bytes that 16 rows' parameters take
#else
#define AO_PIECES 4
#endif
#define AO_PSTRIDE (AO_PIECES * 16 + 16)  // the padding keeps lanes in different banks
#define AO_STAGE_BYTES (2048 + AO_UNITS * AO_PSTRIDE)
#define AO_XCHUNK 144                   // bytes of 64 columns of x, 16 of them padding
#ifdef AO_TABLE
#define AO_PAIRS_BYTES 32768            // every pair of codes, 32 times over: each lane reads its own bank
#else
#define AO_PAIRS_BYTES 0
#endif

enum Epilogue { STORE_BF16 = 0, ADD_F32 = 1, STORE_F32 = 2, SILU_MUL_BF16 = 3 };

// ---- x

// Eight columns to where lanes find them: what lane t takes of a chunk lies together.
__device__ __forceinline__ void put_x(u8* x_shared, int piece, const u32* pairs) {
  u32* to = (u32*)(x_shared + piece / 8 * AO_XCHUNK) + piece % 8;
#pragma unroll
  for (int t = 0; t < 4; ++t) to[8 * t] = pairs[t];
}
// Adds up what the 2 AO_FLUSH threads have that hold the columns of one scale.
__device__ __forceinline__ void put_sum(float* x_sums, int piece, float sum) {
#ifndef AO_TABLE
#pragma unroll
  for (int far = 1; far < 2 * AO_FLUSH; far <<= 1) sum += __shfl_xor_sync(~0u, sum, far);
  if (piece % (2 * AO_FLUSH) == 0) x_sums[piece / (2 * AO_FLUSH)] = sum;
#endif
}
__device__ __forceinline__ float sum_of(const u32* pairs) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 4; ++i) sum += low_bf16(pairs[i]) + high_bf16(pairs[i]);
  return sum;
}

// Starts a copy of 16 bytes to shared memory.
__device__ __forceinline__ void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// ---- W

// A step's left factor from a word of 4-bit codes.
__device__ __forceinline__ void decode4(u32 word, const u8* pairs, u32* a) {
#ifdef AO_TABLE
  const u32 lane4 = (threadIdx.x & 31) * 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // Bytes 0 and 1: the codes of pairs i and i + 2.
    u32 both;
    asm("lop3.b32 %0, %1, %2, %3, 0xca;\n" : "=r"(both) : "r"(0x0f0f0f0fu), "r"(word >> (4 * i)), "r"(word >> (12 + 4 * i)));
    a[i] = *(const u32*)(pairs + and_or(both << 7, 0x7f80u, lane4));
    a[i + 2] = *(const u32*)(pairs + and_or(both >> 1, 0x7f80u, lane4));
  }
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = and_or(word >> (4 * i), 0x000f000fu, 0x43004300u);  // 128 + q; the 136 too much go with the scale
#endif
}

// Scales of rows g and g + 8 and what each unit of x counts by itself, for two of the eight columns.
struct Units { float scale[2][2], zero[2][2], x[2]; };

__device__ __forceinline__ void read_units(Units& units, const u8* params, const float* x_sums, int g) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#ifdef AO_F32_SCALE
      float2 v = *(const float2*)(params + i * AO_PSTRIDE + (g + 8 * h) * 8);
      units.scale[h][i] = v.x;
      units.zero[h][i] = v.y - 136.f * v.x;
#else
      u32 v = *(const u32*)(params + i * AO_PSTRIDE + (g + 8 * h) * 4);
      units.scale[h][i] = low_bf16(v);
      units.zero[h][i] = high_bf16(v) - 136.f * low_bf16(v);
#endif
    }
#ifndef AO_TABLE
    units.x[i] = x_sums[i];
#endif
  }
}

// ---- the kernel

// W: chunks; params: (scale, zero) pairs by (row tile, group, row). y as `epilogue` says; K is a multiple of 64. With pairs a tile is 8 rows of the first half of W and their partners of the second.
extern "C" __global__ void __launch_bounds__(AO_THREADS, AO_MIN_BLOCKS) one_token(
    const u8* W, const void* params, const float* bias, const void* x, const float* norm, void* y,
    int n, int k, int group, int epilogue, float eps, const __grid_constant__ Table table) {
  extern __shared__ __align__(128) u8 shared[];
#ifdef AO_EARLY
  start_next();
#endif
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const bool pairs = epilogue == SILU_MUL_BF16;
  const int tiles = pairs ? (n / 2 + 7) / 8 : (n + 15) / 16;
  // The block's tiles, by number: block b has b, b + gridDim.x and so on.
  const int mine = (tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
  auto tile_of = [&](int i) { return (int)blockIdx.x + i * (int)gridDim.x; };
  const int chunks = k / 64, stages = (chunks + AO_KW * AO_U - 1) / (AO_KW * AO_U);
  u8* const x_shared = shared + AO_PAIRS_BYTES;
  u8* const zeros = x_shared + chunks * AO_XCHUNK;
  float* const x_sums = (float*)(zeros + 160);
  float* const scratch = x_sums + stages * AO_KW * AO_UNITS;
  float* const sums = scratch + 16;
  u8* const ring = (u8*)(sums + 2 * AO_BATCH * AO_KW * 16) + warp * (AO_STAGES * AO_STAGE_BYTES);

  // ---- what is fetched next
  int f_tile = 0, f_stage = 0, f_slot = 0;
  const int groups = (k + group - 1) / group;
  const float inv_group = 1.f / group;  // the half below keeps quotients of small whole numbers exact
  auto fetch = [&]() {
    if (f_tile < mine) {
      const int tile = tile_of(f_tile);
      u8* to = ring + f_slot * AO_STAGE_BYTES;
      const int c0 = (f_stage * AO_KW + warp) * AO_U;
      const u8* from = W + ((size_t)(tile >> 2) * chunks + c0) * AO_CHUNK_BYTES + (tile & 3) * (AO_CHUNK_BYTES / 4) + lane * 16;
      if (c0 + AO_U <= chunks) {
#pragma unroll
        for (int i = 0; i < AO_U; ++i) copy16(to + i * 512 + lane * 16, from + i * AO_CHUNK_BYTES);
      } else {
#pragma unroll
        for (int i = 0; i < AO_U; ++i) {
          const bool there = c0 + i < chunks;
          copy16_async(to + i * 512 + lane * 16, there ? from + i * AO_CHUNK_BYTES : W, there);
        }
      }
#pragma unroll
      for (int i = lane; i < AO_UNITS * AO_PIECES; i += 32) {
        const int piece = i % AO_PIECES, unit = i / AO_PIECES, column = c0 * 64 + unit * AO_FLUSH * 16;
        const size_t at = ((size_t)(tile >> 2) * groups + (int)((column + 0.5f) * inv_group)) * 4 + (tile & 3);
        copy16_async(to + 2048 + unit * AO_PSTRIDE + piece * 16, column < k ? (const u8*)params + (at * AO_PIECES + piece) * 16 : W, column < k);
      }
      if (++f_slot == AO_STAGES) f_slot = 0;
      if (++f_stage == stages) {
        f_stage = 0;
#ifdef AO_EARLY
        ++f_tile;
#else
        if (++f_tile == mine) start_next();
#endif
      }
    }
    copies_commit();
  };
  // W is a constant: it is asked for while the kernel before still works.
#pragma unroll
  for (int s = 0; s < AO_STAGES; ++s) fetch();

  // ---- x
  if (threadIdx.x < 40) ((u32*)zeros)[threadIdx.x] = 0;
  for (int i = chunks * AO_UNITS / AO_U + threadIdx.x; i < stages * AO_KW * AO_UNITS; i += AO_THREADS) x_sums[i] = 0.f;
#ifdef AO_TABLE
  for (int i = threadIdx.x; i < 8192; i += AO_THREADS) {
    const int low = i / 32 & 15, high = i / 512;
    auto number = [&](int code) { return (table.low[code / 4] >> (8 * (code % 4)) & 255) | (table.high[code / 4] >> (8 * (code % 4)) & 255) << 8; };
    ((u32*)shared)[i] = number(low) | number(high) << 16;
  }
#endif
  const int pieces = k / 8, pieces_up = (pieces + 31) / 32 * 32;
  float factor = 1.f;
#if AO_X == NORM
  float4 w_held[2][2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int piece = threadIdx.x + j * AO_THREADS;
#pragma unroll
    for (int h = 0; h < 2; ++h) w_held[j][h] = piece < pieces ? *(const float4*)(norm + piece * 8 + h * 4) : make_float4(0.f, 0.f, 0.f, 0.f);
  }
#endif
  wait_alone();
#if AO_X == NORM
  float squares = 0.f;
  auto make = [&](int piece, float4 w0, float4 w1) {
    const bool there = piece < pieces;
    uint4 a = there ? load16((const float*)x + piece * 8) : make_uint4(0, 0, 0, 0), b = there ? load16((const float*)x + piece * 8 + 4) : make_uint4(0, 0, 0, 0);
    const float v[8] = {__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w),
                        __uint_as_float(b.x), __uint_as_float(b.y), __uint_as_float(b.z), __uint_as_float(b.w)};
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += v[i] * v[i];
    const u32 out[4] = {pack_bf16(v[0] * w0.x, v[1] * w0.y), pack_bf16(v[2] * w0.z, v[3] * w0.w), pack_bf16(v[4] * w1.x, v[5] * w1.y), pack_bf16(v[6] * w1.z, v[7] * w1.w)};
    if (there) put_x(x_shared, piece, out);
    put_sum(x_sums, there ? piece : 1, sum_of(out));
  };
#pragma unroll
  for (int j = 0; j < 2; ++j)
    if (threadIdx.x + j * AO_THREADS < pieces_up) make(threadIdx.x + j * AO_THREADS, w_held[j][0], w_held[j][1]);
  for (int piece = threadIdx.x + 2 * AO_THREADS; piece < pieces_up; piece += AO_THREADS) {
    const int at = min(piece, pieces - 1) * 8;
    make(piece, *(const float4*)(norm + at), *(const float4*)(norm + at + 4));
  }
  squares = warp_sum(squares);
  if (lane == 0) scratch[warp] = squares;
  __syncthreads();
  squares = 0.f;
#pragma unroll
  for (int i = 0; i < AO_KW; ++i) squares += scratch[i];
  factor = rsqrtf(squares / k + eps);
#else
  auto load = [&](int piece) { return piece < pieces ? load16((const u16*)x + piece * 8) : make_uint4(0, 0, 0, 0); };
  auto put = [&](int piece, uint4 v) {
    u32 out[4] = {v.x, v.y, v.z, v.w};
#if AO_X == E4M3
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 codes = to_e4m3(__fdiv_rn(low_bf16(out[i]), factor), __fdiv_rn(high_bf16(out[i]), factor), 0.f, 0.f);
      out[i] = e4m3_to_bf16(codes & 255) | (u32)e4m3_to_bf16(codes >> 8 & 255) << 16;
    }
#endif
    if (piece < pieces) put_x(x_shared, piece, out);
    put_sum(x_sums, piece < pieces ? piece : 1, piece < pieces ? sum_of(out) : 0.f);
  };
  uint4 held[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) held[j] = load(threadIdx.x + j * AO_THREADS);
#if AO_X == E4M3
  u32 bits = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) bits = largest_bits(held[j], bits);
  for (int piece = threadIdx.x + 4 * AO_THREADS; piece < pieces; piece += AO_THREADS) bits = largest_bits(load(piece), bits);
  bits = __reduce_max_sync(~0u, bits);
  if (lane == 0) ((u32*)scratch)[warp] = bits;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < AO_KW; ++i) bits = max(bits, ((const u32*)scratch)[i]);
  factor = e4m3_scale(low_bf16(bits));
#endif
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (threadIdx.x + j * AO_THREADS < pieces_up) put(threadIdx.x + j * AO_THREADS, held[j]);
  for (int piece = threadIdx.x + 4 * AO_THREADS; piece < pieces_up; piece += AO_THREADS) put(piece, load(piece));
  __syncthreads();
#endif

  // ---- products
  int slot = 0;
  float* here = sums;
  float old = 0.f, add = 0.f;
  const int r = threadIdx.x & 15;
  // Where a tile is one stage, AO_TURNS tiles have their columns of x side by side, else as many stages.
  const bool single = stages == 1;
  float even[4] = {0.f, 0.f, 0.f, 0.f}, odd[4] = {0.f, 0.f, 0.f, 0.f}, sum[2] = {0.f, 0.f};
  Units units;
  auto clear = [&]() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      units.x[i] = 0.f;
#pragma unroll
      for (int h = 0; h < 2; ++h) units.scale[h][i] = units.zero[h][i] = 0.f;
    }
  };
  auto flush = [&]() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i >> 1] += (even[i] + odd[i]) * units.scale[i >> 1][i & 1];
#ifndef AO_TABLE
      sum[i >> 1] += units.x[i & 1] * units.zero[i >> 1][i & 1];
#endif
      even[i] = odd[i] = 0.f;
    }
  };
  clear();
  for (int i = 0; i < mine; ++i) {
    const int in_batch = i % AO_BATCH;
    if (in_batch == 0) {
      // What the result of this thread is made of besides the sums.
      const int at = i + threadIdx.x / 16, tile = tile_of(at), out = pairs ? tile * 8 + (r & 7) : tile * 16 + r;
      if (at < mine && threadIdx.x < AO_BATCH * 16 && out < (pairs ? n / 2 : n)) {
        if (epilogue == ADD_F32) old = load_f32((const float*)y + out);
        if (bias) add = __ldg(bias + (pairs && r >= 8 ? n / 2 + out : out));
      }
    }
    for (int stage = 0; stage < stages; ++stage) {
      copies_wait<AO_STAGES - 1>();
      __syncwarp();
      const u8* from = ring + slot * AO_STAGE_BYTES;
      const int c0 = (stage * AO_KW + warp) * AO_U;
      const int turn = (single ? i : stage) % AO_TURNS;
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const int c = c0 + u;
        if (c < chunks) {
          const uint4 raw = *(const uint4*)(from + u * 512 + lane * 16);
          const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
          u32 b[8];
#pragma unroll
          for (int h = 0; h < 4; ++h) {
            // The column of x that steps 2 h / 2 … have; other columns are zeros.
            const int column = AO_FLUSH == 8 ? turn * 2 + u / 2 : AO_FLUSH == 4 ? turn * 4 + u : AO_FLUSH == 2 ? 2 * u + h / 2 : 4 * (u & 1) + h;
            if (AO_FLUSH == 1) {
              const uint2 v = *(const uint2*)((g == column ? x_shared + c * AO_XCHUNK : zeros) + t * 32 + h * 8);
              b[2 * h] = v.x; b[2 * h + 1] = v.y;
            } else if (h % 2 == 0) {
              const uint4 v = *(const uint4*)((g == column ? x_shared + c * AO_XCHUNK : zeros + 16) + t * 32 + h * 8);
              b[2 * h] = v.x; b[2 * h + 1] = v.y; b[2 * h + 2] = v.z; b[2 * h + 3] = v.w;
            }
          }
#pragma unroll
          for (int s = 0; s < 4; ++s) {
            u32 a[4];
            decode4(words[s], shared, a);
            mma_bf16(s % 2 ? odd : even, a[0], a[1], a[2], a[3], b[2 * s], b[2 * s + 1]);
          }
        }
        if (AO_FLUSH == 1 && u % 2 == 1) {
          read_units(units, from + 2048 + (4 * (u - 1) + 2 * t) * AO_PSTRIDE, x_sums + (c0 + u - 1) * 4 + 2 * t, g);
          flush();
        }
      }
      if (AO_FLUSH == 2) {
        read_units(units, from + 2048 + 2 * t * AO_PSTRIDE, x_sums + c0 * 2 + 2 * t, g);
        flush();
      }
      if (AO_TURNS > 1) {
        // The lanes whose columns these are.
        const int at = 2 * t % AO_UNITS;
        if (2 * t / AO_UNITS == turn) read_units(units, from + 2048 + at * AO_PSTRIDE, x_sums + c0 * AO_UNITS / AO_U + at, g);
        if (turn == AO_TURNS - 1 || (single ? i == mine - 1 : stage == stages - 1)) {
          flush();
          clear();
        }
      }
      __syncwarp();
      fetch();
      if (++slot == AO_STAGES) slot = 0;
    }

    // The warps' sums.
    if (!single || AO_TURNS == 1) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
        if (t == 0) here[(in_batch * AO_KW + warp) * 16 + g + 8 * h] = sum[h];
        sum[h] = 0.f;
      }
    } else if (i % AO_TURNS == AO_TURNS - 1 || i == mine - 1) {
      const int turn = 2 * t / AO_UNITS;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (AO_UNITS == 4) sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        if (2 * t % AO_UNITS == 0 && turn <= i % AO_TURNS) here[((in_batch - i % AO_TURNS + turn) * AO_KW + warp) * 16 + g + 8 * h] = sum[h];
        sum[h] = 0.f;
      }
    }
    if (in_batch < AO_BATCH - 1 && i < mine - 1) continue;
    // Two places in turn, so that one meeting a batch is enough.
    __syncthreads();
    if (threadIdx.x < (in_batch + 1) * 16) {
      const int tile = tile_of(i - in_batch + threadIdx.x / 16), out = pairs ? tile * 8 + (r & 7) : tile * 16 + r;
      float value = 0.f;
#pragma unroll
      for (int w = 0; w < AO_KW; ++w) value += here[(threadIdx.x / 16 * AO_KW + w) * 16 + r];
      value = value * factor + add;
      const float partner = __shfl_down_sync(__activemask(), value, 8);
      if (out < (pairs ? n / 2 : n)) {
        if (epilogue == STORE_BF16) ((u16*)y)[out] = f32_to_bf16(value);
        if (epilogue == ADD_F32) ((float*)y)[out] = old + value;
        if (epilogue == STORE_F32) ((float*)y)[out] = value;
        if (pairs && r < 8) ((u16*)y)[out] = f32_to_bf16(value / (1.f + __expf(-value)) * partner);
      }
    }
    here = here == sums ? sums + AO_BATCH * AO_KW * 16 : sums;
  }
  copies_wait<0>();
}
