"""Process groups, one for all who ask for the same ranks.

Every group of gloo has a thread of its own that wakes up a hundred times a second, on the core that computes: with ten of them a
forward pass takes about 3 % longer, with forty 8 % (measured on two cores). torch makes a group for each axis of each
`DeviceMesh`, also where an axis has one rank, or all.
"""

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import DeviceMesh

Ints = NDArray[np.int64]


class Groups:
    """Of the processes of the default group. Every rank must ask for the same, in the same order."""

    def __init__(self) -> None:
        self._made: dict[tuple[bytes, tuple[int, ...], str], dist.ProcessGroup] = {}

    def of(self, members: Ints, purpose: str = "") -> dist.ProcessGroup:
        """This rank's group of `members` (groups, size), which has every rank once; another one for every `purpose`."""
        key = (members.tobytes(), members.shape, purpose)
        if key not in self._made:
            every = members.tolist() == [list(range(dist.get_world_size()))] and not purpose
            self._made[key] = dist.group.WORLD if every else dist.new_subgroups_by_enumeration(members.tolist())[0]
        return self._made[key]

    def mesh(self, device: torch.device, ranks: Ints, names: tuple[str, ...]) -> DeviceMesh:
        """A mesh of all ranks, with a name for each axis."""
        axes = [np.moveaxis(ranks, axis, -1).reshape(-1, size) for axis, size in enumerate(ranks.shape)]
        return DeviceMesh.from_group(
            [self.of(np.ascontiguousarray(members)) for members in axes],
            device.type,
            torch.from_numpy(ranks),
            mesh_dim_names=names,
        )
