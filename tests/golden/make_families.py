"""Writes tests/golden/families: small models of every supported family with the logits that transformers gives.

    pip install torch==2.13.0 transformers==5.24.0 safetensors
    python tests/golden/make_families.py

Weights are random and exact in bf16; the reference is computed in f32, on one thread, with eager attention."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, AutoModelForCausalLM

OUT = Path(__file__).parent / "families"
SMALL = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16, rope_theta=5e5)
FULL, SLIDING = "full_attention", "sliding_attention"

CASES = {
    "llama": LlamaConfig(**SMALL | dict(num_key_value_heads=4)),
    "llama_biases_tied": LlamaConfig(**SMALL | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "llama3_rope": LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "linear_rope": LlamaConfig(**SMALL, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4)),
    "mistral_window": MistralConfig(**SMALL, sliding_window=5, head_dim=16),
    "mistral_full": MistralConfig(**SMALL, sliding_window=None),
    "qwen2": Qwen2Config(**SMALL, rms_norm_eps=1e-5),
    "qwen2_window": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": Qwen3Config(**SMALL | dict(tie_word_embeddings=True), head_dim=16),
    "qwen3_biases_window": Qwen3Config(**SMALL, head_dim=16, attention_bias=True, use_sliding_window=True,
                                       sliding_window=6, layer_types=[SLIDING, FULL, SLIDING]),
}
SHARDED = "llama"


def fill(model, generator):
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        value = 1 + 0.3 * noise if "norm" in name else 0.25 * noise
        parameter.data = value.to(torch.bfloat16).float()


def main():
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    expected = {}
    for seed, (name, config) in enumerate(CASES.items()):
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(seed)
        fill(model, generator)
        model.tie_weights()
        ids = torch.randint(0, 64, (1, 40), generator=generator)
        with torch.no_grad():
            expected[f"{name}.logits"] = model(ids, use_cache=False).logits[0].contiguous()
        expected[f"{name}.ids"] = ids[0].to(torch.int32)
        shard = "20KB" if name == SHARDED else "10MB"
        model.to(torch.bfloat16).save_pretrained(OUT / name, max_shard_size=shard)
        (OUT / name / "generation_config.json").unlink(missing_ok=True)
    save_file(expected, OUT / "expected.safetensors")


main()
