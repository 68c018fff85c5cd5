"""From precisions and batches of classes of devices to an engine plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels import precision_kernels as kernels
from costmodels.kernels import Kernel, kernel
from costmodels.precision import Cast, casts, flows, of_device
from costmodels.specs import DeviceSpec
from simcore.cluster import Cluster
from simcore.draft import Draft
from simcore.plan import HOST, Collective, Compute, Group, Plan
from simcore.qsync.local import LocalGraph
from simcore.qsync.peak import activations_B, excess_B
from simcore.qsync.settings import setting
from simcore.workloads.operator_training import OperatorTraining

ALL = "all"
WAYS = (("fwd", "forward"), ("bwd", "backward"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClass:
    """Ranks with one device; `name` is that of their group in plans."""

    name: str
    device: DeviceSpec
    ranks: NDArray[np.int64]


def device_classes(cluster: Cluster) -> tuple[DeviceClass, ...]:
    """The classes of a cluster in the order of their first ranks; pools of one device are one class."""
    names = [d.name for d in cluster.devices]
    of_rank = np.array([names.index(name) for name in names])[cluster.device_index]
    return tuple(
        DeviceClass(name=names[k], device=cluster.devices[k], ranks=np.flatnonzero(of_rank == k))
        for k in dict.fromkeys(of_rank.tolist())
    )


def precision_plan(
    workload: OperatorTraining,
    classes: Sequence[DeviceClass],
    locals_: Mapping[str, LocalGraph],
    assignment: Mapping[str, Mapping[str, str]],
    *,
    decisions: Mapping[str, Any],
) -> Plan:
    """One iteration: by class the batch of its `LocalGraph` and a precision for each adjustable operator; classes have all ranks.

    `decisions` are the planner's own; precisions, batches and buckets are added.
    """
    n_ranks = sum(len(c.ranks) for c in classes)
    draft = Draft()
    writers = [_Writer(draft, c, locals_[c.name], assignment[c.name]) for c in classes]
    for writer in writers:
        writer.forward()
    first = locals_[classes[0].name]
    steps = first.bucket_step.tolist() if n_ranks > 1 else []
    reduced = []
    for b, step in enumerate(steps):
        for writer in writers:
            writer.backward(step)
        op = Collective(
            kind="all_reduce", group=ALL, along=("dp",), nbytes=int(first.bucket_B[b]), dtype="float32", stream="grad"
        )
        reduced.append(draft.add(f"grad/bucket{b}", op, [w.tail for w in writers]))
    update = kernel(workload.optimizer_kernel, "float32", params=workload.graph.elements)
    for writer in writers:
        writer.backward(0)
        name = writer.of.name
        last = [writer.tail, writer.launched, *reduced[-1:]]
        draft.add(f"{name}/optimizer", Compute(group=name, kernels=(update,)), last)
    return Plan(
        name=f"{decisions.get('system', 'precisions')} {workload.model}",
        n_ranks=n_ranks,
        groups={c.name: Group.listed(c.ranks.tolist(), "dp") for c in classes}
        | {ALL: Group(axes=(("dp", n_ranks, 1),))},
        tasks=tuple(draft.tasks),
        decisions={
            **decisions,
            "precision": {c.name: dict(assignment[c.name]) for c in classes},
            "batch": {c.name: locals_[c.name].batch for c in classes},
            "buckets": [list(names) for names in first.bucket_names],
        },
        workload=workload.described(n_ranks),
        memory_B={c.name: _resident_B(locals_[c.name], assignment[c.name]) for c in classes},
    )


def _resident_B(local: LocalGraph, chosen: Mapping[str, str]) -> dict[str, float]:
    """By kind; with the activations on tasks they add up to the peak."""
    return {**local.resident_B, "working": excess_B(local, setting(local, chosen))}


class _Writer:
    """Tasks of one class in program order. What the device does not notice has a task of the host only."""

    def __init__(self, draft: Draft, of: DeviceClass, local: LocalGraph, chosen: Mapping[str, str]) -> None:
        self.draft, self.of, self.local, self.graph = draft, of, local, local.graph
        has = of_device(of.device)
        self.flow = flows(self.graph, chosen, has)
        self.casts: dict[tuple[str, str], list[Cast]] = {}
        for change in casts(self.graph, self.flow, local.batch):
            self.casts.setdefault((change.operator, change.way), []).append(change)
        self.out_of_order = kernels.reordered(self.graph)
        taken_B, given_back_B = activations_B(local, setting(local, chosen))
        self.taken_B, self.given_back_B = taken_B.tolist(), given_back_B.tolist()
        self.next = local.n
        self.tail: str | None = None
        self.launched: str | None = None

    def forward(self) -> None:
        for i in range(self.local.n):
            self._step(i, "fwd", "forward", self.taken_B[i])

    def backward(self, to: int) -> None:
        """Steps of the backward pass down to that of operator `to`."""
        while self.next > to:
            self.next -= 1
            self._step(self.next, "bwd", "backward", -self.given_back_B[self.next])

    def _step(self, i: int, short: str, way: str, activation_B: float) -> None:
        operator, name = self.graph.operators[i], self.of.name
        flow, changes = self.flow[operator.name], self.casts.get((operator.name, way), [])
        run: tuple[Kernel, ...]
        if way == "forward":
            run = kernels.forward(self.graph, operator, self.local.batch, flow.computes, self.out_of_order)
        else:
            run = kernels.backward(
                self.graph, operator, self.local.batch, flow.backward, flow.output, self.out_of_order
            )
        work = kernels.launches(operator, way, len(run), self.out_of_order)
        work += sum(kernels.cast_launches(change) for change in changes)
        if self.of.device.kind == "gpu" and work:
            host = Compute(group=name, kernels=(kernels.launch(work),), stream=HOST)
            self.launched = self.draft.add(f"{name}/host/{short}/{operator.name}", host)
        all_kernels = (*(k for change in changes for k in kernels.cast(change, self.local.casts)), *run)
        if all_kernels or abs(activation_B) >= 0.5:
            op = Compute(group=name, kernels=all_kernels)
            self.tail = self.draft.add(f"{name}/{short}/{operator.name}", op, (self.launched, self.tail), activation_B)
