"""Of what each expert is made after a round: domain-aware aggregation, equations (8) to (11) of FedMoE-DA, and plain means.

An expert is known by its row of the gate, p: the direction of what is sent to it. Over all experts i, j of all clients

    r_ij = cos(p_i, p_j)                                          (8)
    keep j for i  iff  r_ij >= the (P + 1)-th largest of r_i      (9)  the expert itself is one of them; ties are kept
    A_ij = exp(r_ij / tau) / sum over kept k of exp(r_ik / tau)   (10)
    expert_i <- sum over kept j of A_ij expert_j                  (11)

The paper could not be read here; equations are as two public reimplementations have them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simcore.errors import InputError, Problem
from simcore.federated.similarity import nearest, unit_rows

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixing:
    """The aggregation matrix A in rows: expert i is made of `source[ptr[i] : ptr[i + 1]]`, ascending, with `weight`.

    `experts` is the number of experts of a client; rows are the experts of all clients. Weights of a row sum to 1, and every
    expert is a source of its own. `cosine` (8) is what weights come from, NaN where they come from no gates.
    """

    experts: int
    ptr: Ints
    source: Ints
    weight: Floats
    cosine: Floats

    @property
    def rows(self) -> int:
        return len(self.ptr) - 1

    @property
    def clients(self) -> int:
        return self.rows // self.experts

    @property
    def row(self) -> Ints:
        """(entries,) the expert that is made."""
        return np.repeat(np.arange(self.rows), np.diff(self.ptr))

    def dense(self) -> Floats:
        """(rows, rows)."""
        out = np.zeros((self.rows, self.rows))
        out[self.row, self.source] = self.weight
        return out

    def of(self, expert: int) -> tuple[Ints, Floats]:
        """Sources and weights of one expert."""
        part = slice(self.ptr[expert], self.ptr[expert + 1])
        return self.source[part], self.weight[part]


def domain_aware(gates: NDArray[np.floating], P: int, tau: float) -> Mixing:
    """Equations (8) to (11) from gate vectors (clients, experts, width), after local training.

    `P` experts are asked for besides an expert's own; 0 leaves every expert as it is, equal gates or not. `tau` is the softmax's
    temperature. Raises `InputError` for gates without a direction, a negative `P`, or a temperature that is not above zero.
    """
    problems = []
    if P < 0:
        problems.append(Problem("P", str(P), "0 or more"))
    if not tau > 0:
        problems.append(Problem("tau", str(tau), "above 0"))
    if problems:
        raise InputError("experts that cannot be aggregated", problems)
    rows = unit_rows(gates)
    if P == 0:
        return identity(gates.shape[0], gates.shape[1])
    found = nearest(rows, P + 1)
    return Mixing(
        experts=gates.shape[1],
        ptr=found.ptr,
        source=found.column,
        weight=softmax(found.ptr, found.cosine, tau),
        cosine=found.cosine,
    )


def softmax(ptr: Ints, cosine: Floats, tau: float) -> Floats:
    """Equation (10) for rows of at least one number each."""
    row = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    top = np.maximum.reduceat(cosine, ptr[:-1])
    weight = np.exp((cosine - top[row]) / tau)
    out: Floats = weight / np.add.reduceat(weight, ptr[:-1])[row]
    return out


def identity(clients: int, experts: int) -> Mixing:
    """Every expert stays as it is."""
    own = np.arange(clients * experts)
    return Mixing(
        experts=experts,
        ptr=np.arange(len(own) + 1),
        source=own,
        weight=np.ones(len(own)),
        cosine=np.ones(len(own)),
    )


def restricted(mixing: Mixing, there: Bools) -> Mixing:
    """The same without experts of clients that are not `there` (clients,): the rest of a row is scaled to sum to 1 again.

    An expert's own part stays, so a row is never empty; that of an absent client becomes the identity.
    """
    row, source = mixing.row, mixing.source
    present = there[source // mixing.experts] & there[row // mixing.experts]
    return _without(mixing, present | (row == source))


def missing(mixing: Mixing, lost: Bools) -> Mixing:
    """The same without the entries that are `lost` (entries,), say because a peer did not answer; own parts stay."""
    return _without(mixing, ~lost | (mixing.row == mixing.source))


def _without(mixing: Mixing, keep: Bools) -> Mixing:
    if keep.all():
        return mixing
    row = mixing.row[keep]
    weight = mixing.weight[keep]
    counts = np.bincount(row, minlength=mixing.rows)
    return Mixing(
        experts=mixing.experts,
        ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        source=mixing.source[keep],
        weight=weight / np.bincount(row, weight, minlength=mixing.rows)[row],
        cosine=mixing.cosine[keep],
    )
