"""The products of adjustable operators and their gradients, and in which arithmetic a device computes them.

A CPU without 16-bit arithmetic multiplies 16-bit operands fastest by widening them to float32, and integers of 8 bits in float32
blocks that are exact: on an AMD EPYC with AVX2, (1024, 768) x (768, 768) took 28 ms in float32, 136 to 1540 ms in torch's own
float16, 242 to 1530 ms in its bfloat16, depending on the layout, and 597 to 907 ms in its int8; convolutions were alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from costmodels.precision_error import LEVELS

Pair = tuple[int, int]

EXACT = 2**24 // LEVELS**2
"""So many products of two int8 numbers add up exactly in float32, in any order: whole numbers up to 2^24 are float32 numbers."""

SIXTEEN = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """z = v w: linear (…, in) by (out, in), transposed (in, out); conv2d (batch, in, height, width) by (out, in/groups, kh, kw);
    matmul (…, m, k) by (…, k, n), batches broadcast.
    """

    kind: Literal["linear", "conv2d", "matmul"]
    transposed: bool = False
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def channel(self) -> int:
        """Dimension of a weight that counts its output channels."""
        return 1 if self.transposed else 0

    def forward(self, v: Tensor, w: Tensor) -> Tensor:
        """In the dtype that both have."""
        if self.kind == "conv2d":
            return functional.conv2d(v, w, None, self.stride, self.padding, self.dilation, self.groups)
        if self.kind == "linear" and not self.transposed:
            return functional.linear(v, w)
        return torch.matmul(v, w)

    def gradients(
        self, g: Tensor, v: Tensor, w: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients by v and w where wanted, from that by z, in the dtype that all three have."""
        if self.kind == "conv2d":
            where = (None, self.stride, self.padding, self.dilation, False, (0, 0), self.groups)
            by_v, by_w, _ = torch.ops.aten.convolution_backward(g, v, w, *where, (*wanted, False))
            return by_v, by_w
        if self.kind == "matmul":
            by_v = torch.matmul(g, w.mT).sum_to_size(v.shape) if wanted[0] else None
            return by_v, torch.matmul(v.mT, g).sum_to_size(w.shape) if wanted[1] else None
        rows, gradients = v.flatten(0, -2), g.flatten(0, -2)
        by_v = torch.matmul(g, w.mT if self.transposed else w) if wanted[0] else None
        left, right = (rows, gradients) if self.transposed else (gradients, rows)
        return by_v, left.mT @ right if wanted[1] else None

    def at_output(self, by_channel: Tensor) -> Tensor:
        """Numbers for each output channel, shaped to broadcast over z; a single one as it is."""
        if by_channel.numel() == 1:
            return by_channel.reshape(())
        return by_channel.reshape(-1, 1, 1) if self.kind == "conv2d" else by_channel.reshape(-1)

    def bias_gradient(self, g: Tensor) -> Tensor:
        """Sum over all but the channels, in float32."""
        axis = 1 if self.kind == "conv2d" else g.ndim - 1
        return g.sum([d for d in range(g.ndim) if d != axis], dtype=torch.float32)


def multiply(product: Product, v: Tensor, w: Tensor) -> Tensor:
    """z in the dtype of v and w, which agree; products of 16-bit numbers are added up in float32 and rounded once."""
    if widens(v):
        return product.forward(v.float(), w.float()).to(v.dtype)
    return product.forward(v, w)


