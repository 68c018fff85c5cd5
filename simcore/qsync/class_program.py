"""The mixed-integer linear program of one class: which precisions keep a limit of memory and a limit of time.

Variables: one of the allowed precisions of each adjustable operator is 1, the others 0. Of an operator that infers, a precision is
between 0 and that of each operand, and what is left of 1 is float32. For an edge the pair (precision that arrives, precision that
its reader computes in) has both of these as its sums over the other. They are whole where the choices are.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from costmodels.precision import PRECISIONS
from simcore.qsync.indicator import Table
from simcore.qsync.linear import EXCESS, LATE, ONE, Expression, Program, Solved, add, total
from simcore.qsync.local import BACKWARD, FLOAT32, FORWARD, INDEX, Floats, LocalGraph


class ClassProgram:
    """The program of one class: expressions of what operators compute in, hand on and read, and limits on them."""

    def __init__(self, local: LocalGraph, held: Mapping[str, str]) -> None:
        self.local, self.program = local, Program()
        self.computes: list[dict[int, Expression]] = []
        self.output: list[dict[int, Expression]] = []
        for i, operator in enumerate(local.graph):
            if local.allowed[i].any():
                self.computes.append(self._choice(i, held.get(operator.name)))
            else:
                self.computes.append(self._inferred(i) if local.infers[i] else {FLOAT32: {ONE: 1.0}})
            self.output.append(self.computes[i] if local.infers[i] else self._handed_on(i))
        self.pairs: list[dict[tuple[int, int], Expression]] = []
        known: dict[tuple[int, int], dict[tuple[int, int], Expression]] = {}
        for producer, consumer in zip(local.producer.tolist(), local.consumer.tolist(), strict=True):
            arriving, computes = self.output[producer], self.computes[consumer]
            key = (id(arriving), id(computes))
            if key not in known:
                known[key] = self._pairs(arriving, computes)
            self.pairs.append(known[key])

    def _choice(self, i: int, held: str | None) -> dict[int, Expression]:
        allowed = np.flatnonzero(self.local.allowed[i]).tolist()
        options = [INDEX[held]] if held else allowed
        assert set(options) <= set(allowed), f"{self.local.graph.operators[i].name} cannot be held in {held}"
        if len(options) == 1:
            return {options[0]: {ONE: 1.0}}
        choice = {p: self.program.column(whole=True) for p in options}
        self.program.row(total((1.0, x) for x in choice.values()), 1.0, 1.0)
        return choice

    def _inferred(self, i: int) -> dict[int, Expression]:
        """One operand's precision is the operator's own, the same expression; of several, what all of them have."""
        operands = list({id(x): x for x in (self.output[k] for k in self._operands(i))}.values())
        if len(operands) == 1:
            return operands[0]
        shared = set.intersection(*(set(x) for x in operands)) - {FLOAT32} if operands else set()
        found, rest = {}, {ONE: 1.0}
        for p in sorted(shared):
            found[p] = x = self.program.column()
            for operand in operands:
                self.program.row(total([(1.0, x), (-1.0, operand[p])]), -np.inf, 0.0)
            agreed = total([(-1.0, x), *((1.0, operand[p]) for operand in operands)])
            self.program.row(agreed, -np.inf, len(operands) - 1.0)
            add(rest, -1.0, x)
        return {**found, FLOAT32: rest}

    def _operands(self, i: int) -> list[int]:
        operands: list[int] = self.local.producer[self.local.edges_into[i]].tolist()
        return operands

    def _handed_on(self, i: int) -> dict[int, Expression]:
        found: dict[int, Expression] = {}
        for p, x in self.computes[i].items():
            add(found.setdefault(int(self.local.output_of[i, p]), {}), 1.0, x)
        return found

    def _pairs(
        self, arriving: dict[int, Expression], computes: dict[int, Expression]
    ) -> dict[tuple[int, int], Expression]:
        if arriving is computes:
            return {(p, p): x for p, x in arriving.items()}
        if len(arriving) == 1:
            return {(p, q): x for p in arriving for q, x in computes.items()}
        if len(computes) == 1:
            return {(p, q): x for p, x in arriving.items() for q in computes}
        found = {(p, q): self.program.column() for p in arriving for q in computes}
        for p, x in arriving.items():
            self.program.row(total([(-1.0, x), *((1.0, found[p, q]) for q in computes)]), 0.0, 0.0)
        for q, x in computes.items():
            self.program.row(total([(-1.0, x), *((1.0, found[p, q]) for p in arriving)]), 0.0, 0.0)
        return found

    def disturbance(self, omega: Table, share: float) -> Expression:
        """The class's part of the objective."""
        return total(
            (share * omega[self.local.graph.operators[i].name][PRECISIONS[p]], x)
            for i in self.local.adjustable.tolist()
            for p, x in self.computes[i].items()
        )

    def read(self, solved: Solved) -> dict[str, str]:
        """The choice that was found."""
        operators = self.local.graph.operators
        return {
            operators[i].name: PRECISIONS[max(self.computes[i], key=lambda p: solved.value(self.computes[i][p]))]
            for i in self.local.adjustable.tolist()
        }

    def limit_memory(self, limit_B: float) -> float:
        """`settings.allotted_B`, in the unit that is returned: a thousandth of the limit, which keeps the tolerance small."""
        unit, local = limit_B / 1e3, self.local
        if not np.isfinite(limit_B):
            return limit_B
        needed: Expression = {ONE: (sum(local.resident_B.values()) + local.allowance_B) / unit, EXCESS: -1.0}
        for i in range(local.n):
            add(needed, 1 / unit, total((local.own_B[i, p], x) for p, x in self.computes[i].items()))
        for e, pairs in enumerate(self.pairs):
            add(needed, 1 / unit, total((local.edge_B[e, p, q], x) for (p, q), x in pairs.items()))
        roots = local.root[local.producer]
        for t in range(local.n):
            readers = np.flatnonzero(local.keeps & (roots == t)).tolist()
            for p, x in self.output[t].items() if local.kept[t] or readers else ():
                add(needed, local.tensor_B[t, p] / unit, x if local.kept[t] else self._kept(t, p, readers))
        self.program.row(needed, -np.inf, 1e3)
        return unit

    def _kept(self, t: int, p: int, readers: Iterable[int]) -> Expression:
        """1 if a tensor is in precision p and one of these edges keeps it as it comes."""
        kept = self.program.column()
        for e in readers:
            itself = self.output[self.local.producer[e]] is self.output[t]
            as_it_comes = total(
                (1.0, x) for (a, q), x in self.pairs[e].items() if _stored(a) == _stored(q) and (a == p or not itself)
            )
            if not itself:  # through a view that does not infer: both have to hold
                as_it_comes = total([(1.0, as_it_comes), (1.0, self.output[t][p]), (-1.0, {ONE: 1.0})])
            self.program.row(total([(1.0, as_it_comes), (-1.0, kept)]), -np.inf, 0.0)
        return kept

    def limit_time(self, limit_s: float, longest_s: float, bucket_s: Floats) -> float:
        """Deadlines of buckets and of the last step in the clock of work done, in the unit that is returned."""
        unit, local, program = limit_s / 1e3, self.local, self.program
        if not np.isfinite(limit_s):
            return limit_s
        slowdown, moved, steps = local.device.overlap_slowdown, np.cumsum([0.0, *bucket_s]), 2 * local.n
        ready = steps - local.bucket_step[: len(bucket_s)]
        deadlines = {steps: limit_s - local.optimizer_s - slowdown * moved[-1]}
        for b, step in enumerate(ready.tolist()):
            latest_s = limit_s - longest_s - (moved[-1] - moved[b]) - slowdown * moved[b]
            deadlines[step] = min(deadlines.get(step, np.inf), latest_s)
        end: Expression = {}
        launched: Expression = {}
        end_low = launched_low = launched_high = 0.0
        order = [(i, FORWARD) for i in range(local.n)] + [(i, BACKWARD) for i in reversed(range(local.n))]
        for step, (i, way) in enumerate(order):
            host, low, high = self._spent(local.own_host_s, local.edge_host_s, i, way, unit)
            add(launched, 1.0, host)
            launched_low, launched_high = launched_low + low, launched_high + high
            earlier = slowdown * moved[np.count_nonzero(ready <= step)] / unit
            if launched_high - earlier > end_low:  # otherwise the device never waits for this launch
                launch, start = program.column(np.inf), program.column(np.inf)
                program.row(total([(1.0, launched), (-1.0, launch)]), -np.inf, 0.0)
                program.row(total([(1.0, launch), (-1.0, start)]), -np.inf, earlier)
                program.row(total([(1.0, end), (-1.0, start)]), -np.inf, 0.0)
                launched, end, end_low = dict(launch), dict(start), max(end_low, launched_low - earlier)
            work, low, _ = self._spent(local.own_s, local.edge_s, i, way, unit)
            add(end, 1.0, work)
            end_low += low
            if step + 1 in deadlines:
                done = program.column(np.inf)
                program.row(total([(1.0, end), (-1.0, done)]), -np.inf, 0.0)
                program.row(total([(1.0, done), (-1.0, {LATE: 1.0})]), -np.inf, deadlines[step + 1] / unit)
                end = dict(done)
        return unit

    def _spent(self, own: Floats, edge: Floats, i: int, way: int, unit: float) -> tuple[Expression, float, float]:
        """Time of one step, and the least and the most that it can be."""
        parts = [[(own[i, way, p] / unit, x) for p, x in self.computes[i].items()]]
        for e in self.local.edges_into[i].tolist():
            parts.append([(edge[e, way, p, q] / unit, x) for (p, q), x in self.pairs[e].items()])
        low, high = (sum(pick(seconds for seconds, _ in part) for part in parts) for pick in (min, max))
        return total(term for part in parts for term in part), float(low), float(high)


def _stored(p: int) -> int:
    return FLOAT32 if p == INDEX["tf32"] else p
