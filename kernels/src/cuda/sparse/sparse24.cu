// y (M, N) = x (M, K) · W (N, K)ᵀ, W 2:4, by Hopper's sparse warpgroup products.
//
// W is the left factor: 64 rows of it by 64 (bf16) or 128 (8 bits) columns are a piece of memory as pack24.cu wrote it: 64 bytes of stored
// numbers a row, in the swizzle of 64 bytes, and behind them the places they have among four, in the order of the threads.
// x comes by the tensor copy engine in rows of 128 bytes; the tokens are the columns of the product. One warp asks, the others multiply.
#define BF16 1         // by bf16 x
#define INT8 2         // q · row scale, by int8 x
#define FLOAT8 3       // e4m3 · row scale, by e4m3 x
#ifndef AO_KIND
#define AO_KIND BF16
#endif
#ifndef AO_TN
#define AO_TN 256      // tokens of a tile
#endif
#ifndef AO_WG
#define AO_WG 2        // warpgroups that multiply, each its own 64 rows
#endif
#ifndef AO_STAGES
#define AO_STAGES 4
#endif
#ifndef AO_CHUNKS
#define AO_CHUNKS 1    // pieces of a stage and warpgroup
#endif
#ifndef AO_SHARE
#define AO_SHARE 1     // blocks of a cluster that have the same tokens and share x
#endif
#ifndef AO_BLOCKS
#define AO_BLOCKS 1    // blocks of a multiprocessor
#endif

#if AO_KIND == BF16
#define AO_COLUMNS 64                  // of a piece
#define AO_WORDS 1                     // of places, a thread and piece
#else
#define AO_COLUMNS 128
#define AO_WORDS 2
#endif
#define AO_ROWS (64 * AO_WG)
#define AO_THREADS (128 * AO_WG + 128)
#define AO_PIECE (4096 + 512 * AO_WORDS)
#define AO_XBYTES (AO_CHUNKS * AO_TN * 128)
#define AO_WBYTES (AO_WG * AO_CHUNKS * AO_PIECE)
#define AO_STAGE_BYTES ((AO_XBYTES + AO_WBYTES + 1023) / 1024 * 1024)
#if AO_TN < 64
#define AO_OUT_TOKENS AO_TN
#elif AO_TN == 256
#define AO_OUT_TOKENS 32               // leaves room for a fifth stage
#else
#define AO_OUT_TOKENS 64
#endif
#define AO_OUT_ROW 144                 // bytes: 64 rows of W in bf16, and padding against bank conflicts
#define AO_OUT_BYTES (AO_WG * AO_OUT_TOKENS * AO_OUT_ROW)
#define AO_TAIL (AO_OUT_BYTES + AO_WG * AO_TN * 4)  // and the tokens' factors

enum Epilogue { STORE_BF16 = 0, ADD_F32 = 1, STORE_F32 = 2 };

// ---- sparse warpgroup products

#if AO_KIND == INT8
typedef int Sum;
#define AO_D "+r"
#define AO_TYPES "k64.s32.s8.s8"
#define AO_SIGNS ""
#elif AO_KIND == FLOAT8
typedef float Sum;
#define AO_D "+f"
#define AO_TYPES "k64.f32.e4m3.e4m3"
#define AO_SIGNS ", 1, 1"
#else
typedef float Sum;
#define AO_D "+f"
#define AO_TYPES "k32.f32.bf16.bf16"
#define AO_SIGNS ", 1, 1, 0, 0"
#endif
#define D4(i) AO_D(d[i]), AO_D(d[i + 1]), AO_D(d[i + 2]), AO_D(d[i + 3])
#define D8(i) D4(i), D4(i + 4)
#define D16(i) D8(i), D8(i + 8)
#define D32(i) D16(i), D16(i + 16)
#define D64(i) D32(i), D32(i + 32)
#define P10(t) "%" t "0,%" t "1,%" t "2,%" t "3,%" t "4,%" t "5,%" t "6,%" t "7,%" t "8,%" t "9,"
#define P0_9 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,"
#define L8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define L16 P0_9 "%10,%11,%12,%13,%14,%15"
#define L32 P0_9 P10("1") P10("2") "%30,%31"
#define L64 P0_9 P10("1") P10("2") P10("3") P10("4") P10("5") "%60,%61,%62,%63"
#define L128 P0_9 P10("1") P10("2") P10("3") P10("4") P10("5") P10("6") P10("7") P10("8") P10("9") P10("10") P10("11") "%120,%121,%122,%123,%124,%125,%126,%127"
#define WG_SP(n, list, a, b, e, which, p) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " p ", 0;\nwgmma.mma_async.sp.sync.aligned.m64n" n AO_TYPES " {" list "}, " a ", " b ", " e ", " which ", p" AO_SIGNS ";\n}\n"

