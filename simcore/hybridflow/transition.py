"""Seconds between training and generation: what each engine really gathers, copies from the host, and an engine's start.

`hybridflow` gathers once inside each micro-DP group. `hybridflow_v` and `ds_chat` gather layer by layer, so that no rank holds
the whole model at once. The engine's own weights wait in the host's memory while the actor trains.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels import generation
from costmodels.kernels import Kernel, kernel
from simcore.hybridflow import grouping
from simcore.hybridflow.generation_costs import Degrees
from simcore.hybridflow.resharding import Engine, Resharding, resharding
from simcore.hybridflow.zones import Zone
from simcore.plan import Collective
from simcore.training.choice import Choice
from simcore.training.quick_parts import Prices
from simcore.workloads.rlhf import Rlhf

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather:
    """All-gathers along the rows of `groups` (groups, size), `repeat` of them of `nbytes` each, ranks from the pool's first."""

    groups: Ints
    nbytes: int
    repeat: int


MATRICES = 7
"""Of a layer of a Llama, each of which is gathered by itself where modules that train generate too."""


def gather_of(of: Resharding, model_B: float, layers: int, pieces: int = 1) -> Gather | None:
    """What an engine gathers of a model, `hybridflow` in `pieces`; None where every rank already has what it generates with."""
    groups = np.unique(np.sort(of.gathered, axis=1), axis=0)
    if groups.shape[1] == 1:
        return None
    peak = float(of.peak())
    if of.engine == "hybridflow":
        return Gather(groups=groups, nbytes=round(model_B * peak / pieces), repeat=pieces)
    return Gather(groups=groups, nbytes=round(model_B / layers), repeat=layers)


def reshard(engine: Engine, choice: Choice, generation: Degrees) -> Resharding:
    """Who gathers what between a role's training and its generation; raises `InputError` where degrees do not divide each other.

    DeepSpeed-Chat shards training over all ranks, whatever tensor parallelism it generates with.
    """
    pp, tp, dp = choice.pp, choice.tp, choice.dp
    if engine == "ds_chat":
        pp, tp, dp = generation.pp, generation.tp, choice.n_ranks // (generation.pp * generation.tp)
    return resharding(grouping.Degrees(pp=pp, tp=tp, dp=dp, gen_pp=generation.pp, gen_tp=generation.tp), engine)


def start_kernels(workload: Rlhf, weights_B: float) -> tuple[Kernel, ...]:
    """Before the first prompt: weights from the host and the start of an engine; or, where the modules that train generate too,
    weights put into one place, and taken out of it again."""
    if workload.generation.padded:
        return (kernel("copy", "float32", count=2, elements=round(weights_B / 4)),)
    return (generation.host_copy(weights_B), generation.engine_start())


def transition_s(gather: Gather | None, start: tuple[Kernel, ...], zone: Zone, cost: Prices) -> float:
    """What `start_kernels` take, and the gather alone on the network; `cost` counts ranks from the zone's first."""
    seconds = float(cost.seconds_each(start, zone.device).sum())
    if gather is None:
        return seconds
    op = Collective(kind="all_gather", group="", along=(), nbytes=gather.nbytes)
    demand = cost.demands(op, gather.groups[:1])[0]
    return seconds + gather.repeat * (demand.latency_s + demand.volume_B / demand.cap_B_per_s)


def broadcast_of(group: str, model_B: float, layers: int) -> Collective:
    """Weights that come from the pool that trains them to all ranks of the one that generates, layer by layer (OpenRLHF)."""
    return Collective(
        kind="broadcast", group=group, along=("all",), nbytes=round(model_B / layers), repeat=layers, stream="param"
    )


def broadcast_s(n: int, model_B: float, layers: int, cost: Prices) -> float:
    """Seconds of `broadcast_of` to the first `n` ranks of a zone."""
    if n == 1:
        return 0.0
    op = broadcast_of("", model_B, layers)
    demand = cost.demands(op, np.arange(n, dtype=np.int64)[None, :])[0]
    return op.repeat * (demand.latency_s + demand.volume_B / demand.cap_B_per_s)
