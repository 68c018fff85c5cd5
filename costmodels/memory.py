"""Memory that training and serving a transformer take: model states, activations under each way to recompute, KV cache."""

from dataclasses import dataclass
from math import prod

from costmodels.kernels import WIDTH_B
from costmodels.transformer import EMBEDDING, HEAD, Parameter, TransformerShape, sharded_dim
from costmodels.transformer_kernels import NARROW, Recompute, Slice

OVERHEAD_B = 2.5e9
"""What the context, communicators' buffers and the allocator's gaps take on a GPU (assumption: 2 to 3 GB)."""


def storage_dtype(precision: str) -> str:
    """The dtype weights are kept in: narrow recipes keep them in bfloat16 and cast where they multiply."""
    return "bfloat16" if precision in NARROW else precision


def gradient_dtype(precision: str, *, master_weights: bool) -> str:
    """The dtype gradients are summed and reduced in: with master weights float32 beside bfloat16, as in Megatron-LM."""
    stored = storage_dtype(precision)
    return "float32" if master_weights and stored == "bfloat16" else stored


def local_elements(parameters: list[Parameter], tp: int, *, vocab_parallel: bool = False) -> int:
    """Numbers that one of `tp` ranks holds of `parameters`."""
    return sum(local_size(p, tp, vocab_parallel=vocab_parallel) for p in parameters)


def local_size(parameter: Parameter, tp: int, *, vocab_parallel: bool = False) -> int:
    """Numbers that one of `tp` ranks holds of one parameter."""
    name, shape = parameter
    dim = 0 if vocab_parallel and name in (EMBEDDING, HEAD) else sharded_dim(name)
    if dim is None:
        return prod(shape)
    return prod(-(-size // tp) if d == dim else size for d, size in enumerate(shape))


@dataclass(frozen=True, slots=True)
class States:
    """Bytes of model states."""

    weights: float
    gradients: float
    optimizer: float


def model_states(elements: float, precision: str, *, master_weights: bool, zero: int, shards: int) -> States:
    """States of `elements` parameters under AdamW, of which ZeRO divides some by `shards` (Rajbhandari et al. 2020, section 3).

    Stage 1 divides the optimizer, 2 gradients as well, 3 weights as well. The optimizer keeps two float32 moments, and a float32
    copy of weights where `master_weights` and the weights are narrower: 16 bytes for each parameter in all with float16.
    """
    each = bytes_per_parameter(precision, master_weights=master_weights)
    return States(
        weights=elements * each.weights / (shards if zero >= 3 else 1),
        gradients=elements * each.gradients / (shards if zero >= 2 else 1),
        optimizer=elements * each.optimizer / (shards if zero >= 1 else 1),
    )


def bytes_per_parameter(precision: str, *, master_weights: bool) -> States:
    """Of one parameter, unsharded."""
    width = WIDTH_B[storage_dtype(precision)]
    gradient = WIDTH_B[gradient_dtype(precision, master_weights=master_weights)]
    return States(width, gradient, 8.0 + (4.0 if master_weights and width < 4 else 0.0))


def layer_activation_B(shape: TransformerShape, part: Slice, recompute: Recompute) -> float:
    """Bytes that the backward pass of one layer needs of one microbatch on one rank.

    Sums the tensors of Korthikanti et al. 2022, section 4, for any shape. With heads x head_dim = hidden = h, an MLP of 4h, 16 bits
    and dropout that is, for s x b tokens and a heads, sbh (10 + 24/t + 5as/ht) (eq. 2), with sequence parallelism
    sbh/t (34 + 5as/h) (eq. 4); selective 34 sbh/t (eq. 6); full 2 sbh.
    """
    if recompute == "full":
        return WIDTH_B[part.dtype] * part.norm_rows * shape.hidden
    return attention_activation_B(shape, part, recompute) + mlp_activation_B(shape, part, recompute)


def attention_activation_B(shape: TransformerShape, part: Slice, recompute: Recompute) -> float:
    """The attention block's part of `layer_activation_B`: input of the norm and its output, Q, K, V, what attention keeps, its
    output, a mask of dropout. Flash attention keeps only the logarithm of each row's sum (Dao et al. 2022, algorithm 2)."""
    width, rows = WIDTH_B[part.dtype], part.rows
    heads, kv_heads, d = part.heads(shape), part.kv_heads(shape), shape.head_dim
    kept = norm_activation_B(shape, part, drops_output=_drops_outputs(part, recompute))
    kept += width * rows * d * (2 * heads + 2 * kv_heads)
    if part.dropout:
        kept += part.norm_rows * shape.hidden
    if part.attention == "flash":
        return kept + 4.0 * rows * heads
    if recompute == "selective":
        return kept
    return kept + rows * heads * part.seq_len * (2 * width + 1 if part.dropout else width)


def mlp_activation_B(shape: TransformerShape, part: Slice, recompute: Recompute) -> float:
    """The MLP's part of `layer_activation_B`: input of the norm and its output, gate and up, their product, a mask of dropout.

    Hugging Face's modules also keep what the activation function made of the gate.
    """
    width = WIDTH_B[part.dtype]
    drops = _drops_outputs(part, recompute)
    activated = 1 if shape.gated and not part.fused_projections else 0
    inner = (2 if shape.gated else 1) + activated + (0 if drops else 1)
    kept = norm_activation_B(shape, part, drops_output=drops)
    kept += width * part.rows * (shape.ffn // part.tp) * inner
    return kept + (part.norm_rows * shape.hidden if part.dropout else 0.0)


def norm_activation_B(shape: TransformerShape, part: Slice, *, drops_output: bool = False) -> float:
    """Input and output of a norm. Hugging Face's modules keep the input in float32, and the normed input before its weight."""
    width = WIDTH_B[part.dtype]
    kept = width if part.fused_projections else 4.0 + width
    return (kept + (0 if drops_output else width)) * part.norm_rows * shape.hidden


def _drops_outputs(part: Slice, recompute: Recompute) -> bool:
    """Whether outputs of norms and of the activation function are computed again."""
    return recompute == "selective" and part.attention == "flash"


def embedding_activation_B(shape: TransformerShape, part: Slice) -> float:
    """Token numbers, and a mask where there is dropout (Korthikanti et al. 2022, section 4.3)."""
    return 8.0 * part.rows + (part.norm_rows * shape.hidden if part.dropout else 0.0)


def head_activation_B(shape: TransformerShape, part: Slice) -> float:
    """Input and output of the last norm, and float32 logits: 4sbh/t (1 + v/h) at 16 bits (Korthikanti et al. 2022, section 4.3)."""
    return norm_activation_B(shape, part) + 4.0 * part.rows * part.vocab(shape)


def kv_cache_B(shape: TransformerShape, tokens: int, dtype: str, *, tp: int = 1) -> float:
    """Keys and values of `tokens` tokens in all layers, on one of `tp` ranks; a rank has at least one head."""
    heads = max(shape.kv_heads / tp, 1.0)
    return 2.0 * shape.layers * heads * shape.head_dim * WIDTH_B[dtype] * tokens
