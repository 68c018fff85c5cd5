"""Pipeline orders are complete, can run, and hold as many microbatches as they say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcore.training.schedule import Pass, layers_of_chunks, peak_passes, pipeline_order, stage_order, warm_up_passes


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_every_pass_happens_once_and_nobody_waits_in_a_circle(stages: int, chunks: int, groups: int) -> None:
    microbatches = stages * groups
    chunks = chunks if stages > 1 else 1
    wanted = {Pass(f, m, c) for f in (True, False) for m in range(microbatches) for c in range(chunks)}
    merged = list(pipeline_order(stages, chunks, microbatches))
    for stage in range(stages):
        own = [step for s, step in merged if s == stage]
        assert own == stage_order(stage, stages, chunks, microbatches)
        assert len(own) == len(wanted)
        assert set(own) == wanted


@given(st.integers(2, 6), st.integers(2, 4), st.data())
def test_fewer_microbatches_than_stages_can_be_interleaved(stages: int, chunks: int, data: st.DataObject) -> None:
    microbatches = data.draw(st.integers(1, stages))
    assert len(list(pipeline_order(stages, chunks, microbatches))) == 2 * stages * chunks * microbatches


def test_a_pass_comes_after_the_one_it_needs() -> None:
    stages, chunks, last = 4, 2, 7
    seen = set()
    for stage, step in pipeline_order(stages, chunks, 8):
        at = step.chunk * stages + stage
        if step.forward:
            assert at == 0 or (True, step.microbatch, at - 1) in seen
        else:
            assert (True, step.microbatch, at) in seen
            assert at == last or (False, step.microbatch, at + 1) in seen
        seen.add((step.forward, step.microbatch, at))


@pytest.mark.parametrize(("stages", "microbatches"), [(4, 8), (8, 16), (2, 2), (8, 3)])
def test_1f1b_holds_at_most_as_many_microbatches_as_stages_are_left(stages: int, microbatches: int) -> None:
    for stage in range(stages):
        assert peak_passes(stage_order(stage, stages, 1, microbatches)) == min(stages - stage, microbatches)


def test_an_interleaved_stage_holds_its_warm_up_and_one_more() -> None:
    """Narayanan et al. 2021, section 2.2.2: 2 (p - r - 1) + (v - 1) p forward passes before the first backward one."""
    assert warm_up_passes(0, 4, 3) == 2 * 3 + 2 * 4
    assert peak_passes(stage_order(0, 4, 3, 16)) == 2 * 3 + 2 * 4 + 1


def test_layers_are_all_placed_in_order_and_evenly() -> None:
    placed = layers_of_chunks(24, 4, 3)
    assert [list(run) for run in placed[1]] == [[2, 3], [10, 11], [18, 19]]
    assert sorted(layer for stage in placed for run in stage for layer in run) == list(range(24))


def test_llama_405b_leaves_the_ends_to_the_vocabulary() -> None:
    placed = layers_of_chunks(126, 16, 8, ends_count=True)
    assert [len(run) for run in placed[0]] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert [len(run) for run in placed[-1]] == [1, 1, 1, 1, 1, 1, 1, 0]
    assert sum(len(run) for stage in placed for run in stage) == 126
