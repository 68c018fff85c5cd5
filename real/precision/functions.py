"""Adjustable operators in a planned precision, forward and backward, as functions that autograd knows.

Forward, operands and weight are cast to what the operator computes in and kept like that; backward computes in
`Flow.backward`, and gradients leave in the precision in which operands came and in float32 for weights and biases. A bias is added
in float32, before the result is rounded. `Numerics.emulate` keeps the rounded numbers in float32 and multiplies them there: equal
up to the order of float32 sums, quicker on a CPU, and without the smaller memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from costmodels.precision import Flow
from real.precision.products import (
    Product,
    by_blocks,
    by_integers,
    differentiate,
    fuses,
    multiply,
    widens,
    with_bias,
)
from real.precision.rounding import LARGEST, STORED, Rounding, Scaled, Scaling, rounded, scaled

Kept = Tensor | Scaled

Report = Callable[[str, str, str, str, int], None]
"""Told of each cast: way, what, source, target, elements, as in `costmodels.precision.Cast`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """How numbers are rounded. `scaling` is of weights; operands have one scale each. `generator` draws stochastic rounding."""

    rounding: Rounding = "nearest"
    scaling: Scaling = "tensor"
    emulate: bool = False
    generator: torch.Generator | None = None

    def narrowed(self, x: Tensor, precision: str, channel: int | None = None) -> Kept:
        """`x` as an operator that computes in `precision` keeps it; emulated in float32."""
        if precision not in LARGEST:
            low = rounded(x, precision, self.rounding, self.generator)
            return low.float() if self.emulate else low
        channel = channel if self.scaling == "channel" else None
        low = scaled(x, precision, self.rounding, self.generator, channel)
        return low.widened() if self.emulate else low


def compute(
    product: Product,
    flow: Flow,
    numerics: Numerics,
    v: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    report: Report | None = None,
) -> Tensor:
    """z = v w + bias in `flow.output`. `v` and `w` are of any float type; `w` of a linear or conv2d is the float32 weight."""
    return _Computed.apply(v, w, bias, product, flow, numerics, report)  # type: ignore[no-untyped-call, no-any-return]


def look_up(
    index: Tensor, table: Tensor, flow: Flow, numerics: Numerics, report: Report | None, **options: Any
) -> Tensor:
    """Rows of a float32 table in `flow.computes`; their gradients are added in float32."""
    rows = functional.embedding(index, table, **options)
    if flow.computes == "float32":
        return rows
    names = ("weight", "output gradient")
    return change(rows, flow.computes, names, numerics, report, back=True)


def change(
    x: Tensor,
    precision: str,
    names: tuple[str, str],
    numerics: Numerics,
    report: Report | None,
    *,
    back: bool,
) -> Tensor:
    """`x` in another floating-point precision; its gradient comes back in that of `x`. `names` of both casts, for `report`.

    `back`: a gradient is wanted, if any operator below has one.
    """
    if not back or not x.requires_grad:
        x = x.detach()
    return _Changed.apply(x, precision, names, numerics, report)  # type: ignore[no-untyped-call, no-any-return]


def arithmetic(kind: str, precision: str, device: torch.device, *, emulate: bool = False) -> str:
    """In words, which kernels compute an operator there: what a run's report says."""
    if precision in ("float32", "tf32") or kind == "embedding":
        return (
            f"torch {precision}"
            if precision == "float32" or device.type == "cuda"
            else "torch float32, rounded to tf32"
        )
    if emulate:
        return f"torch float32 on numbers rounded to {precision}"
    if precision == "fp8":
        return "torch bfloat16 on fp8 numbers"
    if precision == "int8" and device.type == "cpu":
        return "torch float32 in exact blocks, int32 sums"
    if precision == "int8":
        from real.kernels import paths

        return f"{paths.path_of(device)} int8, int32 sums"
    low = torch.empty(0, dtype=STORED[precision], device=device)
    if widens(low):
        return f"torch float32 on {precision} numbers"
    if fuses(Product(kind="linear"), low) and kind == "linear":
        return f"triton {precision} with a bias, torch {precision} without"
    return f"torch {precision}"


class _Changed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, precision: str, names: tuple[str, str], numerics: Numerics, report: Report | None
    ) -> Tensor:
        ctx.source, ctx.precision, ctx.name, ctx.report = x.dtype, precision, names[1], report
        _tell(report, "forward", names[0], x.dtype, STORED[precision], x.numel())
        return rounded(x, precision, numerics.rounding, numerics.generator)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        _tell(ctx.report, "backward", ctx.name, g.dtype, ctx.source, g.numel())
        return g.to(ctx.source), None, None, None, None


