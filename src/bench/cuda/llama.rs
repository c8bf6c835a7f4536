//! A model of Llama-3-8B's shape with random weights, for measuring: every layer of a kind shares its numbers on the host and
//! has its own on the GPU.

use std::ops::Range;
use std::sync::Arc;

use aolab_kernels::cuda::linear::Float8Scales;
use aolab_kernels::dtypes::e4m3fn_encode_saturating;
use aolab_kernels::sparse24_linear::{code_bytes, codes_of, int4_bytes};

use super::{normal_bf16, random_bytes, repeated};
use crate::error::{Error, Result};
use crate::model::{DeviceForm, Model, ModelConfig, ParameterSource, Stored, Weight};
use crate::tensor::Tensor;

/// 2⁻⁸, a bf16 number.
const SCALE: f32 = 0.003_906_25;

/// NF4's values, nearly: as they are multiplied.
const NF4: [f32; 16] = [
    -1.0, -0.6953, -0.5234, -0.3945, -0.2852, -0.1846, -0.0908, 0.0, 0.0796, 0.1611, 0.2461,
    0.3379, 0.4414, 0.5625, 0.7227, 1.0,
];

/// The formats that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Bf16,
    Int8,
    Int8Dynamic,
    Float8,
    Float8Dynamic,
    Int4,
    Float8Int4,
    Nf4,
    Bf16Of24,
    Int8Of24,
    Float8Of24,
    Int4Of24,
    Blocks,
}

impl Format {
    pub(super) const ALL: [Format; 8] = [
        Format::Bf16,
        Format::Int8,
        Format::Int8Dynamic,
        Format::Float8,
        Format::Float8Dynamic,
        Format::Int4,
        Format::Float8Int4,
        Format::Nf4,
    ];

    /// 2:4, and blocks of which a fifth is stored.
    pub(super) const SPARSE: [Format; 5] =
        [Format::Bf16Of24, Format::Int8Of24, Format::Float8Of24, Format::Int4Of24, Format::Blocks];

    fn name(self) -> &'static str {
        match self {
            Format::Bf16Of24 => "2:4·bf16",
            Format::Int8Of24 => "2:4·int8-dynamic-activation-int8-weight",
            Format::Float8Of24 => "2:4·float8-dynamic-activation-float8-weight",
            Format::Int4Of24 => "2:4·int4-weight-only g128",
            Format::Blocks => "block:64·bf16, 80 % zeros",
            Format::Bf16 => "bf16",
            Format::Int8 => "int8-weight-only",
            Format::Int8Dynamic => "int8-dynamic-activation-int8-weight",
            Format::Float8 => "float8-weight-only",
            Format::Float8Dynamic => "float8-dynamic-activation-float8-weight",
            Format::Int4 => "int4-weight-only g128",
            Format::Float8Int4 => "float8-dynamic-activation-int4-weight",
            Format::Nf4 => "nf4",
        }
    }
}

/// Llama-3-8B's numbers, as its config.json has them.
const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "tie_word_embeddings": false, "hidden_act": "silu"}"#;

/// Random bytes that all weights of a format cut theirs from; as large as the largest, the head.
#[derive(Debug)]
struct Pool {
    bytes: Vec<u8>,
    dense: Vec<u16>,
}

impl Pool {
    /// For weights of up to `largest` numbers.
    fn new(format: Format, largest: usize) -> Pool {
        let scaled = |bits: u16| half::bf16::from_f32(0.02 * half::bf16::from_bits(bits).to_f32());
        let dense = normal_bf16(65_521, 12).into_iter().map(|v| scaled(v).to_bits()).collect();
        let bytes = match format {
            Format::Bf16 | Format::Bf16Of24 | Format::Blocks => Vec::new(),
            Format::Float8 | Format::Float8Dynamic | Format::Float8Of24 => {
                let codes = normal_bf16(65_521, 11)
                    .into_iter()
                    .map(|bits| e4m3fn_encode_saturating(half::bf16::from_bits(bits).to_f32()));
                repeated(&codes.collect::<Vec<u8>>(), largest)
            }
            _ => random_bytes(largest, 11),
        };
        Pool { bytes, dense }
    }
}

#[derive(Debug)]
struct RandomWeight {
    pool: Arc<Pool>,
    shape: (usize, usize),
    format: Format,
}

