// The first rungs of the ladder to one_token.cu: y (N) f32 = x (K) bf16 · W (N, K)ᵀ for one token, W = (q − 8) · scale. q (N, K / 2) has the even
// column in the low nibble, scale (N, K / 128) is bf16. K is a multiple of 1024. Only benches and the tutorial run them.

__device__ __forceinline__ float two_products(u32 byte, u32 x_pair) {
  return ((int)(byte & 15) - 8) * low_bf16(x_pair) + ((int)(byte >> 4 & 15) - 8) * high_bf16(x_pair);
}

// A thread a row, a byte at a time.
extern "C" __global__ void rung_1(const u8* q, const u16* scale, const u16* x, float* y, int n, int k) {
  wait_for_previous();
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= n) return;
  float sum = 0.f;
  for (int c = 0; c < k; c += 2) {
    const float s = bf16_to_f32(scale[(size_t)row * (k / 128) + c / 128]);
    sum += s * two_products(q[((size_t)row * k + c) / 2], *(const u32*)(x + c));
  }
  y[row] = sum;
}

// A warp a row: its lanes read bytes that lie side by side.
extern "C" __global__ void rung_2(const u8* q, const u16* scale, const u16* x, float* y, int n, int k) {
  wait_for_previous();
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (row >= n) return;
  float sum = 0.f;
  for (int c = 2 * lane; c < k; c += 64) {
    const float s = bf16_to_f32(scale[(size_t)row * (k / 128) + c / 128]);
    sum += s * two_products(q[((size_t)row * k + c) / 2], *(const u32*)(x + c));
  }
  sum = warp_sum(sum);
  if (lane == 0) y[row] = sum;
}

// Sixteen bytes a lane, asked for before the kernel before has ended and one round ahead after that; x in shared memory, once for the four rows of
// a block; a scale once for its 32 columns.
extern "C" __global__ void rung_3(const u8* q, const u16* scale, const u16* x, float* y, int n, int k) {
  extern __shared__ __align__(16) u8 shared[];
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
  const bool there = row < n;
  const uint4* from = (const uint4*)(q + (size_t)row * k / 2) + lane;
  uint4 next = there ? load_once(from) : make_uint4(0, 0, 0, 0);
  wait_for_previous();
  // A lane's 32 columns are 64 bytes; 16 more keep lanes in different banks.
  for (int i = threadIdx.x; i < k / 8; i += blockDim.x) *(uint4*)(shared + i / 4 * 80 + i % 4 * 16) = load16(x + 8 * i);
  __syncthreads();
  if (!there) return;
  float sum = 0.f;
  for (int c = 32 * lane; c < k; c += 1024) {
    const uint4 now = next;
    from += 32;
    if (c + 1024 < k) next = load_once(from);
    const u32 words[4] = {now.x, now.y, now.z, now.w};
    float part = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 v = *(const uint4*)(shared + c / 32 * 80 + i * 16);
      part += two_products(words[i], v.x) + two_products(words[i] >> 8, v.y) + two_products(words[i] >> 16, v.z) + two_products(words[i] >> 24, v.w);
    }
    sum += part * bf16_to_f32(scale[(size_t)row * (k / 128) + c / 128]);
  }
  sum = warp_sum(sum);
  if (lane == 0) y[row] = sum;
}
