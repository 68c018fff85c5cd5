"""The best precisions of one class under prices, operator by operator along the program: where the allocator starts from.

What an operator costs depends on what arrives at it, so that all that matters of the operators before it is the *frontier*: the
precisions of the tensors that are still to be read, and whether each is kept for the backward pass already. At an articulation
point of the graph the frontier is one tensor, and a tensor that is float32 whatever is chosen tells nothing, so that frontiers are
few. One pass over them finds what trying all choices of each block between articulation points finds, also where blocks meet, in
time that grows with the number of operators: nothing is gained by reusing results of blocks that are alike.

Guarantees: `cheapest` is the minimum over all choices, and `fastest` finds a choice within a limit of memory exactly where there
is one. Where the limit does not bind it is the fastest; where it binds, it is while no frontier has more than LABELS choices none
of which is both faster and smaller than another, otherwise one near it. Where there are more than FRONTIERS frontiers the least
promising are left out, and nothing is guaranteed (`complete` is False).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from simcore.qsync.local import FLOAT32, INDEX, Floats, Ints, LocalGraph

LABELS = 96
FRONTIERS = 512

State = tuple[tuple[int, int, bool], ...]
"""Of each tensor to be read: the operator that made it, its precision, and whether it is kept."""


@dataclass(frozen=True, slots=True)
class Move:
    """One operator computing in a precision: between which frontiers, kernel seconds (forward, backward) and bytes that it adds."""

    source: int
    target: int
    precision: int
    forward_s: float
    backward_s: float
    nbytes: float

    @property
    def seconds(self) -> float:
        return self.forward_s + self.backward_s


@dataclass(eq=False)
class Frontiers:
    """All moves of a `LocalGraph`, by operator; what it allows is what is chosen from."""

    local: LocalGraph
    moves: list[list[Move]] = field(default_factory=list)
    complete: bool = True

    def __post_init__(self) -> None:
        states: dict[State, int] = {(): 0}
        reach = [(0.0, 0.0)]
        last_read, last_kept = np.full((2, self.local.n), -1)
        roots = self.local.root[self.local.producer]
        np.maximum.at(last_read, roots, self.local.consumer)
        np.maximum.at(last_kept, roots[self.local.keeps], self.local.consumer[self.local.keeps])
        self._last = list(zip(last_read.tolist(), last_kept.tolist(), strict=True))
        for i in range(self.local.n):
            states, reach = self._operator(i, states, reach)

    def _operator(
        self, i: int, states: dict[State, int], reach: list[tuple[float, float]]
    ) -> tuple[dict[State, int], list[tuple[float, float]]]:
        following: dict[State, int] = {}
        moves, best = [], list[tuple[float, float]]()
        for state, source in states.items():
            for precision, seconds, nbytes, after in self._ways(i, state):
                target = following.setdefault(after, len(following))
                moves.append(Move(source, target, precision, *seconds, nbytes))
                so_far = (reach[source][0] + sum(seconds), reach[source][1] + nbytes)
                if target == len(best):
                    best.append(so_far)
                best[target] = min(best[target][0], so_far[0]), min(best[target][1], so_far[1])
        if len(following) > FRONTIERS:
            following, moves, best = self._thinned(following, moves, best)
        self.moves.append(moves)
        return following, best

    def _thinned(
        self, states: dict[State, int], moves: list[Move], best: list[tuple[float, float]]
    ) -> tuple[dict[State, int], list[Move], list[tuple[float, float]]]:
        self.complete = False
        rank = [sorted(range(len(best)), key=lambda k: best[k][by])[: FRONTIERS // 2] for by in (0, 1)]
        kept = {k: new for new, k in enumerate(dict.fromkeys(rank[0] + rank[1]))}
        left = [replace(m, target=kept[m.target]) for m in moves if m.target in kept]
        return {s: kept[k] for s, k in states.items() if k in kept}, left, [best[k] for k in kept]

    def _ways(self, i: int, state: State) -> Iterator[tuple[int, tuple[float, float], float, State]]:
        local, edges = self.local, self.local.edges_into[i]
        live = {t: (precision, kept) for t, precision, kept in state}
        tensors = local.root[local.producer[edges]].tolist()
        arriving = [live[t][0] for t in tensors]
        if local.allowed[i].any():
            options = np.flatnonzero(local.allowed[i]).tolist()
        else:
            same = local.infers[i] and len(set(arriving)) == 1
            options = [arriving[0] if same else FLOAT32]
        for c in options:
            forward_s, backward_s = (local.own_s[i, :, c] + local.edge_s[edges, :, arriving, c].sum(axis=0)).tolist()
            nbytes = float(local.own_B[i, c] + local.edge_B[edges, arriving, c].sum())
            after = dict(live)
            for t, keeps in zip(tensors, local.keeps[edges].tolist(), strict=True):
                precision, kept = after[t]
                if keeps and not kept and _stored(precision) == _stored(c):
                    nbytes += float(local.tensor_B[t, precision])
                    after[t] = precision, True
            handed_on, kept = int(local.output_of[i, c]), bool(local.kept[i])
            nbytes += float(local.tensor_B[i, handed_on]) if kept else 0.0
            if local.root[i] == i:
                after[i] = handed_on, kept
            yield c, (forward_s, backward_s), nbytes, self._live(i, after)

    def _live(self, i: int, after: dict[int, tuple[int, bool]]) -> State:
        """What is read later; whether a tensor is kept no longer matters where nobody that comes could keep it."""
        return tuple(
            (t, precision, kept or self._last[t][1] <= i)
            for t, (precision, kept) in after.items()
            if self._last[t][0] > i
        )

    def cheapest(self, *, price_s: float, price_B: float, costs: Floats | None = None, backward_from: int = 0) -> Ints:
        """(n,) what every operator computes in where the sum of `costs` (n, P) and of priced seconds and bytes is least.

        Backward seconds have a price from operator `backward_from` on: what ends before the backward pass gets there.
        """
        value, steps = [0.0], []
        of = costs.tolist() if costs is not None else None
        for i, moves in enumerate(self.moves):
            n = 1 + max(m.target for m in moves)
            least, best = [inf] * n, [moves[0]] * n
            back_s, extra = price_s * (i >= backward_from), of[i] if of else None
            for m in moves:
                v = value[m.source] + price_s * m.forward_s + back_s * m.backward_s + price_B * m.nbytes
                v += extra[m.precision] if extra else 0.0
                if v < least[m.target]:
                    least[m.target], best[m.target] = v, m
            value = least
            steps.append(best)
        chosen, at = np.empty(self.local.n, dtype=np.int64), int(np.argmin(value))
        for i in reversed(range(self.local.n)):
            chosen[i], at = steps[i][at].precision, steps[i][at].source
        return chosen

    def fastest(self, limit_B: float) -> Ints | None:
        """(n,) the choice with the least kernel seconds that keeps at most `limit_B` bytes of activations; None where none does."""
        to_go = self._bytes_to_go()
        if to_go[0][0] > limit_B:
            return None
        labels: list[tuple[Floats, Floats]] = [(np.zeros(1), np.zeros(1))]
        trail = []
        for i, moves in enumerate(self.moves):
            into: list[list[Move]] = [[] for _ in range(1 + max(m.target for m in moves))]
            for m in moves:
                into[m.target].append(m)
            merged = [_merged(of, labels, limit_B - to_go[i + 1][target]) for target, of in enumerate(into)]
            labels = [(nbytes, seconds) for nbytes, seconds, *_ in merged]
            trail.append([(into[target], which, place) for target, (_, _, which, place) in enumerate(merged)])
        at = min((k for k in range(len(labels)) if len(labels[k][1])), key=lambda k: labels[k][1].min())
        place = int(labels[at][1].argmin())
        chosen = np.empty(self.local.n, dtype=np.int64)
        for i in reversed(range(self.local.n)):
            of, which, places = trail[i][at]
            move = of[int(which[place])]
            chosen[i], at, place = move.precision, move.source, int(places[place])
        return chosen

    def _bytes_to_go(self) -> list[list[float]]:
        """By operator and frontier before it: the least bytes that this operator and those after it add."""
        ends = 1 + max((m.target for m in self.moves[-1]), default=0) if self.moves else 1
        found = [[0.0] * ends]
        for moves in reversed(self.moves):
            least = [inf] * (1 + max(m.source for m in moves))
            for m in moves:
                least[m.source] = min(least[m.source], m.nbytes + found[-1][m.target])
            found.append(least)
        return found[::-1]


def _merged(
    moves: list[Move], labels: list[tuple[Floats, Floats]], limit_B: float
) -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Bytes, seconds, move and position in its frontier of the choices that no other beats in both, by rising bytes.

    The least bytes and the least seconds are always among those that are left of more than LABELS.
    """
    nbytes = np.concatenate([labels[m.source][0] + m.nbytes for m in moves])
    seconds = np.concatenate([labels[m.source][1] + m.seconds for m in moves])
    sizes = [len(labels[m.source][0]) for m in moves]
    which = np.repeat(np.arange(len(moves)), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    order = np.lexsort((seconds, nbytes))
    order = order[nbytes[order] <= limit_B * (1 + 1e-12)]
    faster = np.minimum.accumulate(seconds[order])
    better = np.ones(len(order), dtype=np.bool_)
    better[1:] = faster[1:] < faster[:-1]
    order = order[better]
    if len(order) > LABELS:
        order = order[np.unique(np.linspace(0, len(order) - 1, LABELS).round().astype(np.int64))]
    return nbytes[order], seconds[order], which[order], place[order]


def _stored(precision: int) -> int:
    return FLOAT32 if precision == INDEX["tf32"] else precision
