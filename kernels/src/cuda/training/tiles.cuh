// Tiles of attention.cu in shared memory and in registers.
#define D AO_HEAD_DIM
#define ROW (D * 2 + 16)  // bytes of a row in shared memory; 16 more keep eight rows in different banks
#if D <= 64
#define KV_STEP 64  // queries of a step of the gradient of keys and values
#define KEEP 1      // where keys and values of a block stay in registers
#define TILES 2     // of 16 queries that a warp owns: a fragment of keys serves both
#else
#define KV_STEP 32
#define KEEP 0
#define TILES 1
#endif
#if __CUDA_ARCH__ >= 900 || D != 64
#define STEP 64           // keys of a step of the forward loop
#else
#define STEP 32           // older chips want more registers for the same
#endif
#define Q_STEP 32         // and of the gradient of queries
#define KEYS 64           // that a block of threads owns
#define QUERIES (64 * TILES)
#define ROOM (QUERIES > 2 * STEP ? QUERIES : 2 * STEP)
#define Q_ROOM (QUERIES > 2 * Q_STEP ? QUERIES : 2 * Q_STEP)
#define LOG2E 1.4426950408889634f

// Four 8 × 8 matrices of 16-bit numbers, one row address a lane; `transposed` hands them out column by column.
__device__ __forceinline__ void load_matrices(u32* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)));
}
__device__ __forceinline__ void load_matrices_transposed(u32* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)));
}
// 2^x; what is far below 1 is 0.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
// Rows first .. first + rows − 1 of a matrix with D columns, zeros behind `end`.
template <int rows> __device__ __forceinline__ void fetch(u8* to, const u16* from, int first, int end, size_t stride) {
#pragma unroll
  for (int i = threadIdx.x; i < rows * (D / 8); i += 128) {
    int row = i / (D / 8), piece = i % (D / 8);
    bool there = first + row < end;
    copy16_async(to + row * ROW + piece * 16, there ? from + (size_t)(first + row) * stride + piece * 8 : from, there);
  }
}
// Rows of a warp by 16 columns, as a left factor: its tile `r` of `tiles`.
template <int tiles> __device__ __forceinline__ void left(u32* a, const u8* rows, int r, int i) {
  const int lane = threadIdx.x & 31;
  load_matrices(a, rows + (((threadIdx.x >> 5) * tiles + r) * 16 + lane % 16) * ROW + i * 32 + lane / 16 * 16);
}
template <int tiles, int n> __device__ __forceinline__ void clear(float (&v)[tiles][n][4]) {
#pragma unroll
  for (int r = 0; r < tiles; ++r)
#pragma unroll
    for (int j = 0; j < n; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) v[r][j][i] = 0.f;
}
// sum (16 · tiles, rows) += a (16 · tiles, columns i · 16 ..) · rowsᵀ
template <int tiles, int n> __device__ __forceinline__ void by_rows(float (&sum)[tiles][n][4], const u32 (&a)[tiles][4], const u8* b_rows, int i) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int j = 0; j < n / 2; ++j) {
    u32 b[4];
    load_matrices(b, b_rows + (j * 16 + lane % 8 + lane / 16 * 8) * ROW + i * 32 + lane / 8 % 2 * 16);
#pragma unroll
    for (int r = 0; r < tiles; ++r) {
      mma_bf16(sum[r][2 * j], a[r][0], a[r][1], a[r][2], a[r][3], b[0], b[1]);
      mma_bf16(sum[r][2 * j + 1], a[r][0], a[r][1], a[r][2], a[r][3], b[2], b[3]);
    }
  }
}
// sum (16 · tiles, D) += weights (16 · tiles, rows) · rows
template <int tiles, int n> __device__ __forceinline__ void by_columns(float (&sum)[tiles][D / 8][4], const float (&weight)[tiles][n][4], const u8* b_rows) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < n / 2; ++i) {
    u32 a[tiles][4];
#pragma unroll
    for (int r = 0; r < tiles; ++r) {
      const float *w = weight[r][2 * i], *x = weight[r][2 * i + 1];
      a[r][0] = pack_bf16(w[0], w[1]);
      a[r][1] = pack_bf16(w[2], w[3]);
      a[r][2] = pack_bf16(x[0], x[1]);
      a[r][3] = pack_bf16(x[2], x[3]);
    }
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      u32 b[4];
      load_matrices_transposed(b, b_rows + (i * 16 + lane % 16) * ROW + j * 32 + lane / 16 * 16);
#pragma unroll
      for (int r = 0; r < tiles; ++r) {
        mma_bf16(sum[r][2 * j], a[r][0], a[r][1], a[r][2], a[r][3], b[0], b[1]);
        mma_bf16(sum[r][2 * j + 1], a[r][0], a[r][1], a[r][2], a[r][3], b[2], b[3]);
      }
    }
  }
}
// A tile's rows `row` and `row` + 8, times `by`.
__device__ __forceinline__ void store_tile(u16* to, size_t stride, const float (&sum)[D / 8][4], int row, int end, const float* by) {
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (row + 8 * r >= end) continue;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) *(u32*)(to + (row + 8 * r) * stride + j * 8 + 2 * t) = pack_bf16(sum[j][2 * r] * by[r], sum[j][2 * r + 1] * by[r]);
  }
}
