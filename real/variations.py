"""How good predictions are on this machine: the quickstart in a dozen variations, predicted and measured.

    python -m real.variations

wants an earlier `windtunnel calibrate`. Ends with exit code 1 if the median error of the iteration time is above 10 % or the
largest above 20 %.

A virtual machine is not always as fast as when costs were measured. Before and after each round, in which all variations run once,
the ranks' cores do passes and decode steps of a calibration's models; "passes" and "steps" are how many times as long as then these
took. What a run took counts over how many times as long a simulation takes with such cores than with those of the calibration:
"measured" is the median of that, at the pace of the calibration, and "error" the prediction's for it. "as measured" and "as
calibrated" know nothing of any pace (see `real.pace`).
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.table import Table

from real.pace import Pace, Slower, at_pace, probe, usual
from simcore.backend import open_backend
from simcore.compare import compare_traces
from simcore.errors import InputError, Problem, WindtunnelError
from simcore.plan import Plan
from simcore.scenario import Scenario, load
from simcore.sim import SimBackend
from simcore.trace import Trace

MEDIAN, LARGEST = 0.10, 0.20

Variations = Sequence[tuple[str, tuple[str, ...]]]
"""Names, and what differs from the scenario."""

VARIATIONS: Variations = (
    ("quickstart", ()),
    ("one worker", ("cluster.devices_per_node=1", "cluster.device=this_machine_alone")),
    ("wide model", ("workload.model={layers: 2, hidden: 512, ffn: 1376, heads: 8, vocab: 256}",)),
    ("narrow, deep model", ("workload.model={layers: 8, hidden: 128, ffn: 344, heads: 2, vocab: 256}",)),
    ("microbatch 2", ("planner.microbatch=2",)),
    ("sequences of 256", ("workload.seq_len=256", "planner.microbatch=4")),
    ("buckets of 256 KiB", ("planner.bucket=256 KiB", "planner.first_bucket=256 KiB")),
    ("no overlap", ("planner.overlap=false",)),
    ("tensor parallel", ("planner.tp=2",)),
    ("ZeRO 1", ("planner.zero=1",)),
    ("ZeRO 2", ("planner.zero=2", "planner.overlap=false")),
    ("ZeRO 3", ("planner.zero=3", "planner.overlap=false")),
)


class Named(Protocol):
    """Something to run."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A variation's plan, its real runs, and the pace of the machine in the round of each."""

    name: str
    scenario: Scenario
    plan: Plan
    runs: list[Trace] = field(default_factory=list)
    paces: list[Pace] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Simulated and measured seconds of an iteration, and the error of the prediction."""
        found = compare_traces(self.plan, SimBackend.from_scenario(self.scenario).run(self.plan), self.runs)
        named = {"variation": self.name, "spread": found.spread, "parts_s": found.parts_s}
        return {**named, **found.metrics["iteration_s"]}

    def row_at_pace(self, known: Pace) -> dict[str, Any]:
        """The same at the pace that is `known`: what each run took, over how many times as long it was to take at its own pace."""
        row, calibrated = self.row(), SimBackend.from_scenario(self.scenario)
        slower = [Slower.than(known, pace) for pace in self.paces]
        measured = []
        for run, own in zip(self.runs, slower, strict=True):
            simulated = calibrated.on(at_pace(calibrated.cluster, own)).run(self.plan)
            one = compare_traces(self.plan, simulated, [run]).metrics["iteration_s"]
            measured.append(one["measured"] * row["simulated"] / one["simulated"])
        return {
            **row,
            "measured": median(measured),
            "error": row["simulated"] / median(measured) - 1,
            "passes": geometric_mean(s.passes for s in slower),
            "steps": geometric_mean(s.steps for s in slower),
            "at_pace_s": measured,
            "as_measured": row["measured"],
            "as_calibrated": row["error"],
        }


def measure(
    scenario: Path, repeat: int, names: Sequence[str] = (), variations: Variations = VARIATIONS, *, paced: bool = True
) -> list[dict[str, Any]]:
    """A row for each variation, in their order. With `paced` errors are those at the pace that the machine had meanwhile.

    All run in turn, and then again, `repeat` times: what disturbs this machine for a minute meets one run of each. A round has one
    pace: probes differ from one to the next by more than the machine does, which tells variations apart that are not.

    Raises `InputError` for names that no variation has, and where `paced` and no pace was measured with the costs.
    """
    wanted = chosen(names, [name for name, _ in variations])
    scenarios = [(name, load(scenario, overrides)) for name, overrides in variations if name in wanted]
    known = [usual_pace(one) for _, one in scenarios] if paced else []
    played = [Played(name=name, scenario=one, plan=one.plan()) for name, one in scenarios]
    paces = [probe()] if paced else []
    for one in in_turn(played, repeat):
        one.runs.append(open_backend("real", one.scenario).run(one.plan))
        if paced and one is played[-1]:
            paces.append(probe())
            for each in played:
                each.paces.append(Pace.between(paces[-2:]))
    return [one.row_at_pace(known[i]) if paced else one.row() for i, one in enumerate(played)]


def in_turn(played: Sequence[N], times: int) -> Iterator[N]:
    """All of them, and then again, and on standard error which one is next and how long the rest will take."""
    begun_s, total = time.monotonic(), times * len(played)
    for i in range(total):
        one = played[i % len(played)]
        left_s = (time.monotonic() - begun_s) / i * (total - i) if i else 0.0
        about = f", about {left_s:.0f} s left" if i else ""
        print(f"{i + 1} of {total}: {one.name}{about}", file=sys.stderr, flush=True)
        yield one


def chosen(names: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """`names`, or all that are `known` where none is given. Raises `InputError` with those that nobody knows."""
    problems = [Problem("--only", repr(name), ", ".join(map(repr, known))) for name in names if name not in known]
    if problems:
        raise InputError("no such variation", problems)
    return names or known


def usual_pace(scenario: Scenario) -> Pace:
    """The pace at which costs of the scenario's ranks were measured. Raises `InputError` where that is not known."""
    device = scenario.cluster().device(0)
    found = usual(device)
    if found is None:
        advice = "Run `windtunnel calibrate` again."
        problem = Problem(f"{device.name}: measured.pace", "none", "a calibration that knows its own pace", advice)
        raise InputError("how fast this machine was when it was calibrated is not known", [problem])
    return found


