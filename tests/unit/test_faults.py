"""Faults: what is refused, what they become, and what random ones follow from."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from simcore.errors import ScenarioError
from simcore.faults import Event, FaultSpec, events
from tests.laws.worlds import cluster

PARSE = TypeAdapter(list[FaultSpec])


def drawn(*faults: dict[str, object], seed: int = 0, ranks: int = 8) -> tuple[Event, ...]:
    return events(PARSE.validate_python(list(faults)), cluster(ranks), seed)


def test_a_pulse_is_a_beginning_and_an_end() -> None:
    found = drawn({"kind": "device_slows", "rank": 3, "factor": 0.5, "at": "1 s", "until": "4 s"})
    assert found == (Event(1.0, 0.5, ranks=(3,)), Event(4.0, 2.0, ranks=(3,)))


def test_a_dead_device_stays_dead_and_a_dropped_link_comes_back() -> None:
    assert drawn({"kind": "device_dies", "rank": 1, "at": 2}) == (Event(2.0, 0.0, ranks=(1,)),)
    found = drawn({"kind": "link_drops", "link": "link 5", "at": 2, "until": 3})
    assert [(e.at_s, e.factor, e.links) for e in found] == [(2.0, 0.0, (5,)), (3.0, np.inf, (5,))]


def test_between_means_every_link_there_and_back() -> None:
    (found,) = drawn({"kind": "link_degrades", "between": [0, 7], "factor": 0.25, "at": 0})
    assert set(found.links) == {0, 8 + 7, 16, 16 + 2 + 1, 7, 8 + 0, 16 + 1, 16 + 2}


def test_failures_by_mtbf_repeat_with_their_seed_and_come_as_often_as_they_should() -> None:
    fault = {"kind": "device_slows", "factor": 0.5, "mtbf": "10 s", "repair": "1 ms", "horizon": "1000 s"}
    a, b, c = drawn(fault, seed=1), drawn(fault, seed=1), drawn(fault, seed=2)
    assert a == b != c
    failures = [e for e in a if e.factor == 0.5]
    assert len(failures) == pytest.approx(8 * 100, rel=0.15)
    assert [e.at_s for e in a] == sorted(e.at_s for e in a)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ({"kind": "device_slows", "rank": 0, "factor": 0.5}, "either `at` or `mtbf`"),
        ({"kind": "device_slows", "rank": 0, "factor": 0.5, "at": 1, "mtbf": 1}, "either `at` or `mtbf`"),
        ({"kind": "device_dies", "rank": 0, "at": 5, "until": 4}, "later than `at`"),
        ({"kind": "link_drops", "at": 5}, "either `link` or `between`"),
        ({"kind": "device_slows", "rank": 0, "factor": 2, "at": 1}, "less than or equal to 1"),
        ({"kind": "meteor", "at": 1}, "device_dies"),
    ],
)
def test_what_cannot_be(fault: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        PARSE.validate_python([fault])


def test_ranks_and_links_that_do_not_exist_are_all_named() -> None:
    with pytest.raises(ScenarioError) as error:
        drawn(
            {"kind": "device_dies", "rank": 8, "at": 1},
            {"kind": "link_drops", "link": "lnik 3", "at": 1},
            {"kind": "link_drops", "between": [0, 0], "at": 1},
        )
    assert [p.field for p in error.value.problems] == ["faults.0.rank", "faults.1.link", "faults.2.between"]
    assert "link 3" in str(error.value)
