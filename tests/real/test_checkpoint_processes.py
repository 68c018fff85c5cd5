"""True processes over gloo: DTensors of FSDP2 and tensor parallelism, uneven and two-dimensional, between different ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from real.checkpoint.checkpointer import Checkpointer, load
from tests.real.checkpoint_processes import ended, world
from tests.real.checkpoint_world import bits


def wholes() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "even": torch.randn(8, 6, generator=generator),
        "uneven": torch.randn(5, 7, generator=generator).to(torch.bfloat16),
        "vector": torch.randn(3, generator=generator),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }


def distributed(tensors: dict[str, torch.Tensor], size: int, kind: str) -> dict[str, Any]:
    """The tensors over `size` ranks."""
    if kind == "two-dimensional":
        mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("dp", "tp"))
        ways = {2: [Shard(0), Shard(1)], 1: [Replicate(), Shard(0)], 0: [Replicate(), Replicate()]}
    else:
        mesh = init_device_mesh("cpu", (size,))
        ways = {2: [Shard(0 if kind == "rows" else 1)], 1: [Shard(0)], 0: [Replicate()]}
    return {n: distribute_tensor(t, mesh, ways[t.dim()]) for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("saved_by", "kind", "loaded_by", "other"),
    [
        (2, "rows", 2, "columns"),
        (4, "two-dimensional", 2, "rows"),
        (2, "columns", 4, "two-dimensional"),
        (2, "rows", 1, "whole"),
    ],
)
def test_dtensors_come_back_over_another_mesh(
    tmp_path: Path, saved_by: int, kind: str, loaded_by: int, other: str
) -> None:
    def save_part(rank: int) -> None:
        checkpointer = Checkpointer(tmp_path)
        state = {"model": distributed(wholes(), saved_by, kind), "extra": {"rank": rank}}
        checkpointer.save(state, step=1).wait()
        again = checkpointer.save(state, step=2, asynchronous=True)
        for leaf in state["model"].values():
            leaf.to_local().zero_()
        assert again.wait() == "step-00000002" and not again.planned_anew

    def load_part(rank: int) -> None:
        target = distributed({n: torch.zeros_like(t) for n, t in wholes().items()}, loaded_by, other)
        loaded = Checkpointer(tmp_path).load({"model": target, "extra": None})
        for name, leaf in loaded.state["model"].items():
            assert isinstance(leaf, DTensor)
            assert bits(leaf.full_tensor()) == bits(wholes()[name]), name
        assert loaded.by_rank["extra"] == ({rank: {"rank": rank}} if rank < saved_by else {})

    assert ended(world(saved_by, save_part)) == [0] * saved_by
    if other != "whole":
        assert ended(world(loaded_by, load_part)) == [0] * loaded_by
        return
    found = load(tmp_path, {"model": {n: torch.zeros_like(t) for n, t in wholes().items()}})
    assert all(bits(t) == bits(wholes()[n]) for n, t in found.state["model"].items())


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


def losses(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    found = []
    for i in steps:
        loss = net(torch.randn(4, 6, generator=torch.Generator().manual_seed(i))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimizer by names of parameters, whatever they are cut like."""
    names = {p: n for n, p in net.named_parameters()}
    moments = {names[p]: dict(s) for p, s in optimizer.state.items()}
    return {"model": dict(net.named_parameters()), "optimizer": moments}


def test_training_with_tensor_parallelism_goes_on_with_fsdp_and_alone(tmp_path: Path) -> None:
    """Three steps on two ranks of tensor parallelism; the fourth to sixth with FSDP2 on two ranks, and on one."""
    alone = model()
    optimizer = torch.optim.Adam(alone.parameters(), lr=0.01)
    wanted = losses(alone, optimizer, range(6))

    def tensor_parallel(rank: int) -> None:
        net = parallelize_module(
            model(), init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()}
        )
        adam = torch.optim.Adam(net.parameters(), lr=0.01, foreach=False)
        assert losses(net, adam, range(3)) == pytest.approx(wanted[:3], rel=1e-5)
        Checkpointer(tmp_path).save(state_of(net, adam), step=3, parallelism={"tp": 2})

    def sharded(rank: int) -> None:
        net = model()
        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
        adam = torch.optim.Adam(net.parameters(), lr=0.01, foreach=False)
        losses(net, adam, range(1))  # so that the optimizer has a state to fill
        Checkpointer(tmp_path).load(state_of(net, adam))
        assert losses(net, adam, range(3, 6)) == pytest.approx(wanted[3:], rel=1e-5)

    assert ended(world(2, tensor_parallel)) == [0, 0]
    assert ended(world(2, sharded)) == [0, 0]
    again = model()
    adam = torch.optim.Adam(again.parameters(), lr=0.01)
    losses(again, adam, range(1))
    loaded = load(tmp_path, state_of(again, adam))
    assert loaded.parallelism == {"tp": 2}
    assert losses(again, adam, range(3, 6)) == pytest.approx(wanted[3:], rel=1e-5)
