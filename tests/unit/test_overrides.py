"""`--set path=value`."""

import pytest

from simcore.errors import ScenarioError
from simcore.overrides import apply

DOCUMENT = {"cluster": {"nodes": 1, "pools": [{"device": "t4"}, {"device": "a100"}]}, "planner": "fixed", "faults": []}


def test_values_are_yaml_and_the_document_given_stays_as_it_was() -> None:
    changed = apply(DOCUMENT, ["cluster.nodes=4", "cluster.rate=1e-3", "cluster.name='4'", "faults=[{kind: x}]"])
    assert changed["cluster"]["nodes"] == 4
    assert changed["cluster"]["rate"] == 0.001
    assert changed["cluster"]["name"] == "4"
    assert changed["faults"] == [{"kind": "x"}]
    assert DOCUMENT["cluster"]["nodes"] == 1


def test_positions_reach_into_lists() -> None:
    assert apply(DOCUMENT, ["cluster.pools.1.device=h100"])["cluster"]["pools"][1] == {"device": "h100"}


def test_a_planner_given_by_name_can_take_fields() -> None:
    assert apply(DOCUMENT, ["planner.tp=8"])["planner"] == {"name": "fixed", "tp": 8}


def test_missing_sections_are_made() -> None:
    assert apply(DOCUMENT, ["engine.sharing=fifo"])["engine"] == {"sharing": "fifo"}


def test_an_equals_sign_may_be_part_of_the_value() -> None:
    assert apply(DOCUMENT, ["name=a=b"])["name"] == "a=b"


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("cluster.nodes", "--set"),
        ("=3", "--set"),
        ("cluster..nodes=3", "--set"),
        ("cluster.pools.2.device=t4", "cluster.pools.2"),
        ("cluster.pools.first.device=t4", "cluster.pools.first"),
        ("faults.0=3", "faults.0"),
        ("cluster.nodes.x=3", "cluster.nodes"),
        ("cluster.nodes=[1", "--set cluster.nodes"),
    ],
)
def test_what_cannot_be_applied_names_the_place(override: str, field: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        apply(DOCUMENT, [override])
    assert caught.value.problems[0].field.startswith(field)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ScenarioError) as caught:
        apply(DOCUMENT, ["faults.0=3", "nonsense", "cluster.nodes=2"])
    assert len(caught.value.problems) == 2
