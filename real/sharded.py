"""ZeRO 2 and 3 through torch's FSDP2, with a span for every collective.

Each layer is a unit, and the rest of the model is the root's. Forward and backward of a unit are bracketed by its collectives,
which on a CPU block the thread that computes; nothing is fetched ahead, which is what the plan's `overlap: false` says.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter
from transformers import LlamaForCausalLM

from real.collectives import ALL_GATHER, REDUCE_SCATTER
from real.recorder import Recorder


class Where:
    """Which microbatch, and whether forward or backward, the collectives belong to."""

    def __init__(self) -> None:
        self.microbatch, self.way = 0, "fwd"


class _Allocating:
    def allocate(self, size: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _Gather(_Allocating, AllGather):
    def __init__(self, unit: str, where: Where, recorder: Recorder) -> None:
        self.unit, self.where, self.recorder = unit, where, recorder

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        task = f"m{self.where.microbatch}/{self.where.way}/{self.unit}/all_gather"
        with self.recorder.blocking(task, output_tensor.numel() * output_tensor.element_size()):
            done: dist.Work | None = ALL_GATHER(output_tensor, input_tensor, group=group, async_op=async_op)
        return done


class _Scatter(_Allocating, ReduceScatter):
    def __init__(self, unit: str, where: Where, recorder: Recorder) -> None:
        self.unit, self.where, self.recorder = unit, where, recorder

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp,
        async_op: bool = False,
    ) -> dist.Work | None:
        task = f"m{self.where.microbatch}/bwd/{self.unit}/reduce_scatter"
        with self.recorder.blocking(task, input_tensor.numel() * input_tensor.element_size()):
            done: dist.Work | None = REDUCE_SCATTER(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        return done


def shard_units(model: LlamaForCausalLM, mesh: DeviceMesh, zero: int, recorder: Recorder) -> Where:
    """Shard `model` over `mesh` in place; ZeRO 3 frees a unit's weights after its forward, ZeRO 2 keeps them until its backward."""
    where = Where()
    units = {f"layer{i}": layer for i, layer in enumerate(model.model.layers)}
    for layer in units.values():
        fully_shard(layer, mesh=mesh, reshard_after_forward=zero == 3)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for name, unit in {**units, "root": model}.items():
        assert isinstance(unit, FSDPModule)
        unit.set_custom_all_gather(_Gather(name, where, recorder))
        unit.set_custom_reduce_scatter(_Scatter(name, where, recorder))
        unit.set_modules_to_forward_prefetch([])
        unit.set_modules_to_backward_prefetch([])
    return where
