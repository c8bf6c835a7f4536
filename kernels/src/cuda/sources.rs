//! Every `.cu` of this crate, and how it is specialised.

/// What stands in front of every source.
const COMMON: &str = include_str!("common.cuh");

/// Tiles of training's attention.
const TILES: &str = include_str!("training/tiles.cuh");

/// Codes to the factors of tensor cores.
const DECODE_CODES: &str = include_str!("linear/decode.cuh");

/// bf16 to e4m3 and back.
const FLOAT8: &str = include_str!("float8.cuh");

/// Hopper's barriers, copies and clusters.
const HOPPER: &str = include_str!("hopper.cuh");

/// A CUDA source.
#[derive(Debug)]
pub struct Source {
    /// `few_tokens`; errors and cached files carry it.
    pub name: &'static str,
    /// What stands before it besides `common.cuh`.
    pub headers: &'static [&'static str],
    /// Its text without them.
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
        format!("{COMMON}{}\n#line 1 \"{}.cu\"\n{}", self.headers.concat(), self.name, self.text)
    }
}

/// Linear layers with few tokens.
pub static FEW_TOKENS: Source = Source {
    name: "few_tokens",
    headers: &[DECODE_CODES],
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
        "AO_BITS=4 AO_TABLE AO_NT=1 AO_RT=2 AO_RW=1 AO_KW=4 AO_U=4 AO_STAGES=2 AO_MIN_BLOCKS=1 AO_FLUSH=4",
        "AO_BITS=4 AO_TABLE AO_NT=1 AO_RT=2 AO_RW=1 AO_KW=4 AO_U=4 AO_STAGES=2 AO_MIN_BLOCKS=1 AO_FLUSH=1 AO_F32_SCALE",
        "AO_BITS=4 AO_TABLE AO_NT=4 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1 AO_FLUSH=4",
        "AO_BITS=8 AO_PACKED AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=8 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=2",
        "AO_BITS=8 AO_PACKED AO_NORM AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=8 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=2",
        "AO_BITS=8 AO_PACKED AO_NORM AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=4 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=3",
        "AO_BITS=8 AO_PACKED AO_NT=2 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1",
        "AO_BITS=8 AO_PACKED AO_FLOAT8 AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=8 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=2",
        "AO_BITS=8 AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=8 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=2",
        "AO_BITS=8 AO_NT=1 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1",
        "AO_BITS=8 AO_NT=2 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1",
        "AO_BITS=8 AO_NT=4 AO_RT=1 AO_RW=2 AO_KW=4 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1",
        "AO_BITS=8 AO_NT=8 AO_RT=1 AO_RW=4 AO_KW=2 AO_U=2 AO_STAGES=3 AO_MIN_BLOCKS=1",
        "AO_BITS=16 AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=8 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=2",
        "AO_BITS=16 AO_NORM AO_NT=1 AO_RT=1 AO_RW=1 AO_KW=8 AO_U=4 AO_STAGES=3 AO_MIN_BLOCKS=2",
    ],
};

/// Linear layers with one token.
pub static ONE_TOKEN: Source = Source {
    name: "one_token",
    headers: &[DECODE_CODES, FLOAT8],
    text: include_str!("linear/one_token.cu"),
    hopper_only: false,
    variants: &[
        "",
        "AO_X=1",
        "AO_X=2",
        "AO_FLUSH=4",
        "AO_FLUSH=2 AO_X=1",
        "AO_FLUSH=1 AO_F32_SCALE",
        "AO_FLUSH=4 AO_TABLE AO_F32_SCALE",
        "AO_FLUSH=4 AO_TABLE AO_X=1",
    ],
};

/// The steps before [`ONE_TOKEN`].
pub static LADDER: Source = Source {
    name: "ladder",
    headers: &[],
    text: include_str!("linear/ladder.cu"),
    hopper_only: false,
    variants: &[""],
};

