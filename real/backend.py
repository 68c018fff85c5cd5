"""The real backend: the same plan on the devices of this machine, a process for each rank under torch's elastic launcher."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from costmodels.precision import of_device
from real.launch import launch
from real.load import taken_cores
from real.model import DTYPES
from real.precision.checking import lacking as operators_lacking
from real.precision.placing import HAS, OPERATORS
from real.worker import PLAN, RESULT
from simcore.checks import problems_of, shortfalls
from simcore.cluster import Cluster
from simcore.engine.recording import environment
from simcore.errors import CannotRun, Problem
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.trace import Lane, Trace

if TYPE_CHECKING:
    from simcore.scenario import Scenario

MOST_CPU_RANKS = 8
DISTURBED = 0.05
"""Share of the ranks' time that others may take before the trace warns."""

MEMORY = {True: "allocated", False: "resident set growth"}
"""How a rank's memory is measured with and without a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RealBackend:
    """Runs plans of transformer training (data parallel, ZeRO (FSDP2), tensor parallel) and of operators in chosen precisions."""

    cluster: Cluster
    name: str = "real"

    @classmethod
    def from_scenario(cls, scenario: "Scenario") -> "RealBackend":
        return cls(cluster=scenario.cluster())

    def check(self, plan: Plan) -> list[Problem]:
        """What stands in the way here, and what would have to change."""
        return [*problems_of(plan, self.cluster), *shortfalls(plan, self.cluster), *_lacking(plan)]

    def run(self, plan: Plan, *, progress: Progress | None = None) -> Trace:
        """The measured trace. Raises `CannotRun` for what `check` finds, or with what a worker said before it failed."""
        found = self.check(plan)
        if found:
            raise CannotRun(f"plan {plan.name!r} cannot run here", found)
        if progress:
            progress(0.0, f"starting {plan.n_ranks} processes, {path_taken()}")
        with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
            folder = Path(name)
            plan.save(folder / PLAN)
            (folder / HAS).write_text(json.dumps([of_device(self.cluster.device(r)) for r in range(plan.n_ranks)]))
            launch("real.worker", plan.n_ranks, folder, progress=progress)
            results = [json.loads((folder / RESULT.format(rank=r)).read_text()) for r in range(plan.n_ranks)]
        if progress:
            progress(1.0, "done")
        return _trace(plan, self.cluster, results)


def path_taken() -> str:
    """Which devices and which communication run here."""
    if torch.cuda.is_available():
        return f"CUDA ({torch.cuda.get_device_name(0)}) with NCCL"
    return "CPU, one torch thread a rank, with gloo"


def _lacking(plan: Plan) -> list[Problem]:
    if plan.workload.get("name") == OPERATORS:
        return operators_lacking(plan, torch.cuda.device_count() or MOST_CPU_RANKS)
    if plan.workload.get("name") != "transformer_training":
        return [
            Problem(
                "workload.name",
                repr(plan.workload.get("name")),
                f"transformer_training, {OPERATORS}",
                "Nothing else runs for real yet.",
            )
        ]
    chosen, mesh, model = plan.decisions, plan.decisions["parallelism"], plan.workload["model"]
    gpus = torch.cuda.device_count()
    most, what = (gpus, "GPUs of this machine") if gpus else (MOST_CPU_RANKS, "ranks on a machine without a GPU")
    dtypes = [d for d in DTYPES if gpus or d == "float32"]
    rules = [
        ("n_ranks", plan.n_ranks, plan.n_ranks <= most, f"at most {most}, the {what}"),
        ("planner.detail", chosen.get("detail"), chosen.get("detail") == "layer", "layer: one task for each module"),
        ("planner.pp", mesh["pp"], mesh["pp"] == 1, "1: pipelines are only simulated"),
        ("planner.cp", mesh["cp"], mesh["cp"] == 1, "1: context parallelism is only simulated"),
        ("planner.recompute", chosen["recompute"], chosen["recompute"] == "none", "none"),
        ("planner.zero", chosen["zero"], chosen["zero"] == 0 or mesh["tp"] == 1, "0 together with tensor parallelism"),
        ("planner.tp", mesh["tp"], model["kv_heads"] % mesh["tp"] == 0, f"a divisor of kv_heads ({model['kv_heads']})"),
        ("planner.overlap", chosen["overlap"], chosen["zero"] < 2 or not chosen["overlap"] or mesh["dp"] == 1,
         "false with zero 2 and 3 on a CPU, where FSDP2 waits for its collectives"),
        ("workload.precision", plan.workload["precision"], plan.workload["precision"] in dtypes, ", ".join(dtypes)),
        ("workload.model.gated", model["gated"], bool(model["gated"]) and model["norm"] == "rmsnorm", "a Llama: gated, rmsnorm"),
        ("workload.model.tied_embeddings", model["tied_embeddings"], not model["tied_embeddings"], "false"),
        ("workload.model.vocab", model["vocab"], model["vocab"] >= 256, "at least 256: tokens are bytes"),
        ("workload.seq_len", plan.workload["seq_len"], plan.workload["seq_len"] <= 65536, "at most 65536"),
    ]  # fmt: skip
    return [Problem(field, repr(given), allowed) for field, given, holds, allowed in rules if not holds]


def _trace(plan: Plan, cluster: Cluster, results: list[Mapping[str, Any]]) -> Trace:
    """One lane for each rank. Time 0 is when the first rank began its first iteration; ranks of a host share a clock."""
    origin = min(r["bounds"][0][0] for r in results)
    position = plan.index
    rows = [
        (int(i), start - origin, position[task], rank, end - origin, int(size))
        for rank, r in enumerate(results)
        for task, i, start, end, size in r["pieces"]
        if i >= 0
    ]
    rows.sort()
    ends = {i: max(r["bounds"][i][1] for r in results) - origin for i in range(len(results[0]["bounds"]))}
    columns = list(zip(*rows, strict=True))
    taken = taken_cores([r["spent"] for r in results], os.cpu_count() or 1)
    lanes = tuple(Lane(label=f"rank {r}", device=cluster.device(r).name, ranks=((r, r),)) for r in range(plan.n_ranks))
    return Trace(
        plan_digest=plan.digest,
        backend="real",
        environment={
            **environment(cluster),
            "path": path_taken(),
            "versions": _versions(),
            "cpu_count": os.cpu_count(),
            "cores_taken_by_others": taken,
        },
        lanes=lanes,
        task=np.array(columns[2], dtype=np.int64),
        iteration=np.array(columns[0], dtype=np.int64),
        lane=np.array(columns[3], dtype=np.int64),
        start_s=np.array(columns[1], dtype=np.float64),
        end_s=np.array(columns[4], dtype=np.float64),
        nbytes=np.array(columns[5], dtype=np.int64),
        task_ids=tuple(t.id for t in plan.tasks),
        memory_B=tuple(_memory(r) for r in results),
        warnings=_warnings(taken, plan.n_ranks),
        extra={
            "loss": np.mean([r["losses"] for r in results], axis=0).tolist(),
            "iteration_end_s": list(ends.values()),
        },
    )


def _memory(result: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of tensors where they were counted, otherwise what the process grew by."""
    if result.get("tensors_B") is not None:
        return {MEMORY[True]: float(result["tensors_B"])}
    return {MEMORY[torch.cuda.is_available()]: float(result["peak_B"])}


def _warnings(taken: float | None, n_ranks: int) -> tuple[str, ...]:
    if taken is None or taken <= DISTURBED * n_ranks:
        return ()
    return (f"other programs took {taken:.2f} cores from the {n_ranks} ranks: what was measured is too long",)


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
