"""The least that precisions can disturb training within memory and time: one mixed-integer linear program for each class.

    minimise    sum over classes of share x Omega[operator][precision]
    subject to  settings.allotted_B <= limits_B of every class,  Replayer.replay(...).iteration_s <= time_limit_s

    exact(local_graphs, sensitivities, shares, limits_B, time_limit_s, bucket_s, held=..., solver_limit_s=...) -> Exact

Arguments are mappings by the name of the class, but for the time, `Replayer.bucket_s` and the solver's limit. It measures how far
an allocator is from the best. Time grows with how alike operators are: where hundreds are, a `gap` of 1e-4 is found sooner.

Classes meet only where gradients are reduced, and given the time T that an iteration may take they do not meet at all. Bucket b has
to start by

    D[b] = T - longest optimizer - sum over c >= b of bucket_s[c]

and if every class has every bucket ready by then, and has computed by T less its own optimizer, the iteration takes at most T: by
induction every bucket then starts by D[b]. While bytes move a device works more slowly by its overlap_slowdown. By D[b] all buckets
before b have moved, whenever that was, so that the work it can have done by then is D[b] - overlap_slowdown x sum over c < b of
bucket_s[c]: a bound on a sum of kernels, which is linear. A launch that the device waits for while bytes move, or after, is moved
earlier by all that the buckets before it can take from its device, which relaxes the program; `bound` holds there too, but what was
chosen may take longer than it may (`Exact.keeps_limits`). Without such waits, or without slowdown, the program is the replay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal

import numpy as np

from simcore.errors import DoesNotFit, Problem
from simcore.qsync.class_program import ClassProgram
from simcore.qsync.indicator import Table
from simcore.qsync.linear import EXCESS, LATE, Program, Solved
from simcore.qsync.local import Floats, LocalGraph
from simcore.qsync.replay import Replayer
from simcore.qsync.settings import allotted_B, setting

Status = Literal["optimal", "stopped", "nothing found"]
Precisions = dict[str, dict[str, str]]
"""By class and operator."""

TOLERANCE = 1e-6
"""Of the solver, relative to a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """No choice within the limits has less than `bound`; `chosen`, if anything was found, has `variance`.

    `gap` is (variance - bound) / variance. Status: optimal, or the solver was stopped with or without a choice. `keeps_limits`:
    settings and replay say of `chosen` what the program says; an optimal choice that keeps them is the best there is.
    """

    chosen: Precisions
    variance: float
    bound: float
    gap: float
    status: Status
    iteration_s: float
    memory_B: dict[str, float]
    keeps_limits: bool


def exact(
    local_graphs: Mapping[str, LocalGraph],
    sensitivities: Mapping[str, Table],
    shares: Mapping[str, float],
    limits_B: Mapping[str, float],
    time_limit_s: float,
    bucket_s: Sequence[float] | Floats,
    *,
    held: Mapping[str, Mapping[str, str]] | None = None,
    solver_limit_s: float = 60.0,
    gap: float = 1e-6,
) -> Exact:
    """The best precisions of all classes, and a bound on the best where the solver is stopped after `solver_limit_s`.

    `bucket_s` are seconds of each reduction (`Replayer.bucket_s`). Operators named in `held` keep that precision. A limit may be
    infinite. `gap` is the relative gap that the solver leaves. Raises `DoesNotFit` where no choice keeps the limits.
    """
    bucket_s = np.asarray(bucket_s, dtype=np.float64)
    longest_s = max(local.optimizer_s for local in local_graphs.values())
    stop, found, problems = monotonic() + solver_limit_s, dict[str, tuple[ClassProgram, Solved]](), []
    for position, (name, local) in enumerate(local_graphs.items()):
        of = ClassProgram(local, (held or {}).get(name, {}))
        memory_unit = of.limit_memory(limits_B[name])
        time_unit = of.limit_time(time_limit_s, longest_s, bucket_s)
        seconds = max(stop - monotonic(), 0.1) / (len(local_graphs) - position)
        solved = of.program.solve(of.disturbance(sensitivities[name], shares[name]), seconds=seconds, gap=gap)
        if solved.status == "infeasible":
            problems += _reasons(name, of.program, (limits_B[name], memory_unit), (time_limit_s, time_unit), seconds)
        found[name] = (of, solved)
    if problems:
        raise DoesNotFit("no precisions keep the limits of memory and time", problems)
    bound = sum(solved.bound for _, solved in found.values())
    if any(solved.values is None for _, solved in found.values()):
        return Exact(
            chosen={},
            variance=np.inf,
            bound=bound,
            gap=np.inf,
            status="nothing found",
            iteration_s=np.inf,
            memory_B={},
            keeps_limits=False,
        )
    chosen = {name: of.read(solved) for name, (of, solved) in found.items()}
    variance = sum(shares[k] * sensitivities[k][o][p] for k, of_class in chosen.items() for o, p in of_class.items())
    settings = {name: setting(local, chosen[name]) for name, local in local_graphs.items()}
    replay = Replayer(locals=tuple(local_graphs.values()), bucket_s=bucket_s).replay(list(settings.values()))
    needed_B = {name: allotted_B(local, settings[name]) for name, local in local_graphs.items()}
    bound = min(bound, variance)
    return Exact(
        chosen=chosen,
        variance=variance,
        bound=bound,
        gap=(variance - bound) / variance if variance else 0.0,
        status="optimal" if all(solved.status == "optimal" for _, solved in found.values()) else "stopped",
        iteration_s=replay.iteration_s,
        memory_B=needed_B,
        keeps_limits=replay.iteration_s <= time_limit_s * (1 + TOLERANCE)
        and all(needed_B[name] <= limits_B[name] * (1 + TOLERANCE) for name in needed_B),
    )


def _reasons(
    name: str, program: Program, memory: tuple[float, float], time: tuple[float, float], seconds: float
) -> list[Problem]:
    """What a class lacks: bytes at any speed, seconds with any memory, or both at once."""
    excess_B = program.least(EXCESS, free=LATE, seconds=seconds) * memory[1]
    late_s = program.least(LATE, free=EXCESS, seconds=seconds) * time[1]
    problems = []
    if excess_B > TOLERANCE * memory[0]:
        given, allowed = f"at least {(memory[0] + excess_B) / 1e9:.2f} GB", f"{memory[0] / 1e9:.2f} GB"
        problems.append(Problem(f"memory of {name}", given, allowed, "A smaller batch needs less."))
    if late_s > TOLERANCE * time[0]:
        given, allowed = f"at least {(time[0] + late_s) * 1e3:.3f} ms", f"{time[0] * 1e3:.3f} ms"
        problems.append(Problem(f"iteration with {name}", given, allowed, "A smaller batch on it takes less time."))
    if not problems:
        given = "precisions that keep one of the limits"
        allowed = f"{memory[0] / 1e9:.2f} GB and {time[0] * 1e3:.3f} ms at once"
        problems.append(Problem(f"memory and time of {name}", given, allowed, "Allow more memory or more time."))
    return problems
