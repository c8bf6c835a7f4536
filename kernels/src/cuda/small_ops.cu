// The small operations between linear layers. The residual stream is f32, what linear layers read is bf16.

// x (M, K) f32 = rows `tokens` of table (V, K) bf16; tokens outside the vocabulary give NaN. One block a token.
extern "C" __global__ void embedding(const int* tokens, const u16* table, float* x, int vocab, int k) {
  wait_for_previous();
  int token = load_int(tokens + blockIdx.x);
  bool known = token >= 0 && token < vocab;
  for (int i = threadIdx.x; i < k; i += blockDim.x)
    x[(size_t)blockIdx.x * k + i] = known ? bf16_to_f32(table[(size_t)token * k + i]) : __int_as_float(0x7fc00000);
}

// y (M, ldy) bf16 = x (M, K) f32 · weight (K) / √(mean x² + eps), then zeros up to ldy. One block a row.
extern "C" __global__ void __launch_bounds__(1024) rms_norm(const float* x, const float* weight, u16* y, int k, int ldy, float eps) {
  __shared__ float scratch[33];
  const float* row = x + (size_t)blockIdx.x * k;
  u16* out = y + (size_t)blockIdx.x * ldy;
  // Rows of up to 16 numbers a thread stay in registers; the weight is a constant and is read while the kernel before works.
  if (k % 4 == 0 && k <= 16 * (int)blockDim.x) {
    float4 w[4], v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int i = 4 * (threadIdx.x + j * blockDim.x);
      w[j] = i < k ? *(const float4*)(weight + i) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
    wait_for_previous();
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int i = 4 * (threadIdx.x + j * blockDim.x);
      uint4 bits = i < k ? load16(row + i) : make_uint4(0, 0, 0, 0);
      v[j] = make_float4(__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z), __uint_as_float(bits.w));
      sum += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
    }
    float inv_rms = rsqrtf(block_sum(sum, scratch) / k + eps);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int i = 4 * (threadIdx.x + j * blockDim.x);
      if (i < k)
        *(uint2*)(out + i) = make_uint2(pack_bf16(v[j].x * inv_rms * w[j].x, v[j].y * inv_rms * w[j].y),
                                        pack_bf16(v[j].z * inv_rms * w[j].z, v[j].w * inv_rms * w[j].w));
    }
  } else {
    wait_for_previous();
    float sum = 0.f;
    for (int i = threadIdx.x; i < k; i += blockDim.x) { float v = load_f32(row + i); sum += v * v; }
    float inv_rms = rsqrtf(block_sum(sum, scratch) / k + eps);
    for (int i = threadIdx.x; i < k; i += blockDim.x) out[i] = f32_to_bf16(load_f32(row + i) * inv_rms * weight[i]);
  }
  for (int i = k + threadIdx.x; i < ldy; i += blockDim.x) out[i] = 0;
}

// y (M, ldy) bf16 = silu(gate) · up, both in gate_up (M, 2 F) bf16: the gates first. Grid (columns, M).
extern "C" __global__ void silu_mul(const u16* gate_up, u16* y, int f, int ldy) {
  wait_for_previous();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= ldy) return;
  const u16* row = gate_up + (size_t)blockIdx.y * 2 * f;
  float v = 0.f;
  if (i < f) {
    float gate = bf16_to_f32(load_u16(row + i));
    v = gate / (1.f + __expf(-gate)) * bf16_to_f32(load_u16(row + f + i));
  }
  y[(size_t)blockIdx.y * ldy + i] = f32_to_bf16(v);
}

// y (M, ldy) bf16 = x (M, K) bf16, then zeros. Grid (columns, M).
extern "C" __global__ void pad_rows(const u16* x, u16* y, int k, int ldy) {
  wait_for_previous();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < ldy) y[(size_t)blockIdx.y * ldy + i] = i < k ? load_u16(x + (size_t)blockIdx.y * k + i) : 0;
}

// y bf16 = x f32, element by element.
extern "C" __global__ void to_bf16(const float* x, u16* y, u64 len) {
  wait_for_previous();
  u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
  if (i < len) y[i] = f32_to_bf16(load_f32(x + i));
}

// y (M, N) += bias (N): bf16 or f32.
extern "C" __global__ void add_bias(void* y, const float* bias, int n, u64 len, int is_f32) {
  wait_for_previous();
  u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
  if (i >= len) return;
  float b = bias[i % n];
  if (is_f32) ((float*)y)[i] = load_f32((float*)y + i) + b;
  else ((u16*)y)[i] = f32_to_bf16(bf16_to_f32(load_u16((u16*)y + i)) + b);
}

