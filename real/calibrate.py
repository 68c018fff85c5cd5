"""`windtunnel calibrate`: measure this machine and write it into a catalogue of its own.

`this_machine` is a rank with every core busy, as when there are as many ranks as cores; `this_machine_alone` is a rank that has
the machine to itself. Both share the link `this_machine_loopback` and the stores `this_machine_disk` and `this_machine_shm`.
"""

import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from costmodels import compute
from costmodels.catalog import Catalog, write_entry
from costmodels.measured import is_module
from costmodels.specs import DeviceSpec
from real import calibrate_eager, pace
from real.calibrate_eager import PACED, calls
from real.calibrate_worker import work_of
from real.checkpoint.calibrating import add_checkpoints
from real.federated.calibrating import add_sharing
from real.launch import Progress, launch


def calibrate(out: Path, *, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Write device, link and store files into `out`; returns what matters of them. About ten minutes, `quick` two."""

    def report(first: float, last: float, doing: str) -> Progress:
        def part(share: float, phrase: str) -> None:
            if progress is not None:
                progress(first + share * (last - first), f"{doing}: {phrase}")

        return part

    cores, ranks = min(os.cpu_count() or 1, 8), pace.busy_ranks()
    report(0.0, 0.05, "a controller")(0.0, "calls")
    called = calls(ranks)
    alone = _run(1, quick, report(0.05, 0.30, "one process alone"))[0]
    together = _run(ranks, quick, report(0.30, 0.61, f"{cores} processes at once"))[0]
    stores = report(0.65, 1.0, "checkpoints")
    said = provenance()
    devices = {"this_machine_alone": (alone, "one process"), "this_machine": (together, "every core busy")}
    measured: list[dict[str, Any]] = []
    for name, (found, how) in devices.items():
        entry = _device(found, cores, f"{said}, {how}", together["slowdown"])
        write_entry(out, "devices", name, entry)
        eager = calibrate_eager.entry(
            found["eager"], called, {together["ranks"]: together["collectives"]["all_reduce"]}
        )
        entry["measured"] |= {**in_model(found["models"], Catalog([out]).device(name)), "eager": eager}
        entry["measured"][pace.MEASURED] = asdict(_pace(together))
        write_entry(out, "devices", name, entry)
        eager |= calibrate_eager.in_steps(found["eager"], Catalog([out]).device(name))
        measured.append(entry["measured"])
        eager["alone"] = calibrate_eager.alone(measured[0], measured[-1])
        write_entry(out, "devices", name, entry)
    write_entry(out, "links", "this_machine_loopback", _link(together, said))
    add_sharing(out, ranks, quick=quick, progress=report(0.61, 0.65, "federated clients"))
    places = {"this_machine_shm": Path("/dev/shm"), "this_machine_disk": out}
    for name, rates in add_checkpoints(out, ranks, places, quick=quick, progress=stores).items():
        write_entry(out, "stores", name, _store(name, rates, said))
    stores(1.0, "done")
    return _summary(together, alone, said)


def _run(processes: int, quick: bool, progress: Progress) -> list[dict[str, Any]]:
    """The measurements of each of `processes` processes that run at once."""
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        folder = Path(name)
        arguments = ["quick"] if quick else []
        launch("real.calibrate_worker", processes, folder, arguments=arguments, progress=progress)
        return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(processes)]


def _pace(found: Mapping[str, Any]) -> pace.Pace:
    """Of what was measured of whole models, so that costs and pace are those of one moment."""
    steps = [seconds for _, *sizes, seconds in found["eager"]["steps"] if tuple(sizes) == PACED]
    passes = [row["forward_s"] + row["backward_s"] for row in found["models"]]
    return pace.Pace.of(passes, steps)


def provenance() -> str:
    """When and with what was measured here."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"measured {now} on {_processor()}, torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _sourced(value: object, source: str) -> dict[str, object]:
    return {"value": value, "source": source}


def _device(found: Mapping[str, Any], cores: int, source: str, slowdown: float) -> dict[str, Any]:
    """A catalogue entry. The peak is the best product that was seen; the tables are what estimates come from."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / cores
    tables = {name: [[*sizes, seconds] for sizes, seconds, _ in points] for name, points in found["kernels"].items()}
    rate = max(2.0 * m * n * k / seconds for m, n, k, seconds in tables["gemm"])
    elements, seconds = tables["copy"][-1]
    spread = float(np.median([s for points in found["kernels"].values() for _, _, s in points]))
    return {
        "title": f"A worker process on {_processor()}",
        "kind": "cpu",
        "vendor": "this machine",
        "architecture": platform.machine(),
        "memory_B": _sourced(float(memory), f"{source}; the host's memory over its cores"),
        "memory_B_per_s": _sourced(8.0 * elements / seconds, f"{source}; copy"),
        "flop_per_s": {"float32": _sourced(rate, f"{source}; best product")},
        "units": _sourced(1, source),
        "launch_s": _sourced(found["launch_s"], f"{source}; the smallest operator"),
        "overlap_slowdown": _sourced(round(slowdown, 4), f"{source}; products while an all-reduce goes on"),
        "measured": {"kernels": tables, "spread": spread},
    }


def in_model(models: Sequence[Mapping[str, Any]], device: DeviceSpec) -> dict[str, float]:
    """`in_model`, how much longer kernels take inside a model than alone, since caches hold something else, `module_s`, what
    calling a module of a pass forward takes the host, and `unawaited`, what a rank takes by itself as a share of that; see
    `costmodels.measured`. The first two in least squares of relative errors, the last a mean."""
    columns, seconds = [], []
    for row in models:
        work = work_of(row["shape"], row["sequences"])
        modules = sum(k.count for k in work.forward if is_module(k, device))
        columns += [[compute.seconds(work.forward, device), modules], [compute.seconds(work.backward, device), 0]]
        seconds += [row["forward_s"], row["backward_s"]]
    took = np.array(seconds)
    (longer, module_s), _ = nnls(np.array(columns) / took[:, None], np.ones(len(took)))
    own = fmean(row["own_s"] / (row["forward_s"] + row["backward_s"]) for row in models)
    return {"in_model": round(float(longer), 4), "module_s": float(module_s), "unawaited": round(own, 4)}


def _link(found: Mapping[str, Any], source: str) -> dict[str, Any]:
    points = found["collectives"]["send_recv"]
    (_, shortest), (large, longest) = points[0], points[-1]
    return {
        "title": "Between worker processes of this machine (gloo)",
        "kind": "loopback",
        "B_per_s": _sourced(large / longest, f"{source}; send and receive of {large} bytes"),
        "latency_s": _sourced(shortest, f"{source}; the smallest message"),
        "efficiency": _sourced(1.0, f"{source}; the rate is what messages reach"),
        "measured": {op: {found["ranks"]: rows} for op, rows in found["collectives"].items()},
    }


def _store(name: str, rates: Mapping[str, float], source: str) -> dict[str, Any]:
    kind = "memory" if name.endswith("shm") else "nvme"
    fields = {
        "title": f"{'/dev/shm' if kind == 'memory' else 'The disk'} of this machine",
        "kind": kind,
        "shared": False,
    }
    return {**fields, **{key: _sourced(value, source) for key, value in rates.items()}}


def _summary(together: Mapping[str, Any], alone: Mapping[str, Any], said: str) -> dict[str, Any]:
    def best(found: Mapping[str, Any]) -> float:
        return max(2.0 * m * n * k / seconds for (m, n, k), seconds, _ in found["kernels"]["gemm"])

    return {
        "source": said,
        "float32_flop_per_s": {"every core busy": best(together), "one process": best(alone)},
        "overlap_slowdown": together["slowdown"],
        "all_reduce": {f"{size} B": seconds for size, seconds in together["collectives"]["all_reduce"]},
        "kernels": {name: len(points) for name, points in together["kernels"].items()},
    }
