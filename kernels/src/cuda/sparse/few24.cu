// y (M, N) = x (M, K) · W (N, K)ᵀ, W 2:4 in int4, `(q − 8) · scale`, for up to 64 tokens at a time by the sparse tensor cores of every GPU from Ampere on.
//
// A warp takes 16 rows by 128 columns at a time, 768 bytes as pack24.cu wrote them: of each lane 16 bytes of codes and 8 of their places among four.
// AO_KW warps of a block take different columns of the same rows and are summed at the end, AO_RW take other rows by the same x, which is brought to
// shared memory once: a block stays on its multiprocessor from the first row to the last.
#ifndef AO_NT
#define AO_NT 1        // tiles of eight tokens
#endif
#ifndef AO_RW
#define AO_RW 1        // tiles of 16 rows
#endif
#ifndef AO_KW
#define AO_KW 4        // warps of a tile
#endif
#ifndef AO_DEPTH
#define AO_DEPTH 2     // groups of 128 columns under way
#endif
#ifndef AO_MIN_BLOCKS
#define AO_MIN_BLOCKS 1
#endif
#define AO_THREADS (32 * AO_RW * AO_KW)

#ifdef AO_F32_SCALE
typedef float Scale;
#define AO_SCALE(v) (v)
#else
typedef u16 Scale;
#define AO_SCALE(v) bf16_to_f32(v)
#endif

enum Epilogue { STORE_BF16 = 0, ADD_F32 = 1, STORE_F32 = 2 };

#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 5)
#define AO_SP "mma.sp::ordered_metadata.sync.aligned"
#else
#define AO_SP "mma.sp.sync.aligned"
#endif

// d (16 × 8) += a (16 × 32, 2:4) · b (32 × 8); `which` says whose places count, of threads 0 and 1 or 2 and 3 of four.
template <int which> __device__ __forceinline__ void mma_sparse(float* d, const u32* a, const u32* b, u32 places) {
  asm volatile(AO_SP ".m16n8k32.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(places), "n"(which));
}

// A lane's part of a group: codes, their places, and the scales of its two rows.
struct Raw { uint4 codes; uint2 places; Scale scale[2]; };

extern "C" __global__ void __launch_bounds__(AO_THREADS, AO_MIN_BLOCKS) few24(
    const u8* W, const Scale* scale, const float* bias, const u16* x, void* y, int m, int n, int k, int ldx, int ldy, int per_group, int scales, int epilogue) {
  extern __shared__ __align__(16) u8 shared[];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int groups = (k + 127) / 128, tile = blockIdx.x * AO_RW + warp / AO_KW, first = warp % AO_KW;
  const bool there = tile * 16 < n;
  const u8* from = W + ((size_t)tile * groups) * 768;
  // W is a constant: it is asked for while the kernel before still works.
  Raw raw[AO_DEPTH];
  auto ask = [&](Raw& to, int group) {
    if (group >= groups || !there) return;
    const u8* piece = from + (size_t)group * 768;
    to.codes = load_once(piece + lane * 16);
    asm volatile("ld.global.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];\n" : "=r"(to.places.x), "=r"(to.places.y) : "l"(piece + 512 + lane * 8));
    const Scale* row = scale + ((size_t)tile * scales + group / per_group) * 16;
    to.scale[0] = __ldg(row + g);
    to.scale[1] = __ldg(row + g + 8);
  };
#pragma unroll
  for (int i = 0; i < AO_DEPTH; ++i) ask(raw[i], first + i * AO_KW);
  wait_for_previous();

  // x in the order in which a lane takes it: of each token and 32 columns, for each t its four pairs.
  uint4* const xs = (uint4*)shared;
  const int steps = groups * 4;
  for (int i = threadIdx.x; i < AO_NT * 8 * steps; i += AO_THREADS) {
    const int token = i / steps, step = i % steps;
    if (token >= m) break;
    u32 words[16];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int column = step * 32 + j * 8;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (token < m && column < k) v = load16(x + (size_t)token * ldx + column);
      words[j] = v.x, words[4 + j] = v.y, words[8 + j] = v.z, words[12 + j] = v.w;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) xs[i * 4 + j] = make_uint4(words[4 * j], words[4 * j + 1], words[4 * j + 2], words[4 * j + 3]);
  }
  __syncthreads();

  float sum[AO_NT][4];
#pragma unroll
  for (int i = 0; i < AO_NT; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[i][j] = 0.f;
  auto multiply = [&](const Raw& raw, int group) {
    const float by[2] = {AO_SCALE(raw.scale[0]), AO_SCALE(raw.scale[1])};
    const u32 codes[4] = {raw.codes.x, raw.codes.y, raw.codes.z, raw.codes.w};
    float part[AO_NT][4];
#pragma unroll
    for (int i = 0; i < AO_NT; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) part[i][j] = 0.f;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      u32 a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        // 0x4300 is 128 in bf16, whose last seven bits count ones: 128 + q; less 136, exact.
        a[i] = fma_bf16x2(and_or(codes[s] >> (4 * i), 0x000f000fu, 0x43004300u), 0x3f803f80u, 0xc308c308u);
#pragma unroll
      for (int i = 0; i < AO_NT; ++i) {
        const int token = 8 * i + g;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (token < m) v = xs[(token * steps + group * 4 + s) * 4 + t];
        const u32 b[4] = {v.x, v.y, v.z, v.w};
        const u32 places = s < 2 ? raw.places.x : raw.places.y;
        if (s % 2 == 0) mma_sparse<0>(part[i], a, b, places);
        else mma_sparse<1>(part[i], a, b, places);
      }
    }
#pragma unroll
    for (int i = 0; i < AO_NT; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] += part[i][j] * by[j >> 1];
  };
  for (int group = first; group < groups && there; group += AO_DEPTH * AO_KW) {
#pragma unroll
    for (int i = 0; i < AO_DEPTH; ++i) {
      const int now = group + i * AO_KW;
      if (now < groups) {
        multiply(raw[i], now);
        ask(raw[i], now + AO_DEPTH * AO_KW);
      }
    }
  }

  // The warps' sums, (warp, token, row), over x.
  __syncthreads();
  float* const sums = (float*)shared;
#pragma unroll
  for (int i = 0; i < AO_NT; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[(warp * AO_NT * 8 + 8 * i + 2 * t + (j & 1)) * 17 + g + 8 * (j >> 1)] = sum[i][j];
  __syncthreads();
  for (int i = threadIdx.x; i < AO_NT * 8 * 16 * AO_RW; i += AO_THREADS) {
    const int in_block = i % (16 * AO_RW), token = i / (16 * AO_RW), row = blockIdx.x * AO_RW * 16 + in_block;
    if (token >= m || row >= n) continue;
    float v = 0.f;
#pragma unroll
    for (int w = 0; w < AO_KW; ++w) v += sums[((in_block / 16 * AO_KW + w) * AO_NT * 8 + token) * 17 + in_block % 16];
    if (bias) v += __ldg(bias + row);
    const size_t to = (size_t)token * ldy + row;
    if (epilogue == STORE_BF16) ((u16*)y)[to] = f32_to_bf16(v);
    else if (epilogue == ADD_F32) ((float*)y)[to] = load_f32((const float*)y + to) + v;
    else ((float*)y)[to] = v;
  }
}
