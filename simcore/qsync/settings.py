"""One choice of precisions for a `LocalGraph`: what every operator then computes in, hands on, costs and keeps.

Settings are never changed: `changed` makes a new one from an old one by looking at the neighbours alone, so that a trial that is
rejected leaves no trace.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.precision import PRECISIONS
from simcore.qsync.local import FLOAT32, INDEX, Floats, Ints, LocalGraph


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """Arrays over the operators: positions of precisions, and seconds of device and host forward and backward."""

    computes: Ints  # (n,)
    output: Ints  # (n,)
    device_s: Floats  # (n, 2)
    host_s: Floats  # (n, 2)

    def chosen(self, local: LocalGraph) -> dict[str, str]:
        """The precision of every adjustable operator by its name."""
        return {local.graph.operators[i].name: PRECISIONS[self.computes[i]] for i in local.adjustable.tolist()}


def setting(local: LocalGraph, chosen: Mapping[str, str]) -> Setting:
    """Adjustable operators that `chosen` does not name compute in float32; it is for precisions that `local.allowed` has."""
    computes, output = np.empty(local.n, dtype=np.int64), np.empty(local.n, dtype=np.int64)
    for i, operator in enumerate(local.graph):
        computes[i] = (
            INDEX[chosen.get(operator.name, "float32")] if local.allowed[i].any() else _inferred(local, i, output)
        )
        output[i] = local.output_of[i, computes[i]]
    at, arriving, edges = computes[local.consumer], output[local.producer], np.arange(len(local.consumer))
    rows = np.arange(local.n)
    device_s, host_s = local.own_s[rows, :, computes], local.own_host_s[rows, :, computes]
    np.add.at(device_s, local.consumer, local.edge_s[edges, :, arriving, at])
    np.add.at(host_s, local.consumer, local.edge_host_s[edges, :, arriving, at])
    return Setting(computes=computes, output=output, device_s=device_s, host_s=host_s)


def changed(local: LocalGraph, before: Setting, operator: int, precision: int) -> Setting:
    """`before` with one adjustable operator in another precision, and every inferring operator behind it that follows."""
    computes, output = before.computes.copy(), before.output.copy()
    computes[operator] = precision
    waiting, stale = [operator], set[int]()
    while waiting:
        i = waiting.pop()
        stale.add(i)
        handed_on = local.output_of[i, computes[i]]
        if handed_on == output[i]:
            continue
        output[i] = handed_on
        for reader in local.consumer[local.edges_from[i]].tolist():
            stale.add(reader)
            if local.infers[reader] and (now := _inferred(local, reader, output)) != computes[reader]:
                computes[reader] = now
                waiting.append(reader)
    device_s, host_s = before.device_s.copy(), before.host_s.copy()
    for i in stale:
        edges, c = local.edges_into[i], computes[i]
        arriving = output[local.producer[edges]]
        device_s[i] = local.own_s[i, :, c] + local.edge_s[edges, :, arriving, c].sum(axis=0)
        host_s[i] = local.own_host_s[i, :, c] + local.edge_host_s[edges, :, arriving, c].sum(axis=0)
    return Setting(computes=computes, output=output, device_s=device_s, host_s=host_s)


def _inferred(local: LocalGraph, i: int, output: Ints) -> int:
    """The precision of an operator that nobody chooses one for."""
    arriving = set(output[local.producer[local.edges_into[i]]].tolist()) if local.infers[i] else set()
    return int(arriving.pop()) if len(arriving) == 1 else FLOAT32


def kept_tensors(local: LocalGraph, chosen: Setting) -> np.ndarray:
    """(n,) whether an operator's result is kept for the backward pass as it was handed on."""
    kept = local.kept.copy()
    as_it_came = local.keeps & (_stored(chosen.computes[local.consumer]) == _stored(chosen.output[local.producer]))
    kept[local.root[local.producer[as_it_came]]] = True
    return kept


def _stored(precisions: Ints) -> Ints:
    return np.where(precisions == INDEX["tf32"], FLOAT32, precisions)


def kept_B(local: LocalGraph, chosen: Setting) -> float:
    """Bytes of all activations at the end of the forward pass."""
    rows, edges = np.arange(local.n), np.arange(len(local.consumer))
    tensors = local.tensor_B[rows, chosen.output] @ kept_tensors(local, chosen)
    copies = local.edge_B[edges, chosen.output[local.producer], chosen.computes[local.consumer]].sum()
    return float(tensors + copies + local.own_B[rows, chosen.computes].sum())


def allotted_B(local: LocalGraph, chosen: Setting) -> float:
    """Bytes as a search counts them, a sum over operators: what stays, all activations, and an allowance for the backward steps."""
    return sum(local.resident_B.values()) + local.allowance_B + kept_B(local, chosen)
