// y (M, N) = x (M, K) · W (N, K)ᵀ by Hopper's warpgroup products.
//
// One warp asks for tiles (x by the tensor copy engine, in 128-byte rows, swizzled; W as it is packed), the others multiply: a warpgroup
// takes AO_RT tiles of 64 rows of W, and the tokens are the columns of its product. W of few bits is decoded in registers,
// which are the left factor; W of eight bits that is multiplied as it is comes from shared memory, rows like x.
//
// AO_KIND says what W is. 4-bit and 8-bit codes lie in fragments (pack.cu): for 64 rows and 64 columns, four tiles of 16 rows after one
// another, each in the order of the lanes; the parameters of a group of columns follow the same 64 rows.
#define INT4 1         // (q − 8) · scale + zero, by bf16 x
#define TABLE4 2       // table[q] · scale, by bf16 x
#define INT8 3         // q · row scale, by bf16 x
#define FLOAT8 4       // e4m3 · row scale, by bf16 x
#define FLOAT8_BOTH 5  // e4m3 · row scale, by e4m3 x
#define INT8_BOTH 6    // int8 · row scale, by int8 x
#ifndef AO_KIND
#define AO_KIND INT4
#endif
#ifndef AO_TN
#define AO_TN 256      // tokens of a tile
#endif
#ifndef AO_RT
#define AO_RT 1        // tiles of 64 rows that a warpgroup takes
#endif
#ifndef AO_WG
#define AO_WG 2        // warpgroups that multiply, each its own rows
#endif
#ifndef AO_STAGES
#define AO_STAGES 4
#endif
#ifndef AO_CHUNKS
#define AO_CHUNKS 1    // 64 columns each, of a stage of bf16 x
#endif
#ifndef AO_GPS
#define AO_GPS 1       // groups of columns that a stage has parameters of
#endif
#ifndef AO_SHARE
#define AO_SHARE 1     // blocks of a cluster that have the same tokens and share x
#endif
#ifndef AO_SPLIT
#define AO_SPLIT 1     // blocks of a cluster that have the same tile and share its columns
#endif
#ifndef AO_BLOCKS
#define AO_BLOCKS 1    // blocks of a multiprocessor
#endif

#define AO_X8 (AO_KIND >= FLOAT8_BOTH)
#define AO_SMEM_W AO_X8
#define AO_GROUPED (AO_KIND == INT4 || AO_KIND == TABLE4)
#define AO_ROWS (64 * AO_RT * AO_WG)
#define AO_THREADS (128 * AO_WG + 128)
#define AO_CLUSTER (AO_SHARE * AO_SPLIT)
#if AO_X8
#define AO_STAGE_K 128
#define AO_XSLABS 1
#else
#define AO_STAGE_K (64 * AO_CHUNKS)
#define AO_XSLABS AO_CHUNKS
#endif
#define AO_STEPS (4 * AO_XSLABS)       // products of 32 bytes of x
#define AO_XBYTES (AO_XSLABS * AO_TN * 128)
#if AO_SMEM_W
#define AO_WBYTES (AO_ROWS * 128)
#elif AO_KIND == INT8 || AO_KIND == FLOAT8
#define AO_CHUNK_BYTES 4096            // of 64 rows by 64 columns
#define AO_WBYTES (AO_WG * AO_RT * (AO_STAGE_K / 64) * AO_CHUNK_BYTES)
#else
#define AO_CHUNK_BYTES 2048
#define AO_WBYTES (AO_WG * AO_RT * (AO_STAGE_K / 64) * AO_CHUNK_BYTES)
#endif
#define AO_PIECE (AO_STAGE_K / 64 * AO_CHUNK_BYTES)       // of 64 rows in a stage: one copy
#define AO_RAWS (AO_CHUNKS * (AO_CHUNK_BYTES / 2048))  // loads of 16 bytes of a lane, tile and stage
#if AO_GROUPED
#ifdef AO_F32_SCALE
#define AO_PAIR 8
#else
#define AO_PAIR 4
#endif
#define AO_PBYTES (AO_WG * AO_RT * AO_GPS * 64 * AO_PAIR)
#else
#define AO_PBYTES 0
#endif
#define AO_STAGE_BYTES ((AO_XBYTES + AO_WBYTES + AO_PBYTES + 1023) / 1024 * 1024)
#if AO_TN < 64
#define AO_OUT_TOKENS AO_TN
#else
#define AO_OUT_TOKENS 64
#endif
#define AO_OUT_ROW 144                 // bytes: 64 rows of W in bf16, and padding against bank conflicts
#define AO_OUT_BYTES (AO_WG * AO_OUT_TOKENS * AO_OUT_ROW)
#define AO_HALF_ROWS (AO_ROWS + 4)     // floats of a token where blocks split columns
#if AO_SPLIT > 1
#define AO_TAIL 0
#else
#define AO_TAIL (AO_OUT_BYTES + AO_WG * AO_TN * 4)  // and the tokens' factors
#endif

