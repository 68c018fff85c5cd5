"""How far off the closed form of a published job is when the estimates that it is made of err as they may."""

from dataclasses import replace
from math import hypot

import numpy as np

from costmodels.collective_errors import error_of
from costmodels.ports import is_guessed
from costmodels.specs import DeviceSpec
from simcore.tables import training as table
from simcore.training import sustained
from simcore.training.choice import Choice
from simcore.training.overheads import Overheads
from simcore.training.quick_parts import Parts
from simcore.training.rows import Job

STEP = 0.01
"""By how much kernels of a kind are slowed to see what share of an iteration they decide."""


def own_error(job: Job, overheads: Overheads) -> float:
    """As `simcore.reporting.uncertainty.own_errors`, with shares of the closed form; what kernels do not decide, links do."""
    quick, choice = table.settled(job, overheads)
    rows = table.table_of(choice)
    base = float(quick.seconds(rows)[0])
    typical = _typical_errors(quick.parts, choice, job.cluster.devices[0], overheads)
    by_table: dict[str, float] = {}
    kernels = 0.0
    for kind, error in typical.items():
        slower = replace(overheads, **{kind: getattr(overheads, kind) * (1 + STEP)})
        share = (float(replace(quick, overheads=slower).seconds(rows)[0]) / base - 1) / STEP
        by_table[sustained.TABLES[kind]] = by_table.get(sustained.TABLES[kind], 0.0) + share * error
        kernels += share
    return hypot(*by_table.values(), max(1.0 - kernels, 0.0) * _link_error(job))


def _typical_errors(parts: Parts, choice: Choice, device: DeviceSpec, overheads: Overheads) -> dict[str, float]:
    """By kind of kernel: errors of the kernels of a layer and of the ends of the model, weighted by their time."""
    seconds: dict[str, float] = {}
    errors: dict[str, float] = {}
    for kernel in parts.pass_kernels(choice):
        found = sustained.estimate(kernel, device, overheads)
        kind = sustained.kind_of(kernel)
        seconds[kind] = seconds.get(kind, 0.0) + found.seconds
        errors[kind] = errors.get(kind, 0.0) + found.seconds * (found.error or 0.0)
    return {kind: errors[kind] / seconds[kind] for kind in errors if seconds[kind]}


def _link_error(job: Job) -> float:
    """Of large gathers, between hosts where there are several."""
    hosts = job.cluster.fabric.node_of(np.arange(job.cluster.n_ranks))
    away = bool(hosts.min() < hosts.max())
    link = (job.cluster.inter if away else job.cluster.intra)[0]
    return 0.0 if link is None else error_of("all_gather", 0.0, away=away, unseen=is_guessed(link))
