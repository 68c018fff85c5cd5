"""Placements, timelines, and the two searches."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels import catalog
from simcore.hybridflow.dataflow import BUILT_IN
from simcore.hybridflow.placements import fillings, named, partitions
from simcore.hybridflow.pool_choice import PoolChoice
from simcore.hybridflow.search import Decision, Mode, Search
from simcore.hybridflow.timeline import timeline
from simcore.hybridflow.zones import Zone

BELL = {1: 1, 2: 2, 3: 5, 4: 15, 5: 52}


@pytest.mark.parametrize("n", sorted(BELL))
def test_partitions_are_all_and_each_once(n: int) -> None:
    roles = [f"r{i}" for i in range(n)]
    found = partitions(roles)
    assert len(found) == len({frozenset(frozenset(s) for s in p) for p in found}) == BELL[n]
    assert all(sorted(r for s in p for r in s) == roles for p in found)
    assert found[0] == (tuple(roles),)


def test_fillings() -> None:
    assert list(fillings(2, 8, (1, 2, 4, 8))) == [(4, 4)]
    assert len(list(fillings(4, 16, range(1, 17)))) == 455  # C(15, 3), as many as the paper's formula gives


def test_named_placements() -> None:
    roles = BUILT_IN["ppo"]().roles
    assert named("colocate", roles) == (roles,)
    assert named("split", roles) == (("actor", "reference"), ("reward", "critic"))
    assert len(named("standalone", roles)) == 4
    assert named("split", ("actor",)) == (("actor",),)


SECONDS = {"generate": 10, "ref_log_prob": 2, "reward": 3, "values": 4, "update_critic": 6, "update_actor": 7}


def test_one_pool_adds_everything() -> None:
    flow = BUILT_IN["ppo"]()
    assert timeline(flow, SECONDS, dict.fromkeys(flow.roles, 0)).seconds == sum(SECONDS.values())


def test_pools_of_their_own_overlap() -> None:
    flow = BUILT_IN["ppo"]()
    found = timeline(flow, SECONDS, {role: i for i, role in enumerate(flow.roles)}, transfer_s=1.0)
    assert found.start_s["values"] == 11  # generation and a transfer
    assert found.seconds == 10 + 1 + 4 + 1 + 7  # the critic's values are last, then the actor is


def test_what_stays_in_a_pool_is_not_transferred() -> None:
    flow = BUILT_IN["ppo"]()
    pools = {"actor": 0, "reference": 0, "reward": 1, "critic": 1}
    found = timeline(flow, SECONDS, pools, transfer_s=1.0)
    assert found.start_s["update_critic"] == found.end_s["values"]
    assert found.start_s["update_actor"] == found.end_s["values"] + 1


DEVICE = catalog.device("a100_sxm_80")
work = st.floats(0.1, 100, allow_nan=False)


def _search(sizes: list[int], seconds: dict[str, float], serial: dict[str, float], least: dict[str, int]) -> Search:
    """Calls with a part that ranks share and a part that they do not; a set of roles needs as many ranks as its roles together."""
    flow = BUILT_IN["ppo"]()
    zones = [Zone(name=f"z{i}", device=DEVICE, first=0, size=n, per_node=8) for i, n in enumerate(sizes)]

    def choose(zone: int, roles: tuple[str, ...], n: int) -> PoolChoice:
        slow = 1.0 + zone
        took = {c.name: slow * (seconds[c.name] / n + serial[c.name] * n**0.5) for c in flow.calls if c.role in roles}
        lacking = max(sum(least[r] for r in roles) - n, 0)
        return PoolChoice(
            roles=roles, zone=zones[zone], n=n, strategies={}, generating=None, seconds=took, lacking_B=float(lacking)
        )

    allowed = [z.sizes("gpu") for z in zones]
    return Search(dataflow=flow, zones=zones, allowed=allowed, choose=choose, transfer_s=0.01)


def _brute_force(search: Search) -> float | None:
    """Every placement and every size, with its timeline."""
    best: float | None = None
    for placement in partitions(search.dataflow.roles):
        spots = [(z, n) for z, zone in enumerate(search.zones) for n in range(1, zone.size + 1)]
        for chosen in itertools.product(spots, repeat=len(placement)):
            used = {z: sum(n for y, n in chosen if y == z) for z in {z for z, _ in chosen}}
            if any(n > search.zones[z].size for z, n in used.items()):
                continue
            pools = [search.choose(z, roles, n) for (z, n), roles in zip(chosen, placement, strict=True)]
            if any(p is None or not p.fits for p in pools):
                continue
            seconds = {name: s for p in pools if p for name, s in p.seconds.items()}
            of = {role: i for i, roles in enumerate(placement) for role in roles}
            took = timeline(search.dataflow, seconds, of, transfer_s=search.transfer_s).seconds
            best = took if best is None else min(best, took)
    return best


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from([[4], [6], [3, 2]]), st.booleans())
def test_both_searches_find_what_brute_force_finds(data: st.DataObject, sizes: list[int], divides: bool) -> None:
    """Where work divides evenly the answer is the best of all; otherwise a pool takes what it does in the least time in all."""
    flow = BUILT_IN["ppo"]()
    calls = [c.name for c in flow.calls if c.role]
    seconds = {name: data.draw(work) for name in calls}
    serial = {name: 0.0 if divides else data.draw(st.floats(0, 5)) for name in calls}
    least = {role: data.draw(st.integers(1, 2)) for role in flow.roles}
    found: dict[Mode, Decision | None] = {}
    modes: tuple[Mode, ...] = ("exhaustive", "pruned")
    for mode in modes:
        found[mode] = _search(sizes, seconds, serial, least).best(mode)
    plain = _brute_force(_search(sizes, seconds, serial, least))
    one, other = found["exhaustive"], found["pruned"]
    if plain is None:
        assert one is None
        assert other is None
        return
    assert one is not None
    assert other is not None
    assert one.seconds == other.seconds
    assert one.placement == other.placement
    assert one.seconds >= plain * (1 - 1e-12)
    if divides:
        assert one.seconds == pytest.approx(plain, rel=1e-12)


def test_nothing_is_found_where_nothing_fits() -> None:
    calls = [c.name for c in BUILT_IN["ppo"]().calls if c.role]
    each = dict.fromkeys(calls, 1.0)
    modes: tuple[Mode, ...] = ("exhaustive", "pruned")
    for mode in modes:
        assert _search([4], each, each, dict.fromkeys(BUILT_IN["ppo"]().roles, 2)).best(mode) is None
