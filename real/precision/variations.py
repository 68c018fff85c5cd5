"""How good predictions are for mixed precision on this machine: two unequal ranks, variation by variation.

    python -m real.precision.variations

wants an earlier `windtunnel calibrate`. Operators are profiled in the same rounds in which the plans run, an iteration of each in
turn: a machine that is shared or changes its clock is otherwise another one by the time the plan runs, and its cores are not
equally fast, so that each rank has a device of its own. Predictions know the profiles, which are of uniform precisions without
communication, and nothing of the runs. Ends with exit code 1 if the median error of the iteration time is above 5 %, the largest
above 10 %, or one of memory above 10 %.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from costmodels.catalog import Catalog, write_entry
from costmodels.operator_graph import OperatorGraph
from costmodels.precision import allowed, of_device
from costmodels.specs import DeviceSpec
from real.precision.drafting import Part, draft
from real.precision.models import build
from real.precision.profiling import DEVICE, Job, Ran, add_precisions, merge, side_by_side, uniform
from real.precision.tracing import trace
from simcore.cluster import Cluster
from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.errors import InputError, Problem, WindtunnelError
from simcore.plan import Compute, Plan
from simcore.progress import Progress, part
from simcore.progress import shown as shown_progress
from simcore.qsync.peak import memory_B
from simcore.qsync.settings import setting
from simcore.qsync.tables import local_graph
from simcore.topologies import single_node

MEDIAN, LARGEST, MEMORY = 0.05, 0.10, 0.10
RANKS, ROUNDS = 2, 40
CALIBRATION = Path("calibration")
DEVICES = tuple(f"{DEVICE}_rank{r}" for r in range(RANKS))
OPTIMIZER = "sgd_momentum"
MODELS = {"small_resnet": (192, 144, 240), "small_transformer": (48, 32, 64)}
"""Batch of both ranks, and those of two ranks that do not do the same."""

Chosen = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """What both ranks compute in, and how many samples each has."""

    name: str
    precision: tuple[Chosen, Chosen]
    batch: tuple[int, int]


def variations(graph: OperatorGraph, has: Sequence[str], batches: tuple[int, int, int]) -> Iterator[Variation]:
    """Uniform plans, then mixed ones."""
    each, few, many = batches
    wide, half, narrow = (uniform(graph, p, has) for p in ("float32", "bfloat16", "int8"))
    names = list(wide)

    def pick(where: Callable[[int], bool], low: Chosen, high: Chosen) -> Chosen:
        return {name: (low if where(i) else high)[name] for i, name in enumerate(names)}

    middle = len(names) // 2
    rng = random.Random(0)
    drawn = {name: rng.choice(allowed(graph[name], has)) for name in names}
    mixed = {
        "float32 beside bfloat16": (wide, half),
        "float32 beside int8": (wide, narrow),
        "first half in bfloat16": (wide, pick(lambda i: i < middle, half, wide)),
        "every other in int8": (wide, pick(lambda i: i % 2 == 0, narrow, wide)),
        "int8, then bfloat16": (half, pick(lambda i: i < middle, narrow, half)),
        "drawn by chance": (wide, drawn),
    }
    for precision, chosen in (("float32", wide), ("bfloat16", half), ("int8", narrow)):
        yield Variation(name=precision, precision=(chosen, chosen), batch=(each, each))
    for name, pair in mixed.items():
        yield Variation(name=name, precision=pair, batch=(each, each))
    last = (wide, pick(lambda i: i >= middle, half, wide))
    yield Variation(name=f"{many} and {few} samples, last half in bfloat16", precision=last, batch=(many, few))


def measure(
    names: Sequence[str] = (),
    models: Sequence[str] = tuple(MODELS),
    *,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One row for each variation: seconds of an iteration and bytes of both ranks, simulated and measured.

    Raises `InputError` for names that no variation has, and where the machine was not calibrated.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as folder:
        document = _document(Path(folder))
        for number, model in enumerate(models):
            told = part(progress, number / len(models), (number + 1) / len(models))
            rows += _of_model(model, names, document, Path(folder), rounds, told)
    if not rows:
        problem = Problem(
            "--only", ", ".join(map(repr, names)), "a name in the table that the command prints without it"
        )
        raise InputError("no such variation", [problem])
    return rows


def _document(folder: Path) -> dict[str, Any]:
    """The machine's calibration, with its precisions, also written to `folder`."""
    path = CALIBRATION / "devices" / f"{DEVICE}.yaml"
    if not path.is_file():
        problem = Problem(DEVICE, str(path), "an earlier calibration", "Run `windtunnel calibrate` first.")
        raise InputError("this machine has not been measured", [problem])
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    add_precisions(document, RANKS)
    for name in DEVICES:
        write_entry(folder, "devices", name, document)
    return document


