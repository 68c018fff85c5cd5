"""Part of `windtunnel calibrate`: what phases of a checkpoint cost a rank of this machine, and what its stores do.

Small states are saved and loaded through the checkpointer that every job uses, with as many processes as cores and with one; costs
are lines through what states of different sizes took. A store's streams are what one process gets, its own rate what all get.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from scipy.optimize import nnls

from costmodels.catalog import write_entry
from real.launch import launch
from real.storage_bench import request_seconds
from simcore.progress import Progress, part

DEVICES = {"this_machine": "together", "this_machine_alone": "alone"}
LINK = "this_machine_loopback"

PUBLICATION = 3
"""Steps that are made durable one by one when a checkpoint becomes visible: its metadata, its name, and `latest`."""

Rows = Sequence[Mapping[str, Any]]


def add_checkpoints(
    out: Path, processes: int, stores: Mapping[str, Path], *, quick: bool = False, progress: Progress | None = None
) -> dict[str, dict[str, float]]:
    """Measure, and add phases to the devices and exchanges to the link that are in `out`; returns what a catalogue entry says of
    each of the stores (name to folder) that are there."""
    stores = {name: folder for name, folder in stores.items() if folder.is_dir()}
    found = {
        "together": _run(processes, stores, quick, part(progress, 0.0, 0.6)),
        "alone": _run(1, stores, quick, part(progress, 0.6, 1.0)),
    }
    memory = next(iter(stores))  # phases of the host's own work are the same whatever the store
    for device, how in DEVICES.items():
        entry = _read(out, "devices", device)
        entry["measured"]["checkpoint"] = phases(found[how][memory])
        write_entry(out, "devices", device, entry)
    link = _read(out, "links", LINK)
    link["measured"] |= exchanges(found["together"][memory], processes)
    write_entry(out, "links", LINK, link)
    return {
        name: store_rates(found["together"][name], found["alone"][name], processes)
        | {"request_s": request_seconds(folder)}
        for name, folder in stores.items()
    }


def _read(out: Path, kind: str, name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((out / kind / f"{name}.yaml").read_text())
    return document


def _run(
    processes: int, stores: Mapping[str, Path], quick: bool, progress: Progress | None
) -> dict[str, list[dict[str, Any]]]:
    """Rows by store, of all ranks together."""
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        folder = Path(name)
        roots = [str(path.resolve()) for path in stores.values()]
        arguments = ["quick" if quick else "full", *roots]
        launch("real.checkpoint.calibrate_worker", processes, folder, arguments=arguments, progress=progress)
        ranks = [json.loads((folder / f"rank{r}.json").read_text()) for r in range(processes)]
    return {
        store: [joined(rows) for rows in zip(*(r[root] for r in ranks), strict=True)]
        for store, root in zip(stores, roots, strict=True)
    }


def joined(rows: Rows) -> dict[str, Any]:
    """One row of all ranks': medians over the faster half of the runs, so that what else ran for a moment does not count.

    Of each run the phases of the rank for which the others waited; what only rank 0 does, the end of a save, is its own.
    """
    runs = []
    for of_ranks in zip(*(r["runs"] for r in rows), strict=True):
        last = min(of_ranks, key=lambda run: float(run["phases"].get("barrier/meet", 0.0)))
        ends = {name: of_ranks[0]["phases"].get(name, 0.0) for name in ("barrier", "commit")}
        runs.append({"seconds": max(run["seconds"] for run in of_ranks), "phases": {**last["phases"], **ends}})
    runs.sort(key=lambda run: float(run["seconds"]))
    faster = runs[: -(-len(runs) // 2)]
    names = dict.fromkeys(name for run in faster for name in run["phases"])
    means = {key: float(np.mean([r[key] for r in rows])) for key in ("read_B", "received_B", "first_agree")}
    return {
        **{key: value for key, value in rows[0].items() if key != "runs"},
        **means,
        "seconds": median(run["seconds"] for run in faster),
        "phases": {name: median(run["phases"].get(name, 0.0) for run in faster) for name in names},
    }


def phases(rows: Rows) -> dict[str, dict[str, float]]:
    """{start_s, item_s, s_per_B} of each phase; see `costmodels.checkpoint`."""
    saves, loads = _of(rows, "save"), _of(rows, "load")
    verify, checksum = line(loads, "deserialise"), line(saves, "serialise")
    verify["item_s"] += line(loads, "read")["item_s"]  # what a shard's calls of the store take is the host's work
    checksum["item_s"] += line(saves, "upload")["item_s"]
    return {
        "agree": _line([r["phases"]["agree"] for r in saves], [r["items"] for r in saves]),
        "plan_arrays": _line([r["first_agree"] - r["phases"]["agree"] for r in saves], [r["shards"] for r in saves]),
        "d2h": line(saves, "copy"),
        "checksum": checksum,
        "verify": verify,
        "system": line(saves, "system"),
        "barrier": _line([r["phases"]["barrier"] for r in saves], [r["shards"] for r in saves]),
        "read_plan": _line([r["phases"]["planning"] for r in loads], [r["shards"] + r["items"] for r in loads]),
        "place": _place(rows),
    }


def _place(rows: Rows) -> dict[str, float]:
    """What loads of columns take beyond reading and verifying, for each byte that is copied to where it belongs."""
    columns = _of(rows, "columns")
    if not columns:
        return {"start_s": 0.0, "item_s": 0.0, "s_per_B": 0.0}
    left, copied = [_beyond_reading(r, rows) for r in columns], [r["nbytes"] for r in columns]
    return {"start_s": 0.0, "item_s": 0.0, "s_per_B": float(np.dot(left, copied) / np.dot(copied, copied))}


def _beyond_reading(row: Mapping[str, Any], rows: Rows) -> float:
    """Seconds of a load that are left when planning, meetings, and reading and verifying as much in place are taken off.

    Threads of a rank that share its core are in each other's way, so what a call lasted is not what it costs.
    """
    known = sum(row["phases"].get(p, 0.0) for p in ("planning", "barrier", "barrier/meet"))
    for phase in ("read", "deserialise"):
        own = line(_of(rows, "load"), phase)
        known += own["start_s"] + row["items"] * own["item_s"] + row["read_B"] * own["s_per_B"]
    return float(max(row["seconds"] - known, 0.0))


def exchanges(rows: Rows, processes: int) -> dict[str, dict[int, list[list[float]]]]:
    """Points [bytes, seconds] of an exchange of all with all, packed and filled in as a load does it, and of a meeting of all."""
    whole = sorted(_of(rows, "whole"), key=lambda r: r["received_B"])
    if not whole:
        return {}
    points = [[int(r["received_B"]), _beyond_reading(r, rows)] for r in whole]
    meeting = float(np.median([r["phases"]["barrier/meet"] for r in _of(rows, "save")]))
    return {"all_to_all": {processes: points}, "barrier": {processes: [[0, meeting]]}}


def store_rates(together: Rows, alone: Rows, processes: int) -> dict[str, float]:
    """Rates of all processes and of one, and what a file takes whatever its size."""
    both = {}
    for way, what, phase in (("write", "save", "upload"), ("read", "load", "read")):
        own, all_ = line(_of(alone, what), phase), line(_of(together, what), phase)
        both[f"{way}_B_per_s"] = processes / all_["s_per_B"]
        both[f"stream_{way}_B_per_s"] = 1.0 / own["s_per_B"]
        both["commit_s" if way == "write" else "open_s"] = all_["start_s"]
    published_s = float(np.median([r["phases"]["commit"] for r in _of(together, "save")]))
    both["commit_s"] = max(both["commit_s"], published_s / PUBLICATION)
    return both


def _of(rows: Rows, what: str) -> list[Mapping[str, Any]]:
    return [r for r in rows if r["what"] == what]


def line(rows: Rows, phase: str) -> dict[str, float]:
    """Start, seconds for each item and for each byte of a phase over states of different sizes."""
    seconds = [r["phases"].get(phase, 0.0) for r in rows]
    return _line(seconds, [r["items"] for r in rows], [r["nbytes"] for r in rows])


def _line(seconds: Sequence[float], items: Sequence[int], nbytes: Sequence[int] | None = None) -> dict[str, float]:
    """Not negative, in least squares of relative errors, so that small states count as much as large ones.

    Where noise hides what bytes cost, everything that the largest state took is put down to them.
    """
    sizes = nbytes if nbytes is not None else [0] * len(items)
    columns = np.array([[1.0, count, size] for count, size in zip(items, sizes, strict=True)])
    measured = np.maximum(np.array(seconds), 1e-7)
    found, _ = nnls(columns / measured[:, None], np.ones(len(measured)))
    if nbytes is not None and not found[2]:
        largest = int(np.argmax(sizes))
        found = np.array([0.0, 0.0, measured[largest] / sizes[largest]])
    return dict(zip(("start_s", "item_s", "s_per_B"), (float(x) for x in found), strict=True))
