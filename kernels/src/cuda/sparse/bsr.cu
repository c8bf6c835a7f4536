// y (M, N) = x (M, K) · W (N, K)ᵀ, W in blocks of 64 by 64 of which only some are stored, in bf16, by Hopper's warpgroup products.
//
// A block of threads takes 64 rows of W and AO_WG times AO_TN tokens: for each stored block it asks for the block, as it lies in memory (rows of 128 bytes in
// the swizzle of 128), and by the tensor copy engine for its 64 columns of x. What is not stored is neither read nor multiplied.
#ifndef AO_TN
#define AO_TN 256      // tokens of a warpgroup
#endif
#ifndef AO_WG
#define AO_WG 2        // warpgroups that multiply, each its own tokens by the same block
#endif
#ifndef AO_STAGES
#define AO_STAGES 3
#endif
#ifndef AO_BLOCKS
#define AO_BLOCKS 1    // blocks of threads of a multiprocessor
#endif

#define AO_THREADS (128 * AO_WG + 128)
#define AO_WBYTES 8192
#define AO_XBYTES (AO_TN * 128)        // of a warpgroup
#define AO_STAGE_BYTES (AO_WBYTES + AO_WG * AO_XBYTES)
#if AO_TN < 32
#define AO_OUT_TOKENS AO_TN
#else
#define AO_OUT_TOKENS 32
#endif
#define AO_OUT_ROW 144                 // bytes: 64 rows of W in bf16, and padding against bank conflicts
#define AO_OUT_BYTES (AO_WG * AO_OUT_TOKENS * AO_OUT_ROW)

enum Epilogue { STORE_BF16 = 0, ADD_F32 = 1, STORE_F32 = 2 };

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D8(i) D4(i), D4(i + 4)
#define D16(i) D8(i), D8(i + 8)
#define D32(i) D16(i), D16(i + 16)
#define D64(i) D32(i), D32(i + 32)
#define P10(t) "%" t "0,%" t "1,%" t "2,%" t "3,%" t "4,%" t "5,%" t "6,%" t "7,%" t "8,%" t "9,"
#define P0_9 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,"
#define L8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define L32 P0_9 P10("1") P10("2") "%30,%31"
#define L128 P0_9 P10("1") P10("2") P10("3") P10("4") P10("5") P10("6") P10("7") P10("8") P10("9") P10("10") P10("11") "%120,%121,%122,%123,%124,%125,%126,%127"
#define WG_SS(n, list, a, b, p) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " p ", 0;\nwgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" list "}, " a ", " b ", p, 1, 1, 0, 0;\n}\n"