/// Linear layers with many tokens, by Hopper's warpgroup products.
pub static WGMMA: Source = Source {
    name: "wgmma",
    headers: &[HOPPER, DECODE_CODES],
    text: include_str!("linear/wgmma.cu"),
    hopper_only: true,
    variants: &[
        "AO_KIND=INT4 AO_TN=16 AO_RT=1 AO_WG=1 AO_STAGES=12 AO_CHUNKS=2 AO_GPS=1 AO_BLOCKS=2",
        "AO_KIND=INT4 AO_TN=64 AO_RT=1 AO_WG=2 AO_STAGES=7 AO_CHUNKS=2 AO_GPS=1",
        "AO_KIND=INT4 AO_TN=64 AO_RT=1 AO_WG=2 AO_STAGES=7 AO_CHUNKS=2 AO_GPS=8 AO_F32_SCALE AO_SPLIT=2",
        "AO_KIND=INT4 AO_TN=256 AO_RT=1 AO_WG=2 AO_STAGES=5 AO_CHUNKS=1 AO_GPS=1 AO_SHARE=2",
        "AO_KIND=INT4 AO_TN=256 AO_RT=1 AO_WG=2 AO_STAGES=5 AO_CHUNKS=1 AO_GPS=1 AO_SPLIT=4",
        "AO_KIND=TABLE4 AO_TN=64 AO_RT=1 AO_WG=2 AO_STAGES=7 AO_CHUNKS=2 AO_GPS=2",
        "AO_KIND=TABLE4 AO_TN=256 AO_RT=1 AO_WG=2 AO_STAGES=5 AO_CHUNKS=1 AO_GPS=1 AO_F32_SCALE AO_SHARE=2",
        "AO_KIND=INT8 AO_TN=64 AO_RT=1 AO_WG=2 AO_STAGES=8 AO_CHUNKS=1",
        "AO_KIND=INT8 AO_TN=256 AO_RT=1 AO_WG=2 AO_STAGES=5 AO_CHUNKS=1 AO_SHARE=2",
        "AO_KIND=FLOAT8 AO_TN=256 AO_RT=1 AO_WG=2 AO_STAGES=5 AO_CHUNKS=1 AO_SHARE=2",
        "AO_KIND=FLOAT8_BOTH AO_TN=16 AO_RT=1 AO_WG=2 AO_STAGES=8",
        "AO_KIND=FLOAT8_BOTH AO_TN=256 AO_RT=1 AO_WG=2 AO_STAGES=4",
        "AO_KIND=INT8_BOTH AO_TN=64 AO_RT=1 AO_WG=2 AO_STAGES=8",
        "AO_KIND=INT8_BOTH AO_TN=256 AO_RT=1 AO_WG=2 AO_STAGES=4",
    ],
};

/// Repacking weights for [`FEW_TOKENS`] and [`WGMMA`], and dequantizing them for many tokens elsewhere.
pub static PACK: Source = Source {
    name: "pack",
    headers: &[DECODE_CODES],
    text: include_str!("linear/pack.cu"),
    hopper_only: false,
    variants: &[""],
};

/// 2:4 layers by Hopper's sparse warpgroup products.
pub static SPARSE24: Source = Source {
    name: "sparse24",
    headers: &[HOPPER],
    text: include_str!("sparse/sparse24.cu"),
    hopper_only: true,
    variants: &[
        "AO_KIND=BF16 AO_TN=16 AO_WG=2 AO_STAGES=8 AO_CHUNKS=2 AO_SHARE=1 AO_BLOCKS=1",
        "AO_KIND=INT8 AO_TN=16 AO_WG=2 AO_STAGES=8 AO_CHUNKS=2 AO_SHARE=1 AO_BLOCKS=1",
        "AO_KIND=FLOAT8 AO_TN=32 AO_WG=1 AO_STAGES=10 AO_CHUNKS=1 AO_SHARE=1 AO_BLOCKS=2",
        "AO_KIND=FLOAT8 AO_TN=64 AO_WG=2 AO_STAGES=8 AO_CHUNKS=1 AO_SHARE=1 AO_BLOCKS=1",
        "AO_KIND=FLOAT8 AO_TN=128 AO_WG=2 AO_STAGES=6 AO_CHUNKS=1 AO_SHARE=1 AO_BLOCKS=1",
        "AO_KIND=BF16 AO_TN=256 AO_WG=2 AO_STAGES=5 AO_CHUNKS=1 AO_SHARE=2 AO_BLOCKS=1",
        "AO_KIND=BF16 AO_TN=64 AO_WG=2 AO_STAGES=8 AO_CHUNKS=1 AO_SHARE=1 AO_BLOCKS=1 AO_FRESH_W",
        "AO_KIND=INT8 AO_TN=256 AO_WG=2 AO_STAGES=5 AO_CHUNKS=1 AO_SHARE=2 AO_BLOCKS=1",
        "AO_KIND=FLOAT8 AO_TN=256 AO_WG=2 AO_STAGES=5 AO_CHUNKS=1 AO_SHARE=1 AO_BLOCKS=1",
    ],
};

/// Layers in blocks of 64 by 64.
pub static BSR: Source = Source {
    name: "bsr",
    headers: &[HOPPER],
    text: include_str!("sparse/bsr.cu"),
    hopper_only: true,
    variants: &[
        "AO_TN=16 AO_WG=1 AO_STAGES=8 AO_BLOCKS=2",
        "AO_TN=64 AO_WG=1 AO_STAGES=5 AO_BLOCKS=2",
        "AO_TN=256 AO_WG=1 AO_STAGES=4 AO_BLOCKS=1",
        "AO_TN=256 AO_WG=2 AO_STAGES=3 AO_BLOCKS=1",
    ],
};

