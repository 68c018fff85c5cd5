"""One replica's iteration on one class of devices, as tables over operators and precisions: what replay and allocator work on.

A precision is its position in `costmodels.precision.PRECISIONS`, of which there are P; an operator its position in the graph, of
which there are n; ways are FORWARD (0) and BACKWARD (1). What an operator costs depends on its own precision and on that of the
tensors that it reads, so it splits into

    own[i, way, computes[i]] + sum over edges e into i of edge[e, way, output[producer[e]], computes[i]]

for seconds of kernels (`own_s`, `edge_s`), seconds of the host that launches them (`own_host_s`, `edge_host_s`) and bytes that are
kept for the backward pass (`own_B`, `edge_B`, without the axis of ways). Terms of edges are the casts of an operand and of its
gradient that `costmodels.precision.casts` lists; casts of weights and of the output's gradient are in the operator's own term.
Entries of precisions that an operator cannot have on this device are NaN.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from costmodels.operator_graph import OperatorGraph
from costmodels.precision import PRECISIONS
from costmodels.precision_kernels import Casts
from costmodels.specs import DeviceSpec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FORWARD, BACKWARD = 0, 1
INDEX: Mapping[str, int] = {name: i for i, name in enumerate(PRECISIONS)}
FLOAT32 = INDEX["float32"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalGraph:
    """Tables of one class of devices, `batch` samples on each rank.

    Program order is all operators forward, all in reverse backward, then the optimizer. Tensors are named by the operator that made
    them; what a view hands on is the tensor of `root`. Of the tensors, `kept` says which one some operator keeps whatever the
    precisions are, and `keeps` which edges keep their operand: as it comes where the consumer computes in the precision in which
    it arrives (one tensor, however many keep it), otherwise as the consumer's own copy (`edge_B`). Bytes that are kept:

        sum own_B[i, computes[i]] + sum edge_B[e, output[producer[e]], computes[consumer[e]]]
        + sum over tensors t of tensor_B[t, output[t]], where kept[t] or some edge e with keeps[e] and root[producer[e]] = t
          has computes[consumer[e]] = output[t]
    """

    graph: OperatorGraph
    device: DeviceSpec
    batch: int
    casts: Casts = "fitted"

    allowed: Bools  # (n, P) what a plan may choose; all False for operators that are not adjustable
    infers: Bools  # (n,) takes the precision of what it reads where all of that agrees
    output_of: Ints  # (n, P) what comes out of an operator that computes in a precision
    producer: Ints  # (edges,) edges are in the order of their consumers
    consumer: Ints  # (edges,)

    own_s: Floats  # (n, 2, P)
    edge_s: Floats  # (edges, 2, P, P) by way, precision that arrives, precision in which the consumer computes
    own_host_s: Floats  # (n, 2, P)
    edge_host_s: Floats  # (edges, 2, P, P)
    optimizer_s: float

    bucket_names: tuple[tuple[str, ...], ...]  # parameters that are reduced together, in the order in which they are
    bucket_B: Floats  # (buckets,)
    bucket_step: Ints  # (buckets,) the operator after whose backward step a bucket is complete, never rising

    resident_B: Mapping[str, float]  # by kind, whatever the precisions: weights, gradients, optimizer, overhead
    working_B: Floats  # (n, P) what an operator's backward step holds for a moment
    allowance_B: float  # for all of that, where memory has to be a sum over operators
    own_B: Floats  # (n, P)
    edge_B: Floats  # (edges, P, P)
    tensor_B: Floats  # (n, P) of an operator's output by the precision in which it is
    root: Ints  # (n,)
    kept: Bools  # (n,)
    keeps: Bools  # (edges,)

    @property
    def n(self) -> int:
        """Number of operators."""
        return len(self.graph.operators)

    @cached_property
    def adjustable(self) -> Ints:
        """Operators that a plan chooses a precision for."""
        return np.flatnonzero(self.allowed.any(axis=1))

    @cached_property
    def edges_into(self) -> tuple[Ints, ...]:
        """(n) edges of each operator's operands."""
        ends = np.searchsorted(self.consumer, np.arange(self.n + 1))
        return tuple(np.arange(a, b) for a, b in pairwise(ends))

    @cached_property
    def edges_from(self) -> tuple[Ints, ...]:
        """(n) edges of each operator's readers."""
        order = np.argsort(self.producer, kind="stable")
        ends = np.searchsorted(self.producer[order], np.arange(self.n + 1))
        return tuple(order[a:b] for a, b in pairwise(ends))
