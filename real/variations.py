"""How good predictions are on this machine: the quickstart in a dozen variations, predicted and measured.

    python -m real.variations

Ends with exit code 1 if the median error of the iteration time is above 10 % or the largest above 20 %.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from simcore.compare import compare
from simcore.errors import WindtunnelError
from simcore.scenario import load

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


def measure(
    scenario: Path, repeat: int, names: Sequence[str] = (), variations: Variations = VARIATIONS
) -> list[dict[str, Any]]:
    """One row for each variation: simulated and measured seconds of an iteration, and the error of the prediction."""
    rows = []
    chosen = [v for v in variations if not names or v[0] in names]
    for i, (name, overrides) in enumerate(chosen):
        print(f"{i + 1} of {len(chosen)}: {name}", file=sys.stderr)
        found = compare(load(scenario, overrides), repeat=repeat)
        row = found.metrics["iteration_s"]
        rows.append({"variation": name, **row, "spread": found.spread, "parts_s": found.parts_s})
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a table."""
    table = Table("variation", "simulated", "measured", "error", box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row["variation"],
            f"{row['simulated'] * 1e3:.1f} ms",
            f"{row['measured'] * 1e3:.1f} ms",
            f"{row['error']:+.1%}",
        )
    return table


def options_of(about: str | None, scenario: str) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=Path, default=Path(scenario))
    parser.add_argument("--repeat", type=int, default=2, help="real runs of each variation; the median counts")
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
