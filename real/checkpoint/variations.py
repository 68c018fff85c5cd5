"""How good predictions of checkpoints are on this machine: stall, save, load and resharding, predicted and measured.

    python -m real.checkpoint.variations

wants an earlier `windtunnel calibrate`, which saves and loads states of other sizes. Ends with exit code 1 if an error is above
15 %. Where other programs took more than a twentieth of the ranks' cores, the row says that it was disturbed.

A virtual machine's memory and disk are not always as fast as when costs were measured. Beside each run both ranks copy memory, and
save and load a small state of no variation, or write and read a file on the disk; "copies", "saves" and "loads" are how many times
as long that took as during the calibration, "error" is that of a simulation with such a machine, and "as calibrated" that of one
which knows nothing of it.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from real.checkpoint.drifting import Slower, simulator
from real.checkpoint.speed import Speed
from real.traces import is_disturbed
from real.variations import chosen, in_turn
from simcore.backend import open_backend
from simcore.errors import WindtunnelError
from simcore.plan import Plan
from simcore.reporting.idle import iteration_bounds
from simcore.scenario import Scenario, load
from simcore.trace import Trace

LARGEST = 0.15
LAUNCHES, REPEAT = 6, 2
"""One launch differs from the next by more than its saves or loads from one another."""
FACTORS = ("copies", "saves", "loads")
SMALL = "workload.model={layers: 4, hidden: 512, ffn: 1376, heads: 8, vocab: 4096}"
DISK = "cluster.stores=[this_machine_disk]"
FSDP2 = ("planner.zero=3", "planner.rows=true", "planner.overlap=false")
SAVE, SYNC, LOAD, RESHARD = "save", "synchronous save", "load", "load, resharding"
ALL = (SAVE, SYNC, LOAD, RESHARD)
PLAYS: Mapping[str, tuple[str, ...]] = {
    SAVE: ("planner.plays=save",),
    SYNC: ("planner.plays=save", "planner.system=windtunnel_sync"),
    LOAD: ("planner.plays=load",),
    RESHARD: ("planner.plays=reshard",),
}
"""What is played, as changes of the scenario."""


@dataclass(frozen=True, slots=True)
class Variation:
    """A way to hold states, as changes of the scenario, and what is played of it."""

    name: str
    overrides: tuple[str, ...]
    plays: tuple[str, ...] = ALL


VARIATIONS = (
    Variation("ZeRO 1, 1.4 GB", ()),
    Variation("ZeRO 1, 0.2 GB", (SMALL,)),
    Variation("FSDP2, 1.4 GB", FSDP2),
    Variation("DDP, 1.4 GB", ("planner.zero=0",)),
    Variation("ZeRO 1, 1.4 GB, on disk", (DISK,), (SYNC, LOAD)),
    Variation("FSDP2, 0.2 GB, on disk", (SMALL, DISK, *FSDP2), (SYNC, LOAD)),
    Variation("DDP, 0.2 GB", (SMALL, "planner.zero=0"), (SAVE, LOAD)),
)


def measure(
    scenario: Path, iterations: int, names: Sequence[str] = (), folders: Sequence[Path] = (), launches: int = LAUNCHES
) -> list[dict[str, Any]]:
    """Rows with simulated and measured seconds, and the error of the prediction.

    All variations are launched in turn, and then again: what disturbs this machine for a minute meets one launch of each.
    """
    wanted = chosen(names, [v.name for v in VARIATIONS])
    played = [
        Played(f"{v.name}: {plays}", load(scenario, _changes(v, plays, iterations), folders), stalls=plays == SAVE)
        for v in VARIATIONS
        if v.name in wanted
        for plays in v.plays
    ]
    for one in in_turn(played, launches):
        one.measured.append(open_backend("real", one.scenario).run(one.plan))
    return [row for one in played for row in _rows(one)]


def _changes(variation: Variation, plays: str, iterations: int) -> tuple[str, ...]:
    return (*variation.overrides, *PLAYS[plays], f"workload.iterations={iterations}", "planner.baselines=[]")


@dataclass
class Played:
    """A variation and what was measured of it, launch by launch."""

    name: str
    scenario: Scenario
    stalls: bool
    measured: list[Trace] = field(default_factory=list)

    @cached_property
    def plan(self) -> Plan:
        """The same in all launches and in the simulator."""
        return self.scenario.plan()


def _rows(one: Played) -> Iterator[dict[str, Any]]:
    slower = slower_than_usual(one.measured)
    simulated = [open_backend("sim", one.scenario).run(one.plan), simulator(one.scenario, slower).run(one.plan)]
    traces = ([simulated[0]], [simulated[1]], one.measured)
    if one.stalls:
        yield _row(f"{one.name}, stall", [stall_s(one.plan, of) for of in traces], slower, one.measured)
    yield _row(one.name, [whole_s(of) for of in traces], slower, one.measured)


def slower_than_usual(measured: Sequence[Trace]) -> Slower:
    """How memory and disk were beside the runs; as when costs were measured where that is not known."""
    usual = measured[0].environment["usual_speed"]
    if usual is None:
        return Slower()
    found = Speed.usual([Speed(**speed) for trace in measured for speed in trace.environment["speeds"]])
    return Slower.than(Speed(**usual), found)


def _row(name: str, seconds: Sequence[float], slower: Slower, real: Sequence[Trace]) -> dict[str, Any]:
    calibrated, simulated, measured = seconds
    disturbed = all(is_disturbed(t.environment["cores_taken_by_others"], len(t.lanes)) for t in real)
    return {
        "variation": f"{name}{', disturbed' if disturbed else ''}",
        "simulated": simulated,
        "measured": measured,
        "error": simulated / measured - 1,
        **asdict(slower),
        "as calibrated": calibrated / measured - 1,
        "warnings": [w for trace in real for w in trace.warnings],
    }


def whole_s(traces: Sequence[Trace]) -> float:
    """Median seconds of the saves or loads of all launches."""
    return float(np.median(np.concatenate([np.diff(iteration_bounds(trace)) for trace in traces])))


def stall_s(plan: Plan, traces: Sequence[Trace]) -> float:
    """Median seconds from the start of an asynchronous save until the last rank's states are copied."""
    return float(np.median([s for trace in traces for s in _stalls_s(plan, trace)]))


