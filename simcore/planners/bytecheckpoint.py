"""ByteCheckpoint: who writes which part of a checkpoint, in which files over how many streams, and how often.

Wan et al., NSDI 2025. The parallelism of training is given, as for `fixed`. The plan is a save with as many iterations of training
beside it as it lasts, or what `plays` names by itself; decisions say what the save costs, what a load and a load into another
parallelism take, and how often to save for the highest share of time that trains (ETTR) under failures. `decisions["baseline
dcp"]` says the same of another way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simcore.checkpoint import ettr
from simcore.checkpoint.jobs import CheckpointJob, ranks_of_a_host
from simcore.checkpoint.load_tasks import load_tasks
from simcore.checkpoint.prediction import Evaluate, Times, alone, ettr_described, failing_job, streams_and_part_B, times
from simcore.checkpoint.save_tasks import save_tasks, window_tasks
from simcore.checkpoint.systems import SYSTEMS, Name
from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.errors import PlanError, Problem
from simcore.plan import Plan
from simcore.planners import fixed
from simcore.progress import Progress
from simcore.quantity import Bytes
from simcore.training.choice import Choice, problems_of
from simcore.training.plans import training_plan
from simcore.validation import suggestion
from simcore.workloads.checkpointed_training import CheckpointedTraining

MOST_TASKS = 150_000
"""Of a plan: iterations beside a save beyond that are not listed, and then what a save costs training is its stall alone."""


class Resumed(BaseModel):
    """The parallelism of a load that reshards; what is left out is as it was saved."""

    model_config = ConfigDict(extra="forbid")

    dp: int | None = Field(None, ge=1, le=1_000_000, description="Replicas; default: half as many.")
    tp: int | None = Field(None, ge=1, le=4096, description="Tensor parallel ranks.")
    pp: int | None = Field(None, ge=1, le=4096, description="Pipeline stages.")


Plays = Literal["training", "save", "load", "reshard"]


class Params(fixed.Params):
    """The parallelism of training as for `fixed`, and how it is checkpointed."""

    plays: Plays = Field(
        "training",
        description="What the plan lists: a save and training beside it; a save, a load, or a load that reshards by itself.",
    )
    system: Name = Field("bytecheckpoint", description="The way to save and load.")
    store: str | None = Field(None, description="A store of the cluster; default: its only one.")
    streams: int | None = Field(None, ge=1, le=1024, description="Streams of each file; default: as many as help.")
    part: Bytes | None = Field(None, gt=0, description="Size of the parts of a file; default: one for each stream.")
    rows: bool = Field(False, description="ZeRO 3 shards rows of tensors (FSDP2) rather than flat slices (FSDP).")
    resumed: Resumed = Field(
        default_factory=lambda: Resumed.model_validate({}), description="The parallelism of a load that reshards."
    )
    baselines: list[Name] = Field(default_factory=list, description="Other ways to checkpoint, to compare with.")


def plan(
    workload: object,
    cluster: Cluster,
    cost: Costs,
    params: Params,
    *,
    evaluate: Callable[[Plan], float] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan. `evaluate` simulates a plan and returns its seconds. Raises `PlanError` for what does not suit the workload or the
    cluster."""
    if not isinstance(workload, CheckpointedTraining):
        problem = Problem(
            "planner.name", "bytecheckpoint", "a planner for this workload", "It plans checkpointed_training."
        )
        raise PlanError("a planner for another workload", [problem])
    evaluate = evaluate or _simulator(cluster, cost)
    job = job_of(workload, cluster, params)
    resumed = resumed_choice(job, params)
    again = None if resumed is None else _tuned(replace(job, choice=resumed), cluster, params)
    deciding = _Deciding(job, again, params, evaluate, training_plan(workload.training, job.choice, cluster))
    return deciding.plan(progress)


def job_of(workload: CheckpointedTraining, cluster: Cluster, params: Params) -> CheckpointJob:
    """The job with streams and parts chosen where they are not given. Raises `PlanError` with everything that does not suit."""
    choice = fixed.choice_of(params, workload.training, cluster.n_ranks)
    problems = [*problems_of(choice, workload.training, cluster.n_ranks), *_store_problems(params.store, cluster)]
    if problems:
        raise PlanError("this way to checkpoint does not suit the workload and the cluster", problems)
    store = params.store or next(iter(cluster.stores))
    per_machine = ranks_of_a_host(cluster.fabric.node_of(np.arange(cluster.n_ranks, dtype=np.int64)))
    job = CheckpointJob(
        workload=workload,
        choice=choice,
        system=SYSTEMS[params.system],
        store=store,
        streams=1,
        part_B=1.0,
        per_machine=per_machine,
        flat=not params.rows,
        on_host=all(device.kind == "cpu" for device in cluster.devices),
    )
    return _tuned(job, cluster, params)


