"""Kernels that one rank launches for one microbatch: attention and MLP of a layer, embedding, head; forward and backward.

Tensor parallelism splits linear layers as Megatron does (Shoeybi et al. 2019); with sequence parallelism norms and residuals work
on a share of the tokens (Korthikanti et al. 2022); context parallelism gives each rank a share of every sequence.
"""

from dataclasses import dataclass, replace
from typing import Literal

from costmodels.kernels import Kernel, kernel
from costmodels.transformer import TransformerShape

Recompute = Literal["none", "selective", "full"]
AttentionKernel = Literal["flash", "unfused"]
ContextExchange = Literal["ring", "all_gather"]

Kernels = tuple[Kernel, ...]

NARROW = {"fp8": "fp8", "fp8_cs": "fp8", "mxfp8": "fp8", "nvfp4": "nvfp4"}
"""Recipes whose linear layers multiply in fewer than 16 bits, and the format that they multiply in; all else is bfloat16. Blocks of
mxfp8 are scaled by the tensor cores themselves, at the rate of fp8."""

CAST_PASSES = {"fp8_cs": 2, "mxfp8": 1, "nvfp4": 2}
"""Recipes whose scales are those of the tensor itself, so that every operand is cast by a kernel of its own: a pass to find its
largest values (mxfp8: none), and one that writes it by rows and by columns. fp8 takes scales from earlier iterations."""