impl Weight for RandomWeight {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn workflow(&self) -> String {
        self.format.name().to_owned()
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        // Only the embedding is read so.
        let k = self.shape.1;
        let bits = self.pool.dense.iter().cycle().skip(rows.start * k % self.pool.dense.len());
        let values = bits.map(|bits| half::bf16::from_bits(*bits).to_f32());
        out.iter_mut().zip(values).for_each(|(to, value)| *to = value);
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }

    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        let (n, k) = self.shape;
        Ok(Some(match self.format {
            Format::Bf16Of24 | Format::Int8Of24 | Format::Float8Of24 | Format::Int4Of24 => {
                self.two_of_four()?
            }
            Format::Blocks => self.blocks()?,
            Format::Bf16 => DeviceForm::Bf16(repeated(&self.pool.dense, n * k)),
            Format::Int8 => DeviceForm::Int8 {
                q: bytemuck::cast_slice(&self.pool.bytes[..n * k]).into(),
                scale: vec![0.0002; n],
            },
            Format::Int8Dynamic => DeviceForm::Int8Dynamic {
                q: bytemuck::cast_slice(&self.pool.bytes[..n * k]),
                scale: vec![0.0002; n],
            },
            Format::Int4 => DeviceForm::Int4 {
                q: self.pool.bytes[..n * k / 2].into(),
                scale: vec![SCALE; n * k / 128].into(),
                zero: vec![0.0; n * k / 128].into(),
                group_size: 128,
                bf16: true,
            },
            Format::Float8Int4 => DeviceForm::Float8Int4 {
                q: self.pool.bytes[..n * k / 2].to_vec(),
                scale: vec![SCALE; n * k / 128],
                group_size: 128,
                bf16: true,
            },
            Format::Nf4 => DeviceForm::Table4 {
                q: self.pool.bytes[..n * k / 2].to_vec(),
                table: NF4,
                scale: vec![SCALE; n * k / 64],
                group_size: 64,
                bf16: true,
            },
            Format::Float8 => {
                DeviceForm::Float8 { q: self.pool.bytes[..n * k].to_vec(), scale: vec![SCALE; n] }
            }
            Format::Float8Dynamic => DeviceForm::Float8Dynamic {
                q: self.pool.bytes[..n * k].to_vec(),
                scale: vec![SCALE; n],
                activations: Float8Scales::Rows,
            },
        }))
    }
}

impl RandomWeight {
    /// A fifth of the blocks of 64 by 64, drawn for each row of blocks.
    fn blocks(&self) -> Result<DeviceForm<'_>> {
        let (n, k) = self.shape;
        let (rows, columns) = (n / 64, k / 64);
        let draws = random_bytes(rows * columns, 13);
        let (mut crow, mut col) = (vec![0], Vec::new());
        let number = |at: usize| {
            i32::try_from(at).map_err(|_| Error::invalid("more blocks than 32 bits count"))
        };
        for row in draws.chunks_exact(columns) {
            let mut order: Vec<usize> = (0..columns).collect();
            order.sort_by_key(|column| (row[*column], *column));
            order.truncate(columns.div_ceil(5));
            order.sort_unstable();
            for column in order {
                col.push(number(column)?);
            }
            crow.push(number(col.len())?);
        }
        let values = repeated(&self.pool.dense, col.len() * 64 * 64);
        Ok(DeviceForm::Blocks { values, crow: crow.into(), col: col.into() })
    }

    /// Two different columns of each four, drawn for some rows that the others repeat.
    fn two_of_four(&self) -> Result<DeviceForm<'_>> {
        const DRAWN_ROWS: usize = 61;
        let (n, k) = self.shape;
        let draws = random_bytes(DRAWN_ROWS * k, 7);
        let keeps = |row: usize, column: usize| {
            let draw = usize::from(draws[row * (k / 4) + column / 4]);
            let (a, b) = (draw % 4, (draw % 4 + 1 + draw / 4 % 3) % 4);
            column % 4 == a || column % 4 == b
        };
        let rows = codes_of(keeps, (DRAWN_ROWS, k))
            .ok_or_else(|| Error::invalid("two of each four were to be drawn"))?;
        let mut codes = repeated(&rows[..DRAWN_ROWS * code_bytes(k)], n * code_bytes(k));
        codes.extend([0, 0]);
        let (bytes, scale) = (&self.pool.bytes, vec![SCALE; n].into());
        let stored = match self.format {
            Format::Int8Of24 => {
                Stored::Int8Dynamic { q: bytemuck::cast_slice(&bytes[..n * k / 2]).into(), scale }
            }
            Format::Float8Of24 => Stored::Float8Dynamic { q: bytes[..n * k / 2].into(), scale },
            Format::Int4Of24 => Stored::Int4 {
                q: bytes[..n * int4_bytes(k)].into(),
                scale: vec![SCALE; n * k / 128].into(),
                group_size: 128,
            },
            _ => Stored::Bf16(repeated(&self.pool.dense, n * k / 2).into()),
        };
        Ok(DeviceForm::TwoOfFour { stored, codes: codes.into() })
    }
}

struct Source {
    pool: Arc<Pool>,
    format: Format,
}

impl ParameterSource for Source {
    fn weight(&self, module: &str, shape: (usize, usize)) -> Result<Arc<dyn Weight>> {
        // The embedding is looked up, not multiplied.
        let format = if module.ends_with("embed_tokens") { Format::Bf16 } else { self.format };
        Ok(Arc::new(RandomWeight { pool: Arc::clone(&self.pool), shape, format }))
    }

    fn vector(&self, _name: &str, len: usize) -> Result<Tensor> {
        Tensor::new(vec![1.0_f32; len], &[len])
    }

    fn has(&self, _name: &str) -> bool {
        true
    }
}

/// A random weight `(N, K)`.
pub(super) fn random_weight(format: Format, (n, k): (usize, usize)) -> Arc<dyn Weight> {
    let pool = Arc::new(Pool::new(format, n * k));
    Arc::new(RandomWeight { pool, shape: (n, k), format })
}

/// The model in `format`.
pub(super) fn llama_3_8b(format: Format) -> Result<Model> {
    let config = ModelConfig::from_json(
        &serde_json::from_str(CONFIG).map_err(|error| Error::invalid(error.to_string()))?,
    )?;
    let largest = config.vocab_size * config.hidden_size;
    let source = Source { pool: Arc::new(Pool::new(format, largest)), format };
    Model::build(&format!("Llama-3-8B's shape, {}", format.name()), config, &source, None)
}
