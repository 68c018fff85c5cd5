"""Precisions that fit the memory of every class: a search and the optimum beside it, repeated while a peak is above its limit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from simcore.errors import DoesNotFit, Problem
from simcore.qsync.allocator import Allocation, allocate
from simcore.qsync.peak import excess_B, memory_B
from simcore.qsync.replay import Replayer
from simcore.qsync.search_state import ClassToPlan
from simcore.qsync.settings import Setting, setting
from simcore.quantity import size

When = Literal["auto", "always", "never"]

FEW = 14
"""Adjustable operators up to which `exact: auto` solves for the optimum as well."""


def fitting(
    classes: Sequence[ClassToPlan], replays: Replayer, *, tolerance: float, exact: When
) -> tuple[Allocation, tuple[Setting, ...], dict[str, Any]]:
    """What is found, what is taken and what the solver says; searched again with a larger allowance where the peak is too high."""
    while True:
        _refuse_what_nothing_fits(classes)
        found = allocate(classes, replays, tolerance=tolerance)
        settings, exactly = _exactly(classes, replays, found, exact)
        needed = {c.name: excess_B(c.local, s) for c, s in zip(classes, settings, strict=True)}
        if all(memory_B(c.local, s) <= c.limit_B for c, s in zip(classes, settings, strict=True)):
            return found, settings, exactly
        classes = [
            replace(c, local=replace(c.local, allowance_B=max(c.local.allowance_B, needed[c.name]))) for c in classes
        ]


def _refuse_what_nothing_fits(classes: Sequence[ClassToPlan]) -> None:
    problems = []
    for c in classes:
        if c.fastest is None or not c.fits(c.fastest):
            lacking = f"{size(c.least_B - c.limit_B)} are lacking: a smaller batch, or more precisions to choose from"
            given, allowed = f"at least {size(c.least_B)}", size(c.limit_B)
            problems.append(Problem(f"memory of {c.name}", given, allowed, lacking))
    if problems:
        raise DoesNotFit("no precisions fit the memory of the cluster", problems)


def _exactly(
    classes: Sequence[ClassToPlan], replays: Replayer, found: Allocation, when: When
) -> tuple[tuple[Setting, ...], dict[str, Any]]:
    """The better of what was found and what a solver finds within the same limits, and what the solver says."""
    n = sum(len(c.free) for c in classes)
    if when == "never" or n == 0 or (when == "auto" and n > FEW):
        return found.settings, {}
    from simcore.qsync.exact import exact as solve  # loads the solver

    best = solve(
        {c.name: c.local for c in classes},
        {c.name: c.omega for c in classes},
        {c.name: c.share for c in classes},
        {c.name: c.limit_B for c in classes},
        found.limit_s,
        replays.bucket_s,
    )
    if (
        best.status != "optimal"
    ):  # what a solver has when it is stopped depends on the machine's speed, and plans do not
        return found.settings, {"exact": {"status": best.status}}
    better = best.keeps_limits and best.variance < found.variance * (1 - 1e-9)
    gap = (found.variance - best.bound) / found.variance if found.variance else 0.0
    said = {"bound": best.bound, "gap_of_search": max(gap, 0.0), "status": best.status, "taken": better}
    if not better:
        return found.settings, {"exact": said}
    return tuple(setting(c.local, best.chosen[c.name]) for c in classes), {"exact": said}