ALIGNED = 8
"""Tensor cores take rows of 16-bit operands that are multiples of 16 bytes; products of others run on the vector lanes (NVIDIA,
"Matrix Multiplication Background User's Guide", section 4.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one rank has of a microbatch of `sequences` sequences, and how it computes.

    `fused_projections` makes one product of queries, keys and values, and one of gate and up, as Megatron does and
    Hugging Face, whose modules also keep more for their backward pass, does not. `precision` is a dtype or one of `NARROW`.
    """

    sequences: int
    seq_len: int
    precision: str
    tp: int = 1
    cp: int = 1
    sequence_parallel: bool = False
    vocab_parallel: bool = False
    fused_projections: bool = True
    attention: AttentionKernel = "flash"
    context_exchange: ContextExchange = "ring"
    dropout: bool = False

    @property
    def dtype(self) -> str:
        """Of activations."""
        return "bfloat16" if self.precision in NARROW else self.precision

    @property
    def rows(self) -> int:
        """Tokens that linear layers see."""
        return self.sequences * self.seq_len // self.cp

    @property
    def norm_rows(self) -> int:
        """Tokens that norms and residual additions see."""
        return self.rows // self.tp if self.sequence_parallel else self.rows

    def heads(self, shape: TransformerShape) -> int:
        return shape.heads // self.tp

    def kv_heads(self, shape: TransformerShape) -> int:
        """With fewer of them than ranks, each rank has a copy of one."""
        return max(shape.kv_heads // self.tp, 1)

    def vocab(self, shape: TransformerShape) -> int:
        return -(-shape.vocab // self.tp) if self.vocab_parallel else shape.vocab


@dataclass(frozen=True, slots=True)
class Work:
    """Kernels of a part of the model, in the order in which they run."""

    forward: Kernels = ()
    backward: Kernels = ()

    def __add__(self, after: "Work") -> "Work":
        return Work(self.forward + after.forward, after.backward + self.backward)

    def __mul__(self, times: int) -> "Work":
        """`times` equal parts; their kernels are counted together."""
        if times == 1:
            return self
        return Work(repeated(self.forward, times), repeated(self.backward, times))


def repeated(kernels: Kernels, times: int) -> Kernels:
    """Every kernel launched `times` as often."""
    if times == 1:
        return kernels
    return tuple(replace(k, count=k.count * times) for k in kernels) if times else ()


def attention_block(shape: TransformerShape, part: Slice, recompute: Recompute) -> Work:
    """Norm, projections, rotary positions, output projection and residual: all of the block but `attention_core`."""
    rows, h = part.rows, shape.hidden
    q, kv = part.heads(shape) * shape.head_dim, part.kv_heads(shape) * shape.head_dim
    norm = _elementwise(shape.norm, part, part.norm_rows, h)
    columns = (q + 2 * kv,) if part.fused_projections else (q, kv, kv)
    before = norm
    for n in columns:
        before += _linear(part, rows, n, h)
    if not shape.learned_positions:
        before += _elementwise("rope", part, rows, q + kv)
    after = _linear(part, rows, h, q, cast_input=True) + _residual(part, h)
    return _recomputed(before + after, norm, part, recompute)


def mlp_block(shape: TransformerShape, part: Slice, recompute: Recompute) -> Work:
    """Norm, up (and gate), activation function, down, residual."""
    rows, h, f = part.rows, shape.hidden, shape.ffn // part.tp
    norm = _elementwise(shape.norm, part, part.norm_rows, h)
    ups = 2 if shape.gated else 1
    columns = (ups * f,) if part.fused_projections else (f,) * ups
    up = Work()
    for n in columns:
        up += _linear(part, rows, n, h, cast_gradient=False)
    activation = _elementwise("silu_mul" if shape.gated else "gelu", part, rows, f)
    block = norm + up + activation + _linear(part, rows, h, f) + _residual(part, h)
    return _recomputed(block, norm + activation, part, recompute)


def _recomputed(block: Work, cheap: Work, part: Slice, recompute: Recompute) -> Work:
    """The block with what its backward pass computes again.

    full: everything. selective: with flash attention the outputs of norms and of the activation function, which are cheap for the
    memory they take; with unfused attention it is only the core (Korthikanti et al. 2022, section 5).
    """
    if recompute == "full":
        return Work(block.forward, block.forward + block.backward)
    if recompute == "selective" and part.attention == "flash":
        return Work(block.forward, cheap.forward + block.backward)
    return block


def attention_core(shape: TransformerShape, part: Slice, recompute: Recompute) -> Work:
    """Softmax of queries times keys, times values. Causal; context parallelism gives every rank an equal share of the triangle.

    In a ring each rank meets its own block and half of every other (Liu et al. 2023; the second half of the sequence in
    reverse order balances the triangle); with gathered keys it has one early and one late chunk (Llama 3, section 3.3.2).
    """
    core = _unfused_core(shape, part) if part.attention == "unfused" else _flash_core(shape, part)
    again = recompute == "full" or (recompute == "selective" and part.attention == "unfused")
    return Work(core.forward, core.forward + core.backward) if again else core


def _flash_core(shape: TransformerShape, part: Slice) -> Work:
    s, c = part.seq_len, part.cp
    if c == 1:
        return _flash(shape, part, s, s, causal=1, count=1)
    if part.context_exchange == "all_gather":
        return _flash(shape, part, s // (2 * c), s // 2 + s // (4 * c), causal=1, count=2)
    own = _flash(shape, part, s // c, s // c, causal=1, count=1)
    return own + _flash(shape, part, s // c, s // (2 * c), causal=0, count=c - 1)


def _flash(shape: TransformerShape, part: Slice, q_len: int, kv_len: int, *, causal: int, count: int) -> Work:
    heads, kv_heads = part.heads(shape), part.kv_heads(shape)
    sizes = {"batch": part.sequences, "q_len": q_len, "kv_len": kv_len, "heads": heads, "kv_heads": kv_heads}
    forward, backward = (
        kernel(name, part.dtype, count=count, head_dim=shape.head_dim, causal=causal, **sizes)
        for name in ("attention", "attention_backward")
    )
    return Work((forward,), (backward,))


def _unfused_core(shape: TransformerShape, part: Slice) -> Work:
    """Two batched products with a softmax between them that goes through memory, over the full square.

    Dropout and the backward pass of softmax stream as a copy and as an addition do: the same numbers of reads and writes.
    """
    heads, q, kv = part.sequences * part.heads(shape), part.seq_len // part.cp, part.seq_len
    scores = _product(part, heads, q, kv, shape.head_dim)
    values = _product(part, heads, q, shape.head_dim, kv)
    rows = heads * q
    softmax = Work(
        (kernel("softmax", part.dtype, rows=rows, cols=kv),), (kernel("add", part.dtype, rows=rows, cols=kv),)
    )
    if part.dropout:
        mask = kernel("copy", part.dtype, elements=rows * kv)
        softmax += Work((mask,), (mask,))
    return scores + softmax + values


def embedding(shape: TransformerShape, part: Slice) -> Work:
    """Look up tokens, and add positions where they are learned."""
    rows, h, vocab = part.rows, shape.hidden, part.vocab(shape)
    look_up = Work(
        (kernel("embedding", part.dtype, rows=rows, cols=h, vocab=vocab),),
        (kernel("embedding_backward", part.dtype, rows=rows, cols=h, vocab=vocab),),
    )
    positions = Work((kernel("add", part.dtype, rows=rows, cols=h),)) if shape.learned_positions else Work()
    return look_up + positions


def head(shape: TransformerShape, part: Slice) -> Work:
    """Final norm, logits and their loss. The head multiplies in the dtype of activations, also under fp8."""
    rows, h, vocab = part.rows, shape.hidden, part.vocab(shape)
    plain = replace(part, precision=part.dtype)
    norm = _elementwise(shape.norm, part, part.norm_rows, h)
    return norm + _linear(plain, rows, vocab, h) + _loss(part, rows, vocab)


def _loss(part: Slice, rows: int, vocab: int) -> Work:
    """In float32, to which Megatron-LM and Hugging Face cast narrower logits."""
    forward, backward = (
        kernel(name, "float32", rows=rows, vocab=vocab) for name in ("cross_entropy", "cross_entropy_backward")
    )
    loss = Work((forward,), (backward,))
    if part.dtype in ("float32", "tf32"):
        return loss
    cast = kernel("cast", "float32", elements=rows * vocab)
    return Work((cast,), (cast,)) + loss


def _linear(part: Slice, rows: int, n: int, k: int, *, cast_input: bool = False, cast_gradient: bool = True) -> Work:
    """rows x k times k x n; backward the gradients of input and weight.

    Under narrow recipes the input and the output's gradient are cast by a kernel of their own, except where norms and activation
    functions write them so, as Transformer Engine's do.
    """
    dtype = NARROW.get(part.precision, part.precision)
    forward = kernel("gemm", dtype, m=rows, n=n, k=k)
    data = kernel("gemm", dtype, m=rows, n=k, k=n)
    weight = kernel("gemm", dtype, m=n, n=k, k=rows)
    if part.precision not in NARROW:
        return Work((forward,), (data, weight))
    own = part.precision in CAST_PASSES
    count = CAST_PASSES.get(part.precision, 1)
    casts = [(kernel("cast", part.dtype, count=count, elements=rows * cols),) for cols in (k, n)]
    before = [cast if own or wanted else () for cast, wanted in zip(casts, (cast_input, cast_gradient), strict=True)]
    return Work((*before[0], forward), (*before[1], data, weight))


def _product(part: Slice, batch: int, m: int, n: int, k: int) -> Work:
    """A batched product of two activations; backward the gradients of both."""
    dtype = part.dtype if n % ALIGNED == k % ALIGNED == 0 else "float32"
    forward = kernel("gemm", dtype, batch=batch, m=m, n=n, k=k)
    left = kernel("gemm", dtype, batch=batch, m=m, n=k, k=n)
    right = kernel("gemm", dtype, batch=batch, m=k, n=n, k=m)
    return Work((forward,), (left, right))


def _elementwise(name: str, part: Slice, rows: int, cols: int) -> Work:
    forward, backward = (kernel(n, part.dtype, rows=rows, cols=cols) for n in (name, f"{name}_backward"))
    return Work((forward,), (backward,))


def _residual(part: Slice, cols: int) -> Work:
    """An addition forward, and one backward where the two branches' gradients meet."""
    add = kernel("add", part.dtype, rows=part.norm_rows, cols=cols)
    return Work((add,), (add,))
