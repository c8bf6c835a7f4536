//! The Llama family: its layers by name, built from any source of parameters.

use std::fmt;
use std::sync::{Arc, OnceLock};

use aolab_kernels::cuda::Device;
use aolab_kernels::kv_cache::CacheFormat;

use super::cuda::Placed;
use super::experts::{Dense, Experts, FeedForward, SHARED_GATE};
use super::{ModelConfig, ParameterSource, Weight};
use crate::data::Tokenizer;
use crate::error::{Context as _, Error, Result, did_you_mean};
use crate::tensor::Tensor;

/// A linear layer `y = x · Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `(N, K)` in whatever format.
    pub weight: Arc<dyn Weight>,
    /// `(N)` f32.
    pub bias: Option<Tensor>,
}

/// One transformer block: attention, then a gated feed-forward, each behind an RMSNorm.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of the checkpoint")]
pub struct Layer {
    pub input_layernorm: Tensor,
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Linear,
    pub q_norm: Option<Tensor>,
    pub k_norm: Option<Tensor>,
    pub post_attention_layernorm: Tensor,
    pub feed_forward: FeedForward,
}

impl Layer {
    /// The linear layers of a block, in the order in which they run.
    fn linears(&self) -> Vec<(String, &Linear)> {
        let attention = [
            ("self_attn.q_proj", &self.q_proj),
            ("self_attn.k_proj", &self.k_proj),
            ("self_attn.v_proj", &self.v_proj),
            ("self_attn.o_proj", &self.o_proj),
        ];
        let mut all: Vec<_> = attention.map(|(name, linear)| (name.to_owned(), linear)).into();
        all.extend(self.feed_forward.linears());
        all
    }

    fn linear_mut(&mut self, name: &str) -> Option<&mut Linear> {
        match name {
            "self_attn.q_proj" => Some(&mut self.q_proj),
            "self_attn.k_proj" => Some(&mut self.k_proj),
            "self_attn.v_proj" => Some(&mut self.v_proj),
            "self_attn.o_proj" => Some(&mut self.o_proj),
            name => self.feed_forward.linear_mut(name),
        }
    }
}

/// A language model of the Llama family. Clones share every parameter, so that undo and compare cost nothing.
#[derive(Clone)]
pub struct Model {
    /// What it was loaded as, and what was done to it: `tiny`, `tiny·int4-weight-only`.
    pub name: String,
    /// Its shape.
    pub config: Arc<ModelConfig>,
    /// Its tokenizer, where the source had one.
    pub tokenizer: Option<Tokenizer>,
    /// `(vocabulary, hidden)`.
    pub embed_tokens: Arc<dyn Weight>,
    /// The blocks, first to last.
    pub layers: Vec<Arc<Layer>>,
    /// The last RMSNorm.
    pub norm: Tensor,
    /// The output layer; `None` where it is tied to the embedding.
    pub lm_head: Option<Linear>,
    /// How [`Model::context`] keeps keys and values.
    pub kv_cache: CacheFormat,
    /// Where it runs; `None` is the CPU. See [`Model::on`].
    pub(super) device: Option<Device>,
    /// Its weights there. A change of a weight begins anew.
    pub(super) placed: Arc<OnceLock<Arc<Placed>>>,
}

