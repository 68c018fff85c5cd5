"""Models spread over ranks: tensor parallelism by torch's DTensor, sharded parameters by its FSDP2."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from simcore.hybridflow.grouping import Ints

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


def mesh(groups: Ints, device: torch.device) -> DeviceMesh:
    """Groups (n, size) as a mesh of that shape, axes `replica` and `member`. Every rank of the process group must call it."""
    return DeviceMesh(device.type, torch.from_numpy(groups), mesh_dim_names=("replica", "member"))


def tensor_parallel(model: nn.Module, over: DeviceMesh) -> None:
    """Keep this rank's part of the layers' matrices in place; `over` has one axis. Embedding, norms and head stay whole."""
    if over.size() == 1:
        return
    styles = (ColwiseParallel, RowwiseParallel)
    plan = {f"model.layers.*.{name}": styles[axis]() for name, axis in MATRICES.items()}
    parallelize_module(model, over, plan, src_data_rank=None)


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


def sum_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Add up the gradients of ranks that hold the same parameters."""
    if group.size() > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(local(parameter.grad), group=group)


@torch.no_grad()
def whole(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter, gathered; all ranks must call it."""
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone().cpu()
        for name, p in model.named_parameters()
    }
