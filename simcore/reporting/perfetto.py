"""Traces as files: Chrome's trace event JSON, which ui.perfetto.dev and chrome://tracing open, and which reads back exactly.

A process is a lane (ranks that behave the same), a thread is a stream. Events have microseconds rounded to nanoseconds; the
exact columns lie beside them under `windtunnel`, as base64 of little-endian 64-bit numbers.
Format: "Trace Event Format", Google, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.files import write_atomically
from simcore.engine.kinds import part_of
from simcore.errors import InputError, Problem
from simcore.plan import Plan
from simcore.trace import Lane, Trace

FORMAT = 1
COLUMNS = {"task": "<i8", "iteration": "<i8", "lane": "<i8", "start_s": "<f8", "end_s": "<f8", "nbytes": "<i8"}
TEXTS = ("plan_digest", "backend", "environment", "task_ids", "memory_B", "incomplete", "warnings", "extra")


def write_trace(path: Path, trace: Trace, plan: Plan) -> None:
    """Write a trace, gzipped where the name ends in .gz; whole or not at all, the same bytes for the same trace."""
    events = ",\n".join([*_names(trace, plan), *_events(trace, plan)])
    text = f'{{"displayTimeUnit":"ms","traceEvents":[\n{events}\n],\n"windtunnel":{json.dumps(_exact(trace))}}}\n'
    data = text.encode()
    write_atomically(path, gzip.compress(data, compresslevel=1, mtime=0) if path.suffix == ".gz" else data)


def read_trace(path: Path) -> Trace:
    """Inverse of `write_trace`. Raises `InputError` for anything else."""
    wanted = "a trace written by windtunnel"
    try:
        raw = path.read_bytes()
        document = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        exact = document["windtunnel"]
        if exact["format"] != FORMAT:
            raise InputError("an unknown format", [Problem(str(path), f"format {exact['format']}", f"format {FORMAT}")])
        return _trace(exact)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read", [Problem(str(path), str(error.strerror or error), wanted)]
        ) from error
    except (KeyError, TypeError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a trace", [Problem(str(path), repr(error)[:80], wanted)]) from error


def _exact(trace: Trace) -> dict[str, Any]:
    columns = {
        name: base64.b64encode(getattr(trace, name).astype(code).tobytes()).decode() for name, code in COLUMNS.items()
    }
    lanes = [[lane.label, lane.device, lane.ranks] for lane in trace.lanes]
    return {"format": FORMAT, "columns": columns, "lanes": lanes, **{name: getattr(trace, name) for name in TEXTS}}


def _trace(exact: dict[str, Any]) -> Trace:
    columns = {
        name: np.frombuffer(base64.b64decode(exact["columns"][name]), dtype=code).astype(code[1:])
        for name, code in COLUMNS.items()
    }
    lanes = tuple(
        Lane(label=label, device=device, ranks=tuple((first, last) for first, last in ranks))
        for label, device, ranks in exact["lanes"]
    )
    return Trace(
        plan_digest=exact["plan_digest"], backend=exact["backend"], environment=exact["environment"], lanes=lanes,
        task_ids=tuple(exact["task_ids"]), memory_B=tuple(exact["memory_B"]),
        incomplete=tuple((task, lane) for task, lane in exact["incomplete"]),
        warnings=tuple(exact["warnings"]), extra=exact["extra"], **columns,
    )  # fmt: skip


def _names(trace: Trace, plan: Plan) -> list[str]:
    """Metadata events: names of lanes and streams, in order."""
    out = []
    for i, lane in enumerate(trace.lanes):
        label = json.dumps({"name": f"{lane.label} ({lane.device})"})
        out.append(f'{{"ph":"M","name":"process_name","pid":{i},"args":{label}}}')
        out.append(f'{{"ph":"M","name":"process_sort_index","pid":{i},"args":{{"sort_index":{i}}}}}')
    for lane_i, thread, name in _threads(trace, plan)[1]:
        out.append(
            f'{{"ph":"M","name":"thread_name","pid":{lane_i},"tid":{thread},"args":{json.dumps({"name": name})}}}'
        )
    return out


def _events(trace: Trace, plan: Plan) -> list[str]:
    """One complete event for each span."""
    heads = [f'{{"ph":"X","name":{json.dumps(t.id)},"cat":{json.dumps(part_of(t))},"pid":' for t in plan.tasks]
    threads = _threads(trace, plan)[0]
    start_us, length_us = trace.start_s * 1e6, (trace.end_s - trace.start_s) * 1e6
    columns = (trace.task, trace.lane, threads, start_us, length_us, trace.iteration, trace.nbytes)
    return [
        f'{heads[task]}{lane},"tid":{thread},"ts":{ts:.3f},"dur":{dur:.3f},"args":{{"iteration":{i},"nbytes":{size}}}}}'
        for task, lane, thread, ts, dur, i, size in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _threads(trace: Trace, plan: Plan) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[tuple[int, int, str]]]:
    """The thread of each span, and (lane, thread, name) of all threads.

    Spans of one thread must not overlap, so a stream whose tasks do (collectives in flight together) gets several.
    """
    streams = list(dict.fromkeys(task.op.stream for task in plan.tasks))
    of_task = np.array([streams.index(task.op.stream) for task in plan.tasks], dtype=np.int64)
    stream = of_task[trace.task] if len(trace) else np.empty(0, dtype=np.int64)
    track = _tracks(trace.lane * len(streams) + stream, trace.start_s, trace.end_s)
    thread = stream + track * len(streams)
    used = np.unique(np.stack([trace.lane, thread]), axis=1).T.tolist()
    named = [
        (lane, t, streams[t % len(streams)] + (f" ({t // len(streams) + 1})" if t >= len(streams) else ""))
        for lane, t in used
    ]
    return thread, named


def _tracks(row: Any, start: Any, end: Any) -> Any:
    """The first track of its row on which a span overlaps none before it; 0 for all where nothing overlaps."""
    track = np.zeros(len(row), dtype=np.int64)
    order = np.lexsort((end, start, row))
    a, b = order[:-1], order[1:]
    crowded = np.unique(row[a[(row[a] == row[b]) & (end[a] > start[b])]])
    free: dict[int, list[float]] = {}
    for i in order[np.isin(row[order], crowded)].tolist():
        ends = free.setdefault(int(row[i]), [])
        found = next((k for k, until in enumerate(ends) if until <= start[i]), len(ends))
        ends[found : found + 1] = [end[i]]
        track[i] = found
    return track