/// In one line: a notebook shows what cannot be shown otherwise by its `Debug`, and every weight would take pages.
impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.name)
            .field("layers", &self.layers.len())
            .field("parameters", &self.parameters())
            .field("nbytes", &self.nbytes())
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Builds the model that `config` describes from the parameters of `source`.
    pub fn build(
        name: &str,
        config: ModelConfig,
        source: &dyn ParameterSource,
        tokenizer: Option<Tokenizer>,
    ) -> Result<Model> {
        config.check()?;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let layers = (0..config.num_hidden_layers)
            .map(|i| build_layer(&config, source, i).map(Arc::new))
            .collect::<Result<_>>()?;
        let lm_head = if config.tie_word_embeddings && !source.has("lm_head.weight") {
            None
        } else {
            Some(linear(source, "lm_head", (vocab, hidden), false)?)
        };
        Ok(Model {
            name: name.to_owned(),
            embed_tokens: source.weight("model.embed_tokens", (vocab, hidden))?,
            layers,
            norm: source.vector("model.norm.weight", hidden)?,
            lm_head,
            tokenizer,
            config: Arc::new(config),
            kv_cache: CacheFormat::F32,
            device: None,
            placed: Arc::default(),
        })
    }

    /// The same model with its keys and values kept in `format` (X27), which its name then says.
    #[must_use]
    pub fn with_kv_cache(&self, format: CacheFormat) -> Model {
        let mut model = self.clone();
        if format != self.kv_cache {
            model.name = format!("{}·kv-{}", self.name, format.name());
        }
        model.kv_cache = format;
        model
    }

    /// Every linear layer with its name, in the order in which they run. A tied output layer is the
    /// embedding, and is not listed.
    pub fn linears(&self) -> Vec<(String, Linear)> {
        let mut all = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let linears = layer.linears().into_iter();
            all.extend(linears.map(|(name, linear)| (fqn(i, &name), linear.clone())));
        }
        all.extend(self.lm_head.iter().map(|head| ("lm_head".to_owned(), head.clone())));
        all
    }

    /// Puts another weight of the same shape into the linear layer `fqn`.
    pub fn set_weight(&mut self, fqn: &str, weight: Arc<dyn Weight>) -> Result<()> {
        let linear = self.linear_mut(fqn)?;
        let (got, wanted) = (weight.shape(), linear.weight.shape());
        if got != wanted {
            return Err(Error::invalid(format!(
                "{fqn}: got a weight of shape {got:?}, wanted {wanted:?}"
            )));
        }
        linear.weight = weight;
        self.placed = Arc::default();
        Ok(())
    }

    /// The linear layer `fqn`, or an error that names the one most likely meant.
    pub fn linear(&self, fqn: &str) -> Result<&Linear> {
        let found = match in_block(fqn) {
            None => self.lm_head.as_ref().filter(|_| fqn == "lm_head"),
            Some((index, name)) => self.layers.get(index).and_then(|layer| {
                layer.linears().into_iter().find(|(other, _)| other == name).map(|found| found.1)
            }),
        };
        found.ok_or_else(|| self.no_linear(fqn))
    }

    fn linear_mut(&mut self, fqn: &str) -> Result<&mut Linear> {
        self.linear(fqn)?;
        let found = match in_block(fqn) {
            None => self.lm_head.as_mut(),
            Some((index, name)) => Arc::make_mut(&mut self.layers[index]).linear_mut(name),
        };
        Ok(found.expect("`linear` found the layer of this name"))
    }

    fn no_linear(&self, fqn: &str) -> Error {
        if fqn == "lm_head" {
            return Error::invalid(
                "the output layer is tied to the embedding: there is no lm_head",
            );
        }
        let names: Vec<String> = self.linears().into_iter().map(|(name, _)| name).collect();
        let hint = match did_you_mean(fqn, names.iter().map(String::as_str)) {
            Some(name) => format!("did you mean {name:?}?"),
            None => "`show` lists them".to_owned(),
        };
        Error::invalid(format!("no linear layer is called {fqn:?}; {hint}"))
    }

    /// The weight that turns hidden states into logits: the output layer's or, tied, the embedding's.
    pub fn head(&self) -> &Arc<dyn Weight> {
        self.lm_head.as_ref().map_or(&self.embed_tokens, |head| &head.weight)
    }

    /// The bytes of all parameters as they are kept in memory.
    pub fn nbytes(&self) -> usize {
        let linears: usize = self
            .linears()
            .iter()
            .map(|(_, l)| l.weight.nbytes() + l.bias.as_ref().map_or(0, Tensor::nbytes))
            .sum();
        let norms: usize = self.vectors().iter().map(|(_, tensor)| tensor.nbytes()).sum();
        linears + norms + self.embed_tokens.nbytes()
    }

    /// How many parameters the model has; a tied output layer is not counted twice.
    pub fn parameters(&self) -> usize {
        let numel = |weight: &Arc<dyn Weight>| weight.shape().0 * weight.shape().1;
        let linears: usize = self
            .linears()
            .iter()
            .map(|(_, l)| numel(&l.weight) + l.bias.as_ref().map_or(0, Tensor::numel))
            .sum();
        let norms: usize = self.vectors().iter().map(|(_, tensor)| tensor.numel()).sum();
        linears + norms + numel(&self.embed_tokens)
    }

    /// The norms' weights by name; biases belong to their linear layers.
    pub fn vectors(&self) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let norms = [
                ("input_layernorm.weight", Some(&layer.input_layernorm)),
                ("self_attn.q_norm.weight", layer.q_norm.as_ref()),
                ("self_attn.k_norm.weight", layer.k_norm.as_ref()),
                ("post_attention_layernorm.weight", Some(&layer.post_attention_layernorm)),
            ];
            let named = norms.into_iter().filter_map(|(name, t)| Some((fqn(i, name), t?.clone())));
            all.extend(named);
        }
        all.push(("model.norm.weight".to_owned(), self.norm.clone()));
        all
    }

    /// The tokenizer, or an error that says what to do.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::invalid(format!(
                "{} has no tokenizer: put its tokenizer.json beside the weights and load it again",
                self.name
            ))
        })
    }
}

