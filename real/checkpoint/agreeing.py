"""What all ranks hold, told to all, and the plan that each of them makes of it; the same on every rank, so nothing is sent back.

A plan is kept: as long as no rank's state changes its names, shapes, dtypes, boxes or aliases, saving again exchanges one digest a
rank and plans nothing.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from real.checkpoint.errors import CheckpointError
from real.checkpoint.leaves import Described
from real.checkpoint.ranks import Ranks
from simcore.checkpoint.boxes import Box, intersection
from simcore.checkpoint.cache import state_digest
from simcore.checkpoint.merging import merge_ranks
from simcore.checkpoint.saving import SavePlan, save_plan
from simcore.checkpoint.shards import Shards, TensorSpec
from simcore.errors import Problem, WindtunnelError


@dataclass(frozen=True, slots=True)
class Agreed:
    """The plan of a save, names that share another's memory, and which of this rank's boxes each of its rows is cut from."""

    plan: SavePlan
    aliases: Mapping[str, str]
    cut_from: Mapping[int, tuple[str, Box]]


def digest_of(described: Described) -> bytes:
    """16 bytes that change whenever the plan could."""
    hashed = hashlib.blake2b(state_digest(described.held), digest_size=16)
    specs = sorted([s.name, s.role, s.dtype, list(s.shape)] for s in described.specs.values())
    hashed.update(json.dumps([specs, sorted(described.aliases.items())]).encode())
    return hashed.digest()


def gather_problems(ranks: Ranks, mistake: WindtunnelError | None, payload: bytes = b"") -> list[bytes]:
    """Everybody's payload, or everybody's mistakes raised everywhere: no rank is left waiting for one that gave up."""
    text = b"" if mistake is None else json.dumps([mistake.summary, *([vars_of(p) for p in mistake.problems])]).encode()
    answers = ranks.all_gather(bytes([mistake is not None]) + (text or payload))
    problems: list[Problem] = []
    summaries = []
    for rank, answer in enumerate(answers):
        if answer[0]:
            summary, *found = json.loads(answer[1:])
            summaries.append(summary)
            where = f" (rank {rank})" if ranks.size > 1 else ""
            problems += [Problem(p[0] + where, *p[1:]) for p in found] or [Problem(f"rank {rank}", summary, "success")]
    if mistake is not None and ranks.size == 1:
        raise mistake
    if problems:
        raise CheckpointError(summaries[0], list(dict.fromkeys(problems))[:20])
    return [answer[1:] for answer in answers]


def vars_of(problem: Problem) -> list[str]:
    """A problem as a row of JSON."""
    return [problem.field, problem.given, problem.allowed, problem.advice]


def gather_layouts(
    ranks: Ranks, described: Described | None, mistake: WindtunnelError | None = None
) -> list[dict[str, Any]]:
    """What every rank holds, as plain data; a rank that could not describe that has a mistake, which every rank raises."""
    told = b"" if described is None else _layout(described)
    return [json.loads(text) for text in gather_problems(ranks, mistake, told)]


def _layout(described: Described) -> bytes:
    numbers = {name: i for i, name in enumerate(described.specs)}
    layout = {
        "specs": [[s.name, s.shape, s.dtype, s.role] for s in described.specs.values()],
        "boxes": [[numbers[p.spec.name], p.box.offsets, p.box.lengths] for p in described.pieces],
        "aliases": dict(described.aliases),
    }
    return json.dumps(layout).encode()


def held_of(layout: Mapping[str, Any]) -> tuple[list[TensorSpec], list[tuple[TensorSpec, Box]]]:
    """One rank's tensors and boxes."""
    specs = [TensorSpec(name, tuple(shape), dtype, role) for name, shape, dtype, role in layout["specs"]]
    boxes = [(specs[i], Box(tuple(offsets), tuple(lengths))) for i, offsets, lengths in layout["boxes"]]
    empty = [(s, Box((0,) * len(s.shape), s.shape)) for s in specs if not s.nbytes]
    return specs, boxes + empty


def agree(layouts: Sequence[Mapping[str, Any]], rank: int, largest_B: int, align_B: int) -> Agreed:
    """The plan of a save. Raises InputError where ranks disagree, overlap or leave something out."""
    told = [held_of(layout) for layout in layouts]
    held = [h for _, h in told]
    shards = merge_ranks(held)
    known = {t.name for t in shards.tensors}
    aliases = {a: n for layout in layouts for a, n in layout["aliases"].items() if a not in known}
    lacking = {s.name: s for specs, _ in told for s in specs if s.name not in known and s.name not in aliases}
    if lacking:
        problems = [
            Problem(name, "no rank holds an element of it", f"all of shape {s.shape}") for name, s in lacking.items()
        ]
        raise CheckpointError("tensors that nobody holds", problems[:10])
    plan = save_plan(shards, largest_B=largest_B, align_B=align_B)
    return Agreed(plan, aliases, _cut_from(plan, held[rank], rank))


def _cut_from(plan: SavePlan, held: Sequence[tuple[TensorSpec, Box]], rank: int) -> dict[int, tuple[str, Box]]:
    by_name: dict[str, list[Box]] = {}
    for spec, box in held:
        by_name.setdefault(spec.name, []).append(box)
    found = {}
    for row in (plan.writer == rank).nonzero()[0].tolist():
        name, box = plan.shards.tensors[plan.shards.tensor[row]].name, plan.shards.box(row)
        found[row] = (name, next(outer for outer in by_name[name] if intersection(outer, box) == box))
    return found


def merged_wanted(
    layouts: Sequence[Mapping[str, Any]], saved: Sequence[TensorSpec], aliases: Mapping[str, str]
) -> Shards:
    """The table of what all ranks want, under the names that were saved and listing the same tensors.

    Raises CheckpointError naming tensors that were not saved, or with another shape or dtype.
    """
    position = {t.name: t for t in saved}
    problems: dict[str, Problem] = {}
    states: list[list[tuple[TensorSpec, Box]]] = []
    for layout in layouts:
        specs, held = held_of(layout)
        for spec in specs:
            known = position.get(aliases.get(spec.name, spec.name))
            if known is None:
                problems[spec.name] = Problem(spec.name, "not in the checkpoint", _near(spec.name, position))
            elif (known.shape, known.dtype) != (spec.shape, spec.dtype):
                given = f"{spec.dtype} of shape {spec.shape}"
                problems[spec.name] = Problem(spec.name, given, f"{known.dtype} of shape {known.shape}, as saved")
        if not problems:
            states.append([(position[aliases.get(s.name, s.name)], box) for s, box in held])
    if problems:
        raise CheckpointError("the checkpoint does not hold what is wanted", list(problems.values())[:10])
    return merge_ranks(states, saved)


def _near(name: str, known: Mapping[str, object]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, list(known)[:10_000], n=3)
    return f"one of its {len(known)} tensors" + (f"; close: {', '.join(close)}" if close else "")