def _stalls_s(plan: Plan, trace: Trace) -> list[float]:
    blocking = {i for i, task in enumerate(plan.tasks) if task.id == "agree" or task.id.startswith("copy/")}
    copied = np.isin(trace.task, list(blocking))
    starts = iteration_bounds(trace)
    ends = [trace.end_s[copied & (trace.iteration == i)].max() for i in np.unique(trace.iteration)]
    return [float(end - start) for end, start in zip(ends, starts[:-1], strict=True)]


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a table."""
    table = Table(box=None, header_style="bold")
    for column in ("variation", "simulated", "measured", "error", *FACTORS, "as calibrated"):
        table.add_column(column, justify="left" if column == "variation" else "right")
    for row in rows:
        times = [f"{row[world] * 1e3:.1f} ms" for world in ("simulated", "measured")]
        shares = [
            f"{row['error']:+.1%}",
            *(f"x {row[x]:.2f}" for x in FACTORS),
            f"{row['as calibrated']:+.1%}",
        ]
        table.add_row(row["variation"], *times, *shares)
    return table


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=Path, default=Path("scenarios/bytecheckpoint_this_machine.yaml"))
    parser.add_argument("--launches", type=int, default=LAUNCHES, help="of the ranks of each variation")
    parser.add_argument(
        "--repeat", type=int, default=REPEAT, help="saves or loads of each launch; the median of all counts"
    )
    parser.add_argument("--only", nargs="*", default=(), help="names of variations")
    parser.add_argument("--catalog", type=Path, nargs="*", default=(), help="folders with another calibration")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        rows = measure(options.scenario, options.repeat, options.only, options.catalog, options.launches)
    except WindtunnelError as error:
        print(error, file=sys.stderr)
        return 2
    errors, unaware = ([abs(row[key]) for row in rows] for key in ("error", "as calibrated"))
    summary = {"median": median(errors), "largest": max(errors)}
    if options.json:
        json.dump({"rows": rows, **summary}, sys.stdout, indent=2)
        print()
    else:
        Console().print(table_of(rows))
        print(*dict.fromkeys(f"warning: {w}" for row in rows for w in row["warnings"]), sep="\n")
        print(f"\nerror: median {summary['median']:.1%}, largest {summary['largest']:.1%} (at most {LARGEST:.0%})")
        print(f"as calibrated: median {median(unaware):.1%}, largest {max(unaware):.1%}")
    return 0 if summary["largest"] <= LARGEST else 1


if __name__ == "__main__":
    sys.exit(main())
