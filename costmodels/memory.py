"""Memory of training and serving a transformer, in bytes on one rank."""

from costmodels.kernels import WIDTH_B
from costmodels.layers import Slice
from costmodels.transformer import TransformerShape

OVERHEAD_B = 2.5e9
"""What the driver, the context, communicators' buffers and the allocator's gaps take on a GPU (assumption: 2 to 3 GB)."""


def state_B(parameters: float, dtype: str, grad_dtype: str, *, zero: int, shards: int) -> dict[str, float]:
    """Weights, gradients and optimizer of `parameters` weights under ZeRO stage 0 to 3 over `shards` ranks
    (Rajbhandari et al. 2020).

    Mixed precision keeps a float32 copy of the weights and two moments, float32 two moments.
    """
    width = WIDTH_B["bfloat16"] if dtype in ("fp8", "int8") else WIDTH_B[dtype]
    optimizer = 8.0 if dtype == "float32" else 12.0
    share = 1.0 / shards
    return {
        "weights": parameters * width * (share if zero >= 3 else 1.0),
        "gradients": parameters * WIDTH_B[grad_dtype] * (share if zero >= 2 else 1.0),
        "optimizer": parameters * optimizer * (share if zero >= 1 else 1.0),
    }


def layer_activations_B(shape: TransformerShape, s: Slice, recompute: str, *, flash: bool = True) -> float:
    """Activations that one layer keeps for one microbatch.

    For GPT's layer these are Korthikanti et al. 2022, equations 1 to 6: s b h (34 + 5 a s / h) without parallelism; sequence
    parallelism divides all of it by tp, tensor parallelism alone what lies inside attention and MLP. Flash attention, like
    selective recomputation, does not keep the a s^2 term. Gated layers count their own tensors the same way.
    """
    cells = float(s.rows)
    width = WIDTH_B[s.element]
    norm_share = 1.0 / s.tp if s.sequence_parallel else 1.0
    if recompute == "full":
        return width * cells * shape.hidden * norm_share
    if shape.norm == "layernorm":
        outside, inside = 10.0 / 2.0 * width, 24.0 / 2.0 * width
        kept = cells * shape.hidden * (outside * norm_share + inside / s.tp)
    else:
        ffn = (3 if shape.gated else 2) * shape.ffn
        inside = width * (2 * shape.q_dim + 2 * shape.kv_dim + ffn) / s.tp
        kept = cells * (4 * width * shape.hidden * norm_share + inside)
    if recompute == "none" and not flash:
        kept += 2.5 * width * shape.heads / s.tp * s.seq_len * cells
    return kept


def head_activations_B(shape: TransformerShape, s: Slice) -> float:
    """Input of the last norm and of the logits, and the logits in float32 for the loss."""
    vocab = shape.vocab / s.tp if s.vocab_parallel else float(shape.vocab)
    norm_share = 1.0 / s.tp if s.sequence_parallel else 1.0
    return s.rows * (2 * WIDTH_B[s.element] * shape.hidden * norm_share + 4.0 * vocab)


def kv_cache_B(shape: TransformerShape, tokens: int, dtype: str = "bfloat16", tp: int = 1) -> float:
    """Keys and values of `tokens` tokens in all layers; heads that do not divide are kept by several ranks."""
    heads = max(shape.kv_heads / tp, 1.0)
    return 2.0 * shape.layers * heads * shape.head_dim * tokens * WIDTH_B[dtype]
