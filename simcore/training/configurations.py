"""Every way to spread a training job over a cluster, in columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product

import numpy as np
from numpy.typing import NDArray

from costmodels.transformer import TransformerShape
from simcore.training.choice import MOST_PASSES
from simcore.workloads.transformer_training import TransformerTraining

Ints = NDArray[np.int64]
RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True, slots=True)
class Configurations:
    """One row each; `recompute` points into `RECOMPUTE`. With tp above 1 comes sequence parallelism."""

    dp: Ints
    tp: Ints
    pp: Ints
    cp: Ints
    vpp: Ints
    microbatch: Ints
    recompute: Ints
    zero: Ints

    def __len__(self) -> int:
        return len(self.dp)

    def row(self, i: int) -> dict[str, int | str]:
        """One configuration by the names of the planner `fixed`."""
        values: dict[str, int | str] = {name: int(getattr(self, name)[i]) for name in COLUMNS}
        values["recompute"] = RECOMPUTE[int(self.recompute[i])]
        return values

    def __getitem__(self, rows: NDArray[np.bool_] | Ints) -> "Configurations":
        return Configurations(*(getattr(self, name)[rows] for name in COLUMNS))


COLUMNS = tuple(f.name for f in fields(Configurations))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a search may choose from."""

    max_tp: int
    max_cp: int
    max_vpp: int
    max_microbatch: int
    recompute: Sequence[str] = RECOMPUTE
    zero: Sequence[int] = (0, 1, 2, 3)


def enumerate_all(workload: TransformerTraining, n_ranks: int, limits: Limits) -> Configurations:
    """All configurations on exactly `n_ranks` ranks that divide model and batch evenly, in a fixed order."""
    recompute = [RECOMPUTE.index(mode) for mode in limits.recompute]
    rows = [
        (*mesh, microbatch, mode, zero)
        for mesh in _meshes(workload, n_ranks, limits)
        for microbatch in _microbatches(workload, mesh, limits.max_microbatch)
        for mode, zero in product(recompute, [z for z in limits.zero if z == 0 or mesh[0] * mesh[3] > 1])
    ]
    table = np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS))
    return Configurations(*table.T)


def _meshes(workload: TransformerTraining, n_ranks: int, limits: Limits) -> Iterator[tuple[int, int, int, int, int]]:
    """(dp, tp, pp, cp, vpp) whose product without vpp is `n_ranks` and that divide the model."""
    model = workload.model
    for tp in divisors(n_ranks, limits.max_tp):
        if not _splits(model, tp):
            continue
        for cp in divisors(n_ranks // tp, limits.max_cp):
            if cp > 1 and workload.seq_len % (4 * cp):
                continue
            for pp in divisors(n_ranks // (tp * cp), model.layers):
                if model.layers % pp:
                    continue
                for vpp in divisors(model.layers // pp, limits.max_vpp if pp > 1 else 1):
                    yield n_ranks // (tp * cp * pp), tp, pp, cp, vpp


def _splits(model: TransformerShape, tp: int) -> bool:
    by_groups = model.kv_heads % tp == 0 or tp % model.kv_heads == 0
    return model.heads % tp == 0 and model.ffn % tp == 0 and by_groups


def _microbatches(workload: TransformerTraining, mesh: tuple[int, int, int, int, int], largest: int) -> Iterator[int]:
    """Sizes of a microbatch that divide a replica's batch and suit sequence parallelism and interleaving."""
    dp, tp, pp, cp, vpp = mesh
    if workload.global_batch % dp:
        return
    for size in divisors(workload.global_batch // dp, largest):
        number = workload.global_batch // (dp * size)
        whole_groups = vpp == 1 or number <= pp or number % pp == 0
        short = 2 * number * max(pp * vpp, workload.model.layers) <= MOST_PASSES
        if (workload.seq_len * size // cp) % tp == 0 and whole_groups and short:
            yield size


def divisors(n: int, largest: int) -> list[int]:
    """All divisors of `n` up to `largest`, ascending."""
    return [d for d in range(1, min(n, largest) + 1) if n % d == 0]