// d (64 × AO_TN) += a · x; `which` says whose places count: of bf16 those of the first or of the last two threads of four.
template <int which> __device__ __forceinline__ void multiply_sparse(Sum* d, u64 a, u64 b, u32 e) {
  const int add = 1;
#if AO_TN == 16
  asm volatile(WG_SP("16", L8, "%8", "%9", "%10", "%11", "%12") : D8(0) : "l"(a), "l"(b), "r"(e), "n"(which), "r"(add));
#elif AO_TN == 32
  asm volatile(WG_SP("32", L16, "%16", "%17", "%18", "%19", "%20") : D16(0) : "l"(a), "l"(b), "r"(e), "n"(which), "r"(add));
#elif AO_TN == 64
  asm volatile(WG_SP("64", L32, "%32", "%33", "%34", "%35", "%36") : D32(0) : "l"(a), "l"(b), "r"(e), "n"(which), "r"(add));
#elif AO_TN == 128
  asm volatile(WG_SP("128", L64, "%64", "%65", "%66", "%67", "%68") : D64(0) : "l"(a), "l"(b), "r"(e), "n"(which), "r"(add));
#else
  asm volatile(WG_SP("256", L128, "%128", "%129", "%130", "%131", "%132") : D64(0), D64(64) : "l"(a), "l"(b), "r"(e), "n"(which), "r"(add));
#endif
}
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int left> __device__ __forceinline__ void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(left) : "memory"); }
// Nothing that reads d may come before this.
template <int len> __device__ __forceinline__ void settle(Sum* d) {
#pragma unroll
  for (int i = 0; i < len; ++i) asm volatile("" : AO_D(d[i])::"memory");
}
// Rows of 128 bytes in the swizzle of 128 bytes, eight rows 1024 bytes; and the same of 64.
__device__ __forceinline__ u64 descriptor_128(u32 address) { return (u64)(address >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
__device__ __forceinline__ u64 descriptor_64(u32 address) { return (u64)(address >> 4 & 0x3fff) | 1ull << 16 | 32ull << 32 | 2ull << 62; }

// ---- the kernel

#if AO_SHARE > 1
#define AO_CLUSTERED __cluster_dims__(AO_SHARE, 1, 1)
#else
#define AO_CLUSTERED
#endif

extern "C" __global__ void AO_CLUSTERED __launch_bounds__(AO_THREADS, AO_BLOCKS) sparse24_linear(
    const __grid_constant__ TensorMap x_map, const u8* W, const float* row_scale, const float* token_scale, const float* bias, void* y, int m, int n,
    int pieces, int ldy, int epilogue) {
  extern __shared__ __align__(1024) u8 shared[];
  start_next();
  const u32 base = (shared_address(shared) + 1023) & ~1023u;
  u8* const smem = shared + (base - shared_address(shared));
  const u32 bars = base + AO_STAGES * AO_STAGE_BYTES + AO_TAIL;
#define FULL(s) (bars + 8 * (s))
#define EMPTY(s) (bars + 8 * (AO_STAGES + (s)))
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const u32 rank = AO_SHARE > 1 ? cluster_rank() : 0;
  if (threadIdx.x == 0) {
    for (int s = 0; s < AO_STAGES; ++s) {
      barrier_init(FULL(s), 1);
      barrier_init(EMPTY(s), AO_SHARE * AO_WG * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  }
  if (AO_SHARE > 1) cluster_sync();
  else __syncthreads();

  const int row_tiles = ((n + AO_ROWS - 1) / AO_ROWS + AO_SHARE - 1) / AO_SHARE, token_tiles = (m + AO_TN - 1) / AO_TN;
  const int tiles = row_tiles * token_tiles, stages = (pieces + AO_CHUNKS - 1) / AO_CHUNKS;
  const int first_tile = blockIdx.x / AO_SHARE, tile_step = gridDim.x / AO_SHARE;

  if (warp >= 4 * AO_WG) {
    // ---- the warp that asks for memory
#if AO_TN >= 256
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;\n");
#endif
    if (warp == 4 * AO_WG && lane == 0) {
      int slot = 0, phase = 0;
      bool waited = false;
      for (int tile = first_tile; tile < tiles; tile += tile_step) {
        const int row0 = ((tile / token_tiles) * AO_SHARE + (int)rank) * AO_ROWS, token0 = (tile % token_tiles) * AO_TN;
        // Rows are padded to whole clusters, columns to whole stages.
        const size_t w_rows = (size_t)stages * AO_CHUNKS * AO_PIECE;
        const u8* w_from = W + (row0 / 64) * w_rows;
        int column = 0;
        auto fetch_w = [&](int slot) {
          const u32 to = base + slot * AO_STAGE_BYTES + AO_XBYTES;
#pragma unroll
          for (int r = 0; r < AO_WG; ++r) copy_bulk(to + r * AO_CHUNKS * AO_PIECE, w_from + r * w_rows, AO_CHUNKS * AO_PIECE, FULL(slot));
          w_from += AO_CHUNKS * AO_PIECE;
        };
        auto fetch_x = [&](int slot) {
          const u32 to = base + slot * AO_STAGE_BYTES;
#pragma unroll
          for (int c = 0; c < AO_CHUNKS; ++c) {
#if AO_SHARE > 1
            const int rows = AO_TN / AO_SHARE;
            copy_tile_to_all(to + c * AO_TN * 128 + rank * rows * 128, &x_map, column + c * AO_COLUMNS, token0 + rank * rows, FULL(slot), (1 << AO_SHARE) - 1);
#else
            copy_tile(to + c * AO_TN * 128, &x_map, column + c * AO_COLUMNS, token0, FULL(slot));
#endif
          }
          column += AO_CHUNKS * AO_COLUMNS;
        };
        int left = stages;
        if (!waited) {
          // W is a constant: it is asked for while the kernel before still works, unless that is what makes it.
#ifdef AO_FRESH_W
          asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
          const int early = min(stages, AO_STAGES);
          for (int i = 0; i < early; ++i) {
            barrier_expect(FULL(i), AO_XBYTES + AO_WBYTES);
            fetch_w(i);
          }
          asm volatile("griddepcontrol.wait;\n" ::: "memory");
          waited = true;
          for (int i = 0; i < early; ++i) fetch_x(i);
          left -= early;
          slot = early == AO_STAGES ? 0 : early;
          phase = early == AO_STAGES ? 1 : 0;
        }
        for (; left > 0; --left) {
          // The first round of slots is free.
          barrier_wait(EMPTY(slot), phase ^ 1);
          barrier_expect(FULL(slot), AO_XBYTES + AO_WBYTES);
          fetch_x(slot);
          fetch_w(slot);
          if (++slot == AO_STAGES) { slot = 0; phase ^= 1; }
        }
      }
    }
    __syncwarp();
  } else {
    // ---- the warpgroups that multiply
#if AO_TN >= 256
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;\n");
#endif
    const int wg = __shfl_sync(~0u, warp >> 2, 0), w4 = warp & 3, g = lane >> 2, t = lane & 3, thread = threadIdx.x & 127;
    int slot = 0, phase = 0;
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
    for (int tile = first_tile; tile < tiles; tile += tile_step) {
      Sum sum[AO_TN / 2];
#pragma unroll
      for (int i = 0; i < AO_TN / 2; ++i) sum[i] = 0;
      const int row0 = ((tile / token_tiles) * AO_SHARE + (int)rank) * AO_ROWS + wg * 64, token0 = (tile % token_tiles) * AO_TN;
      // Factors of the results are asked for before the products, and are there behind them.
      float scales[2], biases[2], factors[(AO_TN + 127) / 128];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = row0 + w4 * 16 + g + 8 * h;
        scales[h] = row_scale && row < n ? __ldg(row_scale + row) : 1.f;
        biases[h] = bias && row < n ? __ldg(bias + row) : 0.f;
      }
#pragma unroll
      for (int i = 0; i < (AO_TN + 127) / 128; ++i) {
        const int token = i * 128 + thread;
        factors[i] = token_scale && token < AO_TN && token0 + token < m ? load_f32(token_scale + token0 + token) : 1.f;
      }
      int last = -1;
      // Gives a slot back, in every block that x was shared with.
      auto release = [&](int s) {
        if (AO_SHARE > 1) {
          if (lane < AO_SHARE) barrier_arrive_at(EMPTY(s), lane);
        } else if (lane == 0) barrier_arrive(EMPTY(s));
      };
      // Places of the stage that is multiplied and of the next.
      u32 places[2][AO_CHUNKS][AO_WORDS];
      auto load = [&](int b) {
        const u8* from = smem + slot * AO_STAGE_BYTES + AO_XBYTES + wg * AO_CHUNKS * AO_PIECE + 4096;
#pragma unroll
        for (int c = 0; c < AO_CHUNKS; ++c)
#pragma unroll
          for (int i = 0; i < AO_WORDS; ++i) places[b][c][i] = ((const u32*)(from + c * AO_PIECE))[thread * AO_WORDS + i];
      };
      auto stage = [&](int b, bool more) {
        const u32 xs = base + slot * AO_STAGE_BYTES, ws = xs + AO_XBYTES + wg * AO_CHUNKS * AO_PIECE;
        products_begin();
#pragma unroll
        for (int c = 0; c < AO_CHUNKS; ++c) {
          const u64 a = descriptor_64(ws + c * AO_PIECE), x = descriptor_128(xs + c * AO_TN * 128);
          multiply_sparse<0>(sum, a, x, places[b][c][0]);
#if AO_KIND == BF16
          multiply_sparse<1>(sum, a + 2, x + 4, places[b][c][0]);
#else
          multiply_sparse<0>(sum, a + 2, x + 4, places[b][c][1]);
#endif
        }
        products_commit();
        const int now = slot;
        if (++slot == AO_STAGES) { slot = 0; phase ^= 1; }
        products_wait<1>();
        if (last >= 0) release(last);
        last = now;
        if (more) {
          barrier_wait(FULL(slot), phase);
          load(b ^ 1);
        }
      };
      barrier_wait(FULL(slot), phase);
      load(0);
      int it = 0;
      for (; it + 1 < stages; it += 2) {
        stage(0, true);
        stage(1, it + 2 < stages);
      }
      if (it < stages) stage(0, false);
      products_wait<0>();
      if (last >= 0) release(last);
      settle<AO_TN / 2>(sum);

      // ---- results
      float* token_factors = (float*)(smem + AO_STAGES * AO_STAGE_BYTES + AO_OUT_BYTES) + wg * AO_TN;
#pragma unroll
      for (int i = 0; i < (AO_TN + 127) / 128; ++i)
        if (i * 128 + thread < AO_TN) token_factors[i * 128 + thread] = factors[i];
      asm volatile("bar.sync %0, 128;\n" ::"r"(2 + wg) : "memory");
      auto value = [&](int i, float by) { return (float)sum[i] * scales[i >> 1 & 1] * by + biases[i >> 1 & 1]; };
      if (epilogue == STORE_BF16 && (ldy & 7) == 0 && ((size_t)y & 15) == 0) {
        // Eight by eight turned on the way to shared memory, then 16 bytes of a token at a time.
        u8* out = smem + AO_STAGES * AO_STAGE_BYTES + wg * (AO_OUT_TOKENS * AO_OUT_ROW);
        const u32 out_address = shared_address(out);
#pragma unroll
        for (int c = 0; c < AO_TN / AO_OUT_TOKENS; ++c) {
          if (c > 0) asm volatile("bar.sync %0, 128;\n" ::"r"(2 + wg) : "memory");
#pragma unroll
          for (int j = 0; j < AO_OUT_TOKENS / 8; ++j) {
            const int i = (c * AO_OUT_TOKENS / 8 + j) * 4;
            const float2 by = *(const float2*)(token_factors + c * AO_OUT_TOKENS + 8 * j + 2 * t);
            u32 v0 = pack_bf16(value(i, by.x), value(i + 1, by.y)), v1 = pack_bf16(value(i + 2, by.x), value(i + 3, by.y));
            u32 to = out_address + (8 * j + (lane & 7)) * AO_OUT_ROW + (w4 * 16 + (lane >> 3 & 1) * 8) * 2;
            asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};\n" ::"r"(to), "r"(v0), "r"(v1) : "memory");
          }
          asm volatile("bar.sync %0, 128;\n" ::"r"(2 + wg) : "memory");
#pragma unroll
          for (int p = 0; p < (AO_OUT_TOKENS * 8 + 127) / 128; ++p) {
            const int at = p * 128 + thread, token = at / 8, piece = at % 8;
            const int to_token = token0 + c * AO_OUT_TOKENS + token, to_row = row0 + piece * 8;
            if (token >= AO_OUT_TOKENS || to_token >= m || to_row >= n) continue;
            // Results are in whole eights: N is as long as a row of y, which is a multiple of 8.
            *(uint4*)((u16*)y + (size_t)to_token * ldy + to_row) = *(const uint4*)(out + token * AO_OUT_ROW + piece * 16);
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < AO_TN / 2; ++i) {
          const int in_tile = i / 4 * 8 + 2 * t + (i & 1), token = token0 + in_tile, row = row0 + w4 * 16 + g + 8 * (i >> 1 & 1);
          if (token >= m || row >= n) continue;
          const float v = value(i, token_factors[in_tile]);
          const size_t to = (size_t)token * ldy + row;
          if (epilogue == STORE_BF16) ((u16*)y)[to] = f32_to_bf16(v);
          else if (epilogue == ADD_F32) ((float*)y)[to] = load_f32((const float*)y + to) + v;
          else ((float*)y)[to] = v;
        }
      }
    }
  }
  // No block leaves while another may still write to its memory.
  if (AO_SHARE > 1) cluster_sync();
}
