//! `--kv-cache`, an option of several commands.

use crate::kernels::kv_cache::CacheFormat;

/// How keys and values are kept. The quantized formats have one bf16 scale for each token and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum KvCacheFormat {
    /// As they come
    F32,
    /// Half precision
    F16,
    /// bfloat16
    Bf16,
    /// 8 bits, torchao's AffineQuantizedKVCache
    Int8,
    /// e4m3
    Float8,
    /// 4 bits
    Int4,
}

impl KvCacheFormat {
    pub(super) const ALL: [KvCacheFormat; 6] = [
        KvCacheFormat::F32,
        KvCacheFormat::F16,
        KvCacheFormat::Bf16,
        KvCacheFormat::Int8,
        KvCacheFormat::Float8,
        KvCacheFormat::Int4,
    ];

    pub(super) fn get(self) -> CacheFormat {
        match self {
            KvCacheFormat::F32 => CacheFormat::F32,
            KvCacheFormat::F16 => CacheFormat::F16,
            KvCacheFormat::Bf16 => CacheFormat::Bf16,
            KvCacheFormat::Int8 => CacheFormat::Int8,
            KvCacheFormat::Float8 => CacheFormat::Float8,
            KvCacheFormat::Int4 => CacheFormat::Int4,
        }
    }
}
