"""Continuous batching in steps and tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.batching import segments_of
from costmodels.errors import DataError


def test_everybody_at_once_where_there_is_room() -> None:
    found = segments_of([10] * 4, [5] * 4, slots=8, cache_tokens=1000)
    assert found.total_steps == 5
    assert found.batch.tolist() == [4]
    assert found.kv_len.tolist() == [13]  # 11, 12, 13, 14 and 15 tokens
    assert found.prompts.tolist() == [4]


def test_slots_make_waves() -> None:
    found = segments_of([10] * 4, [5] * 4, slots=2, cache_tokens=1000)
    assert found.total_steps == 10
    assert found.batch.tolist() == [2, 2]


def test_the_slowest_sequence_ends_generation() -> None:
    found = segments_of([1, 1, 1], [2, 2, 100], slots=8, cache_tokens=1000)
    assert found.total_steps == 100
    assert (found.steps[0], found.batch[0], found.batch[-1]) == (2, 3, 1)


def test_a_full_cache_puts_the_last_back_and_reads_it_again() -> None:
    found = segments_of([10, 10], [10, 10], slots=8, cache_tokens=30)
    assert found.prompts.sum() == 3  # one of them twice
    assert (found.steps * found.batch).sum() == 20  # no token is generated twice


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(DataError, match="30 tokens"):
        segments_of([10], [20], slots=1, cache_tokens=25)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 40)), min_size=1, max_size=25),
    st.integers(1, 8),
    st.integers(70, 400),
)
def test_every_token_is_generated_once_within_the_limits(lengths: list[tuple[int, int]], slots: int, room: int) -> None:
    prompts, responses = ([x[i] for x in lengths] for i in (0, 1))
    found = segments_of(prompts, responses, slots=slots, cache_tokens=room)
    assert (found.steps * found.batch).sum() == sum(responses)
    assert found.batch.max() <= slots
    assert found.total_steps >= max(responses)
    assert found.prompts.sum() >= len(prompts)
    middle = found.batch * found.kv_len
    assert (middle <= room + 1e-9).all()
    assert np.all(found.steps >= 1)
