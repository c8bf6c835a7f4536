// What stands in front of every source: types, and one wrapper for each PTX instruction. No header is included.
typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// ---- order between kernels

// Lets the next kernel start when every block of this one has come here: it may load its weights while this one works, and
// waits by itself (programmatic dependent launch).
__device__ __forceinline__ void start_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}
// Waits until the kernel before this one has ended and what it wrote can be read. What earlier kernels wrote is read past the
// first cache (`load…` below): this block may have started while a line of it was still in use there.
__device__ __forceinline__ void wait_alone() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
// The same, with the next kernel let in.
__device__ __forceinline__ void wait_for_previous() {
  start_next();
  wait_alone();
}

// ---- numbers

__device__ __forceinline__ float bf16_to_f32(u16 v) { return __uint_as_float((u32)v << 16); }
__device__ __forceinline__ float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
// Two floats to a pair of bf16, ties to even; `low` goes to the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ u16 f32_to_bf16(float v) { return (u16)pack_bf16(v, 0.f); }
// a · b + c in two bf16 each, rounded once.
__device__ __forceinline__ u32 fma_bf16x2(u32 a, u32 b, u32 c) {
  u32 d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// (a & b) | c in one instruction.
__device__ __forceinline__ u32 and_or(u32 a, u32 b, u32 c) {
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;\n" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// Picks four of the eight bytes of (a, b); each nibble of `which` names one.
__device__ __forceinline__ u32 pick_bytes(u32 a, u32 b, u32 which) {
  u32 d;
  asm("prmt.b32 %0, %1, %2, %3;\n" : "=r"(d) : "r"(a), "r"(b), "r"(which));
  return d;
}

// ---- memory

// Sixteen bytes that are read once: not kept in the first cache, first to leave the second.
__device__ __forceinline__ uint4 load_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
// What another kernel wrote, from the second cache.
__device__ __forceinline__ uint2 load8(const void* p) {
  uint2 v;
  asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];\n" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ uint4 load16(const void* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ float load_f32(const float* p) {
  float v;
  asm volatile("ld.global.cg.f32 %0, [%1];\n" : "=f"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ u16 load_u16(const u16* p) {
  u16 v;
  asm volatile("ld.global.cg.u16 %0, [%1];\n" : "=h"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ int load_int(const int* p) {
  int v;
  asm volatile("ld.global.cg.s32 %0, [%1];\n" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ u64 load_u64(const u64* p) {
  u64 v;
  asm volatile("ld.global.cg.u64 %0, [%1];\n" : "=l"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// Starts a copy of 16 bytes to shared memory; where `there` is false, zeros are written.
__device__ __forceinline__ void copy16_async(void* to, const void* from, bool there) {
  int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most `left` groups of copies are under way.
template <int left> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(left) : "memory"); }

// ---- tensor cores

// d (16 × 8, f32) += a (16 × 16, bf16) · b (16 × 8, bf16).
__device__ __forceinline__ void mma_bf16(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// ---- sums over threads

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int far = 16; far; far >>= 1) v += __shfl_xor_sync(~0u, v, far);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int far = 16; far; far >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, far));
  return v;
}
// The largest of a block's values, NaN where one is NaN; `scratch` holds 33 floats.
__device__ __forceinline__ float block_max(float v, float* scratch) {
  v = warp_max(v);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  __syncthreads();
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  if (warp == 0) {
    float all = lane < (int)(blockDim.x >> 5) ? scratch[lane] : -__int_as_float(0x7f800000);
    all = warp_max(all);
    if (lane == 0) scratch[32] = all;
  }
  __syncthreads();
  return scratch[32];
}
__device__ __forceinline__ float block_sum(float v, float* scratch) {
  v = warp_sum(v);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  __syncthreads();
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  if (warp == 0) {
    float all = lane < (int)(blockDim.x >> 5) ? scratch[lane] : 0.f;
    all = warp_sum(all);
    if (lane == 0) scratch[32] = all;
  }
  __syncthreads();
  return scratch[32];
}