enum Epilogue { STORE_BF16 = 0, ADD_F32 = 1, STORE_F32 = 2, SILU_MUL_BF16 = 3 };
// ---- warpgroup products

#if AO_KIND == INT8_BOTH
typedef int Sum;
#define AO_D "+r"
#define AO_TYPES "s32.s8.s8"
#define AO_TAIL_SS ""
#define AO_TAIL_RS ""
#elif AO_X8
typedef float Sum;
#define AO_D "+f"
#define AO_TYPES "f32.e4m3.e4m3"
#define AO_TAIL_SS ", 1, 1"
#define AO_TAIL_RS ", 1, 1"
#else
typedef float Sum;
#define AO_D "+f"
#define AO_TYPES "f32.bf16.bf16"
#define AO_TAIL_SS ", 1, 1, 0, 0"
#define AO_TAIL_RS ", 1, 1, 0"
#endif
#define D4(i) AO_D(d[i]), AO_D(d[i + 1]), AO_D(d[i + 2]), AO_D(d[i + 3])
#define D8(i) D4(i), D4(i + 4)
#define D16(i) D8(i), D8(i + 8)
#define D32(i) D16(i), D16(i + 16)
#define D64(i) D32(i), D32(i + 32)
#define P10(t) "%" t "0,%" t "1,%" t "2,%" t "3,%" t "4,%" t "5,%" t "6,%" t "7,%" t "8,%" t "9,"
#define P0_9 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,"
#define L4 "%0,%1,%2,%3"
#define L8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define L16 P0_9 "%10,%11,%12,%13,%14,%15"
#define L32 P0_9 P10("1") P10("2") "%30,%31"
#define L64 P0_9 P10("1") P10("2") P10("3") P10("4") P10("5") "%60,%61,%62,%63"
#define L128 P0_9 P10("1") P10("2") P10("3") P10("4") P10("5") P10("6") P10("7") P10("8") P10("9") P10("10") P10("11") "%120,%121,%122,%123,%124,%125,%126,%127"
#if AO_X8
#define AO_STEP_K "k32"
#else
#define AO_STEP_K "k16"
#endif
#define WG_SS(n, list, a, b, p) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " p ", 0;\nwgmma.mma_async.sync.aligned.m64n" n AO_STEP_K "." AO_TYPES " {" list "}, " a ", " b ", p" AO_TAIL_SS ";\n}\n"
#define WG_RS(n, list, a, b, p) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " p ", 0;\nwgmma.mma_async.sync.aligned.m64n" n AO_STEP_K "." AO_TYPES " {" list "}, {" a "}, " b ", p" AO_TAIL_RS ";\n}\n"

