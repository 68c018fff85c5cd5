"""FSDP2 over tensor parallelism: torch's strided shards, of which a rank's part lies apart from its neighbour's."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from real.checkpoint.checkpointer import Checkpointer, load
from tests.real.checkpoint_processes import ended, world
from tests.real.checkpoint_world import bits


def model(sizes: tuple[int, int, int], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2]))


def spread(net: nn.Sequential) -> dict[str, nn.Parameter]:
    """Over two ranks of tensor parallelism, and those over two of FSDP2."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(net, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()}, src_data_rank=None)
    fully_shard(net, mesh=mesh["dp"])
    return dict(net.named_parameters())


@pytest.mark.slow
def test_strided_shards_are_where_they_belong(tmp_path: Path) -> None:
    """So uneven that ranks hold one row or none; whole again on one process, and from there over four."""
    sizes = (3, 7, 5)

    def save_part(rank: int) -> None:
        parameters = spread(model(sizes, 0))
        assert any("_Strided" in str(p.placements) for p in parameters.values() if isinstance(p, DTensor))
        Checkpointer(tmp_path / "a").save({"model": parameters}, step=1, parallelism={"dp": 2, "tp": 2})

    assert ended(world(4, save_part)) == [0] * 4
    wanted, target = dict(model(sizes, 0).named_parameters()), dict(model(sizes, 1).named_parameters())
    load(tmp_path / "a", {"model": target})
    assert all(bits(target[name]) == bits(p) for name, p in wanted.items())
    Checkpointer(tmp_path / "b").save({"model": target}, step=1)

    def load_part(rank: int) -> None:
        held, same = spread(model(sizes, 1)), spread(model(sizes, 0))
        Checkpointer(tmp_path / "b").load({"model": held})
        for name, parameter in held.items():
            assert isinstance(parameter, DTensor)
            assert bits(parameter.to_local()) == bits(same[name].to_local()), name

    assert ended(world(4, load_part)) == [0] * 4
