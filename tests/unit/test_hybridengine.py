"""Groups and resharding of an actor, over every configuration of up to 64 GPUs whose degrees divide each other."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from simcore.errors import InputError
from simcore.hybridflow.grouping import MEMBERSHIP, Axis, Degrees, Grouping, Style, grouping
from simcore.hybridflow.resharding import ENGINES, Engine, Resharding, area, moves, resharding, table_2

MOST_RANKS = 64


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def configurations() -> Iterator[Degrees]:
    for n in range(1, MOST_RANKS + 1):
        for pp in divisors(n):
            for tp in divisors(n // pp):
                for gen_pp in divisors(pp):
                    for gen_tp in divisors(tp):
                        yield Degrees(pp=pp, tp=tp, dp=n // (pp * tp), gen_pp=gen_pp, gen_tp=gen_tp)


def ids(groups: np.ndarray) -> list[list[int]]:
    """With ranks counted from 1, as the paper does."""
    return (groups + 1).tolist()


def cells_of(box: np.ndarray) -> set[tuple[int, int]]:
    first, end, low, high = box.tolist()
    return {(layer, at) for layer in range(first, end) for at in range(low, high)}


# --- groups


def test_the_papers_example() -> None:
    """1-4-2 to 1-2-2-2 (section 5.3)."""
    degrees = Degrees(tp=4, dp=2, gen_tp=2)
    strided, vanilla = grouping(degrees), grouping(degrees, "vanilla")
    assert ids(strided.groups("tp")) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert ids(strided.groups("gen_tp")) == [[1, 3], [2, 4], [5, 7], [6, 8]]
    assert ids(strided.groups("micro_dp")) == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert ids(vanilla.groups("gen_tp")) == [[1, 2], [3, 4], [5, 6], [7, 8]]
    redundant = resharding(degrees, "hybridflow_v").redundant_cells()
    assert (np.flatnonzero(redundant) + 1).tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize("style", ["strided", "vanilla"])
def test_every_group_of_every_configuration(style: Style) -> None:
    for degrees in configurations():
        found = grouping(degrees, style)
        each_rank_has_its_own_place(found)
        for axis in MEMBERSHIP:
            groups_partition_the_ranks(found, axis)
        assert found.replica.max() + 1 == degrees.gen_dp
        assert degrees.gen_pp * degrees.gen_tp * degrees.gen_dp == degrees.n_ranks


def each_rank_has_its_own_place(found: Grouping) -> None:
    for axes in (("pp", "tp", "dp"), ("gen_pp", "gen_tp", "micro_dp", "dp")):
        places = np.stack([getattr(found, axis) for axis in axes], axis=1)
        assert len(np.unique(places, axis=0)) == found.degrees.n_ranks


def groups_partition_the_ranks(found: Grouping, axis: Axis) -> None:
    groups = found.groups(axis)
    size = getattr(found.degrees, axis)
    assert np.array_equal(np.sort(groups, axis=None), np.arange(found.degrees.n_ranks))
    assert np.array_equal(getattr(found, axis)[groups], np.tile(np.arange(size), (len(groups), 1)))
    for common in MEMBERSHIP[axis]:
        coordinate = getattr(found, common)[groups]
        assert (coordinate == coordinate[:, :1]).all()


def test_groups_of_models_are_rows_of_ranks_stage_by_stage() -> None:
    found = grouping(Degrees(pp=2, tp=2, dp=2, gen_pp=1, gen_tp=2))
    assert found.model_groups().tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert found.groups("micro_dp").tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert found.generation_groups().tolist() == [[0, 1], [4, 5], [2, 3], [6, 7]]


# --- resharding


@pytest.mark.parametrize("engine", ENGINES)
def test_table_2_of_every_configuration(engine: Engine) -> None:
    """Volume and peak are the closed forms of every rank, redundancy of the worst; all of them exactly."""
    for degrees in configurations():
        found = resharding(degrees, engine)
        volume, peak, redundancy = table_2(degrees, engine)
        assert set(found.received_cells().tolist()) == {volume * found.cells}
        assert set(found.peak_cells().tolist()) == {peak * found.cells}
        assert found.received() == volume
        assert found.peak() == peak
        redundancy_is_the_bound_or_explained(found, redundancy)


def redundancy_is_the_bound_or_explained(found: Resharding, bound: Fraction) -> None:
    """A training shard of one cell is redundant as a whole or not at all; one of ZeRO may lie in a generation shard in part."""
    degrees = found.grouping.degrees
    if found.engine == "hybridflow":
        assert found.redundancy() == bound == 0
        return
    partial = Fraction(0) if found.engine == "hybridflow_v" else (1 - Fraction(1, degrees.gen_pp)) * bound
    assert {Fraction(int(n), found.cells) for n in found.redundant_cells()} <= {partial, bound}
    if degrees.gen_tp == degrees.tp and degrees.gen_pp == degrees.pp == 1 and found.engine == "hybridflow_v":
        assert found.redundancy() == 0
    if found.engine == "hybridflow_v" and degrees.pp == 1 and 1 < degrees.gen_tp < degrees.tp:
        assert found.redundancy() == bound


@pytest.mark.parametrize("engine", ENGINES)
def test_boxes_cover_the_model_and_what_is_gathered_covers_what_is_generated_with(engine: Engine) -> None:
    """Cell by cell, without the arithmetic that is being tested."""
    for degrees in configurations():
        if degrees.n_ranks > 16:
            continue
        found = resharding(degrees, engine)
        trained, generated = ([cells_of(box) for box in boxes] for boxes in (found.trained, found.generated))
        for rank, members in enumerate(found.gathered.tolist()):
            gathered = set().union(*(trained[m] for m in members))
            assert rank in members
            assert generated[rank] <= gathered
            assert found.received_cells()[rank] == len(gathered - trained[rank])
            assert found.peak_cells()[rank] == len(gathered | generated[rank])
            assert found.redundant_cells()[rank] == len(trained[rank] - generated[rank])
        for replica in found.grouping.generation_groups():
            assert sum(len(generated[rank]) for rank in replica) == found.cells
            assert len(set().union(*(generated[rank] for rank in replica))) == found.cells


@pytest.mark.parametrize("engine", ENGINES)
def test_moves_bring_each_rank_what_it_receives(engine: Engine) -> None:
    for degrees in configurations():
        found = resharding(degrees, engine)
        going = moves(found)
        received = np.bincount(going.target, weights=area(going.box), minlength=degrees.n_ranks)
        assert np.array_equal(received, found.received_cells())
        assert (going.source != going.target).all()
        assert np.array_equal(going.box, found.trained[going.source])
        if engine == "hybridflow":
            inside = found.generated[going.target]
            assert (going.box[:, [0, 2]] >= inside[:, [0, 2]]).all()
            assert (going.box[:, [1, 3]] <= inside[:, [1, 3]]).all()


# --- mistakes


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Degrees(pp=4, tp=8, gen_pp=3, gen_tp=16)
    assert [p.field for p in caught.value.problems] == ["gen_pp", "gen_tp"]
    with pytest.raises(InputError) as caught:
        Degrees(pp=0, tp=1, dp=-1)
    assert [p.field for p in caught.value.problems] == ["pp", "dp"]
    with pytest.raises(InputError, match="hybridflow_v"):
        resharding(Degrees(), "zero")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="strided"):
        grouping(Degrees(), "odd")  # type: ignore[arg-type]
