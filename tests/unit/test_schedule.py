"""Pipeline orders are complete, can run, and hold as many microbatches as they say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcore.schedule import Step, layers_of_chunks, merged, stage_steps


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_every_pass_happens_once_and_nobody_waits_in_a_circle(stages: int, chunks: int, groups: int) -> None:
    microbatches = stages * groups
    if stages == 1:
        chunks = 1
    orders = [stage_steps(s, stages, chunks, microbatches) for s in range(stages)]
    wanted = {Step(f, m, c) for f in (True, False) for m in range(microbatches) for c in range(chunks)}
    for order in orders:
        assert len(order) == len(wanted)
        assert set(order) == wanted
    assert len(merged(orders)) == stages * len(wanted)


@pytest.mark.parametrize(("stages", "microbatches"), [(4, 8), (8, 16), (2, 2)])
def test_1f1b_holds_at_most_as_many_microbatches_as_stages_are_left(stages: int, microbatches: int) -> None:
    for stage in range(stages):
        held = most = 0
        for step in stage_steps(stage, stages, 1, microbatches):
            held += 1 if step.forward else -1
            most = max(most, held)
        assert most == min(stages - stage, microbatches)


@given(st.integers(1, 200), st.integers(1, 64))
def test_layers_are_all_placed_and_evenly(layers: int, chunks: int) -> None:
    placed = layers_of_chunks(layers, chunks)
    assert sum(placed) == layers
    assert max(placed) - min(placed) <= 2


def test_llama_405b_leaves_the_ends_to_the_vocabulary() -> None:
    placed = layers_of_chunks(126, 128)
    assert placed[0] == placed[-1] == 0
    assert set(placed[1:-1]) == {1}
