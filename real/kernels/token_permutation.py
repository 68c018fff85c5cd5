"""Rows of samples in the order of the experts that they visit, and back: what surrounds a grouped product, forward and backward.

A sample visits k experts. Its visits are numbered sample * k + i; `Order` sorts them by expert, so that rows of one expert lie
together.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from real.kernels.checking import FLOATS, dtype_problem, equal_problem, refuse
from real.kernels.launching import Launch

BLOCK = 128
"""assumption: columns of a step; rows of features are a few hundred numbers or more."""


class Order(NamedTuple):
    """int32: `sample` (visits,) of each sorted visit, `place` (samples, k) of visits among the sorted, `offset` (experts + 1,)."""

    sample: torch.Tensor
    place: torch.Tensor
    offset: torch.Tensor


def order_of(chosen: torch.Tensor, experts: int) -> Order:
    """From the experts (samples, k) that each sample visits; visits of one expert keep their order. An expert may have none."""
    flat = chosen.flatten().long()
    order = flat.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    offset = torch.zeros(experts + 1, dtype=torch.int64, device=flat.device)
    offset[1:] = torch.bincount(flat, minlength=experts).cumsum(0)
    return Order((order // max(chosen.shape[1], 1)).int(), place.view(chosen.shape).int(), offset.int())


@triton.jit
def _gather(x_ptr, sample_ptr, out_ptr, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row a program."""
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(sample_ptr + row).to(tl.int64)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < width
        tl.store(out_ptr + row * width + column, tl.load(x_ptr + source * width + column, mask=inside), mask=inside)


@triton.jit
def _combine(y_ptr, place_ptr, weight_ptr, out_ptr, width, K: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One sample a program: its visits' rows times their weights, summed in the order of the visits."""
    row = tl.program_id(0).to(tl.int64)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < width
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for i in tl.static_range(K):
            place = tl.load(place_ptr + row * K + i).to(tl.int64)
            weight = tl.load(weight_ptr + row * K + i)
            total += weight * tl.load(y_ptr + place * width + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + row * width + column, total, mask=inside)


@triton.jit
def _combine_backward(  # type: ignore[no-untyped-def]
    y_ptr, place_ptr, weight_ptr, grad_ptr, dy_ptr, dweight_ptr, width, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One visit a program: its weight times the sample's gradient, and the product of both rows."""
    visit = tl.program_id(0).to(tl.int64)
    place = tl.load(place_ptr + visit).to(tl.int64)
    weight = tl.load(weight_ptr + visit)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < width
        grad = tl.load(grad_ptr + visit // K * width + column, mask=inside, other=0.0).to(tl.float32)
        total += grad * tl.load(y_ptr + place * width + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(dy_ptr + place * width + column, weight * grad, mask=inside)
    tl.store(dweight_ptr + visit, tl.sum(total, axis=0))


def gather_launch(x: torch.Tensor, sample: torch.Tensor, out: torch.Tensor) -> Launch:
    """`out` (visits, width) takes row `sample` of `x` (samples, width); contiguous."""
    arguments = {"x_ptr": x, "sample_ptr": sample, "out_ptr": out, "width": x.shape[1]}
    return Launch(kernel=_gather, grid=(len(out),), arguments=arguments, constants={"BLOCK": BLOCK})


def combine_launch(y: torch.Tensor, place: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> Launch:
    """`out` (samples, width) from `y` (visits, width), `place` and float32 `weight` (samples, k); contiguous."""
    arguments = {"y_ptr": y, "place_ptr": place, "weight_ptr": weight, "out_ptr": out, "width": y.shape[1]}
    constants = {"K": place.shape[1], "BLOCK": BLOCK}
    return Launch(kernel=_combine, grid=(len(out),), arguments=arguments, constants=constants, flops=2 * y.numel())


def combine_backward_launch(
    y: torch.Tensor,
    place: torch.Tensor,
    weight: torch.Tensor,
    grad: torch.Tensor,
    dy: torch.Tensor,
    dweight: torch.Tensor,
) -> Launch:
    """Gradients of `combine_launch`; `dy` is like `y`, `dweight` like `weight`."""
    return Launch(
        kernel=_combine_backward,
        grid=(len(y),),
        arguments={
            "y_ptr": y,
            "place_ptr": place,
            "weight_ptr": weight,
            "grad_ptr": grad,
            "dy_ptr": dy,
            "dweight_ptr": dweight,
            "width": y.shape[1],
        },
        constants={"K": place.shape[1], "BLOCK": BLOCK},
        flops=3 * y.numel(),
    )


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sample: torch.Tensor, place: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(place)
        out = x.new_empty(len(sample), x.shape[1])
        if out.numel():
            gather_launch(x.contiguous(), sample, out).run()
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (place,) = ctx.saved_tensors
        out = grad.new_zeros(len(place), grad.shape[1])
        if out.numel() and place.numel():
            ones = torch.ones(place.shape, dtype=torch.float32, device=grad.device)
            combine_launch(grad.contiguous(), place, ones, out).run()
        return out, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, weight: torch.Tensor, place: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        y, weight = y.contiguous(), weight.contiguous()
        ctx.save_for_backward(y, weight, place)
        out = y.new_zeros(len(place), y.shape[1])
        if out.numel() and place.numel():
            combine_launch(y, place, weight, out).run()
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        y, weight, place = ctx.saved_tensors
        dy, dweight = torch.empty_like(y), torch.zeros_like(weight)
        if y.numel():
            combine_backward_launch(y, place, weight, grad.contiguous(), dy, dweight).run()
        return dy, dweight, None


def permute(x: torch.Tensor, order: Order) -> torch.Tensor:
    """(visits, width): rows of `x` (samples, width) sorted by expert; differentiable. Raises InputError where these do not fit."""
    shape = equal_problem("x", tuple(x.shape[:1]), (len(order.place),))
    refuse("permute", (dtype_problem("x", x, FLOATS), shape))
    out: torch.Tensor = _Permute.apply(x, order.sample, order.place)
    return out


def combine(y: torch.Tensor, weight: torch.Tensor, order: Order) -> torch.Tensor:
    """(samples, width): sorted rows `y` (visits, width) times `weight` (samples, k) float32, summed for each sample.

    Differentiable in both. Raises InputError where shapes or dtypes do not fit.
    """
    refuse(
        "combine",
        (
            dtype_problem("y", y, FLOATS),
            dtype_problem("weight", weight, (torch.float32,)),
            equal_problem("y", tuple(y.shape[:1]), tuple(order.sample.shape)),
            equal_problem("weight", tuple(weight.shape), tuple(order.place.shape)),
        ),
    )
    out: torch.Tensor = _Combine.apply(y, weight, order.place)
    return out


def reference_permute(x: torch.Tensor, order: Order) -> torch.Tensor:
    """The same in torch."""
    return x[order.sample.long()]


def reference_combine(y: torch.Tensor, weight: torch.Tensor, order: Order) -> torch.Tensor:
    """The same in torch."""
    return (y[order.place.long()].float() * weight[..., None]).sum(dim=1).to(y.dtype)
