"""Models spread over ranks: tensor parallelism by torch's DTensor, sharded parameters by its FSDP2."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from real.groups import Groups
from real.rlhf.spans import Spans, unrecorded
from real.tensor_parallel import Sum
from simcore.buckets import assign
from simcore.hybridflow.grouping import Degrees

MATRICES = {
    "self_attn.q_proj": 0,
    "self_attn.k_proj": 0,
    "self_attn.v_proj": 0,
    "self_attn.o_proj": 1,
    "mlp.gate_proj": 0,
    "mlp.up_proj": 0,
    "mlp.down_proj": 1,
}
"""Of a layer, with the axis along which tensor parallelism cuts the weight: by columns of the product 0, by rows 1."""


def training_mesh(degrees: Degrees, device: torch.device, groups: Groups) -> DeviceMesh:
    """All ranks as pipeline stages, replicas and tensor parallel ranks: axes `pp`, `dp` and `tp`, the order of `grouping`."""
    ranks = np.arange(degrees.n_ranks).reshape(degrees.pp, degrees.dp, degrees.tp)
    return groups.mesh(device, ranks, ("pp", "dp", "tp"))


def tensor_parallel(model: nn.Module, over: DeviceMesh, spans: Spans | None = None) -> None:
    """Keep this rank's part of the layers' matrices in place; `over` has one axis. Embedding, norms and head stay whole.

    A block's output is a sum over ranks, and so is the gradient of its input, of all columns at once; `spans` records both.
    """
    if over.size() == 1:
        return
    spans = spans or unrecorded()
    column, row = ColwiseParallel(), RowwiseParallel(output_layouts=Partial(), use_local_output=False)
    plan: dict[str, ParallelStyle] = {
        found: row if axis else column
        for found, _ in model.named_modules()
        for name, axis in MATRICES.items()
        if found.endswith(name)
    }
    parallelize_module(model, over, plan, src_data_rank=None)

    def total(_: str, x: Tensor) -> None:
        with spans.summing(x.nbytes):
            dist.all_reduce(x, group=over.get_group())

    def enter(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if given:
            return (_Whole.apply(given[0], over, total), *given[1:]), named
        return given, {**named, "hidden_states": _Whole.apply(named["hidden_states"], over, total)}

    def leave(_: nn.Module, __: object, output: DTensor) -> Tensor:
        return _Summed.apply(output, over, total)  # type: ignore[no-any-return]

    for name, module in model.named_modules():
        if name.endswith((".self_attn", ".mlp")):
            module.register_forward_pre_hook(enter, with_kwargs=True)
        elif name.endswith(tuple(name for name, axis in MATRICES.items() if axis)):
            module.register_forward_hook(leave)


class _Whole(torch.autograd.Function):
    """What all ranks have whole, as every rank's columns take it; backward sums what they contribute to its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, over: DeviceMesh, total: Sum) -> DTensor:
        ctx.total = total
        return DTensor.from_local(x, over, [Replicate()], run_check=False)

    @staticmethod
    def backward(ctx: Any, *grads: DTensor) -> tuple[Tensor, None, None]:
        part = grads[0].to_local().contiguous()
        ctx.total("backward", part)
        return part, None, None


class _Summed(torch.autograd.Function):
    """The sum of what ranks have, in its place; all of them have its gradient."""

    @staticmethod
    def forward(ctx: Any, x: DTensor, over: DeviceMesh, total: Sum) -> Tensor:
        ctx.over = over
        part = x.to_local().contiguous()
        total("forward", part)
        return part

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[DTensor, None, None]:
        return DTensor.from_local(grads[0], ctx.over, [Replicate()], run_check=False), None, None


def sharded(model: nn.Module, layers: Iterable[nn.Module], over: DeviceMesh) -> None:
    """Shard parameters, gradients and optimiser over `over` (ZeRO 3), gradients being sums; layer by layer, in place."""
    if over.size() == 1:
        return
    for module in (*layers, model):
        fully_shard(module, mesh=over)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no average


def local(parameter: Tensor) -> Tensor:
    """What this rank holds of it."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def put(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Let this rank's part of `parameter` live in `tensor`, of equal numbers and shape, as FSDP2 does with its own."""
    if isinstance(parameter, DTensor):
        assert parameter._local_tensor.shape == tensor.shape
        parameter._local_tensor = tensor
    else:
        parameter.data = tensor


def part_of(tensor: Tensor, axis: int, over: DeviceMesh) -> nn.Parameter:
    """A parameter without gradient of which `tensor` is this rank's part along `axis`."""
    whole = tensor if over.size() == 1 else DTensor.from_local(tensor, over, [Shard(axis)], run_check=False)
    return nn.Parameter(whole, requires_grad=False)


FIRST_B, BUCKET_B = 2**20, 25 * 2**20
"""Gradients that are summed together, as torch's DistributedDataParallel has them and as plans of this detail."""


@torch.no_grad()
def sum_gradients(model: nn.Module, group: dist.ProcessGroup, spans: Spans, complete: str, stage: int = 0) -> None:
    """Add up the gradients of ranks that hold the same parameters, bucket by bucket; they are views of the buckets afterwards.

    Copying them there belongs to `complete`, the pass that they are complete after.
    """
    if group.size() == 1:
        return
    spans.part(complete)
    trained = {name: (p, p.grad) for name, p in model.named_parameters() if p.grad is not None}
    buckets = assign([(name, local(grad).nbytes) for name, (_, grad) in trained.items()], FIRST_B, BUCKET_B)
    flats = [_packed([trained.pop(name) for name in names]) for names in buckets]
    spans.part(None)
    for i, flat in enumerate(flats):
        with spans.sending(f"grad/s{stage}/bucket{i}", flat.nbytes):
            dist.all_reduce(flat, group=group)


def _packed(trained: Sequence[tuple[nn.Parameter, Tensor]]) -> Tensor:
    """This rank's part of the gradients of some parameters, one behind the other, as which they are kept from now on."""
    flat = torch.cat([local(grad).flatten() for _, grad in trained])
    parts = flat.split([local(grad).numel() for _, grad in trained])
    for (parameter, grad), part in zip(trained, parts, strict=True):
        view = part.view_as(local(grad))
        parameter.grad = (
            DTensor.from_local(view, grad.device_mesh, grad.placements, run_check=False)
            if isinstance(grad, DTensor)
            else view
        )
    return flat


@torch.no_grad()
def whole(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter, gathered; all ranks must call it."""
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone().cpu()
        for name, p in model.named_parameters()
    }