// d (64 × AO_TN) += a (64 × 16) · x.
__device__ __forceinline__ void multiply(float* d, u64 a, u64 b) {
  const int add = 1;
#if AO_TN == 16
  asm volatile(WG_SS("16", L8, "%8", "%9", "%10") : D8(0) : "l"(a), "l"(b), "r"(add));
#elif AO_TN == 64
  asm volatile(WG_SS("64", L32, "%32", "%33", "%34") : D32(0) : "l"(a), "l"(b), "r"(add));
#else
  asm volatile(WG_SS("256", L128, "%128", "%129", "%130") : D64(0), D64(64) : "l"(a), "l"(b), "r"(add));
#endif
}
// Rows of 128 bytes in the swizzle of 128 bytes, eight rows 1024 bytes.
__device__ __forceinline__ u64 descriptor(u32 address) { return (u64)(address >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

extern "C" __global__ void __launch_bounds__(AO_THREADS, AO_BLOCKS) bsr_linear(
    const __grid_constant__ TensorMap x_map, const u8* W, const int* crow, const int* col, const float* bias, void* y, int m, int n, int ldy, int epilogue) {
  extern __shared__ __align__(1024) u8 shared[];
  start_next();
  const u32 base = (shared_address(shared) + 1023) & ~1023u;
  u8* const smem = shared + (base - shared_address(shared));
  const u32 bars = base + AO_STAGES * AO_STAGE_BYTES + AO_OUT_BYTES;
#define FULL(s) (bars + 8 * (s))
#define EMPTY(s) (bars + 8 * (AO_STAGES + (s)))
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  if (threadIdx.x == 0) {
    for (int s = 0; s < AO_STAGES; ++s) {
      barrier_init(FULL(s), 1);
      barrier_init(EMPTY(s), AO_WG * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  }
  __syncthreads();
  const int token_tiles = (m + AO_TN * AO_WG - 1) / (AO_TN * AO_WG), tiles = n / 64 * token_tiles;

  if (warp >= 4 * AO_WG) {
    // ---- the warp that asks for memory
#if AO_TN >= 256
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;\n");
#endif
    if (warp == 4 * AO_WG && lane == 0) {
      int slot = 0, phase = 0;
      asm volatile("griddepcontrol.wait;\n" ::: "memory");
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int row = tile / token_tiles, token0 = tile % token_tiles * AO_TN * AO_WG;
        const int end = __ldg(crow + row + 1);
        for (int at = __ldg(crow + row); at < end; ++at) {
          // The first round of slots is free.
          barrier_wait(EMPTY(slot), phase ^ 1);
          // A warpgroup without tokens has none brought.
          const int groups = min(AO_WG, (m - token0 + AO_TN - 1) / AO_TN);
          barrier_expect(FULL(slot), AO_WBYTES + groups * AO_XBYTES);
          const u32 to = base + slot * AO_STAGE_BYTES;
          const int column = __ldg(col + at) * 64;
          copy_bulk(to, W + (size_t)at * AO_WBYTES, AO_WBYTES, FULL(slot));
          for (int i = 0; i < groups; ++i) copy_tile(to + AO_WBYTES + i * AO_XBYTES, &x_map, column, token0 + i * AO_TN, FULL(slot));
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
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      float sum[AO_TN / 2];
#pragma unroll
      for (int i = 0; i < AO_TN / 2; ++i) sum[i] = 0.f;
      const int row = tile / token_tiles, row0 = row * 64, token0 = tile % token_tiles * AO_TN * AO_WG + wg * AO_TN;
      float biases[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) biases[h] = bias ? __ldg(bias + row0 + w4 * 16 + g + 8 * h) : 0.f;
      const int stages = __ldg(crow + row + 1) - __ldg(crow + row);
      int last = -1;
      for (int it = 0; it < stages; ++it) {
        barrier_wait(FULL(slot), phase);
        const u32 ws = base + slot * AO_STAGE_BYTES, xs = ws + AO_WBYTES + wg * AO_XBYTES;
        asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#pragma unroll
        for (int s = 0; s < 4; ++s) multiply(sum, descriptor(ws) + 2 * s, descriptor(xs) + 2 * s);
        asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 1;\n" ::: "memory");
        if (last >= 0 && lane == 0) barrier_arrive(EMPTY(last));
        last = slot;
        if (++slot == AO_STAGES) { slot = 0; phase ^= 1; }
      }
      asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
      if (last >= 0 && lane == 0) barrier_arrive(EMPTY(last));
      // Nothing that reads a sum may come before this.
#pragma unroll
      for (int i = 0; i < AO_TN / 2; ++i) asm volatile("" : "+f"(sum[i])::"memory");

      // ---- results
      auto value = [&](int i) { return sum[i] + biases[i >> 1 & 1]; };
      if (epilogue == STORE_BF16 && ((size_t)y & 15) == 0) {
        // Eight by eight turned on the way to shared memory, then 16 bytes of a token at a time; N is whole blocks.
        u8* out = smem + AO_STAGES * AO_STAGE_BYTES + wg * (AO_OUT_TOKENS * AO_OUT_ROW);
        const u32 out_address = shared_address(out);
#pragma unroll
        for (int c = 0; c < AO_TN / AO_OUT_TOKENS; ++c) {
          asm volatile("bar.sync %0, 128;\n" ::"r"(2 + wg) : "memory");
#pragma unroll
          for (int j = 0; j < AO_OUT_TOKENS / 8; ++j) {
            const int i = (c * AO_OUT_TOKENS / 8 + j) * 4;
            u32 v0 = pack_bf16(value(i), value(i + 1)), v1 = pack_bf16(value(i + 2), value(i + 3));
            u32 to = out_address + (8 * j + (lane & 7)) * AO_OUT_ROW + (w4 * 16 + (lane >> 3 & 1) * 8) * 2;
            asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};\n" ::"r"(to), "r"(v0), "r"(v1) : "memory");
          }
          asm volatile("bar.sync %0, 128;\n" ::"r"(2 + wg) : "memory");
#pragma unroll
          for (int p = 0; p < (AO_OUT_TOKENS * 8 + 127) / 128; ++p) {
            const int at = p * 128 + thread, token = at / 8, piece = at % 8, to_token = token0 + c * AO_OUT_TOKENS + token;
            if (token >= AO_OUT_TOKENS || to_token >= m) continue;
            *(uint4*)((u16*)y + (size_t)to_token * ldy + row0 + piece * 8) = *(const uint4*)(out + token * AO_OUT_ROW + piece * 16);
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < AO_TN / 2; ++i) {
          const int token = token0 + i / 4 * 8 + 2 * t + (i & 1), to_row = row0 + w4 * 16 + g + 8 * (i >> 1 & 1);
          if (token >= m) continue;
          const size_t to = (size_t)token * ldy + to_row;
          if (epilogue == STORE_BF16) ((u16*)y)[to] = f32_to_bf16(value(i));
          else if (epilogue == ADD_F32) ((float*)y)[to] = load_f32((const float*)y + to) + value(i);
          else ((float*)y)[to] = value(i);
        }
      }
    }
  }
}
