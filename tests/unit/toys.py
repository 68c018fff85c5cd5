"""Small plans and traces that can be worked out by hand, and a scenario that takes milliseconds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.kernels import kernel
from simcore.plan import Collective, Compute, Group, Op, Plan, Task, Transfer
from simcore.trace import Lane, Trace

SCENARIO = """\
name: toy
seed: 7
cluster:
  topology: single_node
  device: a100_sxm_80
  devices_per_node: 4
  intra: nvlink3
workload:
  name: transformer_training
  model: {layers: 4, hidden: 256, ffn: 512, heads: 4, vocab: 512}
  seq_len: 128
  global_batch: 8
  iterations: 3
planner:
  name: fixed
  microbatch: 2
"""


def write_scenario(folder: Path, text: str = SCENARIO, name: str = "toy.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def compute(group: str, seconds: int = 1, stream: str = "compute") -> Compute:
    return Compute(group=group, kernels=(kernel("gemm", "float32", count=seconds, m=1, n=1, k=1),), stream=stream)


def reduce_over(group: str, *along: str, nbytes: int = 1, stream: str = "grad") -> Collective:
    return Collective(kind="all_reduce", group=group, along=along, nbytes=nbytes, stream=stream)


def plan_of(tasks: Sequence[Task], groups: Mapping[str, Group], n_ranks: int, **workload: Any) -> Plan:
    return Plan(name="toy", n_ranks=n_ranks, groups=groups, tasks=tuple(tasks), workload=workload)


def relay(n: int = 3) -> Plan:
    """Rank 0 computes and sends to rank 1, which does the same, and so on; all reduce at the end."""
    groups = {f"s{i}": Group.listed([i]) for i in range(n)} | {"all": Group.listed(range(n))}
    tasks: list[Task] = []
    for i in range(n):
        tasks.append(Task(f"m0/s{i}c0/fwd", compute(f"s{i}", 2), (f"m0/s{i - 1}c0/fwd/send",) if i else ()))
        if i < n - 1:
            op: Op = Transfer(source=f"s{i}", target=f"s{i + 1}", nbytes=1)
            tasks.append(Task(f"m0/s{i}c0/fwd/send", op, (f"m0/s{i}c0/fwd",)))
    tasks.append(Task("grad/s0/bucket0", reduce_over("all", "all"), (f"m0/s{n - 1}c0/fwd",)))
    return plan_of(tasks, groups, n)


Row = tuple[str, int, float, float]  # task id, lane, start, end


def trace_of(
    plan: Plan, rows: Sequence[Row], *, iterations: Sequence[int] = (), lanes: int | None = None, **other: Any
) -> Trace:
    """A trace with one rank a lane; `iterations` gives the iteration of each row, all 0 without it."""
    count = plan.n_ranks if lanes is None else lanes
    number = np.array(iterations or [0] * len(rows), dtype=np.int64)
    columns: dict[str, Any] = {
        "task": np.array([plan.index[r[0]] for r in rows], dtype=np.int64),
        "iteration": number,
        "lane": np.array([r[1] for r in rows], dtype=np.int64),
        "start_s": np.array([r[2] for r in rows], dtype=np.float64),
        "end_s": np.array([r[3] for r in rows], dtype=np.float64),
        "nbytes": np.ones(len(rows), dtype=np.int64),
    }
    return Trace(
        plan_digest=plan.digest, backend="sim", environment=other.pop("environment", {}),
        lanes=tuple(Lane(label=f"rank {i}", device="plain", ranks=((i, i),)) for i in range(count)),
        task_ids=tuple(t.id for t in plan.tasks), **columns, **other,
    )  # fmt: skip