class _Computed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        w: Tensor,
        bias: Tensor | None,
        product: Product,
        flow: Flow,
        numerics: Numerics,
        report: Report | None,
    ) -> Tensor:
        names = ("operand 0", "operand 1" if product.kind == "matmul" else "weight")
        channel = None if product.kind == "matmul" else product.channel
        for name, x in zip(names, (v, w), strict=True):
            _tell(report, "forward", name, x.dtype, STORED[flow.computes], x.numel())
        kept = numerics.narrowed(v, flow.computes), numerics.narrowed(w, flow.computes, channel)
        ctx.save_for_backward(*(t for k in kept for t in ((k.values, k.scale) if isinstance(k, Scaled) else (k, None))))
        ctx.product, ctx.flow, ctx.numerics, ctx.report, ctx.names = product, flow, numerics, report, names
        ctx.sources = v.dtype, w.dtype
        with _tensor_cores(flow.computes, v.device):
            return _multiplied(product, *kept, bias, STORED[flow.output])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), flow, numerics = gradients, ctx.flow, ctx.numerics
        wanted = ctx.needs_input_grad
        stored = STORED[flow.backward]
        _tell(ctx.report, "backward", "output gradient", g.dtype, stored, g.numel())
        low = numerics.narrowed(g, flow.backward)
        values_v, scale_v, values_w, scale_w = ctx.saved_tensors
        operands = []
        for name, values, scale in zip(ctx.names, (values_v, values_w), (scale_v, scale_w), strict=True):
            _tell(ctx.report, "backward", f"saved {name}", STORED[flow.computes], stored, values.numel())
            operands.append(_widened(values, scale, flow, emulate=numerics.emulate))
        with _tensor_cores(flow.backward, low.device):
            found = differentiate(ctx.product, low, *operands, wanted[:2])
        given: list[Tensor | None] = []
        for name, source, gradient in zip(ctx.names, ctx.sources, found, strict=True):
            if gradient is not None:
                _tell(ctx.report, "backward", f"{name} gradient", stored, source, gradient.numel())
                gradient = gradient.to(stored).to(source)
            given.append(gradient)
        given.append(ctx.product.bias_gradient(g) if wanted[2] else None)
        return (*given, None, None, None, None)


@contextmanager
def _tensor_cores(precision: str, device: torch.device) -> Iterator[None]:
    """On a GPU, products of float32 tensors in tf32 exactly where the plan says so."""
    if device.type != "cuda" or precision not in ("tf32", "float32"):
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _multiplied(product: Product, v: Kept, w: Kept, bias: Tensor | None, output: torch.dtype) -> Tensor:
    """z + bias, added up in float32 where there are scales and rounded to `output` at the end."""
    if isinstance(v, Scaled) and isinstance(w, Scaled):
        if v.values.dtype == torch.int8 and v.values.device.type != "cpu":
            return by_integers(product, v.values, w.values, (v.scale, w.scale), bias, output)
        if v.values.dtype == torch.int8:
            total = by_blocks(product, v.values, w.values).float()
        else:
            total = multiply(product, v.values.bfloat16(), w.values.bfloat16()).float()
        z = total.mul_(v.scale * product.at_output(w.scale))
    else:
        assert isinstance(v, Tensor) and isinstance(w, Tensor)
        if bias is not None and fuses(product, v):
            return with_bias(product, v, w, bias, output)
        z = multiply(product, v, w)
    if bias is not None:
        z = z.float() + product.at_output(bias.float())
    return z.to(output)


def _widened(values: Tensor, scale: Tensor | None, flow: Flow, *, emulate: bool) -> Tensor:
    """What the forward pass kept, in the precision of the backward pass."""
    if scale is not None:
        return Scaled(values, scale).widened(STORED[flow.backward])
    return values.to(STORED[flow.backward]).float() if emulate else values.to(STORED[flow.backward])


def _tell(report: Report | None, way: str, what: str, source: torch.dtype, target: torch.dtype, elements: int) -> None:
    if report is not None and source != target:
        report(way, what, PRECISION[source], PRECISION[target], elements)


PRECISION = {stored: precision for precision, stored in STORED.items()}
"""What a tensor of torch is in; float32 also where it holds tf32."""
