"""What planners of precisions share: parameters, checks, limits of memory, and one precision for all operators."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from costmodels.casts import RELEASED_AMONG
from costmodels.errors import DataError
from costmodels.precision import BITS, PRECISIONS, of_device
from costmodels.precision_kernels import Casts
from costmodels.units import parse
from simcore.engine.placement import Costs
from simcore.errors import DoesNotFit, PlanError, Problem
from simcore.qsync.local import INDEX, LocalGraph
from simcore.qsync.peak import memory_B
from simcore.qsync.plans import DeviceClass
from simcore.qsync.settings import setting
from simcore.qsync.tables import bucket_names, local_graph
from simcore.quantity import Bytes, size
from simcore.validation import suggestion
from simcore.workloads.operator_training import OperatorTraining

MiB = 1024.0**2

Precision = Literal["int8", "fp8", "float16", "bfloat16", "tf32", "float32"]


class Common(BaseModel):
    """What planners of precisions share."""

    model_config = ConfigDict(extra="forbid")

    memory: dict[str, str | float] = Field(
        default_factory=dict, description='Memory that may be used, by device: "30 %", "5 GB"; default: all of it.'
    )
    bucket: Bytes = Field(25 * MiB, description="Gradients reduced together.")
    first_bucket: Bytes = Field(MiB, description="The same for the first ones.")
    rounding: Literal["nearest", "stochastic"] = Field("nearest", description="How numbers become narrow.")
    scaling: Literal["tensor", "channel"] = Field("tensor", description="What shares a scale in 8 bits.")
    casts: Literal["fitted", "released"] = Field(
        "fitted",
        description="How long casts take: what is known of the device, or the lines that QSync's authors released, whatever the "
        "device (theirs fit a T4).",
    )


def other_workload(planner: str) -> PlanError:
    """The error of a planner that plans precisions and nothing else."""
    problem = Problem("planner.name", planner, "a planner for this workload", f"{planner} plans operator_training.")
    return PlanError("a planner for another workload", [problem])


def tables(workload: OperatorTraining, of: DeviceClass, batch: int, cost: Costs, params: Common) -> LocalGraph:
    """The tables of one class."""
    buckets = bucket_names(workload.graph, params.first_bucket, params.bucket)
    kernel = workload.optimizer_kernel
    released: Casts = "released_by_channel" if params.scaling == "channel" else "released"
    casts: Casts = "fitted" if params.casts == "fitted" else released
    return local_graph(workload.graph, of.device, batch, cost, optimizer=kernel, buckets=buckets, casts=casts)


def check_casts(params: Common, classes: Sequence[DeviceClass]) -> None:
    """Raise `PlanError` where released casts are asked for and a device has precisions whose casts were not released."""
    problems = []
    for of in classes if params.casts == "released" else ():
        lacking = [p for p in of_device(of.device) if p not in RELEASED_AMONG]
        if lacking:
            advice = f"None were released of {', '.join(lacking)}, which {of.name} has."
            problems.append(Problem("planner.casts", params.casts, "fitted", advice))
    if problems:
        raise PlanError("casts that nobody released", problems)


def even_batch(workload: OperatorTraining, n_ranks: int) -> int:
    """Samples on each rank. Raises `PlanError` where they do not come out even."""
    samples = workload.samples(n_ranks)
    if samples % n_ranks:
        problem = Problem("workload.global_batch", str(samples), f"a multiple of {n_ranks}, the ranks of the cluster")
        raise PlanError("a batch that ranks cannot share evenly", [problem])
    return samples // n_ranks


def uniform(local: LocalGraph, asked: str) -> dict[str, str]:
    """Every adjustable operator in `asked`, or in the next wider precision that it has on the device."""
    wider = PRECISIONS[INDEX[asked] :]
    enough = [p for p in wider if BITS[p] >= BITS[asked]]
    return {
        local.graph.operators[i].name: next(p for p in enough if local.allowed[i, INDEX[p]])
        for i in local.adjustable.tolist()
    }


def memory_limits(given: Mapping[str, str | float], classes: tuple[DeviceClass, ...]) -> dict[str, float]:
    """Bytes that each class may use. Raises `PlanError` naming every entry that is wrong."""
    limits = {c.name: c.device.memory_B for c in classes}
    problems = [
        Problem(f"planner.memory.{name}", name, ", ".join(limits), "Name a device of the cluster.")
        for name in given
        if name not in limits
    ]
    for name in [n for n in given if n in limits]:
        try:
            limits[name] = min(_bytes(given[name], limits[name]), limits[name])
        except (ValueError, DataError):
            problems.append(Problem(f"planner.memory.{name}", repr(given[name]), 'a share such as "30 %", or "5 GB"'))
    if problems:
        raise PlanError("limits of memory that cannot be", problems)
    return limits


def _bytes(given: str | float, whole_B: float) -> float:
    if isinstance(given, str) and given.rstrip().endswith("%"):
        return float(given.rstrip()[:-1]) / 100.0 * whole_B
    return parse(given, "bytes")


def refuse_what_does_not_fit(
    locals_: Mapping[str, LocalGraph], chosen: Mapping[str, Mapping[str, str]], limits: Mapping[str, float]
) -> None:
    """Raise `DoesNotFit` with what every class lacks."""
    problems = []
    for name, local in locals_.items():
        needed = memory_B(local, setting(local, chosen[name]))
        if needed > limits[name]:
            lacking = f"{size(needed - limits[name])} are lacking: fewer bits, or a smaller batch"
            given, allowed = size(needed), size(limits[name])
            problems.append(Problem(f"memory of {name}", given, allowed, lacking))
    if problems:
        raise DoesNotFit("these precisions do not fit the memory of the cluster", problems)


def asked_of(precision: str | Mapping[str, str], name: str) -> str:
    """The precision that was asked for on a class."""
    return precision if isinstance(precision, str) else precision.get(name, "float32")


def check_precision(precision: str | Mapping[str, str], classes: Sequence[DeviceClass]) -> None:
    """Raise `PlanError` where precisions by device name one that the cluster, or a precision that the device does not have."""
    has = {c.name: of_device(c.device) for c in classes}
    problems = []
    for name, asked in precision.items() if not isinstance(precision, str) else ():
        if name not in has:
            advice = suggestion(name, list(has)) or "Name a device of the cluster."
            problems.append(Problem(f"planner.precision.{name}", name, ", ".join(has), advice))
        elif asked not in has[name]:
            advice = "One precision for all devices is widened where it is lacking; one by device is taken at its word."
            problems.append(Problem(f"planner.precision.{name}", asked, ", ".join(has[name]), advice))
    if problems:
        raise PlanError("precisions that cannot be", problems)


def widened(chosen: Mapping[str, str], asked: str) -> dict[str, int]:
    """How many operators compute in another precision than asked for, by that precision."""
    return {p: n for p in PRECISIONS if p != asked and (n := list(chosen.values()).count(p))}
