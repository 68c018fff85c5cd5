"""How ranks agree and exchange: alone, or through torch.distributed. Only bytes go from rank to rank."""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from real.checkpoint.errors import CheckpointError
from real.checkpoint.sharing import TICKET, Neighbours
from simcore.errors import Problem

Buffer: TypeAlias = torch.Tensor
"""uint8, 1-D, contiguous, on the CPU."""
SIZE_B = 8
"""Of a payload's size, in front of it."""
HEADS_B, HEAD_B = 2**16, 256
"""What is gathered with the sizes: so much of all payloads together, and at least so much of each. What fits needs one collective
instead of two; starting one takes longer than so few bytes do."""


class Ranks(Protocol):
    """Calls are collective: every rank makes the same ones in the same order."""

    rank: int
    size: int

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Everybody's payload, by rank."""

    def exchange(self, sends: Mapping[int, Buffer], receives: Mapping[int, Buffer]) -> None:
        """Send a buffer to each of some ranks and fill those that come from others; both sides know the sizes."""


class Alone:
    """A single process."""

    rank, size = 0, 1

    def all_gather(self, payload: bytes) -> list[bytes]:
        """What was given."""
        return [payload]

    def exchange(self, sends: Mapping[int, Buffer], receives: Mapping[int, Buffer]) -> None:
        """Nobody to exchange with."""
        assert not sends and not receives


class Processes:
    """The ranks of a process group of gloo, which a checkpoint does not share with training: collectives would mix."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._neighbours: Neighbours | None = None
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Everybody's payload, by rank. Raises CheckpointError if a rank is gone."""
        head_B = SIZE_B + max(HEADS_B // self.size, HEAD_B)
        message = np.frombuffer(len(payload).to_bytes(SIZE_B, "little") + payload, dtype=np.uint8)
        try:
            heads = self._gathered(message[:head_B], head_B)
            sizes = [int.from_bytes(head[:SIZE_B].tobytes(), "little") for head in heads]
            longer_B = SIZE_B + max(sizes) - head_B
            rests = self._gathered(message[head_B:], longer_B) if longer_B > 0 else heads[:, :0]
        except RuntimeError as error:
            raise _gone(error) from error
        both = np.concatenate([heads[:, SIZE_B:], rests], axis=1)
        return [row[:size].tobytes() for row, size in zip(both, sizes, strict=True)]

    def _gathered(self, mine: NDArray[np.uint8], nbytes: int) -> NDArray[np.uint8]:
        """(ranks, nbytes): what every rank has, followed by zeros where it has less."""
        padded, found = np.zeros(nbytes, dtype=np.uint8), np.empty((self.size, nbytes), dtype=np.uint8)
        padded[: len(mine)] = mine
        dist.all_gather(list(torch.from_numpy(found).unbind()), torch.from_numpy(padded), group=self._group)
        return found

    def exchange(self, sends: Mapping[int, Buffer], receives: Mapping[int, Buffer]) -> None:
        """All at once, with ranks of this host through shared memory. Raises CheckpointError if a rank is gone."""
        try:
            if self._neighbours is None:
                self._neighbours = Neighbours(self.rank, self.all_gather)
            self._through(self._neighbours, sends, receives)
        except (RuntimeError, OSError) as error:
            raise _gone(error) from error

    def _through(self, neighbours: Neighbours, sends: Mapping[int, Buffer], receives: Mapping[int, Buffer]) -> None:
        """Neighbours get tickets for their messages, so that each of them also knows that those before have been taken."""
        near = neighbours.peers
        tickets = neighbours.put({r: message for r, message in sends.items() if r in near})
        given = {r: torch.zeros(TICKET, dtype=torch.int64) for r in near}
        incoming = given | {r: buffer for r, buffer in receives.items() if r not in near}
        outgoing = tickets | {r: buffer for r, buffer in sends.items() if r not in near}
        works = [dist.irecv(buffer, group=self._group, group_src=source) for source, buffer in incoming.items()]
        works += [dist.isend(buffer, group=self._group, group_dst=target) for target, buffer in outgoing.items()]
        for work in works:
            if work is not None:
                work.wait()
        for source in receives.keys() & near.keys():
            neighbours.take(source, given[source], receives[source])


def _gone(error: Exception) -> CheckpointError:
    first = str(error).strip().splitlines()[0]
    advice = "A rank may have ended or lost its connection; what was committed before is untouched."
    return CheckpointError("ranks lost one another", [Problem("ranks", first, "an answer from each", advice)])


def own_group(group: dist.ProcessGroup | None = None) -> Ranks:
    """The ranks of `group` on connections of their own; by default all of torch.distributed, or one process where it is not in use.

    Collective over the whole of torch.distributed.
    """
    if not dist.is_available() or not dist.is_initialized():
        return Alone()
    members = dist.get_process_group_ranks(group) if group is not None else None
    return Processes(dist.new_group(members, backend="gloo"))
