"""From what operators took to what their kernels take: sums are measured, shares start from first estimates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from costmodels.kernels import Kernel

ROUNDS = 100


def attribute(rows: Sequence[tuple[Sequence[Kernel], float]], first: Mapping[Kernel, float]) -> dict[Kernel, float]:
    """Seconds of one launch of each kernel such that each row's kernels add up to its seconds as well as they can.

    `first`: estimates of every kernel with a count of one. Each kernel is scaled by the mean of what its rows miss, weighted by
    its own part in them, until that has settled (iterative proportional fitting): a kernel that stands in a row by itself gets
    that row's time, and those that only ever stand together keep their first ratio.
    """
    listed = [([(replace(k, count=1), k.count) for k in run], seconds) for run, seconds in rows if run]
    found = dict(first)
    for _ in range(ROUNDS):
        wanted: dict[Kernel, float] = {}
        weight: dict[Kernel, float] = {}
        for run, seconds in listed:
            ratio = seconds / sum(count * found[k] for k, count in run)
            for k, count in run:
                part = count * found[k]
                wanted[k] = wanted.get(k, 0.0) + part * ratio
                weight[k] = weight.get(k, 0.0) + part
        for k, total in wanted.items():
            found[k] *= total / weight[k]
    return {k: found[k] for run, _ in listed for k, _ in run}
