"""Every byte is written once and read at most once in a group, whatever the parallelism; small cases against sets of elements."""

from collections import Counter
from collections.abc import Mapping
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simcore.checkpoint.boxes import Box, decompose, intersection, whole
from simcore.checkpoint.cache import PlanCache, plan_key, state_digest
from simcore.checkpoint.gathering import flat_tree, gather_tree
from simcore.checkpoint.layouts import Mesh, Placement, layout
from simcore.checkpoint.loading import everyone_reads, read_plan
from simcore.checkpoint.merging import merge_ranks
from simcore.checkpoint.overlaps import check_disjoint, overlaps
from simcore.checkpoint.redistributing import redistribute
from simcore.checkpoint.saving import imbalance, lowest_rank_plan, save_plan, split
from simcore.checkpoint.shards import Shards, TensorSpec
from simcore.errors import InputError

SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)


def elements(box: Box) -> set[tuple[int, ...]]:
    return set(product(*(range(a, a + n) for a, n in zip(box.offsets, box.lengths, strict=True))))


@st.composite
def flat_ranges(draw: st.DrawFn) -> tuple[int, int, tuple[int, ...]]:
    shape = draw(SHAPES)
    start = draw(st.integers(0, prod(shape)))
    return start, draw(st.integers(start, prod(shape))), shape


@settings(deadline=None)
@given(flat_ranges())
def test_a_range_becomes_few_boxes_in_the_order_of_its_elements(case: tuple[int, int, tuple[int, ...]]) -> None:
    start, stop, shape = case
    boxes = decompose(start, stop, shape)
    numbers = np.arange(prod(shape)).reshape(shape)
    assert np.concatenate([numbers[b.slices].reshape(-1) for b in boxes] or [[]]).tolist() == list(range(start, stop))
    assert len(boxes) <= max(2 * len(shape) - 1, 1)


def test_the_example_of_the_paper() -> None:
    """Figure 7: three elements of a 3 x 2 tensor."""
    assert decompose(0, 3, (3, 2)) == [Box((0, 0), (1, 2)), Box((1, 0), (1, 1))]


def test_a_range_outside_its_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="elements 3 to 7"):
        decompose(3, 7, (3, 2))


@settings(deadline=None)
@given(st.data())
def test_an_intersection_holds_the_common_elements(data: st.DataObject) -> None:
    ndim = data.draw(st.integers(0, 3))
    sides = st.tuples(*[st.integers(0, 4)] * ndim), st.tuples(*[st.integers(1, 4)] * ndim)
    a, b = (Box(data.draw(sides[0]), data.draw(sides[1])) for _ in range(2))
    common = intersection(a, b)
    assert (elements(common) if common else set()) == elements(a) & elements(b)


DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "int64", "bool")


@st.composite
def states(draw: st.DrawFn) -> tuple[list[TensorSpec], list[Placement], Mesh]:
    """Tensors, where they are, and a mesh of up to eight ranks."""
    mesh = Mesh(dp=draw(st.integers(1, 4)), tp=draw(st.integers(1, 2)), pp=draw(st.integers(1, 2)))
    tensors, placements = [], []
    for i in range(draw(st.integers(1, 5))):
        shape = draw(st.lists(st.integers(0, 7), max_size=3).map(tuple))
        tensors.append(
            TensorSpec(f"t{i}", shape, draw(st.sampled_from(DTYPES)), draw(st.sampled_from(["model", "optimizer"])))
        )
        placements.append(draw(placement(len(shape), mesh)))
    return tensors, placements, mesh


def placement(ndim: int, mesh: Mesh) -> st.SearchStrategy[Placement]:
    return st.builds(
        Placement,
        stage=st.sampled_from([None, *range(mesh.pp)]),
        tp_dim=st.sampled_from([None, *range(ndim)]),
        dp=st.sampled_from(["replicate", "shard", "flat"]),
    )


