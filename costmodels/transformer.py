"""The shape of a dense decoder-only transformer: its parameters by name, and the FLOPs that training it needs.

Names are those of Hugging Face's Llama, whatever the family, so that plans and real modules speak of the same parameters.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

Norm = Literal["rmsnorm", "layernorm"]
Parameter = tuple[str, tuple[int, ...]]
"""Fully qualified name and shape."""

EMBEDDING = "model.embed_tokens.weight"
POSITIONS = "model.embed_positions.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """Sizes of a decoder-only transformer.

    `ffn` is the inner width of the MLP; `gated` MLPs have a gate beside the up projection (SwiGLU). `max_len` is the longest
    sequence; with `learned_positions` there is an embedding of that many rows. `qkv_bias` adds biases to the projections
    of queries, keys and values, `bias` to all linear layers but the head, and to layer norms.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_len: int
    gated: bool = True
    tied_embeddings: bool = False
    norm: Norm = "rmsnorm"
    learned_positions: bool = False
    qkv_bias: bool = False
    bias: bool = False

    @property
    def q_cols(self) -> int:
        """Width of all queries together."""
        return self.heads * self.head_dim

    @property
    def kv_cols(self) -> int:
        """Width of all keys, which is that of all values."""
        return self.kv_heads * self.head_dim


def parameters(shape: TransformerShape) -> list[Parameter]:
    """(FQN, shape) of every parameter in the order in which Hugging Face's Llama registers them."""
    found: list[Parameter] = [(EMBEDDING, (shape.vocab, shape.hidden))]
    if shape.learned_positions:
        found.append((POSITIONS, (shape.max_len, shape.hidden)))
    for i in range(shape.layers):
        found += layer_parameters(shape, i)
    found += _norm(shape, "model.norm")
    if not shape.tied_embeddings:
        found.append((HEAD, (shape.vocab, shape.hidden)))
    return found


def layer_parameters(shape: TransformerShape, layer: int) -> list[Parameter]:
    """(FQN, shape) of one layer, as in `parameters`."""
    at, h = f"model.layers.{layer}", shape.hidden
    qkv_bias = shape.bias or shape.qkv_bias
    found = [
        *_linear(f"{at}.self_attn.q_proj", shape.q_cols, h, qkv_bias),
        *_linear(f"{at}.self_attn.k_proj", shape.kv_cols, h, qkv_bias),
        *_linear(f"{at}.self_attn.v_proj", shape.kv_cols, h, qkv_bias),
        *_linear(f"{at}.self_attn.o_proj", h, shape.q_cols, shape.bias),
    ]
    if shape.gated:
        found += _linear(f"{at}.mlp.gate_proj", shape.ffn, h, shape.bias)
    found += _linear(f"{at}.mlp.up_proj", shape.ffn, h, shape.bias)
    found += _linear(f"{at}.mlp.down_proj", h, shape.ffn, shape.bias)
    return found + _norm(shape, f"{at}.input_layernorm") + _norm(shape, f"{at}.post_attention_layernorm")


def _linear(name: str, out: int, into: int, bias: bool) -> list[Parameter]:
    weight: list[Parameter] = [(f"{name}.weight", (out, into))]
    return [*weight, (f"{name}.bias", (out,))] if bias else weight


def _norm(shape: TransformerShape, name: str) -> list[Parameter]:
    weight: list[Parameter] = [(f"{name}.weight", (shape.hidden,))]
    return [*weight, (f"{name}.bias", (shape.hidden,))] if shape.norm == "layernorm" else weight


def end_parameters(shape: TransformerShape) -> tuple[list[Parameter], list[Parameter]]:
    """(FQN, shape) of what comes before the layers, and of what comes after them."""
    ends = parameters(replace(shape, layers=0))
    split = 2 if shape.learned_positions else 1
    return ends[:split], ends[split:]


def elements(parameters: list[Parameter]) -> int:
    """Numbers in all of them together."""
    return sum(prod(shape) for _, shape in parameters)


def layer_elements(shape: TransformerShape) -> int:
    """Parameters of one layer."""
    return elements(layer_parameters(shape, 0))


def total_elements(shape: TransformerShape) -> int:
    """Parameters of the whole model."""
    first, last = end_parameters(shape)
    return elements(first) + shape.layers * layer_elements(shape) + elements(last)


def sharded_dim(name: str) -> int | None:
    """The dimension along which tensor parallelism splits a layer's parameter, None where every rank has all of it.

    Megatron style (Shoeybi et al. 2019, section 3): queries, keys, values, gate and up by rows of their (out, in) weight, output
    and down by columns; biases go with the rows.
    """
    module, _, kind = name.rpartition(".")
    projection = module.rpartition(".")[2]
    if projection in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        return 0
    if projection in ("o_proj", "down_proj") and kind == "weight":
        return 1
    return None


def forward_flops_per_token(shape: TransformerShape, seq_len: int, *, causal: bool) -> float:
    """Multiply-adds of all matrix products of the forward pass count two. Elementwise work is not counted.

    Korthikanti et al. 2022, appendix A, for any shape: linear layers, the two attention products (the full square, or with
    `causal` the half that a causal mask leaves) and the head.
    """
    mlp = (3 if shape.gated else 2) * shape.hidden * shape.ffn
    linear = shape.hidden * (2 * shape.q_cols + 2 * shape.kv_cols) + mlp
    attended = (seq_len + 1) / 2 if causal else seq_len
    return 2.0 * (shape.layers * (linear + 2 * shape.q_cols * attended) + shape.hidden * shape.vocab)


def training_flops(shape: TransformerShape, seq_len: int, sequences: int, *, causal: bool = False) -> float:
    """Model FLOPs of one iteration: the forward pass and twice as much backward, nothing recomputed."""
    return 3.0 * forward_flops_per_token(shape, seq_len, causal=causal) * seq_len * sequences
