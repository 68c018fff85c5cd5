"""What an actor's ranks hold, receive and keep when it goes from training to generation (HybridFlow, section 5.3 and Table 2).

The model is a rectangle: layers times width (the axis along which tensor parallelism cuts a matrix). It is cut into equal cells,
so that everything counted here is exact. A share is cells over all cells; times the model's bytes it is bytes.

    ds_chat        ZeRO over all ranks; everyone gathers everything, layer by layer, and keeps its generation shard
    hybridflow_v   everyone gathers its training replica, generation groups are neighbours
    hybridflow     everyone gathers its micro-DP group, and all that it gathers is its generation shard
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from simcore.errors import InputError, Problem
from simcore.hybridflow.grouping import Degrees, Grouping, Ints, grouping

Engine = Literal["ds_chat", "hybridflow_v", "hybridflow"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resharding:
    """Boxes are rows (first layer, end of layers, first of width, end of width) in units of the grid, ends exclusive."""

    engine: Engine
    grouping: Grouping
    grid: tuple[int, int]
    """Cells along layers and along width."""
    trained: Ints = field(repr=False)
    """(n_ranks, 4) what each rank holds while it trains."""
    generated: Ints = field(repr=False)
    """(n_ranks, 4) what it generates with."""
    gathered: Ints = field(repr=False)
    """(n_ranks, size) the ranks, itself among them, whose training boxes each rank gathers."""

    @property
    def cells(self) -> int:
        """Of the whole model."""
        return self.grid[0] * self.grid[1]

    def received_cells(self) -> Ints:
        """(n_ranks,) what each rank receives from others."""
        held = area(self.trained)
        gathered: Ints = held[self.gathered].sum(axis=1)
        return gathered - held

    def peak_cells(self) -> Ints:
        """(n_ranks,) the most that each rank holds: all that it gathered, together with what it generates with."""
        gathered: Ints = area(self.trained)[self.gathered].sum(axis=1)
        return gathered + area(self.generated) - self._gathered_of_generated()

    def redundant_cells(self) -> Ints:
        """(n_ranks,) what each rank keeps while it generates only because it trains with it."""
        return area(self.trained) - area(intersection(self.trained, self.generated))

    def _gathered_of_generated(self) -> Ints:
        inside: Ints = area(intersection(self.trained[self.gathered], self.generated[:, None])).sum(axis=1)
        return inside

    def received(self) -> Fraction:
        """Communication volume of the rank that receives most, as a share of the model."""
        return Fraction(int(self.received_cells().max()), self.cells)

    def peak(self) -> Fraction:
        """Parameters of the rank that holds most at one time, as a share of the model."""
        return Fraction(int(self.peak_cells().max()), self.cells)

    def redundancy(self) -> Fraction:
        """Redundant parameters of the rank that has most of them, as a share of the model."""
        return Fraction(int(self.redundant_cells().max()), self.cells)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moves:
    """Every box that goes from a rank to another, ordered by target and source: arrays (moves,), `box` (moves, 4)."""

    source: Ints
    target: Ints
    box: Ints


def resharding(degrees: Degrees, engine: Engine = "hybridflow") -> Resharding:
    """Who holds and gathers what under `engine`. Raises `InputError` on another engine."""
    if engine not in ENGINES:
        raise InputError("an actor cannot be resharded", [Problem("engine", repr(engine), ", ".join(ENGINES))])
    groups = grouping(degrees, "strided" if engine == "hybridflow" else "vanilla")
    grid = (degrees.pp, degrees.n_ranks if engine == "ds_chat" else degrees.tp)
    everything = np.zeros_like(groups.pp)
    if engine == "ds_chat":
        trained = _boxes(grid, (1, everything), (degrees.n_ranks, np.arange(degrees.n_ranks)))
        members = np.arange(degrees.n_ranks)[None]
    else:
        trained = _boxes(grid, (degrees.pp, groups.pp), (degrees.tp, groups.tp))
        members = groups.groups("micro_dp") if engine == "hybridflow" else groups.model_groups()
    return Resharding(
        engine=engine,
        grouping=groups,
        grid=grid,
        trained=trained,
        generated=_boxes(grid, (degrees.gen_pp, groups.gen_pp), (degrees.gen_tp, groups.gen_tp)),
        gathered=_of_each(members, degrees.n_ranks),
    )


def moves(of: Resharding) -> Moves:
    """What goes over the network: each rank's training box to every other rank that gathers it."""
    target = np.repeat(np.arange(len(of.gathered)), of.gathered.shape[1])
    source = np.sort(of.gathered, axis=1).ravel()
    other = source != target
    return Moves(source=source[other], target=target[other], box=of.trained[source[other]])


def table_2(degrees: Degrees, engine: Engine) -> tuple[Fraction, Fraction, Fraction]:
    """Communication volume, peak memory and redundancy of a GPU as shares of the model, in the closed forms of Table 2.

    Redundancy is the paper's bound: no GPU has more, and where training shards happen to lie in generation shards none has any.
    """
    replica, generation = degrees.pp * degrees.tp, degrees.gen_pp * degrees.gen_tp
    if engine == "ds_chat":
        return Fraction(degrees.n_ranks - 1, degrees.n_ranks), Fraction(1), Fraction(1, degrees.n_ranks)
    if engine == "hybridflow_v":
        return Fraction(replica - 1, replica), Fraction(1), Fraction(1, replica)
    return Fraction(replica - generation, generation * replica), Fraction(1, generation), Fraction(0)


def area(boxes: Ints) -> Ints:
    """(...,) cells of boxes (..., 4)."""
    cells: Ints = (boxes[..., 1] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 2])
    return cells


def intersection(a: Ints, b: Ints) -> Ints:
    """(..., 4) what lies in both of two boxes; of no area where nothing does."""
    low, high = np.maximum(a, b), np.minimum(a, b)
    first_layer, first_width = low[..., 0], low[..., 2]
    end_layer, end_width = np.maximum(high[..., 1], first_layer), np.maximum(high[..., 3], first_width)
    return np.stack([first_layer, end_layer, first_width, end_width], axis=-1)


def _boxes(grid: tuple[int, int], layers: tuple[int, Ints], width: tuple[int, Ints]) -> Ints:
    """(n_ranks, 4): part number `index` of so many equal parts, along layers and along width."""
    sides = []
    for cells, (parts, index) in zip(grid, (layers, width), strict=True):
        assert cells % parts == 0
        sides += [index * (cells // parts), (index + 1) * (cells // parts)]
    return np.stack(sides, axis=-1)


def _of_each(members: Ints, n_ranks: int) -> Ints:
    """(n_ranks, size) the group of each rank, given all groups (groups, size)."""
    of = np.empty((n_ranks, members.shape[1]), dtype=np.int64)
    of[members.ravel()] = np.repeat(members, members.shape[1], axis=0)
    return of