/// 2:4 layers in int4 with few tokens.
pub static FEW24: Source = Source {
    name: "few24",
    headers: &[],
    text: include_str!("sparse/few24.cu"),
    hopper_only: false,
    variants: &[
        "AO_NT=1 AO_RW=1 AO_KW=4 AO_DEPTH=2 AO_MIN_BLOCKS=1",
        "AO_NT=1 AO_RW=7 AO_KW=4 AO_DEPTH=2 AO_MIN_BLOCKS=1",
        "AO_NT=1 AO_RW=7 AO_KW=4 AO_DEPTH=2 AO_MIN_BLOCKS=1 AO_F32_SCALE",
        "AO_NT=2 AO_RW=7 AO_KW=2 AO_DEPTH=4 AO_MIN_BLOCKS=1",
        "AO_NT=8 AO_RW=4 AO_KW=2 AO_DEPTH=2 AO_MIN_BLOCKS=1",
    ],
};

/// Packing weights for [`SPARSE24`] and [`FEW24`].
pub static PACK24: Source = Source {
    name: "pack24",
    headers: &[],
    text: include_str!("sparse/pack24.cu"),
    hopper_only: false,
    variants: &[""],
};

/// The small operations between linear layers.
pub static SMALL: Source = Source {
    name: "small_ops",
    headers: &[],
    text: include_str!("small_ops.cu"),
    hopper_only: false,
    variants: &[""],
};

/// Attention of one token over the cache.
pub static DECODE: Source = Source {
    name: "attention_decode",
    headers: &[],
    text: include_str!("../attention/decode.cu"),
    hopper_only: false,
    variants: &[
        "AO_HEAD_DIM=32 AO_GROUP=2",
        "AO_HEAD_DIM=64 AO_GROUP=3",
        "AO_HEAD_DIM=128 AO_GROUP=4",
        "AO_HEAD_DIM=128 AO_GROUP=1 AO_SHARE=4",
    ],
};

/// Attention of a prompt.
pub static PREFILL: Source = Source {
    name: "attention_prefill",
    headers: &[],
    text: include_str!("../attention/prefill.cu"),
    hopper_only: false,
    variants: &["AO_HEAD_DIM=32", "AO_HEAD_DIM=64", "AO_HEAD_DIM=128"],
};

/// Activations and weights to low precision.
pub static QUANTIZE: Source = Source {
    name: "quantize",
    headers: &[FLOAT8],
    text: include_str!("quantize.cu"),
    hopper_only: false,
    variants: &[""],
};

/// RMSNorm of training and its gradient.
pub static TRAIN_NORMS: Source = Source {
    name: "train_norms",
    headers: &[],
    text: include_str!("training/norms.cu"),
    hopper_only: false,
    variants: &[""],
};

/// Rotation, SwiGLU and the embedding's gradient.
pub static TRAIN_SMALL: Source = Source {
    name: "train_small",
    headers: &[],
    text: include_str!("training/small.cu"),
    hopper_only: false,
    variants: &[""],
};

/// Softmax cross-entropy with its gradient.
pub static TRAIN_LOSS: Source = Source {
    name: "train_loss",
    headers: &[],
    text: include_str!("training/loss.cu"),
    hopper_only: false,
    variants: &[""],
};

/// The gradient's norm and AdamW.
pub static TRAIN_STEP: Source = Source {
    name: "train_step",
    headers: &[],
    text: include_str!("training/step.cu"),
    hopper_only: false,
    variants: &[""],
};

/// Attention of training and its gradient, by tensor cores.
pub static TRAIN_ATTENTION: Source = Source {
    name: "train_attention",
    headers: &[TILES],
    text: include_str!("training/attention.cu"),
    hopper_only: false,
    variants: &["AO_HEAD_DIM=32", "AO_HEAD_DIM=64", "AO_HEAD_DIM=128"],
};

/// The same for heads of other sizes.
pub static TRAIN_ATTENTION_PLAIN: Source = Source {
    name: "train_attention_plain",
    headers: &[],
    text: include_str!("training/attention_plain.cu"),
    hopper_only: false,
    variants: &[""],
};

/// Factors of low-precision products.
pub static TRAIN_CASTS: Source = Source {
    name: "train_casts",
    headers: &[FLOAT8],
    text: include_str!("training/casts.cu"),
    hopper_only: false,
    variants: &[""],
};

/// All of them.
pub static SOURCES: [&Source; 20] = [
    &LADDER,
    &ONE_TOKEN,
    &FEW_TOKENS,
    &WGMMA,
    &PACK,
    &SPARSE24,
    &BSR,
    &FEW24,
    &PACK24,
    &SMALL,
    &DECODE,
    &PREFILL,
    &QUANTIZE,
    &TRAIN_NORMS,
    &TRAIN_SMALL,
    &TRAIN_LOSS,
    &TRAIN_STEP,
    &TRAIN_ATTENTION,
    &TRAIN_ATTENTION_PLAIN,
    &TRAIN_CASTS,
];