def held(shards: Shards) -> Mapping[str, Counter[tuple[int, ...]]]:
    """How often each element of each tensor is in a shard."""
    found: dict[str, Counter[tuple[int, ...]]] = {t.name: Counter() for t in shards.tensors}
    for shard in shards:
        found[shard.tensor.name].update(elements(shard.box))
    return found


UNEVEN = (
    [TensorSpec("cut", (1,), "float32"), TensorSpec("copied", (3,), "float32")],
    [Placement(stage=0, tp_dim=0, dp="flat"), Placement(stage=0, dp="flat")],
    Mesh(dp=2, tp=2),
)
"""One rank of the tensor-parallel group holds no part of the tensor in front of the one that both hold."""


@settings(deadline=None)
@given(states())
@example(UNEVEN)
def test_a_layout_covers_every_element_once(state: tuple[list[TensorSpec], list[Placement], Mesh]) -> None:
    shards = layout(*state)
    for spec in state[0]:
        assert held(shards)[spec.name] == Counter(elements(whole(spec.shape)))


@settings(deadline=None)
@given(states())
def test_ranks_that_say_what_they_hold_make_the_same_table(
    state: tuple[list[TensorSpec], list[Placement], Mesh],
) -> None:
    shards = layout(*state)
    ranks: list[list[tuple[TensorSpec, Box]]] = [[] for _ in range(shards.n_ranks)]
    for shard in shards:
        for rank in shard.ranks:
            ranks[rank].append((shard.tensor, shard.box))
    merged = merge_ranks(ranks)
    assert sorted(map(repr, merged)) == sorted(map(repr, shards))
    assert merged.held_B().tolist() == shards.held_B().tolist()


