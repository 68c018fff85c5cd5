"""Operators in chosen precisions for real, data parallel over unequal ranks."""

from collections.abc import Iterator

from real.here import most_ranks
from real.precision.models import NAMES
from real.precision.training import RATES
from real.ranks import run_ranks as run
from simcore.errors import Problem
from simcore.plan import Plan

__all__ = ["lacking", "run"]

NEEDED = ("precision", "batch", "buckets")


def lacking(plan: Plan) -> list[Problem]:
    """Every obstacle, and what would have to change."""
    return list(_lacking(plan, most_ranks()[0]))


def _lacking(plan: Plan, most: int) -> Iterator[Problem]:
    missing = [name for name in NEEDED if name not in plan.decisions]
    if missing:
        yield Problem("decisions", f"without {', '.join(missing)}", ", ".join(NEEDED), "Plan it again.")
        return
    if plan.n_ranks > most:
        advice = "Real runs need a process for each rank: take a smaller cluster."
        yield Problem("n_ranks", str(plan.n_ranks), f"at most {most} on this machine", advice)
    model = str(plan.workload.get("model"))
    if model not in NAMES and ":" not in model:
        yield Problem(
            "workload.model",
            repr(model),
            f"{', '.join(NAMES)}, or package.module:function",
            "A graph alone has no numbers.",
        )
    optimizer = str(plan.workload.get("optimizer"))
    if optimizer not in RATES:
        yield Problem("workload.optimizer", repr(optimizer), ", ".join(RATES))
    groups = [name for name in plan.decisions["precision"] if name in plan.groups]
    ranks = sorted(int(r) for name in groups for r in plan.groups[name].ranks().reshape(-1))
    if ranks != list(range(plan.n_ranks)):
        yield Problem("decisions.precision", f"for ranks {ranks}", f"each of {plan.n_ranks} ranks in one group")
    without = [name for name in groups if name not in plan.decisions["batch"]]
    if without:
        yield Problem("decisions.batch", f"nothing for {', '.join(without)}", "samples of a rank of each group")
