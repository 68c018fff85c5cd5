"""How good predictions of RLHF are on this machine: plans of `scenarios/hybridflow_this_machine.yaml`, predicted and measured.

    python -m real.rlhf.variations

wants an earlier `windtunnel calibrate`, and a core for each rank. Seconds are at the pace of the calibration (see
`real.variations`). Which of two plans takes longer is what they take in the same rounds, whatever pace the machine had. Ends with
exit code 1 if the iteration of a plan is predicted more than 15 % off, or if plans that measurements tell apart are predicted in
another order.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from costmodels.generation_eager import eager_of
from real.variations import Variations, measure, options_of, tell
from simcore.errors import InputError, Problem, WindtunnelError
from simcore.scenario import load

LARGEST = 0.15
REPEAT = 8
"""Cores of a virtual machine are up to a third slower for ten seconds at a time, one of them or all, which is half of a run."""
TIED = 0.03
"""Plans whose measured iterations are nearer to each other than this are not told apart."""

LONG = ("workload.prompt_len=32", "workload.response_len=224", "workload.prompts=8")
GROUPS = ("workload.algorithm=grpo", "workload.prompts=4", "workload.samples=4")
SAFE = ("workload.algorithm=safe_rlhf",)
SPLIT = "planner.placement=split"

VARIATIONS: Variations = (
    ("one pool, dp 2", ()),
    ("one pool, tp 2", ("planner.tp=2",)),
    ("one pool, pp 2", ("planner.pp=2",)),
    ("two pools", (SPLIT,)),
    ("one pool, dp 2, long responses", LONG),
    ("two pools, long responses", (*LONG, SPLIT)),
    ("GRPO, one pool, dp 2", GROUPS),
    ("Safe-RLHF, one pool, dp 2", SAFE),
    ("Safe-RLHF, two pools", (*SAFE, SPLIT)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Pairs of plans that measurements tell apart, and those of them whose order is predicted wrong."""

    apart: Sequence[tuple[str, str]]
    swapped: Sequence[tuple[str, str]]


def order(rows: Sequence[Mapping[str, Any]]) -> Order:
    """How many times as long one plan takes as the other is the median over rounds."""
    apart, swapped = [], []
    for a, b in combinations(rows, 2):
        longer = median(x / y for x, y in zip(a["at_pace_s"], b["at_pace_s"], strict=True))
        if abs(longer - 1) > TIED:
            apart.append((a["variation"], b["variation"]))
            if (longer > 1) != (a["simulated"] > b["simulated"]):
                swapped.append(apart[-1])
    return Order(apart=apart, swapped=swapped)


def _measured(scenario: Path) -> None:
    """Raises `InputError` where what a controller and a decode step take is not known of the machine."""
    device = load(scenario).cluster().device(0)
    if eager_of(device) is None:
        problem = Problem(
            device.name, "no `eager` in its calibration", "a newer calibration", "Run `windtunnel calibrate`."
        )
        raise InputError("this machine has not been measured for RLHF", [problem])


def main() -> int:
    """Measure, print, judge."""
    options = options_of(__doc__, "scenarios/hybridflow_this_machine.yaml", REPEAT)
    try:
        _measured(options.scenario)
        rows = measure(options.scenario, options.repeat, options.only, VARIATIONS)
    except WindtunnelError as error:
        print(error, file=sys.stderr)
        return 2
    good, found = tell(rows, LARGEST, LARGEST, as_json=options.json), order(rows)
    print(f"order: {len(found.apart)} pairs told apart, {len(found.swapped)} in another order", file=sys.stderr)
    for a, b in found.swapped:
        print(f"predicted in another order: {a!r} and {b!r}", file=sys.stderr)
    return 0 if good and not found.swapped else 1


if __name__ == "__main__":
    sys.exit(main())
