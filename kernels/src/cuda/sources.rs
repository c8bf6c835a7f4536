//! Every `.cu` of this crate, and how it is specialised.

/// What stands in front of every source.
const COMMON: &str = include_str!("common.cuh");

/// A CUDA source.
#[derive(Debug)]
pub struct Source {
    /// `few_tokens`; errors and cached files carry it.
    pub name: &'static str,
    /// Its text without `common.cuh`.
    pub text: &'static str,
    /// Needs `wgmma` and tensor maps: compiled for Hopper alone.
    pub hopper_only: bool,
    /// The specialisations that the check compiles, `-D` words apart by spaces; one that starts with `!` is not
    /// hot, and may spill registers.
    pub variants: &'static [&'static str],
}

impl Source {
    /// The text that is compiled.
    pub fn full_text(&self) -> String {
        format!("{COMMON}\n#line 1 \"{}.cu\"\n{}", self.name, self.text)
    }
}

/// Linear layers with few tokens.
pub static FEW_TOKENS: Source = Source {
    name: "few_tokens",
    text: include_str!("linear/few_tokens.cu"),
    hopper_only: false,
    variants: &[
        "AO_BITS=4 AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=8 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1 AO_FLUSH=4",
        "AO_BITS=4 AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=8 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=1 AO_FLUSH=4",
        "AO_BITS=4 AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=4 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=1 AO_FLUSH=4",
        "AO_BITS=4 AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=8 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1 AO_FLUSH=1 AO_F32_SCALE",
        "AO_BITS=4 AO_NT=1 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=1 AO_FLUSH=4",
        "AO_BITS=4 AO_NT=2 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=1 AO_FLUSH=4",
        "AO_BITS=4 AO_NT=2 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=1 AO_FLUSH=2 AO_F32_SCALE",
        "AO_BITS=4 AO_NT=4 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1 AO_FLUSH=4",
        "AO_BITS=4 AO_NT=8 AO_RT=1 AO_RW=4 AO_KW=2 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1 AO_FLUSH=4",
        "AO_BITS=4 AO_NT=8 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=1 AO_STAGES=3 AO_MIN_BLOCKS=1 AO_FLUSH=4",
        "AO_BITS=8 AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=8 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=2",
        "AO_BITS=8 AO_NT=1 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1",
        "AO_BITS=8 AO_NT=2 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1",
        "AO_BITS=8 AO_NT=4 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1",
        "AO_BITS=8 AO_NT=8 AO_RT=1 AO_RW=4 AO_KW=2 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1",
        "AO_BITS=16 AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=8 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=2",
    ],
};

/// Repacking weights for [`FEW_TOKENS`], and dequantizing them for many tokens.
pub static PACK: Source = Source {
    name: "pack",
    text: include_str!("linear/pack.cu"),
    hopper_only: false,
    variants: &[""],
};

/// The small operations between linear layers.
pub static SMALL: Source = Source {
    name: "small_ops",
    text: include_str!("small_ops.cu"),
    hopper_only: false,
    variants: &[""],
};

/// Attention of one token over the cache.
pub static DECODE: Source = Source {
    name: "attention_decode",
    text: include_str!("../attention/decode.cu"),
    hopper_only: false,
    variants: &[
        "AO_HEAD_DIM=32 AO_GROUP=2",
        "AO_HEAD_DIM=64 AO_GROUP=3",
        "AO_HEAD_DIM=128 AO_GROUP=4",
    ],
};

/// Attention of a prompt.
pub static PREFILL: Source = Source {
    name: "attention_prefill",
    text: include_str!("../attention/prefill.cu"),
    hopper_only: false,
    variants: &["AO_HEAD_DIM=32", "AO_HEAD_DIM=64", "AO_HEAD_DIM=128"],
};

/// Activations and weights to low precision.
pub static QUANTIZE: Source = Source {
    name: "quantize",
    text: include_str!("quantize.cu"),
    hopper_only: false,
    variants: &[""],
};

/// All of them.
pub static SOURCES: [&Source; 6] = [&FEW_TOKENS, &PACK, &SMALL, &DECODE, &PREFILL, &QUANTIZE];
