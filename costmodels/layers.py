"""The kernels that a transformer's layers launch, forward and backward, on one rank."""

from dataclasses import dataclass

from costmodels.kernels import Kernel, kernel
from costmodels.transformer import TransformerShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one rank sees of a microbatch: `batch` sequences of `seq_len`, 1/cp of the tokens, 1/tp of the matrices.

    `fused` launches q, k, v as one product and gate and up as one (Megatron) or each by itself (Hugging Face).
    """

    batch: int
    seq_len: int
    cp: int = 1
    tp: int = 1
    sequence_parallel: bool = False
    dtype: str = "bfloat16"
    fused: bool = True
    vocab_parallel: bool = True

    @property
    def rows(self) -> int:
        return self.batch * self.seq_len // self.cp

    @property
    def norm_rows(self) -> int:
        return self.rows // self.tp if self.sequence_parallel else self.rows

    @property
    def element(self) -> str:
        """The dtype of what is not a product: 8-bit training keeps the rest in bfloat16."""
        return "bfloat16" if self.dtype in ("fp8", "int8") else self.dtype


def _product(s: Slice, n: int, k: int, *, backward: bool) -> list[Kernel]:
    """y = x W: forward one product, backward one for the input and one for the weight."""
    if not backward:
        return [kernel("gemm", s.dtype, m=s.rows, n=n, k=k)]
    return [kernel("gemm", s.dtype, m=s.rows, n=k, k=n), kernel("gemm", s.dtype, m=n, n=k, k=s.rows)]


def _cells(name: str, s: Slice, rows: int, cols: int, *, backward: bool) -> Kernel:
    return kernel(f"{name}_backward" if backward else name, s.element, rows=rows, cols=cols)


def _attention_core(shape: TransformerShape, s: Slice, *, backward: bool) -> Kernel:
    """With context parallelism every rank holds equal parts of early and late queries, so that causality is shared evenly."""
    name = "attention_backward" if backward else "attention"
    q_len = s.seq_len // s.cp
    heads, kv_heads = max(shape.heads // s.tp, 1), max(shape.kv_heads // s.tp, 1)
    kv_len, causal = (s.seq_len, 1) if s.cp == 1 else ((s.seq_len + q_len) // 2, 0)
    return kernel(
        name,
        s.element,
        batch=s.batch,
        q_len=q_len,
        kv_len=kv_len,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=shape.head_dim,
        causal=causal,
    )


def attention(shape: TransformerShape, s: Slice, *, backward: bool = False) -> tuple[Kernel, ...]:
    """Norm, projections, attention and the residual."""
    h, q, kv = shape.hidden, shape.q_dim // s.tp, max(shape.kv_dim // s.tp, shape.head_dim)
    widths = [q + 2 * kv] if s.fused else [q, kv, kv]
    out = [_cells(shape.norm, s, s.norm_rows, h, backward=backward)]
    for width in widths:
        out += _product(s, width, h, backward=backward)
    if shape.norm == "rmsnorm":
        out.append(_cells("rope", s, s.rows, q + kv, backward=backward))
    out.append(_attention_core(shape, s, backward=backward))
    out += _product(s, h, q, backward=backward)
    out.append(kernel("add", s.element, rows=s.norm_rows, cols=h))
    return tuple(out)


def mlp(shape: TransformerShape, s: Slice, *, backward: bool = False) -> tuple[Kernel, ...]:
    """Norm, two or three products, the activation and the residual."""
    h, f = shape.hidden, shape.ffn // s.tp
    out = [_cells(shape.norm, s, s.norm_rows, h, backward=backward)]
    if shape.gated and not s.fused:
        out += 2 * _product(s, f, h, backward=backward)
    else:
        out += _product(s, 2 * f if shape.gated else f, h, backward=backward)
    out.append(_cells("silu_mul" if shape.gated else "gelu", s, s.rows, f, backward=backward))
    out += _product(s, h, f, backward=backward)
    out.append(kernel("add", s.element, rows=s.norm_rows, cols=h))
    return tuple(out)


def layer(shape: TransformerShape, s: Slice, *, backward: bool = False, recompute: str = "none") -> tuple[Kernel, ...]:
    """One layer; a backward pass first repeats what `recompute` did not keep (Korthikanti et al. 2022, section 5)."""
    if not backward:
        return attention(shape, s) + mlp(shape, s)
    again: tuple[Kernel, ...] = ()
    if recompute == "full":
        again = attention(shape, s) + mlp(shape, s)
    elif recompute == "selective":
        again = (_attention_core(shape, s, backward=False),)
    return again + mlp(shape, s, backward=True) + attention(shape, s, backward=True)


def embed(shape: TransformerShape, s: Slice, *, backward: bool = False) -> tuple[Kernel, ...]:
    """Rows of the table."""
    name = "embedding_backward" if backward else "embedding"
    vocab = shape.vocab // s.tp if s.vocab_parallel else shape.vocab
    return (kernel(name, s.element, rows=s.rows, cols=shape.hidden, vocab=vocab),)


def head(shape: TransformerShape, s: Slice, *, backward: bool = False) -> tuple[Kernel, ...]:
    """Last norm, logits and loss."""
    vocab = shape.vocab // s.tp if s.vocab_parallel else shape.vocab
    norm = _cells(shape.norm, s, s.norm_rows, shape.hidden, backward=backward)
    loss = kernel("cross_entropy_backward" if backward else "cross_entropy", s.element, rows=s.rows, vocab=vocab)
    products = _product(s, vocab, shape.hidden, backward=backward)
    return (loss, *products, norm) if backward else (norm, *products, loss)


def merged(kernels: tuple[Kernel, ...], times: int = 1) -> tuple[Kernel, ...]:
    """Equal launches counted together, each `times` times."""
    counts: dict[Kernel, int] = {}
    for k in kernels:
        counts[k] = counts.get(k, 0) + k.count
    return tuple(Kernel(k.name, k.dtype, k.shape, count * times) for k, count in counts.items())
