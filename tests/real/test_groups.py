"""Process groups that are made once for all who ask for the same ranks."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from real.groups import Groups
from real.rlhf.parallel import training_mesh
from simcore.hybridflow.grouping import Degrees, grouping
from tests.real.checkpoint_processes import ended, world

CPU = torch.device("cpu")


@pytest.mark.slow
def test_models_of_a_pool_share_their_groups_and_axes_are_right() -> None:
    def check(rank: int) -> None:
        groups, degrees = Groups(), Degrees(pp=2, dp=1, tp=2, gen_pp=1, gen_tp=2)
        first, again = (training_mesh(degrees, CPU, groups) for _ in range(2))
        for axis in ("pp", "dp", "tp"):
            assert again[axis].get_group() is first[axis].get_group()
            own = grouping(degrees).groups(axis)
            assert dist.get_process_group_ranks(first[axis].get_group()) == own[(own == rank).any(axis=1)][0].tolist()
        assert (first["pp"].get_local_rank(), first["tp"].get_local_rank()) == divmod(rank, 2)
        total = torch.tensor(float(rank))
        dist.all_reduce(total, group=first["pp"].get_group())
        assert float(total) == 2.0 * (rank % 2) + 2.0

    assert ended(world(4, check)) == [0] * 4


@pytest.mark.slow
def test_everybody_is_the_default_group_but_for_a_purpose_of_its_own() -> None:
    def check(_: int) -> None:
        groups, everybody = Groups(), np.arange(2)[None]
        assert groups.of(everybody) is dist.group.WORLD
        back = groups.of(everybody, "back")
        assert back is not dist.group.WORLD
        assert groups.of(everybody.copy(), "back") is back
        assert groups.of(np.arange(2)[:, None]).size() == 1

    assert ended(world(2, check)) == [0] * 2