def differentiate(
    product: Product, g: Tensor, v: Tensor, w: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by v and w in the dtype that all three have, computed as `multiply` does."""
    if not widens(v):
        return product.gradients(g, v, w, wanted)
    by_v, by_w = product.gradients(g.float(), v.float(), w.float(), wanted)
    return None if by_v is None else by_v.to(v.dtype), None if by_w is None else by_w.to(w.dtype)


def widens(x: Tensor) -> bool:
    """Whether 16-bit operands are multiplied in float32 where `x` is."""
    return x.dtype in SIXTEEN and x.device.type == "cpu" and not _computes_on_cpu(x.dtype)


def widened_here() -> list[str]:
    """16-bit precisions whose operands this machine's CPU multiplies in float32."""
    return [str(d).removeprefix("torch.") for d in SIXTEEN if not _computes_on_cpu(d)]


@cache
def _computes_on_cpu(dtype: torch.dtype) -> bool:
    capabilities = torch.cpu.get_capabilities()
    wanted = ("avx512_bf16", "amx_bf16") if dtype == torch.bfloat16 else ("avx512_fp16", "amx_fp16")
    return any(capabilities.get(name, False) for name in wanted)


def accumulated(product: Product, v: Tensor, w: Tensor) -> Tensor:
    """z in int32, exactly, of int8 v and w: on a CPU in float32, `EXACT` products at a time; elsewhere by integer kernels.

    The CPU does not run the integer kernels' torch references, which are 20 times slower there and need Triton installed.
    """
    return by_blocks(product, v, w) if v.device.type == "cpu" else by_integers(product, v, w)


def by_blocks(product: Product, v: Tensor, w: Tensor) -> Tensor:
    """Products in float32, each over so few channels that it is exact, added up in int32."""
    total: Tensor | None = None
    for part_v, part_w in _blocks(product, v, w):
        part = product.forward(part_v.float(), part_w.float()).to(torch.int32)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _blocks(product: Product, v: Tensor, w: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Operands cut along the dimension that a product sums over."""
    if product.kind == "conv2d":
        length, taps = w.shape[1], w.shape[2] * w.shape[3]
        by_group = v.unflatten(1, (product.groups, length))
        for at in _cuts(length, max(EXACT // taps, 1)):
            yield by_group[:, :, at].flatten(1, 2), w[:, at]
        return
    second_is_rows = product.kind == "matmul" or product.transposed
    for at in _cuts(v.shape[-1], EXACT):
        yield v[..., at], w[..., at, :] if second_is_rows else w[..., at]


def _cuts(length: int, step: int) -> Iterator[slice]:
    return (slice(first, first + step) for first in range(0, length, step))


def fuses(product: Product, v: Tensor) -> bool:
    """Whether a 16-bit product with a bias is one Triton kernel: torch's own rounds before it adds the bias."""
    if product.kind != "linear" or v.dtype not in SIXTEEN or v.device.type != "cuda":
        return False
    from real.kernels import paths

    return paths.path_of(v.device) == "triton"


def with_bias(product: Product, v: Tensor, w: Tensor, bias: Tensor, output: torch.dtype) -> Tensor:
    """z + bias of a linear with 16-bit `v` and `w`, added up in float32 and rounded once."""
    from real.kernels import paths

    kernels = paths.kernels_of(paths.path_of(v.device))
    columns = w if product.transposed else w.mT
    z = kernels.half_gemm(v.flatten(0, -2), columns, bias, dtype=v.dtype, out_dtype=output)
    return z.unflatten(0, v.shape[:-1])


def by_integers(
    product: Product,
    v: Tensor,
    w: Tensor,
    scales: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
    output: torch.dtype = torch.int32,
) -> Tensor:
    """By the integer kernels of `real.kernels`, Triton's or torch's, which take matrices, batches of them, and images.

    Without `scales` the int32 sums; with those of `v` (one) and of `w` (one, or one for each output channel) the product of the
    numbers themselves plus `bias`, rounded to `output`, in the same kernel.
    """
    from real.kernels import paths

    kernels = paths.kernels_of(paths.path_of(v.device))
    end = (*(s.flatten() for s in scales), bias) if scales else (None, None, None)
    if product.kind == "conv2d":
        where = {"stride": product.stride, "padding": product.padding, "dilation": product.dilation}
        return kernels.int8_conv2d(v, w, *end, groups=product.groups, out_dtype=output, **where)
    if product.kind == "linear":
        rows = kernels.int8_gemm(v.flatten(0, -2), w.mT if product.transposed else w, *end, out_dtype=output)
        return rows.unflatten(0, v.shape[:-1])
    batch = torch.broadcast_shapes(v.shape[:-2], w.shape[:-2])
    columns = w.mT
    left = v.expand(*batch, *v.shape[-2:]).reshape(-1, *v.shape[-2:])
    right = columns.expand(*batch, *columns.shape[-2:]).reshape(-1, *columns.shape[-2:])
    return kernels.int8_gemm(left, right, *end, out_dtype=output).reshape(*batch, v.shape[-2], w.shape[-1])
