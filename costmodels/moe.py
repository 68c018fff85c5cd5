"""Mixture of experts: which kernels stand in for the MLP of a dense layer, how many parameters they have, what is exchanged.

Tokens are taken to be spread evenly over the experts (trained with a balancing loss or force-balanced): every rank of `ep` has
`count / ep` experts and meets `per_token` rows for each of its own tokens (Lepikhin et al. 2021, GShard; DeepSeek-AI 2024).
"""

from dataclasses import dataclass

from costmodels.kernels import WIDTH_B, kernel
from costmodels.transformer import TransformerShape
from costmodels.transformer_kernels import CAST_PASSES, NARROW, Slice, Work

Latent = tuple[int, int, int, int, int]
"""Latent attention: ranks of compressed queries and keys, widths of a head without and with positions, and of its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """`count` experts of inner width `ffn`, of which a token visits `per_token`; `shared_ffn` is the width of those that all
    tokens visit. The first `dense_layers` layers have a plain MLP."""

    count: int
    per_token: int
    ffn: int
    shared_ffn: int = 0
    dense_layers: int = 0
    latent: Latent | None = None


def exchanged_B(experts: Experts, shape: TransformerShape, part: Slice) -> float:
    """Bytes of hidden states that a rank sends to experts, and gets back, in one layer of one microbatch."""
    return WIDTH_B[part.dtype] * part.norm_rows * shape.hidden * experts.per_token


def expert_elements(experts: Experts, shape: TransformerShape, ep: int) -> int:
    """Parameters of one layer's routed experts on one rank."""
    return experts.count // ep * 3 * shape.hidden * experts.ffn


def router_elements(experts: Experts, shape: TransformerShape) -> int:
    return experts.count * shape.hidden


def latent_elements(latent: Latent, shape: TransformerShape) -> int:
    """Parameters of one layer's projections of latent attention."""
    q_rank, kv_rank, nope, rope, value = latent
    h, a = shape.hidden, shape.heads
    return h * q_rank + q_rank * a * (nope + rope) + h * (kv_rank + rope) + kv_rank * a * (nope + value) + a * value * h


def expert_mlp(experts: Experts, shape: TransformerShape, part: Slice, ep: int) -> Work:
    """Router, permutation of tokens, grouped products of the local experts, and the weighted sum of what comes back."""
    h, rows = shape.hidden, part.norm_rows
    visits = rows * experts.per_token
    local = max(experts.count // ep, 1)
    each = max(visits // local, 1)
    plain = Slice(sequences=part.sequences, seq_len=part.seq_len, precision=part.dtype, tp=part.tp, cp=part.cp)
    route = _product(plain, 1, rows, experts.count, h)
    permute = _moved(part, visits * h)
    up = _product(part, local, each, 2 * experts.ffn, h)
    down = _product(part, local, each, h, experts.ffn)
    gate = Work(
        (kernel("silu_mul", part.dtype, rows=visits, cols=experts.ffn),),
        (kernel("silu_mul_backward", part.dtype, rows=visits, cols=experts.ffn),),
    )
    return route + permute + permute + up + gate + down + permute + permute


def latent_projections(latent: Latent, shape: TransformerShape, part: Slice) -> Work:
    """Down and up projections of queries, keys and values, and the output projection, in place of plain ones."""
    q_rank, kv_rank, nope, rope, value = latent
    rows, h, a = part.rows, shape.hidden, part.heads(shape)
    return (
        _product(part, 1, rows, q_rank + kv_rank + rope, h)
        + _product(part, 1, rows, a * (nope + rope), q_rank)
        + _product(part, 1, rows, a * (nope + value), kv_rank)
        + _product(part, 1, rows, h, a * value)
    )


def _product(part: Slice, batch: int, m: int, n: int, k: int) -> Work:
    """`batch` products of activations with weights; backward the gradients of both."""
    dtype = NARROW.get(part.precision, part.precision)
    forward = kernel("gemm", dtype, batch=batch, m=m, n=n, k=k)
    data = kernel("gemm", dtype, batch=batch, m=m, n=k, k=n)
    weight = kernel("gemm", dtype, batch=batch, m=n, n=k, k=m)
    if part.precision == part.dtype:
        return Work((forward,), (data, weight))
    count = CAST_PASSES.get(part.precision, 1)
    casts = [kernel("cast", part.dtype, count=count, elements=batch * m * cols) for cols in (k, n)]
    return Work((casts[0], forward), (casts[1], data, weight))


def _moved(part: Slice, elements: int) -> Work:
    move = (kernel("copy", part.dtype, elements=elements),)
    return Work(move, move)