// y (M, N) *= scale (M): bf16 or f32. Grid (columns, M).
extern "C" __global__ void scale_rows(void* y, const float* scale, int n, int is_f32) {
  wait_for_previous();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  size_t at = (size_t)blockIdx.y * n + i;
  float by = load_f32(scale + blockIdx.y);
  if (is_f32) ((float*)y)[at] = load_f32((float*)y + at) * by;
  else ((u16*)y)[at] = f32_to_bf16(bf16_to_f32(load_u16((u16*)y + at)) * by);
}

// x f32 += y bf16, element by element.
extern "C" __global__ void add_rows(float* x, const u16* y, u64 len) {
  wait_for_previous();
  u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
  if (i < len) x[i] = load_f32(x + i) + bf16_to_f32(load_u16(y + i));
}

// y (M, N) = softmax of the rows of x (M, N), f32. One block a row; a row of −∞ gives NaN.
extern "C" __global__ void __launch_bounds__(1024) softmax(const float* x, float* y, int n) {
  __shared__ float scratch[33];
  wait_for_previous();
  const float* row = x + (size_t)blockIdx.x * n;
  float largest = __int_as_float(0xff800000);
  for (int i = threadIdx.x; i < n; i += blockDim.x) largest = fmaxf(largest, load_f32(row + i));
  largest = block_max(largest, scratch);
  float sum = 0.f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += expf(load_f32(row + i) - largest);
  float inv_sum = 1.f / block_sum(sum, scratch);
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[(size_t)blockIdx.x * n + i] = expf(load_f32(row + i) - largest) * inv_sum;
}

// The place of the largest of x (M, N), the first of equals; a NaN is largest, as in torch. Two steps: `argmax_part` leaves a
// (value, place) key for each of gridDim.x blocks of a row, `argmax_end` takes the best. Keys grow with the value and
// shrink with the place, so that one comparison decides both.
__device__ __forceinline__ u64 argmax_key(float v, u32 place) {
  u32 bits = __float_as_uint(v);
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  if (v != v) bits = 0xffffffffu;
  return (u64)bits << 32 | (u32)~place;
}
__device__ __forceinline__ u64 block_best(u64 best, u64* scratch) {
#pragma unroll
  for (int far = 16; far; far >>= 1) {
    u64 other = __shfl_xor_sync(~0u, best, far);
    best = other > best ? other : best;
  }
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = best;
  __syncthreads();
  for (int i = 0; i < (int)(blockDim.x >> 5); ++i) best = scratch[i] > best ? scratch[i] : best;
  return best;
}
extern "C" __global__ void argmax_part(const float* x, u64* keys, int n) {
  __shared__ u64 scratch[32];
  wait_for_previous();
  const float* row = x + (size_t)blockIdx.y * n;
  u64 best = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    u64 key = argmax_key(load_f32(row + i), i);
    best = key > best ? key : best;
  }
  best = block_best(best, scratch);
  if (threadIdx.x == 0) keys[blockIdx.y * gridDim.x + blockIdx.x] = best;
}
// Also moves the sequence on: `state` holds its length, and the next token is fed back. One block.
extern "C" __global__ void argmax_end(const u64* keys, int* tokens, int parts, int* state, int* history) {
  __shared__ u64 scratch[32];
  wait_for_previous();
  u64 best = 0;
  for (int i = threadIdx.x; i < parts; i += blockDim.x) {
    u64 key = load_u64(keys + blockIdx.x * parts + i);
    best = key > best ? key : best;
  }
  best = block_best(best, scratch);
  if (threadIdx.x == 0) {
    int token = (int)~(u32)best;
    tokens[blockIdx.x] = token;
    if (state) {
      int length = load_int(state) + 1;
      state[0] = length;
      if (history) history[length] = token;
    }
  }
}

// Reads memory and gives nothing: the ceiling of a kernel that reads its weights once.
extern "C" __global__ void __launch_bounds__(512) read_memory(const uint4* from, u32* out, u64 len) {
  start_next();
  u32 all = 0;
  u64 stride = (u64)gridDim.x * blockDim.x, i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
  for (; i + 3 * stride < len; i += 4 * stride) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = load_once(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) all ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < len; i += stride) {
    uint4 v = load_once(from + i);
    all ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  wait_for_previous();
  // Practically never true, and the compiler cannot know.
  if (all == 0x9e3779b9u) out[0] = all;
}
// Copies memory.
extern "C" __global__ void __launch_bounds__(256) copy_memory(const uint4* from, uint4* to, u64 len) {
  wait_for_previous();
  u64 first = blockIdx.x * (u64)(blockDim.x * 4) + threadIdx.x;
  uint4 v[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (first + j * blockDim.x < len) v[j] = load_once(from + first + j * blockDim.x);
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (first + j * blockDim.x < len) to[first + j * blockDim.x] = v[j];
}