def shown(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a table."""
    paced = "as_calibrated" in rows[0]
    table = Table(box=None, header_style="bold")
    last = ("passes", "steps", "as measured", "as calibrated") if paced else ()
    for column in ("variation", "simulated", "measured", "error", *last):
        table.add_column(column, justify="left" if column == "variation" else "right")
    for row in rows:
        times = [f"{row[world] * 1e3:.1f} ms" for world in ("simulated", "measured")]
        factors = [f"x {row[x]:.2f}" for x in ("passes", "steps") if paced]
        unaware = [f"{row['as_measured'] * 1e3:.1f} ms", f"{row['as_calibrated']:+.1%}"] if paced else []
        table.add_row(row["variation"], *times, f"{row['error']:+.1%}", *factors, *unaware)
    return table


def options_of(about: str | None, scenario: str, repeat: int = 2) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=Path, default=Path(scenario))
    parser.add_argument("--repeat", type=int, default=repeat, help="real runs of each variation; the median counts")
    parser.add_argument("--only", nargs="*", default=(), help="names of variations")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def tell(rows: Sequence[dict[str, Any]], median_limit: float, largest_limit: float, *, as_json: bool) -> bool:
    """Print the rows with their median and largest error; whether both are within their limits."""
    errors = [abs(row["error"]) for row in rows]
    summary = {"median": median(errors), "largest": max(errors)}
    if as_json:
        json.dump({"rows": rows, **summary}, sys.stdout, indent=2)
        print()
    else:
        Console().print(shown(rows))
        print(f"\nerror: median {summary['median']:.1%} (at most {median_limit:.0%}), ", end="")
        print(f"largest {summary['largest']:.1%} (at most {largest_limit:.0%})")
        unaware = [abs(row["as_calibrated"]) for row in rows if "as_calibrated" in row]
        if unaware:
            print(f"as calibrated: median {median(unaware):.1%}, largest {max(unaware):.1%}")
    return summary["median"] <= median_limit and summary["largest"] <= largest_limit


def main() -> int:
    """Measure, print, judge."""
    options = options_of(__doc__, "scenarios/quickstart.yaml")
    try:
        rows = measure(options.scenario, options.repeat, options.only)
    except WindtunnelError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if tell(rows, MEDIAN, LARGEST, as_json=options.json) else 1


if __name__ == "__main__":
    sys.exit(main())
