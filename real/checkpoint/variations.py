"""How good predictions of checkpoints are on this machine: stall, save, load and resharding, predicted and measured.

    python -m real.checkpoint.variations

wants an earlier `windtunnel calibrate`, which saves and loads states of other sizes. Ends with exit code 1 if an error is above
15 %. Where other programs took more than a twentieth of the ranks' cores, the row says that it was disturbed.

A virtual machine's memory is not always as fast as when costs were measured. Both ranks copy beside each run; "memory" is how many
times as long these copies took as during the calibration, "error" that of a simulation with copies at this speed, and "as
calibrated" that of one which knows nothing of it.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from real.checkpoint.drifting import simulator
from real.traces import is_disturbed
from simcore.backend import open_backend
from simcore.errors import WindtunnelError
from simcore.plan import Plan
from simcore.reporting.idle import iteration_bounds
from simcore.scenario import Scenario, load
from simcore.trace import Trace

LARGEST = 0.15
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
    scenario: Path, iterations: int, names: Sequence[str] = (), folders: Sequence[Path] = ()
) -> list[dict[str, Any]]:
    """Rows with simulated and measured seconds, and the error of the prediction."""
    chosen = [(v, plays) for v in VARIATIONS if not names or v.name in names for plays in v.plays]
    rows: list[dict[str, Any]] = []
    for i, (variation, plays) in enumerate(chosen):
        said = f"{i + 1} of {len(chosen)}: "
        changes = (*variation.overrides, *PLAYS[plays], f"workload.iterations={iterations}", "planner.baselines=[]")
        for row in _rows(f"{variation.name}: {plays}", load(scenario, changes, folders), stalls=plays == SAVE):
            rows.append(row)
            times = f"{row['simulated']:.3g} s simulated, {row['measured']:.3g} s measured"
            print(f"{said}{row['variation']}: {times}", file=sys.stderr, flush=True)
    return rows


def _rows(name: str, scenario: Scenario, *, stalls: bool) -> Iterator[dict[str, Any]]:
    plan = scenario.plan()
    measured, calibrated = open_backend("real", scenario).run(plan), open_backend("sim", scenario).run(plan)
    slower = slower_memory(measured)
    simulated = simulator(scenario, slower).run(plan)
    traces = (calibrated, simulated, measured)
    if stalls:
        yield _row(f"{name}, stall", [stall_s(plan, trace) for trace in traces], slower, measured)
    yield _row(name, [whole_s(trace) for trace in traces], slower, measured)


def slower_memory(measured: Trace) -> float:
    """How many times as long copies took beside the runs as when costs were measured; 1 where that is not known."""
    usual = measured.environment["usual_copy_B_per_s"]
    return float(usual / median(measured.environment["copy_B_per_s"])) if usual else 1.0


def _row(name: str, seconds: Sequence[float], slower: float, real: Trace) -> dict[str, Any]:
    calibrated, simulated, measured = seconds
    disturbed = is_disturbed(real.environment["cores_taken_by_others"], len(real.lanes))
    return {
        "variation": f"{name}{', disturbed' if disturbed else ''}",
        "simulated": simulated,
        "measured": measured,
        "error": simulated / measured - 1,
        "memory": slower,
        "as calibrated": calibrated / measured - 1,
        "warnings": list(real.warnings),
    }


def whole_s(trace: Trace) -> float:
    """Median seconds of a save or a load."""
    return float(np.median(np.diff(iteration_bounds(trace))))


def stall_s(plan: Plan, trace: Trace) -> float:
    """Median seconds from the start of an asynchronous save until the last rank's states are copied."""
    blocking = {i for i, task in enumerate(plan.tasks) if task.id == "agree" or task.id.startswith("copy/")}
    copied = np.isin(trace.task, list(blocking))
    starts = iteration_bounds(trace)
    ends = [trace.end_s[copied & (trace.iteration == i)].max() - starts[i] for i in np.unique(trace.iteration)]
    return float(np.median(ends))


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a table."""
    table = Table(box=None, header_style="bold")
    for column in ("variation", "simulated", "measured", "error", "memory", "as calibrated"):
        table.add_column(column, justify="left" if column == "variation" else "right")
    for row in rows:
        times = [f"{row[world] * 1e3:.1f} ms" for world in ("simulated", "measured")]
        shares = [f"{row['error']:+.1%}", f"x {row['memory']:.2f}", f"{row['as calibrated']:+.1%}"]
        table.add_row(row["variation"], *times, *shares)
    return table


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=Path, default=Path("scenarios/bytecheckpoint_this_machine.yaml"))
    parser.add_argument("--repeat", type=int, default=5, help="saves or loads of each run; the median counts")
    parser.add_argument("--only", nargs="*", default=(), help="names of variations")
    parser.add_argument("--catalog", type=Path, nargs="*", default=(), help="folders with another calibration")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        rows = measure(options.scenario, options.repeat, options.only, options.catalog)
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