@settings(deadline=None)
@given(states(), st.integers(1, 40))
def test_every_byte_is_written_once_by_a_rank_that_has_it(
    state: tuple[list[TensorSpec], list[Placement], Mesh], largest_B: int
) -> None:
    plan = save_plan(layout(*state), largest_B=largest_B, align_B=8)
    for spec in state[0]:
        assert held(plan.shards)[spec.name] == Counter(elements(whole(spec.shape)))
    assert int(plan.written_B.sum()) == sum(t.nbytes for t in state[0])
    ends: dict[tuple[int, int], int] = {}
    for i, shard in enumerate(plan.shards):
        assert plan.writer[i] in shard.ranks
        assert plan.shards.nbytes[i] <= max(largest_B, shard.tensor.item_B)
        file = int(plan.writer[i]), int(plan.role[i])
        assert plan.roles[plan.role[i]] == shard.tensor.role
        assert plan.offset_B[i] == -(-ends.get(file, 0) // 8) * 8  # neither gap nor overlap
        ends[file] = int(plan.offset_B[i] + plan.shards.nbytes[i])
    assert {k: int(v) for k, v in np.ndenumerate(plan.file_B) if v} == ends


@settings(deadline=None)
@given(states(), states(), st.booleans())
def test_a_saved_byte_is_read_at_most_once_in_a_group_and_all_that_is_wanted_arrives(
    saved: tuple[list[TensorSpec], list[Placement], Mesh],
    drawn: tuple[list[TensorSpec], list[Placement], Mesh],
    by_dp_group: bool,
) -> None:
    tensors, mesh = saved[0], drawn[2]
    placements = [
        Placement(dp=drawn[1][i % len(drawn[1])].dp, tp_dim=0 if t.shape else None) for i, t in enumerate(tensors)
    ]
    wanted = layout(tensors, placements, mesh)
    pieces = split(layout(*saved), 16)
    plan = read_plan(pieces, wanted, mesh.dp_groups() if by_dp_group else None)
    reads = Counter(zip(plan.shard.tolist(), plan.groups[plan.reader].tolist(), strict=True))
    assert set(reads.values()) <= {1}
    if not by_dp_group:
        assert plan.read_B.sum() == pieces.total_B
    got: Counter[tuple[int, int]] = Counter()  # (wanted shard, rank) -> bytes
    reader = {
        (s, g): r
        for s, g, r in zip(plan.shard.tolist(), plan.groups[plan.reader].tolist(), plan.reader.tolist(), strict=True)
    }
    exchanged = Counter(zip(*(a.tolist() for a in plan.exchanges), strict=True))
    for part, (i, j, nbytes) in enumerate(zip(plan.part_wanted, plan.part_saved, plan.part_B, strict=True)):
        for rank in wanted[int(i)].ranks:
            source = reader[int(j), int(plan.groups[rank])]
            assert exchanged[part, source, rank] == (source != rank)
            got[int(i), rank] += int(nbytes)
    assert all(got[i, r] == wanted.nbytes[i] for i in range(len(wanted)) for r in wanted[i].ranks)
    assert plan.sent_B.sum() == plan.received_B.sum()


@settings(deadline=None)
@given(states(), states())
def test_pairs_are_those_of_a_double_loop(
    a: tuple[list[TensorSpec], list[Placement], Mesh], b: tuple[list[TensorSpec], list[Placement], Mesh]
) -> None:
    tensors = a[0]
    left = layout(*a)
    right = layout(tensors, [Placement(dp=p.dp) for p, _ in zip(b[1] * 5, tensors, strict=False)], b[2])
    found = {(i, j, n) for i, j, n in zip(*(x.tolist() for x in overlaps(left, right)), strict=True)}
    wanted = set()
    for (i, s), (j, t) in product(enumerate(left), enumerate(right)):
        common = intersection(s.box, t.box) if s.tensor == t.tensor else None
        if common:
            wanted.add((i, j, common.size))
    assert found == wanted


def ddp(sizes: list[int], n_ranks: int) -> Shards:
    tensors = [TensorSpec(f"t{i}", (n,), "float32") for i, n in enumerate(sizes)]
    return layout(tensors, [Placement()] * len(tensors), Mesh(dp=n_ranks))


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 8))
def test_replicas_share_the_writing_within_one_tensor_of_even(sizes: list[int], n_ranks: int) -> None:
    """Graham's bound for worst-fit: the fullest rank has at most the mean and the largest item."""
    plan = save_plan(ddp(sizes, n_ranks), largest_B=None)
    assert plan.written_B.max() <= plan.written_B.sum() / n_ranks + 4 * max(sizes)
    assert plan.written_B.max() <= lowest_rank_plan(ddp(sizes, n_ranks)).written_B.max()


def test_a_large_tensor_is_cut_so_that_replicas_share_it() -> None:
    whole_only = save_plan(ddp([4_000_000], 4), largest_B=None)
    cut = save_plan(ddp([4_000_000], 4), largest_B=2**20)
    assert imbalance(whole_only.written_B) == 4.0
    assert imbalance(cut.written_B) < 1.01


def test_overlapping_shards_are_refused_by_name() -> None:
    spec = TensorSpec("layer.weight", (4, 4), "float32")
    shards = merge_ranks([[(spec, Box((0, 0), (3, 4)))], [(spec, Box((2, 0), (2, 4)))]])
    with pytest.raises(InputError, match=r"layer\.weight.*\[0, 0\]\+\[3, 4\].*\[2, 0\]\+\[2, 4\]"):
        check_disjoint(shards)


def test_what_no_rank_holds_is_named() -> None:
    spec = TensorSpec("layer.weight", (4, 4), "float32")
    with pytest.raises(InputError, match=r"layer\.weight: given 12 elements"):
        save_plan(merge_ranks([[(spec, Box((0, 0), (3, 4)))]]))


def test_a_box_outside_its_tensor_is_refused() -> None:
    spec = TensorSpec("w", (4, 4), "float32")
    with pytest.raises(InputError, match="shard of w"):
        merge_ranks([[(spec, Box((2, 0), (3, 4)))]])


