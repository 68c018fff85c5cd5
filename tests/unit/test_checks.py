"""Everything that can be known to be wrong with a plan before it runs."""

import pytest

from simcore.checks import check, problems_of
from simcore.errors import DoesNotFit, PlanError
from simcore.plan import Collective, Group, Plan, Task, Transfer, Write
from tests.laws.plans import work
from tests.laws.worlds import cluster, device

ALL = Group(axes=(("dp", 4, 1),))


def plan(*tasks: Task, **fields: object) -> Plan:
    given: dict[str, object] = {"name": "p", "n_ranks": 4, "groups": {"all": ALL}, **fields}
    return Plan(tasks=tasks, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        (plan(Task("a", work("all", 1), ("b",))), "tasks.a.after"),
        (plan(Task("a", work("all", 1), ("b",)), Task("b", work("all", 1))), "tasks.a.after"),
        (plan(Task("a", work("all", 1)), Task("a", work("all", 1))), "tasks"),
        (plan(Task("a", work("none", 1))), "compute.group"),
        (plan(Task("a", Collective(kind="all_reduce", group="all", along=("tp",), nbytes=1))), "collective.along"),
        (plan(Task("a", Collective(kind="all_reduce", group="all", along=("dp",), nbytes=-1))), "collective.nbytes"),
        (plan(Task("a", Write(group="all", store="tape", nbytes=1))), "write.store"),
        (
            plan(
                Task("a", Transfer(source="all", target="two", nbytes=1)),
                groups={"all": ALL, "two": Group.listed([0, 1])},
            ),
            "transfer",
        ),
        (plan(groups={"all": Group.listed([0, 0])}), "groups.all"),
        (plan(groups={"all": Group.listed([3, 4])}), "groups.all"),
        (plan(n_ranks=5, groups={}), "n_ranks"),
    ],
)
def test_a_contradiction_is_named(broken: Plan, field: str) -> None:
    assert [p.field for p in problems_of(broken, cluster(4))] == [field]
    with pytest.raises(PlanError):
        check(broken, cluster(4))


def test_memory_counts_what_stays_and_the_peak_of_what_comes_and_goes() -> None:
    tasks = (
        Task("f0", work("all", 1), (), 300), Task("f1", work("all", 1), (), 300),
        Task("b1", work("all", 1), (), -300), Task("b0", work("all", 1), (), -300),
    )  # fmt: skip
    fitting = plan(*tasks, memory_B={"all": {"weights": 400.0}})
    check(fitting, cluster(4, devices=(device(memory_B=1000),)))
    with pytest.raises(DoesNotFit, match=r"weights 0\.0 MB") as error:
        check(fitting, cluster(4, devices=(device(memory_B=999),)))
    assert "are lacking" in str(error.value)


def test_a_plan_survives_its_file() -> None:
    tasks = (
        Task("a", work("all", 2)),
        Task("r", Collective(kind="all_reduce", group="all", along=("dp",), nbytes=8, repeat=3), ("a",), 5),
    )
    made = plan(*tasks, decisions={"x": [1, 2]}, memory_B={"all": {"weights": 1.5}})
    again = Plan.from_json(made.to_json())
    assert again == made
    assert again.digest == made.digest
    for text in ("{}", "[1]", "nonsense", '{"format": 99}'):
        with pytest.raises(PlanError):
            Plan.from_json(text)
