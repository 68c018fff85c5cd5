"""Collectives of a run begin when their last member has arrived."""

from real.arrivals import begun_together
from simcore.plan import Collective, Group, Plan, Task


def plan() -> Plan:
    """An all-reduce of ranks 0 and 1, and one of 2 and 3; a task of the same name on both pairs."""
    group = Group(axes=(("pair", 2, 2), ("member", 2, 1)))
    op = Collective(kind="all_reduce", group="all", along=("member",), nbytes=8)
    return Plan(name="pairs", n_ranks=4, groups={"all": group}, tasks=(Task(id="sum", op=op),))


def begun(*ranks: list[tuple[str, int, float, float, int]]) -> list[list[float]]:
    return [[piece[2] for piece in own] for own in begun_together(plan(), [{"pieces": own} for own in ranks])]


def test_who_is_early_is_idle_until_the_last_of_its_own_communicator_is_there() -> None:
    found = begun(
        [("sum", 0, 1.0, 5.0, 8)], [("sum", 0, 3.0, 5.1, 8)], [("sum", 0, 0.5, 2.0, 8)], [("sum", 0, 0.6, 2.0, 8)]
    )
    assert found == [[3.0], [3.0], [0.6], [0.6]]


def test_iterations_and_calls_are_told_apart() -> None:
    early = [("sum", 0, 1.0, 2.0, 8), ("sum", 0, 3.0, 5.0, 8), ("sum", 1, 6.0, 8.0, 8)]
    late = [("sum", 0, 1.5, 2.0, 8), ("sum", 0, 2.5, 5.0, 8), ("sum", 1, 7.0, 8.0, 8)]
    assert begun(early, late, [], []) == [[1.5, 3.0, 7.0], [1.5, 3.0, 7.0], [], []]


def test_an_end_is_never_before_a_start() -> None:
    """A rank that only sends may be done before the last one arrives."""
    assert begun([("sum", 0, 1.0, 2.0, 8)], [("sum", 0, 3.0, 4.0, 8)], [], []) == [[2.0], [3.0], [], []]


def test_what_has_no_counterpart_stays() -> None:
    """Tasks that are no collective's, and calls of which a member wrote down fewer."""
    early, late = [("compute", 0, 1.0, 2.0, 8), ("sum", 0, 3.0, 5.0, 8)], [("compute", 0, 1.5, 2.0, 8)]
    assert begun(early, late, [], []) == [[1.0, 3.0], [1.5], [], []]
