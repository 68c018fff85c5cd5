"""Part of `windtunnel calibrate`: what phases of a checkpoint cost a rank of this machine, and what its stores do.

Small states are saved and loaded through the checkpointer that every job uses, with as many processes as cores and with one; costs
are lines through what states of different sizes took. A store's streams are what one process gets, its own rate what all get.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
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
MOST_B_PER_S = 1e12
"""So that a rate is a number where a store is too fast for what it was measured with."""

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
    """Rows by store, each number the mean of the ranks; of a meeting the least, which is that of who came last."""
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        folder = Path(name)
        roots = [str(path.resolve()) for path in stores.values()]
        arguments = ["quick" if quick else "full", *roots]
        launch("real.checkpoint.calibrate_worker", processes, folder, arguments=arguments, progress=progress)
        ranks = [json.loads((folder / f"rank{r}.json").read_text()) for r in range(processes)]
    return {
        store: [_mean(rows) for rows in zip(*(r[root] for r in ranks), strict=True)]
        for store, root in zip(stores, roots, strict=True)
    }


def _mean(rows: Rows) -> dict[str, Any]:
    """One row of all ranks'. What only rank 0 does, the end of a save, is its own."""
    first = rows[0]
    phases = {name: float(np.mean([r["phases"].get(name, 0.0) for r in rows])) for name in first["phases"]}
    phases |= {name: first["phases"].get(name, 0.0) for name in ("barrier", "commit")}
    phases["barrier/meet"] = min(r["phases"].get("barrier/meet", 0.0) for r in rows)
    means = {key: float(np.mean([r[key] for r in rows])) for key in ("read_B", "received_B", "seconds", "first_agree")}
    return {**first, **means, "phases": phases}


def phases(rows: Rows) -> dict[str, dict[str, float]]:
    """{start_s, item_s, s_per_B} of each phase; see `costmodels.checkpoint`."""
    saves, loads = _of(rows, "save"), _of(rows, "load")
    verify, checksum = line(loads, "deserialise"), line(saves, "serialise")
    place = _place(rows, verify)
    verify["item_s"] += line(loads, "read")["item_s"]  # what a shard's calls of the store take is the host's work
    checksum["item_s"] += line(saves, "upload")["item_s"]
    return {
        "agree": line(saves, "agree", per_B=False),
        "plan_arrays": _line([r["first_agree"] - r["phases"]["agree"] for r in saves], saves, per_B=False),
        "d2h": line(saves, "copy"),
        "checksum": checksum,
        "verify": verify,
        "system": line(saves, "system"),
        "barrier": line(saves, "barrier", per_B=False),
        "read_plan": line(loads, "planning", per_B=False),
        "place": place,
    }


def _place(rows: Rows, verify: Mapping[str, float]) -> dict[str, float]:
    """What is left of loads in which bytes are not read to where they belong, for each byte that is copied on its way."""
    left, copied = [], []
    for r in (*_of(rows, "columns"), *_of(rows, "whole")):
        known = sum(r["phases"].get(p, 0.0) for p in ("planning", "read", "exchange", "barrier", "barrier/meet"))
        known += verify["start_s"] + r["items"] * verify["item_s"] + r["read_B"] * verify["s_per_B"]
        left.append(max(r["seconds"] - known, 0.0))
        copied.append(r["nbytes"] if r["what"] == "columns" else 2 * r["received_B"])
    if not left:
        return {"start_s": 0.0, "item_s": 0.0, "s_per_B": 0.0}
    per_B = float(np.dot(left, copied) / np.dot(copied, copied))
    return {"start_s": 0.0, "item_s": 0.0, "s_per_B": per_B}


def exchanges(rows: Rows, processes: int) -> dict[str, dict[int, list[list[float]]]]:
    """Points [bytes, seconds] of an exchange of all with all, and of a meeting of all."""
    whole = sorted(_of(rows, "whole"), key=lambda r: r["received_B"])
    if not whole:
        return {}
    points = [[int(r["received_B"]), r["phases"].get("exchange", 0.0)] for r in whole]
    meeting = float(np.median([r["phases"]["barrier/meet"] for r in _of(rows, "save")]))
    return {"all_to_all": {processes: points}, "barrier": {processes: [[0, meeting]]}}


def store_rates(together: Rows, alone: Rows, processes: int) -> dict[str, float]:
    """Rates of all processes and of one, and what a file takes whatever its size."""
    both = {}
    for way, what, phase in (("write", "save", "upload"), ("read", "load", "read")):
        own, all_ = line(_of(alone, what), phase), line(_of(together, what), phase)
        both[f"{way}_B_per_s"] = processes / max(all_["s_per_B"], 1.0 / MOST_B_PER_S)
        both[f"stream_{way}_B_per_s"] = 1.0 / max(own["s_per_B"], 1.0 / MOST_B_PER_S)
        both["commit_s" if way == "write" else "open_s"] = all_["start_s"]
    published_s = float(np.median([r["phases"]["commit"] for r in _of(together, "save")]))
    both["commit_s"] = max(both["commit_s"], published_s / PUBLICATION)
    return both


def _of(rows: Rows, what: str) -> list[Mapping[str, Any]]:
    return [r for r in rows if r["what"] == what]


def line(rows: Rows, phase: str, *, per_B: bool = True) -> dict[str, float]:
    """Start, seconds for each item and for each byte of a phase over states of different sizes."""
    return _line([r["phases"].get(phase, 0.0) for r in rows], rows, per_B=per_B)


def _line(seconds: Sequence[float], rows: Rows, *, per_B: bool = True) -> dict[str, float]:
    """Not negative, in least squares of relative errors, so that small states count as much as large ones."""
    columns = np.array([[1.0, r["items"], r["nbytes"] * per_B] for r in rows])
    measured = np.maximum(np.array(seconds), 1e-7)
    found, _ = nnls(columns / measured[:, None], np.ones(len(measured)))
    return dict(zip(("start_s", "item_s", "s_per_B"), (float(x) for x in found), strict=True))