def _of_model(
    model: str, names: Sequence[str], document: dict[str, Any], folder: Path, rounds: int, progress: Progress | None
) -> list[dict[str, Any]]:
    catalog = Catalog([folder, CALIBRATION])
    device, graph = catalog.device(DEVICES[0]), trace(build(model))
    chosen = [v for v in variations(graph, of_device(device), MODELS[model]) if not names or v.name in names]
    if not chosen:
        return []
    plans = {v.name: draft(graph, model, _parts(v, device), optimizer=OPTIMIZER, iterations=1) for v in chosen}
    used: dict[int, set[str]] = {}
    for v in chosen:
        for batch, precision in zip(v.batch, v.precision, strict=True):
            used.setdefault(batch, set()).update(precision.values())
    jobs = [
        Job(model=model, graph=graph, batch=b, optimizer=OPTIMIZER, precisions=tuple(sorted(of)))
        for b, of in sorted(used.items())
    ]
    runs = {str(i): plans[v.name] for i, v in enumerate(chosen)}
    found, ran = side_by_side(jobs, runs, device, RANKS, rounds, progress)
    for name, kernels in zip(DEVICES, found, strict=True):
        own = deepcopy(document)
        merge(own["measured"], kernels)
        write_entry(folder, "devices", name, own)
    link = dict.fromkeys(("intra", "inter"), "this_machine_loopback")
    pools = [{"device": name, "devices_per_node": 1, **link} for name in DEVICES]
    cluster = single_node.build(single_node.Params.model_validate({"pools": pools}), catalog)
    return [_row(graph, model, v, plans[v.name], cluster, ran[str(i)]) for i, v in enumerate(chosen)]


def _parts(variation: Variation, device: DeviceSpec) -> dict[str, Part]:
    return {
        f"rank{r}": Part(ranks=(r,), device=device, batch=variation.batch[r], precision=variation.precision[r])
        for r in range(RANKS)
    }


def _row(
    graph: OperatorGraph, model: str, variation: Variation, plan: Plan, cluster: Cluster, ran: Ran
) -> dict[str, Any]:
    simulated = simulate(plan, cluster, CostModel(cluster), iterations=1).makespan_s
    parts = _parts(variation, cluster.device(0)).values()
    predicted_B = [_memory_B(graph, of_rank, cluster, plan) for of_rank in parts]
    return {
        "model": model,
        "variation": variation.name,
        "simulated": simulated,
        "measured": ran.iteration_s,
        "error": simulated / ran.iteration_s - 1.0,
        "simulated_B": predicted_B,
        "measured_B": ran.tensors_B,
        "memory_error": [p / m - 1.0 for p, m in zip(predicted_B, ran.tensors_B, strict=True)],
        "parts": parts_s(plan, ran, cluster),
    }


def _memory_B(graph: OperatorGraph, part: Part, cluster: Cluster, plan: Plan) -> float:
    buckets = plan.decisions["buckets"]
    local = local_graph(graph, part.device, part.batch, CostModel(cluster), optimizer=OPTIMIZER, buckets=buckets)
    return memory_B(local, setting(local, part.precision))


def parts_s(plan: Plan, ran: Ran, cluster: Cluster) -> dict[str, tuple[float, float]]:
    """By rank and way: seconds of its tasks in an iteration, simulated and measured; sums as the slower rank saw them."""
    cost = CostModel(cluster)
    found: dict[str, tuple[float, float]] = {}
    for task in plan.tasks:
        computes = isinstance(task.op, Compute)
        key = "/".join(task.id.split("/")[:2]) if computes else "grad"
        device = cluster.device(int(key[4])) if computes else None
        said = cost.compute(task.op, device).seconds if isinstance(task.op, Compute) and device else 0.0
        before = found.get(key, (0.0, 0.0))
        seen = max(of_rank.get(task.id, 0.0) for of_rank in ran.tasks_s)
        found[key] = (before[0] + said, before[1] + seen)
    return found


def shown(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as a table."""
    table = Table("model", "variation", "simulated", "measured", "error", "memory of ranks", "error", box=None)
    table.header_style = "bold"
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row["model"],
            row["variation"],
            f"{row['simulated'] * 1e3:.1f} ms",
            f"{row['measured'] * 1e3:.1f} ms",
            f"{row['error']:+.1%}",
            ", ".join(f"{m / 1e6:.0f}" for m in row["measured_B"]) + " MB",
            ", ".join(f"{e:+.0%}" for e in row["memory_error"]),
        )
    return table


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=(), help="names of variations")
    parser.add_argument("--models", nargs="*", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="iterations of every plan")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        with shown_progress("variations") as progress:
            rows = measure(options.only, options.models, rounds=options.rounds, progress=progress)
    except WindtunnelError as error:
        print(error, file=sys.stderr)
        return 2
    errors = [abs(row["error"]) for row in rows]
    of_memory = max(abs(e) for row in rows for e in row["memory_error"])
    summary = {"median": median(errors), "largest": max(errors), "memory": of_memory}
    if options.json:
        json.dump({"rows": rows, **summary}, sys.stdout, indent=2)
        print()
    else:
        Console(width=132).print(shown(rows))
        print(f"\ntime: median {summary['median']:.1%} (at most {MEDIAN:.0%}), ", end="")
        print(
            f"largest {summary['largest']:.1%} (at most {LARGEST:.0%}); memory: largest {of_memory:.0%} (at most {MEMORY:.0%})"
        )
    good = summary["median"] <= MEDIAN and summary["largest"] <= LARGEST and of_memory <= MEMORY
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
