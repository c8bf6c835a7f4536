// Codes in the order of fragments to the left factors of tensor cores: lane (g, t) of a warp holds rows g and g + 8 of 16, and in a
// step of 16 columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9; a[0] is row g's first pair, a[1] row g + 8's, a[2] and a[3] their second.
// A chunk is 16 rows by 64 columns: the lanes one after another, in each its four steps; four chunks of 64 rows lie together. Of four bits a
// step is a word: part i (of a[i]) has its even column in nibble i and its odd one in nibble i + 4. Of eight bits it is two words, row g's
// and row g + 8's: first all lanes' steps 0 and 1, then 2 and 3.

// bf16 pair `v` times scale, where both halves of `scale` are the same.
__device__ __forceinline__ u32 mul_bf16x2(u32 a, u32 b) { return fma_bf16x2(a, b, 0x80008000u); }
__device__ __forceinline__ u32 both_low(u32 pair) { return pick_bytes(pair, pair, 0x1010); }
__device__ __forceinline__ u32 both_high(u32 pair) { return pick_bytes(pair, pair, 0x3232); }

// Looks up four codes, a nibble each in the low half of `codes`, in 16 bytes; `high` has all bits of a byte where the code is 8 or more.
__device__ __forceinline__ u32 look_up(const u32* table, u32 codes, u32 high) {
  u32 low_half = pick_bytes(table[0], table[1], codes), high_half = pick_bytes(table[2], table[3], codes);
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;\n" : "=r"(d) : "r"(high), "r"(high_half), "r"(low_half));
  return d;
}
struct Table { u32 low[4], high[4]; };  // bytes of sixteen bf16 numbers

// A step's left factor: word (and for 8 bits, words) of a lane.
__device__ __forceinline__ void decode_int4(u32 word, const u32* scale, const u32* zero, u32* a) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    u32 v = and_or(word >> (4 * i), 0x000f000fu, 0x43004300u);  // 128 + q, exactly
    v = fma_bf16x2(v, 0x3f803f80u, 0xc308c308u);                // q − 8, exactly
    a[i] = fma_bf16x2(v, scale[i & 1], zero[i & 1]);
  }
}
__device__ __forceinline__ void decode_table_exact(u32 word, const Table& table, u32* a) {
  // Nibbles of the word: even columns of the four parts, then odd ones.
  u32 codes = word & 0x77777777u, up = word << 4;
  u32 even = pick_bytes(up, word, 0xd9c8), odd = pick_bytes(up, word, 0xfbea);
  u32 even_low = look_up(table.low, codes, even), even_high = look_up(table.high, codes, even);
  u32 odd_low = look_up(table.low, codes >> 16, odd), odd_high = look_up(table.high, codes >> 16, odd);
  // Part i: (even, odd), low and high bytes.
  u32 low01 = pick_bytes(even_low, odd_low, 0x5140), low23 = pick_bytes(even_low, odd_low, 0x7362);
  u32 high01 = pick_bytes(even_high, odd_high, 0x5140), high23 = pick_bytes(even_high, odd_high, 0x7362);
  a[0] = pick_bytes(low01, high01, 0x5140);
  a[1] = pick_bytes(low01, high01, 0x7362);
  a[2] = pick_bytes(low23, high23, 0x5140);
  a[3] = pick_bytes(low23, high23, 0x7362);
}
__device__ __forceinline__ void decode_table(u32 word, const u32* scale, const Table& table, u32* a) {
  decode_table_exact(word, table, a);
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = mul_bf16x2(a[i], scale[i & 1]);
}
// Two words: row g's four columns, then row g + 8's.
__device__ __forceinline__ void decode_int8(u32 w0, u32 w1, u32* a) {
  const u32 words[2] = {w0 ^ 0x80808080u, w1 ^ 0x80808080u};
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float low = __uint_as_float(pick_bytes(words[half], 0x4b000000u, i ? 0x7442 : 0x7440)) - 8388736.f;
      float high = __uint_as_float(pick_bytes(words[half], 0x4b000000u, i ? 0x7443 : 0x7441)) - 8388736.f;
      a[2 * i + half] = pick_bytes(__float_as_uint(low), __float_as_uint(high), 0x7632);
    }
}
__device__ __forceinline__ void decode_float8(u32 w0, u32 w1, u32* a) {
  const u32 words[2] = {w0, w1};
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      u32 v = pick_bytes(words[half], 0, i ? 0x3424 : 0x1404);  // a byte in the high half of each 16 bits
      u32 moved = and_or(v >> 4, 0x07f007f0u, v & 0x80008000u);
      a[2 * i + half] = mul_bf16x2(moved, 0x7b807b80u);         // 2^120: e4m3's bias is 7, bf16's 127
    }
}
