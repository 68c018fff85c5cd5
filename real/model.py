"""The model of a plan: transformers' Llama with the plan's sizes."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_model(shape: Mapping[str, Any], precision: str, seed: int) -> LlamaForCausalLM:
    """Weights follow from the seed, so that every rank starts from the same."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        num_hidden_layers=shape["layers"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["ffn"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        vocab_size=shape["vocab"],
        max_position_embeddings=shape["max_len"],
        tie_word_embeddings=shape["tied_embeddings"],
        attn_implementation="sdpa",
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(DTYPES[precision])
