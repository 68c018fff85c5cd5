"""How fast this machine computes beside a run, as against when it was calibrated.

A virtual machine shares its cores' clock, its caches and its memory with others: on the one this was written on everything takes up
to a fifth longer, or less, ten minutes later. What a calibration measures of whole passes and decode steps is its pace, and a probe
that does the same before and after a run says at what pace the run had to go. It knows nothing of the run.

Kernels of whole passes and the optimizer go with `pass_s`; decode steps, sums of next to nothing and a controller's calls, all of
them the host's time for the most part, with `step_s`. Messages between processes and stores are as they were.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Self

from costmodels.measured import AS_TRAINED
from costmodels.specs import DeviceSpec
from real.launch import launch
from simcore.cluster import Cluster

MEASURED = "pace"
"""Of a device's `measured`."""
HOST = ("step_s", "layer_s", "split_layer_s", "split_forward_s", "split_backward_s", "draw_s", "element_s")
POINTS = ("products", "cache", "call")
"""Of a device's `measured.eager`: seconds, and points of (size, seconds)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of a pass forward and backward, and of a decode step, through the models of a calibration: geometric means."""

    pass_s: float
    step_s: float

    @classmethod
    def of(cls, passes_s: Sequence[float], steps_s: Sequence[float]) -> Self:
        """Of what each of the models took."""
        return cls(pass_s=geometric_mean(passes_s), step_s=geometric_mean(steps_s))

    @classmethod
    def between(cls, paces: Sequence[Self]) -> Self:
        """Geometric means."""
        return cls.of([p.pass_s for p in paces], [p.step_s for p in paces])


@dataclass(frozen=True, slots=True, kw_only=True)
class Slower:
    """How many times as long passes and decode steps take as when costs were measured."""

    passes: float = 1.0
    steps: float = 1.0

    @classmethod
    def than(cls, usual: Pace, now: Pace) -> Self:
        return cls(passes=now.pass_s / usual.pass_s, steps=now.step_s / usual.step_s)


def probe() -> Pace:
    """The machine's pace with every core busy, in less than twenty seconds. Raises `CannotRun` if a process fails."""
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        folder = Path(name)
        launch("real.pace_worker", busy_ranks(), folder)
        return Pace(**json.loads((folder / "pace.json").read_text()))


def busy_ranks() -> int:
    """Processes with which every core is busy, of at most eight, and at least two."""
    return max(min(os.cpu_count() or 1, 8), 2)


def usual(device: DeviceSpec) -> Pace | None:
    """The pace at which its costs were measured; None if that is not known."""
    found: Any = device.measured.get(MEASURED)
    return None if found is None else Pace(**found)


def at_pace(cluster: Cluster, slower: Slower) -> Cluster:
    """The same with costs of computing as they are at that pace."""
    return replace(cluster, devices=tuple(_device(device, slower) for device in cluster.devices))


def _device(device: DeviceSpec, slower: Slower) -> DeviceSpec:
    measured: dict[str, Any] = dict(device.measured)
    if "kernels" in measured:
        tables = dict(measured["kernels"])
        measured["kernels"] = tables | {n: _points(tables[n], slower.passes) for n in AS_TRAINED & tables.keys()}
        measured["in_model"] = measured.get("in_model", 1.0) * slower.passes
        measured["module_s"] = measured.get("module_s", 0.0) * slower.passes
    if "eager" in measured:
        own = measured["eager"]
        sums = {ranks: _points(points, slower.steps) for ranks, points in own["all_reduce"].items()}
        scaled = {**_eager(own, slower.steps), "all_reduce": sums}
        measured["eager"] = {**scaled, "alone": _eager(own["alone"], slower.steps)} if "alone" in own else scaled
    return replace(device, measured=measured)


def _eager(own: Mapping[str, Any], factor: float) -> dict[str, Any]:
    seconds = {name: own[name] * factor for name in HOST if name in own}
    return {**own, **seconds, **{name: _points(own[name], factor) for name in POINTS if name in own}}


def _points(points: Sequence[Sequence[float]], factor: float) -> list[list[float]]:
    return [[*sizes, seconds * factor] for *sizes, seconds in points]
