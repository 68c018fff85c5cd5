"""Part of `windtunnel calibrate`: what phases of a checkpoint cost a rank of this machine, and what its stores do.

Small states are saved and loaded through the checkpointer that every job uses, with as many processes as cores and with one; costs
are lines through what states of different sizes took. A store's streams are what one process gets, its own rate what all get.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from scipy.optimize import nnls

from costmodels.catalog import write_entry
from real.checkpoint.drifting import Slower
from real.checkpoint.speed import Speed
from real.checkpoint.steady import is_close, nearest
from real.launch import launch
from real.storage_bench import request_seconds
from simcore.progress import Progress, part

DEVICES = {"this_machine": "together", "this_machine_alone": "alone"}
LINK = "this_machine_loopback"

LAUNCHES = 3
Rows = Sequence[Mapping[str, Any]]


def add_checkpoints(
    out: Path, processes: int, stores: Mapping[str, Path], *, quick: bool = False, progress: Progress | None = None
) -> dict[str, dict[str, float]]:
    """Measure, and add phases to the devices and exchanges to the link that are in `out`; returns what a catalogue entry says of
    each of the stores (name to folder) that are there."""
    stores = {name: folder.resolve() for name, folder in stores.items() if folder.is_dir()}
    found = _measured(processes, stores, quick, progress)
    for device, how in DEVICES.items():
        entry = _read(out, "devices", device)
        entry["measured"] |= {"checkpoint": phases(found[how].stores), **found[how].usual.known()}
        write_entry(out, "devices", device, entry)
    link = _read(out, "links", LINK)
    together, alone = (found[how].stores for how in ("together", "alone"))
    link["measured"] |= exchanges(together, processes)
    write_entry(out, "links", LINK, link)
    return {
        name: store_rates(together[name], alone[name], processes) | {"request_s": request_seconds(folder)}
        for name, folder in stores.items()
    }


def _read(out: Path, kind: str, name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((out / kind / f"{name}.yaml").read_text())
    return document


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Rows of all ranks together by store, the one in memory first; how fast memory was as a rule."""

    stores: Mapping[str, Rows]
    usual: Speed


def _measured(processes: int, stores: Mapping[str, Path], quick: bool, progress: Progress | None) -> dict[str, Found]:
    """What so many processes measure `together` and one `alone`, in turn and in several launches: what disturbs one of them for
    half a minute is not in the others. Every second one is of processes together in memory alone, which take less time than others
    and differ by more from one launch to the next."""
    how = "quick" if quick else "full"
    arguments = [how, *map(str, stores.values())]
    together, alone = [], []
    count = 1 if quick else LAUNCHES
    for i in range(count):
        first, middle, more, last = ((i + share) / count for share in (0.0, 0.5, 0.75, 1.0))
        together.append(_launched(processes, arguments, part(progress, first, middle)))
        if not quick:
            together.append(_launched(processes, arguments[:2], part(progress, middle, more)))
        alone.append(_launched(1, arguments, part(progress, more, last)))
    return {"together": _found(together, stores), "alone": _found(alone, stores)}


def _found(launches: Sequence[Sequence[Mapping[str, Rows]]], stores: Mapping[str, Path]) -> Found:
    """Of all launches together, given what each of their ranks measured."""
    ranks = [merged(of_rank) for of_rank in zip(*launches, strict=True)]
    usual = Speed.usual([Speed(**run["speed"]) for rows in ranks[0].values() for row in rows for run in row["runs"]])
    found = {
        store: [joined(rows, usual) for rows in zip(*(r[str(root)] for r in ranks), strict=True)]
        for store, root in stores.items()
    }
    return Found(stores=found, usual=usual)


def _launched(processes: int, arguments: list[str], progress: Progress | None) -> list[dict[str, Rows]]:
    """Of each rank, rows by the folder of a store."""
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        folder = Path(name)
        launch("real.checkpoint.calibrate_worker", processes, folder, arguments=arguments, progress=progress)
        return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(processes)]


def merged(launches: Sequence[Mapping[str, Rows]]) -> dict[str, Rows]:
    """The rows of one rank with the runs of all launches that went to a store; `first_agree` is the median of theirs."""
    return {
        root: [
            {
                **same[0],
                "first_agree": median(row["first_agree"] for row in same),
                "runs": [run for row in same for run in row["runs"]],
            }
            for same in zip(*(rows[root] for rows in launches if root in rows), strict=True)
        ]
        for root in launches[0]
    }