def test_ranks_that_disagree_are_named() -> None:
    one, other = TensorSpec("w", (4,), "float32"), TensorSpec("w", (4,), "bfloat16")
    with pytest.raises(InputError, match="w on rank 1: given model bfloat16"):
        merge_ranks([[(one, whole((4,)))], [(other, whole((4,)))]])


def test_loading_what_was_not_saved_names_the_tensor() -> None:
    spec = TensorSpec("w", (4, 4), "float32")
    saved = merge_ranks([[(spec, Box((0, 0), (2, 4)))]])
    with pytest.raises(InputError, match="w: given 8 of 16 elements"):
        read_plan(saved, merge_ranks([[(spec, whole((4, 4)))]]))


def test_without_exchange_replicas_read_the_same_bytes_again() -> None:
    shards = ddp([100, 200, 300], 4)
    assert everyone_reads(shards, shards).read_B.tolist() == [2400] * 4
    assert read_plan(shards, shards).read_B.sum() == 2400


def test_the_key_of_a_plan_notices_a_change_on_any_rank() -> None:
    spec = TensorSpec("w", (4, 4), "float32")
    halves = [[(spec, Box((2 * r, 0), (2, 4)))] for r in range(2)]
    digests = [state_digest(h) for h in halves]
    key = plan_key(digests, {"dp": 2})
    changed = [digests[0], state_digest([(spec, Box((2, 0), (2, 3)))])]
    others = [
        plan_key(changed, {"dp": 2}),
        plan_key(digests[::-1], {"dp": 2}),
        plan_key([*digests, digests[1]], {"dp": 2}),
        plan_key(digests, {"tp": 2}),
        plan_key([digests[0], state_digest([(TensorSpec("w", (4, 4), "float16"), Box((2, 0), (2, 4)))])], {"dp": 2}),
    ]
    assert plan_key([state_digest(h) for h in halves], {"dp": 2}) == key
    assert len({key, *others}) == 6


def test_the_plan_not_used_for_longest_leaves_the_cache() -> None:
    cache = PlanCache[int](2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(2, 5))
def test_everything_reaches_the_root_and_no_rank_is_overloaded(n_ranks: int, per_machine: int, fan_out: int) -> None:
    tree = gather_tree(n_ranks, per_machine=per_machine, fan_out=fan_out)
    assert tree.below()[0] == n_ranks
    assert (tree.level[1:] < tree.level[tree.parent[1:]]).all()  # a rank sends after it has received
    assert (tree.most_children() < max(per_machine, fan_out)).all()
    crossing = tree.parent // per_machine != np.arange(n_ranks) // per_machine
    assert crossing.sum() == -(-n_ranks // per_machine) - 1  # one message leaves each machine


def test_a_flat_gathering_has_one_round() -> None:
    assert flat_tree(100).most_children().tolist() == [99]
    assert gather_tree(8960, per_machine=8, fan_out=16).rounds == 4


@settings(max_examples=5, deadline=None)
@given(st.sampled_from(["replicate", "shard", "flat"]))
def test_a_thousand_tensors_on_many_ranks_are_planned(dp: str) -> None:
    tensors = [TensorSpec(f"layer{i}", (4096, 128), "bfloat16") for i in range(200)]
    shards = layout(tensors, [Placement(dp=dp)] * len(tensors), Mesh(dp=256))  # type: ignore[arg-type]
    assert save_plan(shards).written_B.sum() == sum(t.nbytes for t in tensors)


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_samples_keep_their_order_over_any_number_of_ranks(
    samples: int, saved_by: int, loaded_by: int, again: int
) -> None:
    """Training takes one from each rank in turn."""
    order = list(range(samples))
    buffers = [order[rank::saved_by] for rank in range(saved_by)]
    for dp in (loaded_by, again):
        buffers = redistribute(buffers, dp)
        assert buffers == [order[rank::dp] for rank in range(dp)]