def _store_problems(store: str | None, cluster: Cluster) -> list[Problem]:
    known = ", ".join(cluster.stores)
    if not cluster.stores:
        return [Problem("cluster.stores", "none", "a store for checkpoints, e.g. [hdfs]")]
    if store is None and len(cluster.stores) > 1:
        return [Problem("planner.store", "nothing", f"one of {known}", "The cluster has several.")]
    if store is not None and store not in cluster.stores:
        return [Problem("planner.store", repr(store), f"one of {known}", suggestion(store, tuple(cluster.stores)))]
    return []


def _tuned(job: CheckpointJob, cluster: Cluster, params: Params) -> CheckpointJob:
    """Streams and parts for the largest file that any rank uploads."""
    store = cluster.stores[job.store]
    files = [size for w in job.writers.values() for size in w.role_B]
    count = sum(len(w.ranks) for w in job.writers.values())
    sharing = count if store.shared else min(job.per_machine, count)
    route = cluster.fabric.store_routes(job.store, np.zeros(1, dtype=np.int64), write=True)[0]
    port = float(cluster.fabric.capacity_B_per_s[route[route >= 0]].min())
    streams, part_B = streams_and_part_B(store, files, sharing, port)
    if job.on_host:  # a rank is one core
        streams = 1
    return replace(job, streams=params.streams or streams, part_B=params.part or part_B)