def joined(rows: Rows, usual: Speed) -> dict[str, Any]:
    """One row of all ranks': medians over the half of the runs, or more, whose memory was nearest to the usual.

    Of each run the phases of the rank for which the others waited; what only rank 0 does, the end of a save, is its own, and of
    copies the slower one counts, for which training waits. Everything is put down as at the usual speed; see `drifting`.
    """
    speeds = [Speed(**run["speed"]) for run in rows[0]["runs"]]
    copies = [speed.copy_B_per_s for speed in speeds]
    count = max(sum(is_close(x, usual.copy_B_per_s) for x in copies), -(-len(copies) // 2))
    runs = []
    for i in nearest(copies, usual.copy_B_per_s, count):
        of_ranks, slower = [r["runs"][i] for r in rows], Slower.than(usual, speeds[i])
        last = min(of_ranks, key=lambda run: float(run["phases"].get("barrier/meet", 0.0)))
        ends = {name: of_ranks[0]["phases"].get(name, 0.0) for name in ("barrier", "commit")}
        copied_s = max(run["phases"].get("copy", 0.0) for run in of_ranks)
        raw = {**last["phases"], **ends, **({"copy": copied_s} if copied_s else {})}
        host = slower.of_host(saves=rows[0]["what"] == "save")
        own = {"copy": slower.copies} | ({} if slower.in_memory else {"upload": slower.saves, "read": slower.loads})
        found = {name: seconds / own.get(name, host) for name, seconds in raw.items()}
        apart = own.keys() & raw.keys()
        others_s = max(run["seconds"] for run in of_ranks) - sum(raw[name] for name in apart)
        lasted = others_s / host + sum(found[name] for name in apart)
        runs.append({"seconds": lasted, "phases": found})
    names = dict.fromkeys(name for run in runs for name in run["phases"])
    means = {key: float(np.mean([r[key] for r in rows])) for key in ("read_B", "received_B", "first_agree")}
    return {
        **{key: value for key, value in rows[0].items() if key != "runs"},
        **means,
        "seconds": median(run["seconds"] for run in runs),
        "phases": {name: median(run["phases"].get(name, 0.0) for run in runs) for name in names},
    }


def phases(stores: Mapping[str, Rows]) -> dict[str, dict[str, float]]:
    """{start_s, item_s, s_per_B} of each phase; see `costmodels.checkpoint`. What meets no store is measured on all of them."""
    rows = next(iter(stores.values()))
    everywhere = [row for of_store in stores.values() for row in of_store]
    saves, loads, every = _of(rows, "save"), _of(rows, "load"), _of(everywhere, "save")
    verify, checksum = line(loads, "deserialise"), line(saves, "serialise")
    for own, meets in ((verify, line(loads, "read")), (checksum, line(saves, "upload"))):
        own["item_s"] += meets["item_s"]  # what a shard's calls of the store take is the host's work
    return {
        "agree": _line([r["phases"]["agree"] for r in every], [r["items"] for r in every]),
        "plan_arrays": _line([r["first_agree"] - r["phases"]["agree"] for r in every], [r["shards"] for r in every]),
        "d2h": line(every, "copy"),
        "checksum": checksum,
        "verify": verify,
        "system": line(saves, "system"),
        "barrier": _line([r["phases"]["barrier"] for r in every], [r["shards"] for r in every]),
        "read_plan": _read_plan(everywhere),
        "place": _place(rows),
        "pack": {"start_s": 0.0, "item_s": _exchange(rows)[0], "s_per_B": 0.0},
    }


def _read_plan(rows: Rows) -> dict[str, float]:
    """Of loads of the same rows: by shards and boxes, and by bytes, which are read block by block."""
    loads = _of(rows, "load")
    items, read = [r["shards"] + r["items"] for r in loads], [int(r["read_B"]) for r in loads]
    return _line([r["phases"]["planning"] for r in loads], items, read, moved=False)


def _place(rows: Rows) -> dict[str, float]:
    """What loads of columns take beyond reading and verifying, for each byte that is copied to where it belongs."""
    columns = _of(rows, "columns")
    if not columns:
        return {"start_s": 0.0, "item_s": 0.0, "s_per_B": 0.0}
    left, copied = [_beyond_reading(r, rows) for r in columns], [r["nbytes"] for r in columns]
    return {"start_s": 0.0, "item_s": 0.0, "s_per_B": float(np.dot(left, copied) / np.dot(copied, copied))}


def _beyond_reading(row: Mapping[str, Any], rows: Rows) -> float:
    """Seconds of a load that are left when meetings, and planning, reading and verifying as much in place are taken off.

    Threads of a rank that share its core are in each other's way, so what a call lasted is not what it costs.
    """
    known = sum(row["phases"].get(p, 0.0) for p in ("read/metadata", "barrier", "barrier/meet"))
    plan = _read_plan(rows)
    known += plan["start_s"] + (row["shards"] + row["items"]) * plan["item_s"] + row["read_B"] * plan["s_per_B"]
    for phase in ("read", "deserialise"):
        own = line(_of(rows, "load"), phase)
        known += own["start_s"] + row["items"] * own["item_s"] + row["read_B"] * own["s_per_B"]
    return float(max(row["seconds"] - known, 0.0))


def _exchange(rows: Rows) -> tuple[float, float]:
    """Of loads that all ranks want whole: seconds beyond reading for each tensor, and for each byte from others."""
    whole = _of(rows, "whole")
    if not whole:
        return 0.0, 0.0
    left = np.maximum([_beyond_reading(r, rows) for r in whole], 1e-7)
    columns = np.array([[r["items"], r["received_B"]] for r in whole], dtype=np.float64)
    found, _ = nnls(columns / left[:, None], np.ones(len(whole)))
    return float(found[0]), float(found[1])


def exchanges(stores: Mapping[str, Rows], processes: int) -> dict[str, dict[int, list[list[float]]]]:
    """Points [bytes, seconds] of an exchange of all with all, packed and filled in as a load does it, and of a meeting of all."""
    rows = next(iter(stores.values()))
    received_B = sorted(int(r["received_B"]) for r in _of(rows, "whole"))
    if not received_B:
        return {}
    s_per_B = _exchange(rows)[1]
    points = [[nbytes, nbytes * s_per_B] for nbytes in received_B]
    meeting = float(np.median([r["phases"]["barrier/meet"] for r in _of(rows, "save")]))
    return {"all_to_all": {processes: points}, "barrier": {processes: [[0, meeting]]}}


def store_rates(together: Rows, alone: Rows, processes: int) -> dict[str, float]:
    """Rates of all processes and of one, and what a file takes whatever its size: read, as the small one with the metadata."""
    both, starts_s = dict[str, float](), dict[str, float]()
    for way, what, phase in (("write", "save", "upload"), ("read", "load", "read")):
        own, all_ = line(_of(alone, what), phase), line(_of(together, what), phase)
        both[f"{way}_B_per_s"] = processes / all_["s_per_B"]
        both[f"stream_{way}_B_per_s"] = 1.0 / own["s_per_B"]
        starts_s[way] = all_["start_s"]
    published_s, found_s = (
        float(np.median([r["phases"].get(phase, 0.0) for r in _of(together, what)]))
        for what, phase in (("save", "commit"), ("load", "read/metadata"))
    )
    both |= {"commit_s": max(starts_s["write"], published_s), "open_s": found_s}
    return both


def _of(rows: Rows, what: str) -> list[Mapping[str, Any]]:
    return [r for r in rows if r["what"] == what]


def line(rows: Rows, phase: str) -> dict[str, float]:
    """Start, seconds for each item and for each byte of a phase over states of different sizes."""
    seconds = [r["phases"].get(phase, 0.0) for r in rows]
    return _line(seconds, [r["items"] for r in rows], [r["nbytes"] for r in rows])


def _line(
    seconds: Sequence[float], items: Sequence[int], nbytes: Sequence[int] | None = None, *, moved: bool = True
) -> dict[str, float]:
    """Not negative, in least squares of relative errors, so that small states count as much as large ones.

    Where noise hides what bytes that are `moved` cost, everything that the largest state took is put down to them.
    """
    sizes = nbytes if nbytes is not None else [0] * len(items)
    columns = np.array([[1.0, count, size] for count, size in zip(items, sizes, strict=True)])
    measured = np.maximum(np.array(seconds), 1e-7)
    found, _ = nnls(columns / measured[:, None], np.ones(len(measured)))
    if moved and nbytes is not None and not found[2]:
        largest = int(np.argmax(sizes))
        found = np.array([0.0, 0.0, measured[largest] / sizes[largest]])
    return dict(zip(("start_s", "item_s", "s_per_B"), (float(x) for x in found), strict=True))