// d (64 × AO_TN) += a · x; both from shared memory.
__device__ __forceinline__ void multiply_shared(Sum* d, u64 a, u64 b, int add) {
#if AO_SMEM_W
#if AO_TN == 8
  asm volatile(WG_SS("8", L4, "%4", "%5", "%6") : D4(0) : "l"(a), "l"(b), "r"(add));
#elif AO_TN == 16
  asm volatile(WG_SS("16", L8, "%8", "%9", "%10") : D8(0) : "l"(a), "l"(b), "r"(add));
#elif AO_TN == 32
  asm volatile(WG_SS("32", L16, "%16", "%17", "%18") : D16(0) : "l"(a), "l"(b), "r"(add));
#elif AO_TN == 64
  asm volatile(WG_SS("64", L32, "%32", "%33", "%34") : D32(0) : "l"(a), "l"(b), "r"(add));
#elif AO_TN == 128
  asm volatile(WG_SS("128", L64, "%64", "%65", "%66") : D64(0) : "l"(a), "l"(b), "r"(add));
#elif AO_TN == 256
  asm volatile(WG_SS("256", L128, "%128", "%129", "%130") : D64(0), D64(64) : "l"(a), "l"(b), "r"(add));
#endif
#endif
}
// The same with a from registers.
__device__ __forceinline__ void multiply_registers(Sum* d, const u32* a, u64 b, int add) {
#if !AO_SMEM_W
#if AO_TN == 8
  asm volatile(WG_RS("8", L4, "%4,%5,%6,%7", "%8", "%9") : D4(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
#elif AO_TN == 16
  asm volatile(WG_RS("16", L8, "%8,%9,%10,%11", "%12", "%13") : D8(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
#elif AO_TN == 32
  asm volatile(WG_RS("32", L16, "%16,%17,%18,%19", "%20", "%21") : D16(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
#elif AO_TN == 64
  asm volatile(WG_RS("64", L32, "%32,%33,%34,%35", "%36", "%37") : D32(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
#elif AO_TN == 128
  asm volatile(WG_RS("128", L64, "%64,%65,%66,%67", "%68", "%69") : D64(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
#elif AO_TN == 256
  asm volatile(WG_RS("256", L128, "%128,%129,%130,%131", "%132", "%133") : D64(0), D64(64) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
#endif
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
// Rows of 128 bytes in the swizzle of 128 bytes, eight rows 1024 bytes.
__device__ __forceinline__ u64 descriptor(u32 address) { return (u64)(address >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

struct Params { u32 scale[2], zero[2]; };
// Of rows g and g + 8 of a warp's 16, as bf16 pairs.
__device__ __forceinline__ Params read_params(const u8* pairs, int g) {
  Params p;
#if AO_GROUPED
#ifdef AO_F32_SCALE
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float2 v = ((const float2*)pairs)[g + 8 * i];
    p.scale[i] = pack_bf16(v.x, v.x);
    p.zero[i] = pack_bf16(v.y, v.y);
  }
#else
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    u32 v = ((const u32*)pairs)[g + 8 * i];
    p.scale[i] = both_low(v);
    p.zero[i] = both_high(v);
  }
#endif
#endif
  return p;
}

// ---- the kernel

#if AO_CLUSTER > 1
#define AO_CLUSTERED __cluster_dims__(AO_CLUSTER, 1, 1)
#else
#define AO_CLUSTERED
#endif

extern "C" __global__ void AO_CLUSTERED __launch_bounds__(AO_THREADS, AO_BLOCKS) wgmma_linear(
    const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, const __grid_constant__ Table table, const u8* W, const u8* params,
    const float* row_scale, const float* token_scale, const float* bias, void* y, int m, int n, int k, int ldy, int group, int epilogue) {
  extern __shared__ __align__(1024) u8 shared[];
  start_next();
  const u32 base = (shared_address(shared) + 1023) & ~1023u;
  u8* const smem = shared + (base - shared_address(shared));
  const u32 bars = base + AO_STAGES * AO_STAGE_BYTES + AO_TAIL;
#define FULL(s) (bars + 8 * (s))
#define EMPTY(s) (bars + 8 * (AO_STAGES + (s)))
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const u32 rank = AO_CLUSTER > 1 ? cluster_rank() : 0;
  if (threadIdx.x == 0) {
    for (int s = 0; s < AO_STAGES; ++s) {
      barrier_init(FULL(s), 1);
      barrier_init(EMPTY(s), AO_SHARE * AO_WG * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  }
  if (AO_CLUSTER > 1) cluster_sync();
  else __syncthreads();

  // With pairs a tile of 16 rows is 8 of the first half of W and their partners of the second.
  const int packed_rows = epilogue == SILU_MUL_BF16 ? (n / 2 + 7) / 8 * 16 : n;
  const int row_tiles = ((packed_rows + AO_ROWS - 1) / AO_ROWS + AO_SHARE - 1) / AO_SHARE, token_tiles = (m + AO_TN - 1) / AO_TN;
  const int tiles = row_tiles * token_tiles, all_stages = (k + AO_STAGE_K - 1) / AO_STAGE_K;
  // The part of the columns that this block takes.
  const int part = AO_SPLIT > 1 ? rank : 0;
  const int first_stage = (int)((long long)all_stages * part / AO_SPLIT), stages = (int)((long long)all_stages * (part + 1) / AO_SPLIT) - first_stage;
  const int first_tile = blockIdx.x / AO_CLUSTER, tile_step = gridDim.x / AO_CLUSTER;

  if (warp >= 4 * AO_WG) {
    // ---- the warp that asks for memory
#if AO_TN * AO_RT >= 256
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;\n");
#endif
    if (warp == 4 * AO_WG && lane == 0) {
      // One thread asks for everything: what it computes for a stage is kept to additions.
      int slot = 0, phase = 0;
      bool waited = false;
      for (int tile = first_tile; tile < tiles; tile += tile_step) {
        const int row0 = ((tile / token_tiles) * AO_SHARE + (AO_SHARE > 1 ? (int)rank : 0)) * AO_ROWS, token0 = (tile % token_tiles) * AO_TN;
        int column = first_stage * AO_STAGE_K;
#if AO_SMEM_W
        const u32 bytes = AO_XBYTES + AO_WBYTES;
        auto fetch_w = [&](int slot, int column) { copy_tile(base + slot * AO_STAGE_BYTES + AO_XBYTES, &w_map, column, row0, FULL(slot)); };
#else
        const int there = min(AO_WG * AO_RT, max(0, (packed_rows + 63) / 64 - row0 / 64));
        const u32 bytes = AO_XBYTES + there * ((AO_STAGE_K / 64) * AO_CHUNK_BYTES + AO_PBYTES / (AO_WG * AO_RT));
        const size_t w_rows = (size_t)(k / 64) * AO_CHUNK_BYTES;
        const u8* w_from = W + (row0 / 64) * w_rows + (size_t)(column / 64) * AO_CHUNK_BYTES;
#if AO_GROUPED
        // A group spans several stages, or a stage several groups.
        const int per_group = AO_GPS > 1 ? 1 : group / AO_STAGE_K;
        const size_t p_rows = (size_t)((k + group - 1) / group) * 64 * AO_PAIR;
        const u8* p_from = params + (row0 / 64) * p_rows + (size_t)(column / group) * 64 * AO_PAIR;
        int in_group = first_stage % per_group;
#endif
        auto fetch_w = [&](int slot, int) {
          const u32 to = base + slot * AO_STAGE_BYTES + AO_XBYTES;
#pragma unroll
          for (int r = 0; r < AO_WG * AO_RT; ++r)
            if (r < there) {
              copy_bulk(to + r * AO_PIECE, w_from + r * w_rows, AO_PIECE, FULL(slot));
#if AO_GROUPED
              copy_bulk(to + AO_WBYTES + r * AO_GPS * 64 * AO_PAIR, p_from + r * p_rows, AO_GPS * 64 * AO_PAIR, FULL(slot));
#endif
            }
          w_from += AO_PIECE;
#if AO_GROUPED
          if (++in_group == per_group) {
            in_group = 0;
            p_from += AO_GPS * 64 * AO_PAIR;
          }
#endif
        };
#endif
        auto fetch_x = [&](int slot, int column) {
          const u32 to = base + slot * AO_STAGE_BYTES;
#pragma unroll
          for (int slab = 0; slab < AO_XSLABS; ++slab) {
#if AO_SHARE > 1
            const int rows = AO_TN / AO_SHARE;
            copy_tile_to_all(to + slab * AO_TN * 128 + rank * rows * 128, &x_map, column + slab * 64, token0 + rank * rows, FULL(slot), (1 << AO_SHARE) - 1);
#else
            copy_tile(to + slab * AO_TN * 128, &x_map, column + slab * 64, token0, FULL(slot));
#endif
          }
        };
        int left = stages;
        if (!waited) {
          // W is a constant: it is asked for while the kernel before still works.
          const int early = min(stages, AO_STAGES);
          for (int i = 0; i < early; ++i) {
            barrier_expect(FULL(i), bytes);
            fetch_w(i, column + i * AO_STAGE_K);
          }
          asm volatile("griddepcontrol.wait;\n" ::: "memory");
          waited = true;
          for (int i = 0; i < early; ++i) fetch_x(i, column + i * AO_STAGE_K);
          column += early * AO_STAGE_K;
          left -= early;
          slot = early == AO_STAGES ? 0 : early;
          phase = early == AO_STAGES ? 1 : 0;
        }
        for (; left > 0; --left) {
          // The first round of slots is free.
          barrier_wait(EMPTY(slot), phase ^ 1);
          barrier_expect(FULL(slot), bytes);
          fetch_x(slot, column);
          fetch_w(slot, column);
          column += AO_STAGE_K;
          if (++slot == AO_STAGES) { slot = 0; phase ^= 1; }
        }
      }
    }
    __syncwarp();
  } else {
    // ---- the warpgroups that multiply
#if AO_TN * AO_RT >= 256
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;\n");
#endif
    const int wg = __shfl_sync(~0u, warp >> 2, 0), w4 = warp & 3, g = lane >> 2, t = lane & 3;
    int slot = 0, phase = 0;
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
    for (int tile = first_tile; tile < tiles; tile += tile_step) {
      Sum sum[AO_RT][AO_TN / 2];
#pragma unroll
      for (int r = 0; r < AO_RT; ++r)
#pragma unroll
        for (int i = 0; i < AO_TN / 2; ++i) sum[r][i] = 0;
      const int row0 = ((tile / token_tiles) * AO_SHARE + (AO_SHARE > 1 ? (int)rank : 0)) * AO_ROWS, token0 = (tile % token_tiles) * AO_TN;
#if AO_SPLIT == 1
      // Factors of the results are asked for before the products, and are there behind them.
      const bool pairs = epilogue == SILU_MUL_BF16;
      float scales[AO_RT][2], biases[AO_RT][2], factors[(AO_TN + 127) / 128];
      int source[AO_RT][2];
#pragma unroll
      for (int r = 0; r < AO_RT; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row_base = row0 + (wg * AO_RT + r) * 64 + w4 * 16;
          source[r][h] = pairs ? row_base / 2 + g + h * (n / 2) : row_base + g + 8 * h;
          bool there = pairs ? row_base / 2 + g < n / 2 : source[r][h] < n;
          scales[r][h] = row_scale && there ? __ldg(row_scale + source[r][h]) : 1.f;
          biases[r][h] = bias && there ? __ldg(bias + source[r][h]) : 0.f;
        }
#pragma unroll
      for (int i = 0; i < (AO_TN + 127) / 128; ++i) {
        const int token = i * 128 + (threadIdx.x & 127);
        factors[i] = token_scale && token < AO_TN && token0 + token < m ? load_f32(token_scale + token0 + token) : 1.f;
      }
#endif
      int last = -1;
      // Gives a slot back, in every block that x was shared with.
      auto release = [&](int s) {
        if (AO_SHARE > 1) {
          if (lane < AO_SHARE) barrier_arrive_at(EMPTY(s), lane);
        } else if (lane == 0) barrier_arrive(EMPTY(s));
      };
#if AO_SMEM_W
      for (int it = 0; it < stages; ++it) {
        barrier_wait(FULL(slot), phase);
        const u32 xs = base + slot * AO_STAGE_BYTES, ws = xs + AO_XBYTES + wg * AO_RT * 64 * 128;
        products_begin();
#pragma unroll
        for (int s = 0; s < AO_STEPS; ++s)
#pragma unroll
          for (int r = 0; r < AO_RT; ++r) multiply_shared(sum[r], descriptor(ws + r * 64 * 128) + 2 * s, descriptor(xs) + 2 * s, 1);
        products_commit();
        products_wait<1>();
        if (last >= 0) release(last);
        last = slot;
        if (++slot == AO_STAGES) { slot = 0; phase ^= 1; }
      }
#else
      // While the tensor cores work on a step, its registers' partners are filled for the stage behind.
      u32 a[2][AO_RT][AO_STEPS][4];
      uint4 raw[AO_RT][AO_RAWS];
      Params p[AO_RT][AO_GPS];
      auto load = [&](int from_slot) {
        const u8* ws = smem + from_slot * AO_STAGE_BYTES + AO_XBYTES;
#pragma unroll
        for (int r = 0; r < AO_RT; ++r) {
#pragma unroll
          for (int i = 0; i < AO_RAWS; ++i) {
            const int per_chunk = AO_CHUNK_BYTES / 2048, c = i / per_chunk;
                        raw[r][i] = *(const uint4*)(ws + ((wg * AO_RT + r) * AO_CHUNKS + c) * AO_CHUNK_BYTES + w4 * (AO_CHUNK_BYTES / 4) + i % per_chunk * 512 + lane * 16);
          }
#if AO_GROUPED
#pragma unroll
          for (int i = 0; i < AO_GPS; ++i) p[r][i] = read_params(ws + AO_WBYTES + (((wg * AO_RT + r) * AO_GPS + i) * 64 + w4 * 16) * AO_PAIR, g);
#endif
        }
      };
      auto decode = [&](int b, int s) {
#pragma unroll
        for (int r = 0; r < AO_RT; ++r) {
#if AO_GROUPED
          const uint4 v = raw[r][s / 4];
          const u32 word = s % 4 == 0 ? v.x : s % 4 == 1 ? v.y : s % 4 == 2 ? v.z : v.w;
          const Params& q = p[r][s * AO_GPS / AO_STEPS];
#if AO_KIND == INT4
          decode_int4(word, q.scale, q.zero, a[b][r][s]);
#else
          decode_table(word, q.scale, table, a[b][r][s]);
#endif
#else
          const uint4 v = raw[r][s / 2];
#if AO_KIND == INT8
          decode_int8(s % 2 ? v.z : v.x, s % 2 ? v.w : v.y, a[b][r][s]);
#else
          decode_float8(s % 2 ? v.z : v.x, s % 2 ? v.w : v.y, a[b][r][s]);
#endif
#endif
        }
      };
      auto stage = [&](int b, bool more) {
        const u32 xs = base + slot * AO_STAGE_BYTES;
        const int now = slot;
        if (++slot == AO_STAGES) { slot = 0; phase ^= 1; }
#pragma unroll
        for (int s = 0; s < AO_STEPS; ++s) {
          products_begin();
#pragma unroll
          for (int r = 0; r < AO_RT; ++r) multiply_registers(sum[r], a[b][r][s], descriptor(xs + s / 4 * AO_TN * 128) + 2 * (s % 4), 1);
          products_commit();
          if (s == 0) {
            if (more) barrier_wait(FULL(slot), phase);
            load(slot);
          }
          products_wait<AO_STEPS>();
          decode(b ^ 1, s);
        }
        if (last >= 0) release(last);
        last = now;
      };
      if (stages > 0) barrier_wait(FULL(slot), phase);
      load(slot);
#pragma unroll
      for (int s = 0; s < AO_STEPS; ++s) decode(0, s);
      int it = 0;
      for (; it + 1 < stages; it += 2) {
        stage(0, true);
        stage(1, it + 2 < stages);
      }
      if (it < stages) stage(0, false);
#endif
      products_wait<0>();
      if (last >= 0) release(last);
#pragma unroll
      for (int r = 0; r < AO_RT; ++r) settle<AO_TN / 2>(sum[r]);

      // ---- results
#if AO_SPLIT > 1
      // The blocks' parts of a tile, in each one's memory (token, row); added up below.
      float* mine = (float*)smem;
      asm volatile("bar.sync 1, %0;\n" ::"n"(128 * AO_WG) : "memory");
#pragma unroll
      for (int r = 0; r < AO_RT; ++r)
#pragma unroll
        for (int i = 0; i < AO_TN / 2; ++i) {
          int token = i / 4 * 8 + 2 * t + (i & 1), row = (wg * AO_RT + r) * 64 + w4 * 16 + g + 8 * (i >> 1 & 1);
          mine[token * AO_HALF_ROWS + row] = (float)sum[r][i];
        }
#else
      float* token_factors = (float*)(smem + AO_STAGES * AO_STAGE_BYTES + AO_OUT_BYTES) + wg * AO_TN;
#pragma unroll
      for (int i = 0; i < (AO_TN + 127) / 128; ++i)
        if (i * 128 + (threadIdx.x & 127) < AO_TN) token_factors[i * 128 + (threadIdx.x & 127)] = factors[i];
      asm volatile("bar.sync %0, 128;\n" ::"r"(2 + wg) : "memory");
#pragma unroll
      for (int r = 0; r < AO_RT; ++r) {
        auto value = [&](int i, float by) { return (float)sum[r][i] * scales[r][i >> 1 & 1] * by + biases[r][i >> 1 & 1]; };
        if (epilogue == STORE_BF16 && (ldy & 7) == 0 && ((size_t)y & 15) == 0) {
          // Eight by eight turned on the way to shared memory, then 16 bytes of a token at a time.
          u8* out = smem + AO_STAGES * AO_STAGE_BYTES + wg * (AO_OUT_TOKENS * AO_OUT_ROW);
          const u32 out_address = shared_address(out);
#pragma unroll
          for (int c = 0; c < AO_TN / AO_OUT_TOKENS; ++c) {
            if (r + c > 0) asm volatile("bar.sync %0, 128;\n" ::"r"(2 + wg) : "memory");
#pragma unroll
            for (int j = 0; j < AO_OUT_TOKENS / 8; ++j) {
              const int i = (c * AO_OUT_TOKENS / 8 + j) * 4;
              const float2 by = *(const float2*)(token_factors + c * AO_OUT_TOKENS + 8 * j + 2 * t);
              u32 v0 = pack_bf16(value(i, by.x), value(i + 1, by.y)), v1 = pack_bf16(value(i + 2, by.x), value(i + 3, by.y));
              u32 to = out_address + (8 * j + (lane & 7)) * AO_OUT_ROW + (w4 * 16 + (lane >> 3 & 1) * 8) * 2;
              asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};\n" ::"r"(to), "r"(v0), "r"(v1) : "memory");
            }
            asm volatile("bar.sync %0, 128;\n" ::"r"(2 + wg) : "memory");
            const int thread = threadIdx.x & 127;
#pragma unroll
            for (int p = 0; p < (AO_OUT_TOKENS * 8 + 127) / 128; ++p) {
              const int at = p * 128 + thread, token = at / 8, piece = at % 8;
              const int to_token = token0 + c * AO_OUT_TOKENS + token, to_row = row0 + (wg * AO_RT + r) * 64 + piece * 8;
              if (token >= AO_OUT_TOKENS || to_token >= m || to_row >= n) continue;
              uint4 v = *(const uint4*)(out + token * AO_OUT_ROW + piece * 16);
              u16* to = (u16*)y + (size_t)to_token * ldy + to_row;
              if (to_row + 8 <= n) *(uint4*)to = v;
              else {
                const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int e = 0; e < 8; ++e)
                  if (to_row + e < n) to[e] = (u16)(words[e / 2] >> (16 * (e & 1)));
              }
            }
          }
        } else {
#pragma unroll
          for (int i = 0; i < AO_TN / 2; ++i) {
            const int in_tile = i / 4 * 8 + 2 * t + (i & 1), token = token0 + in_tile;
            if (token >= m) continue;
            const float by = token_factors[in_tile];
            if (pairs) {
              if (i & 2) continue;
              if (source[r][0] >= n / 2) continue;
              float gate = value(i, by), up = value(i | 2, by);
              ((u16*)y)[(size_t)token * ldy + source[r][0]] = f32_to_bf16(gate / (1.f + __expf(-gate)) * up);
            } else {
              const int row = source[r][i >> 1 & 1];
              if (row >= n) continue;
              const size_t to = (size_t)token * ldy + row;
              if (epilogue == STORE_BF16) ((u16*)y)[to] = f32_to_bf16(value(i, by));
              else if (epilogue == ADD_F32) ((float*)y)[to] = load_f32((const float*)y + to) + value(i, by);
              else ((float*)y)[to] = value(i, by);
            }
          }
        }
      }
#endif
    }
  }

#if AO_SPLIT > 1
  // A block adds up some tokens of the tile of its cluster; there is one tile for each.
  cluster_sync();
  {
    const int tile = first_tile, row0 = (tile / token_tiles) * AO_ROWS, token0 = (tile % token_tiles) * AO_TN;
    const bool pairs = epilogue == SILU_MUL_BF16;
    const int fours = (pairs ? AO_ROWS / 2 : AO_ROWS) / 4, tokens = (AO_TN + AO_SPLIT - 1) / AO_SPLIT;
    for (int i = threadIdx.x; i < fours * tokens; i += AO_THREADS) {
      const int token = part * tokens + i / fours, at = i % fours * 4, out = (pairs ? row0 / 2 : row0) + at;
      if (token >= AO_TN || token0 + token >= m) continue;
      const int row = pairs ? at / 8 * 16 + at % 8 : at;
      float value[2][4] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (h && !pairs) break;
        float4 parts[AO_SPLIT];
#pragma unroll
        for (int p = 0; p < AO_SPLIT; ++p) parts[p] = load_shared_of(base + (token * AO_HALF_ROWS + row + 8 * h) * 4, p);
#pragma unroll
        for (int p = 0; p < AO_SPLIT; ++p) {
          value[h][0] += parts[p].x;
          value[h][1] += parts[p].y;
          value[h][2] += parts[p].z;
          value[h][3] += parts[p].w;
        }
      }
      const float by = token_scale ? load_f32(token_scale + token0 + token) : 1.f;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (out + e >= (pairs ? n / 2 : n)) break;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int source = h ? n / 2 + out + e : out + e;
          if (h && !pairs) break;
          if (row_scale) value[h][e] *= __ldg(row_scale + source);
          value[h][e] *= by;
          if (bias) value[h][e] += __ldg(bias + source);
        }
        const size_t to = (size_t)(token0 + token) * ldy + out + e;
        if (epilogue == STORE_BF16) ((u16*)y)[to] = f32_to_bf16(value[0][e]);
        if (epilogue == ADD_F32) ((float*)y)[to] = load_f32((const float*)y + to) + value[0][e];
        if (epilogue == STORE_F32) ((float*)y)[to] = value[0][e];
        if (pairs) ((u16*)y)[to] = f32_to_bf16(value[0][e] / (1.f + __expf(-value[0][e])) * value[1][e]);
      }
    }
  }
#endif
  // No block leaves while another may still write to its memory.
  if (AO_CLUSTER > 1) cluster_sync();
}