def resumed_choice(job: CheckpointJob, params: Params) -> Choice | None:
    """The parallelism of a load that reshards, None where there is but one replica to halve. Raises `PlanError`."""
    asked, choice = params.resumed, job.choice
    dp = asked.dp or (choice.dp // 2 if asked.tp is None and asked.pp is None else choice.dp)
    if not dp:
        return None
    found = replace(choice, dp=dp, tp=asked.tp or choice.tp, pp=asked.pp or choice.pp)
    problems = [
        replace(p, field=p.field.replace("planner.", "planner.resumed."))
        for p in problems_of(found, job.workload.training, found.n_ranks)
        if p.field in ("planner.tp", "planner.pp", "planner.vpp")
    ]
    if found.n_ranks > choice.n_ranks:
        given = f"dp {found.dp} x tp {found.tp} x pp {found.pp} x cp {found.cp} = {found.n_ranks} ranks"
        problems.append(Problem("planner.resumed", given, f"at most {choice.n_ranks}, the ranks of the cluster"))
    if problems:
        raise PlanError("a parallelism that the model cannot be loaded into", problems)
    return found


def _simulator(cluster: Cluster, cost: Costs) -> Evaluate:
    from simcore.engine.simulate import simulate

    return lambda made: simulate(made, cluster, cost, iterations=1).makespan_s


def _silent(_share: float, _text: str) -> None:
    """Progress that nobody wants to see."""


@dataclass(frozen=True)
class _Deciding:
    """What the planner knows while it decides: the job, the same in another parallelism, an iteration without checkpoints."""

    job: CheckpointJob
    again: CheckpointJob | None
    params: Params
    evaluate: Evaluate
    training: Plan

    def plan(self, progress: Progress | None) -> Plan:
        tell = progress or _silent
        tell(0.0, "an iteration without checkpoints")
        iteration_s = self.evaluate(self.training)
        tell(0.2, self.job.system.title)
        own = times(self.job, self.evaluate, self.again)
        if self.params.plays != "training":
            return self._by_itself(own, iteration_s)
        count = self._iterations(own.save_s, iteration_s)
        window = self._window(count)
        tell(0.4, f"{count} iterations beside a save")
        cost_s = own.stall_s
        if self._covers(count, own.save_s, iteration_s):
            cost_s = max(self.evaluate(window) - count * iteration_s, cost_s)
        baselines: dict[str, Any] = {}
        for i, name in enumerate(self.params.baselines):
            tell(0.6 + 0.4 * i / len(self.params.baselines), SYSTEMS[name].title)
            baselines[f"baseline {name}"] = self._baseline(name, iteration_s)
        return replace(window, decisions=self._decisions(own, iteration_s, count, cost_s, baselines))

    def _by_itself(self, own: Times, iteration_s: float) -> Plan:
        """A save or a load with nobody training beside it, as many times as the workload has iterations."""
        job, plays = self.job, self.params.plays
        drafted = save_tasks(job) if plays == "save" else load_tasks(job, job.choice)
        if plays == "reshard":
            if self.again is None:
                problem = Problem("planner.resumed", "nothing", "another parallelism", "One replica cannot be halved.")
                raise PlanError("there is nothing to reshard into", [problem])
            job = self.again
            drafted = load_tasks(job, self.job.choice)
        decisions = self._decisions(own, iteration_s, 0, own.stall_s, {})
        workload = self.job.workload
        described = {**workload.described(), "iterations": workload.training.iterations}
        for rate in ("tokens_per_iteration", "flops_per_iteration"):  # nothing is trained
            described[rate] = 0
        return replace(
            alone(job, drafted),
            name=f"{plays} of {job.system.title}",
            memory_B=job.resident_B,
            workload=described,
            decisions={
                **decisions,
                **job.choice.decisions(workload.training),
                "saved_parallelism": decisions["parallelism"],
            },
        )

    def _iterations(self, save_s: float, iteration_s: float) -> int:
        """As many as a save lasts and one more, so that the end of the plan is training's."""
        if not self.job.system.asynchronous:
            return 1
        return int(min(np.ceil(save_s / iteration_s) + 1, max(MOST_TASKS // len(self.training.tasks), 1)))

    def _covers(self, count: int, save_s: float, iteration_s: float) -> bool:
        """Whether so many iterations last as long as a save, so that all of it is played beside them."""
        return not self.job.system.asynchronous or count * iteration_s >= save_s

    def _window(self, count: int) -> Plan:
        drafted = window_tasks(self.job, self.training.tasks, count)
        return replace(
            self.training,
            name=f"{self.job.system.title} beside {self.training.name}",
            groups={**self.training.groups, **self.job.groups},
            tasks=tuple(drafted.tasks),
            workload=self.job.workload.described(count),
        )

    def _baseline(self, name: Name, iteration_s: float) -> dict[str, Any]:
        """Times of another way, and its ETTR at its own best interval, or that which is given."""
        job, again = (None if j is None else replace(j, system=SYSTEMS[name]) for j in (self.job, self.again))
        assert job is not None
        found = times(job, self.evaluate, again)
        failing = self._failing(iteration_s, found.stall_s, found)
        every = self.job.workload.every or ettr.best_every(failing)
        expected = float(ettr.expected(replace(failing, every=every)))
        return {**found.described(), "every": every, "ettr": round(expected, 5)}

    def _failing(self, iteration_s: float, cost_s: float, found: Times) -> ettr.Job:
        workload = self.job.workload
        mtbf_s = ettr.job_mtbf_s(workload.mtbf_s, self.job.choice.n_ranks)
        return failing_job(iteration_s, cost_s, found, mtbf_s, workload.restart_s)

    def _decisions(
        self, own: Times, iteration_s: float, count: int, cost_s: float, baselines: Mapping[str, Any]
    ) -> dict[str, Any]:
        job, workload = self.job, self.job.workload
        failing = self._failing(iteration_s, cost_s, own)
        every = workload.every or ettr.best_every(failing)
        files = [size for w in job.writers.values() for size in w.role_B if size]
        return {
            **self.training.decisions,
            "checkpoint": {
                "system": self.params.system,
                "store": job.store,
                "writers": sum(len(w.ranks) for w in job.writers.values()),
                "imbalance": round(job.written.imbalance, 4),
                "largest_file_B": max(files),
                "streams": job.parallel_streams,
                "part_B": int(job.part_B),
                "bytes": job.written.total_B,
                "every": every,
                "plays": self.params.plays,
                "rows": self.params.rows,
            },
            "predicted": {
                "iteration_s": float(f"{iteration_s:.4g}"),
                **own.described(),
                "cost_s": float(f"{cost_s:.4g}"),
                "iterations_beside": count,
                "whole_save_beside": self._covers(count, own.save_s, iteration_s),
            },
            "ettr": ettr_described(failing, every, workload.seed, workload.failure_shape),
            **baselines,
        }
