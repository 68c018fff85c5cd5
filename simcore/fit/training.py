"""Fits `Overheads` to published iterations, for `costmodels/fitted/training.yaml`.

Rows of dense models on devices of the training set whose own numbers are trusted; least squares of logarithms of predicted over
measured seconds with a loss that outliers do not pull, and every parameter held to its neutral value as by one more row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from costmodels.catalog import Catalog
from costmodels.prediction import Floats
from simcore.tables import training as table
from simcore.training.job_error import own_error
from simcore.training.quick import Quick
from simcore.training.quick_parts import Parts
from simcore.training.rows import Job

if TYPE_CHECKING:
    import pandas as pd

SHARED = ("products", "narrow", "attention", "streaming", "exposed", "spread", "step_s")
OWN: Mapping[str, Sequence[str]] = {
    "fsdp": ("streaming", "exposed", "step_s"),
    "fsdp/ampere": ("attention",),
    "fsdp/hopper": ("attention",),
}
NEUTRAL = {
    "products": 1.0,
    "narrow": 1.0,
    "attention": 1.0,
    "streaming": 1.0,
    "exposed": 0.1,
    "spread": 0.005,
    "step_s": 5e-3,
}
SCALE = {
    "products": 0.3,
    "narrow": 0.3,
    "attention": 0.5,
    "streaming": 0.7,
    "exposed": 0.2,
    "spread": 0.01,
    "step_s": 10e-3,
}
"""What each parameter is expected to be, and how far from it."""


class Remembering:
    """`Parts` whose costs are computed once for each choice."""

    def __init__(self, parts: Parts) -> None:
        self.workload, self.cluster, self.slowdown = parts.workload, parts.cluster, parts.slowdown
        self.passes, self.accumulation, self.send, self.replicas = (
            lru_cache(maxsize=None)(found) for found in (parts.passes, parts.accumulation, parts.send, parts.replicas)
        )
        self.price = self.pass_kernels = self.accumulation_kernels = self.step_kernels = _nothing
        self.activations, self.elements = parts.activations, parts.elements


def _nothing(_given: object) -> tuple[()]:
    """What is kept needs no prices."""
    return ()


def fit(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, Any]:
    """The parameters, and how far predictions are off, from the rows of a file."""
    from scipy.optimize import least_squares

    frame = frame if "iteration_s" in frame.columns else table.prepare(frame)
    jobs = table.jobs_of(frame, catalog)
    used = [i for i, job in enumerate(jobs) if job is not None and _is_trusted(frame.iloc[i], job)]
    measured = frame["iteration_s"].to_numpy(dtype=np.float64)[used]
    known = [(job, *_prepared(job)) for job in (jobs[i] for i in used) if job is not None]
    names = [("", name) for name in SHARED] + [(own, name) for own, listed in OWN.items() for name in listed]

    def residuals(x: Floats) -> Floats:
        found = named(names, x)
        seconds = [j.share * float(_with(q, j, found).seconds(t)[0]) for j, q, t in known]
        return np.concatenate([np.log(np.array(seconds) / measured), 0.1 * (np.asarray(x) - 1)])

    start = np.ones(len(names))
    lowest = np.array([_lowest(name) for _, name in names])
    solved = least_squares(
        residuals, start, bounds=(lowest - 1e-9, np.inf), loss="soft_l1", f_scale=0.05, diff_step=[1e-3] * len(names)
    )
    parameters = named(names, solved.x)
    return {"parameters": parameters, **_bands(frame, jobs, parameters)}


def named(names: Sequence[tuple[str, str]], x: Floats) -> dict[str, Any]:
    """Parameters by name, those of one framework under its own."""
    found: dict[str, Any] = {}
    for (own, name), value in zip(names, x, strict=True):
        rounded = max(float(f"{NEUTRAL[name] + SCALE[name] * (value - 1):.6g}"), LEAST.get(name, 0.0))
        (found.setdefault(own, {}) if own else found)[name] = rounded
    return found


LEAST = {"products": 1.0, "narrow": 0.85, "attention": 1.0, "streaming": 1.0}
"""Kernels of a job are not faster than those of a benchmark. Narrow products are taken at the rate of 16-bit ones, and draw less
power."""


def _lowest(name: str) -> float:
    """Where the parameter is as small as it can be."""
    return 1 + (LEAST.get(name, 0.0) - NEUTRAL[name]) / SCALE[name]


def _is_trusted(row: Any, job: Job) -> bool:
    return table.kind_of(job) == "seen" and str(row["confidence"]).startswith("high")


def _prepared(job: Job) -> tuple[Quick, Any]:
    """The closed form and the row's table, with costs of parts kept."""
    quick, choice = table.settled(job, table.overheads_of(job, NEUTRAL))
    return replace(quick, parts=cast(Parts, Remembering(quick.parts))), table.table_of(choice)


def _with(quick: Quick, job: Job, parameters: Mapping[str, Any]) -> Quick:
    return replace(quick, overheads=table.overheads_of(job, parameters))


def _bands(frame: "pd.DataFrame", jobs: Sequence[Job | None], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """By kind, of rows whose own numbers are trusted: `error`, which four of five are closer than, and `own`, which the errors of
    the estimates that a prediction is made of stay below for four of five."""
    off: dict[str, list[float]] = {}
    own: dict[str, list[float]] = {}
    for job, seconds, trust in zip(jobs, frame["iteration_s"], frame["confidence"], strict=True):
        if job is not None and str(trust).startswith("high"):
            found = abs(table.iteration(job, {"parameters": parameters}) / float(seconds) - 1)
            off.setdefault(table.kind_of(job), []).append(found)
            own.setdefault(table.kind_of(job), []).append(own_error(job, table.overheads_of(job, parameters)))
    return {"error": _quantiles(off), "own": _quantiles(own)}


def _quantiles(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {kind: float(f"{np.quantile(each, 0.8):.3g}") for kind, each in sorted(found.items())}