/// The block and the name within it: `model.layers.3.mlp.up_proj` is block 3's `mlp.up_proj`.
fn in_block(fqn: &str) -> Option<(usize, &str)> {
    let (index, name) = fqn.strip_prefix("model.layers.")?.split_once('.')?;
    Some((index.parse().ok()?, name))
}

fn fqn(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.{name}")
}

fn linear(
    source: &dyn ParameterSource,
    module: &str,
    (n, k): (usize, usize),
    bias: bool,
) -> Result<Linear> {
    let weight = source.weight(module, (n, k))?;
    if weight.shape() != (n, k) {
        let got = weight.shape();
        return Err(Error::invalid(format!("{module}: got shape {got:?}, wanted ({n}, {k})")));
    }
    let bias = if bias { Some(source.vector(&format!("{module}.bias"), n)?) } else { None };
    Ok(Linear { weight, bias })
}

fn build_layer(config: &ModelConfig, source: &dyn ParameterSource, i: usize) -> Result<Layer> {
    let d = config.hidden_size;
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let ffn = config.intermediate_size;
    let part = |name: &str, shape, bias| linear(source, &fqn(i, name), shape, bias);
    let norm = |name: &str, len| source.vector(&fqn(i, name), len);
    let head_norm = |name: &str| {
        if config.qk_norm { norm(name, config.head_dim).map(Some) } else { Ok(None) }
    };
    let dense = |[gate, up, down]: [String; 3], ffn, bias| -> Result<Dense> {
        Ok(Dense {
            gate_proj: part(&gate, (ffn, d), bias)?,
            up_proj: part(&up, (ffn, d), bias)?,
            down_proj: part(&down, (d, ffn), bias)?,
        })
    };
    let feed_forward = || {
        let Some(experts) = config.experts.as_ref().filter(|experts| experts.in_layer(i)) else {
            let names = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"].map(str::to_owned);
            return dense(names, ffn, config.mlp_bias).map(FeedForward::Dense);
        };
        let expert = |e| dense(experts.expert(e), experts.intermediate_size, false);
        let shared = |ffn| -> Result<_> {
            Ok((dense(experts.shared(), ffn, false)?, part(SHARED_GATE, (1, d), false)?))
        };
        Ok(FeedForward::Experts(Experts {
            router: part(experts.router(), (experts.count, d), false)?,
            experts: (0..experts.count).map(expert).collect::<Result<_>>()?,
            shared: experts.shared_intermediate_size.map(shared).transpose()?,
            config: experts.clone(),
        }))
    };
    let build = || {
        Ok(Layer {
            input_layernorm: norm("input_layernorm.weight", d)?,
            q_proj: part("self_attn.q_proj", (q, d), config.qkv_bias)?,
            k_proj: part("self_attn.k_proj", (kv, d), config.qkv_bias)?,
            v_proj: part("self_attn.v_proj", (kv, d), config.qkv_bias)?,
            o_proj: part("self_attn.o_proj", (d, q), config.o_bias)?,
            q_norm: head_norm("self_attn.q_norm.weight")?,
            k_norm: head_norm("self_attn.k_norm.weight")?,
            post_attention_layernorm: norm("post_attention_layernorm.weight", d)?,
            feed_forward: feed_forward()?,
        })
    };
    build().within(format!("block {i}"))
}
