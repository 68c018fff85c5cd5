"""Collectives: closed forms by hand, laws, what the table understands, and a fit that finds what went into its rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels import fitted
from costmodels.catalog import Catalog, write_entry
from costmodels.collective_errors import REGIMES, error_of, regime
from costmodels.collectives import Constants, Shape, best, constants, in_switch, port_rate, ring, seconds, tree
from costmodels.fabrics import Places
from costmodels.fit.collectives import fit
from costmodels.point_to_point import send_rate, send_recv
from costmodels.ports import FITTED, is_fitted, is_guessed
from costmodels.tables.collectives import TABLE

CATALOG = Catalog()


def shape(size: int, nodes: int = 1, **more: Any) -> Shape:
    plain: dict[str, Any] = {
        "rails": max(size / nodes, 1), "node_B_per_s": 100.0 if size > nodes else np.inf,
        "net_B_per_s": 10.0 if nodes > 1 else np.inf, "node_s": 1.0, "net_s": 5.0 if nodes > 1 else 0.0,
    }  # fmt: skip
    return Shape(size=size, nodes=nodes, **{**plain, **more})


SHAPES = st.builds(
    lambda local, nodes, switch, ramp, start: shape(
        local * nodes, nodes, in_switch=switch, ramp_s=ramp, net_ramp_s=ramp, start_s=start
    ),
    st.integers(1, 16), st.integers(1, 64), st.booleans(), st.floats(0, 3), st.floats(0, 3),
).filter(lambda s: s.size > 1)  # fmt: skip
KINDS = st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"])


def test_closed_forms_by_hand() -> None:
    """Eight ranks, ports of 100 B/s and steps of 1 s; two hosts of four with four rails of 10 B/s and steps of 5 s."""
    assert float(ring("all_reduce", 800.0, shape(8)).seconds) == pytest.approx(14 * (1 + 800 / 8 / 100))
    assert float(ring("all_gather", 800.0, shape(8)).seconds) == pytest.approx(7 * (1 + 800 / 8 / 100))
    assert float(ring("all_reduce", 800.0, shape(8, 2)).seconds) == pytest.approx(2 * (6 + 5) + 1400 / 40)
    assert float(tree("all_reduce", 800.0, shape(8, 2)).seconds) == pytest.approx(2 * (3 + 5) + 1600 / 40)
    shared = Constants(switch_steps=3.0, switch_share=0.5)
    assert float(in_switch(800.0, shape(8), shared).seconds) == pytest.approx(3 + 800 / 50)


@given(KINDS, SHAPES, st.floats(1, 1e9), st.floats(1, 100))
@settings(max_examples=150, deadline=None)
def test_more_bytes_take_longer_and_no_port_carries_more_than_it_can(
    kind: str, where: Shape, B: float, times: float
) -> None:
    small, large = best(kind, B, "float16", where), best(kind, B * times, "float16", where)
    assert large.seconds >= small.seconds * (1 - 1e-9)
    assert small.seconds > 0
    rate = small.volume_B / (small.seconds - small.latency_s)
    assert rate * small.node_weight <= where.node_B_per_s * (1 + 1e-6)
    assert rate * small.net_weight <= where.net_B_per_s * (1 + 1e-6)


@given(KINDS, st.lists(SHAPES, min_size=1, max_size=5), st.floats(1, 1e9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_tables_and_single_messages_agree(kind: str, where: list[Shape], B: float, reducible: bool) -> None:
    together = Shape(**{f: np.array([getattr(s, f) for s in where]) for f in Shape.__slots__})
    found, waits = seconds(kind, np.full(len(where), B), reducible, together, constants())
    dtype = "float16" if reducible else "int8"
    choices = [best(kind, B, dtype, s) for s in where]
    np.testing.assert_allclose(found, [c.seconds for c in choices], rtol=1e-9)
    np.testing.assert_allclose(waits, [c.latency_s for c in choices], rtol=1e-9)


def test_switches_reduce_floats_only() -> None:
    h100 = CATALOG.link("nvlink4")
    host = shape(8, node_B_per_s=port_rate(h100, 8, staged=False), node_s=h100.latency_s, in_switch=True)
    assert best("all_reduce", 2**29, "float16", host).algorithm == "in_switch"
    assert best("all_reduce", 2**29, "int8", host).algorithm == "ring"


def test_devices_that_do_not_reach_each_other_share_the_memory_of_their_host() -> None:
    pcie = CATALOG.link("pcie4")
    rates = [port_rate(pcie, n, staged=True) for n in (2, 4, 8)]
    assert rates[0] == port_rate(pcie, 8, staged=False) <= pcie.B_per_s
    assert rates[0] > rates[1] > rates[2]


def test_sends_by_hand() -> None:
    link = CATALOG.link("nvlink4")
    rate = link.B_per_s * link.efficiency
    assert send_recv(1e6, link, inside_host=True) == pytest.approx(link.start_s + link.latency_s + 1e6 / rate)
    assert send_rate(1e6, 5e9, CATALOG.link("infiniband_ndr"), inside_host=False) < 5e9
    assert send_rate(1e6, 5e9, CATALOG.link("ethernet_10g"), inside_host=False) == 5e9


def test_fitted_links_say_so_and_the_users_own_are_left_alone(tmp_path: Path) -> None:
    nvlink4, hdr = CATALOG.link("nvlink4"), CATALOG.link("infiniband_hdr")
    assert all(nvlink4.sources[name].startswith("fitted to ") for name in FITTED)
    assert is_fitted(nvlink4)
    assert not is_guessed(nvlink4)
    assert hdr.sources["latency_s"].startswith("not measured: ")
    assert is_guessed(hdr)
    own = {"title": "mine", "kind": "nvlink", "B_per_s": {"value": "1 GB/s", "source": "by hand"},
           "latency_s": {"value": "1 s", "source": "by hand"}}  # fmt: skip
    write_entry(tmp_path, "links", "nvlink4", own)
    assert Catalog([tmp_path]).link("nvlink4").latency_s == 1.0


@pytest.mark.parametrize(
    ("device", "words", "ranks", "nodes", "link", "rails"),
    [
        ("h100_sxm", "2x p5.48xlarge, nvswitch + 32x100gb efa/node", 16, 2, "efa_400", 8),
        ("b200_sxm", "p6-b200: nvlink5 + 8x400gb efa v4/node", 32, 4, "efa_400", 8),
        ("a100_sxm_80", "4x100gb efa", 16, 2, "efa_100", 4),
        ("h100_sxm", "8-node hgx h100 + 8x400gb ndr ib (sharp)", 64, 8, "infiniband_ndr_sharp", 8),
        ("v100_sxm2_32", "nvlink2 + intel opa 4x100gb", 16, 4, "omnipath_100", 4),
        ("h100_sxm", "8 x 200g hdr", 4, 2, "infiniband_hdr", 2),
        ("h100_sxm", "3200 gbps efa", 16, 2, "efa_400", 8),
        ("a100_sxm_80", "nvswitch, 8x200gb ib", 16, 2, "infiniband_hdr", 8),
        ("h800_sxm", "nvlink ~160gb/s + cx7 400gb/gpu", 16, 2, "infiniband_ndr", 8),
        ("a100_sxm_80", "infiniband", 16, 2, "infiniband_hdr", 8),
    ],
)
def test_fabrics_are_read_from_their_words(
    device: str, words: str, ranks: int, nodes: int, link: str, rails: float
) -> None:
    found = Places(CATALOG).fabric(device, words, float(ranks), float(nodes))
    assert found is not None and found.far is not None
    assert (found.far.name, found.rails, found.guessed) == (link, rails, False)


def rows(**columns: Any) -> pd.DataFrame:
    plain = {
        "device": "h100_sxm",
        "fabric": "",
        "n_ranks": 8,
        "n_nodes": 1,
        "op": "all_reduce",
        "nbytes": 2**26,
        "source": "s",
    }
    return pd.DataFrame({k: np.atleast_1d(columns.get(k, v)) for k, v in plain.items()})


def predict(**columns: Any) -> Any:
    n = max(np.size(v) for v in columns.values())
    return TABLE.predict(
        rows(**{k: np.broadcast_to(v, n) for k, v in {**rows().iloc[0], **columns}.items()}), CATALOG, None
    )


def test_what_is_not_known_is_not_covered_and_what_was_not_measured_is_flagged() -> None:
    unknown = predict(device=["abacus", "h100_sxm"], op=["all_reduce", "juggle"])
    assert np.isnan(unknown.seconds).all()
    assert np.isnan(unknown.error).all()
    places = predict(fabric=["", "8x400Gb NDR", "HDR", "wet string"], n_nodes=[1, 2, 2, 2], n_ranks=16)
    assert np.isfinite(places.seconds).all()
    assert places.extrapolated.tolist() == [False, False, True, True]
    assert places.error[2] >= places.error[1] > 0


def test_racks_are_one_host_and_meshes_give_what_joins_two_devices() -> None:
    rack = predict(device="gb200", n_ranks=16, n_nodes=[1, 4])
    assert rack.seconds[0] == rack.seconds[1]
    mesh = predict(device="mi300x", n_ranks=[2, 8], nbytes=2**32)
    bus_GB_per_s = 2**32 * 2 * (1 - 1 / np.array([2, 8])) / mesh.seconds / 1e9
    assert bus_GB_per_s == pytest.approx([47.7, 312.9], rel=0.2)  # stas00/ml-engineering, rccl-tests on MI300X


def test_all_gather_of_oneccl_counts_a_ranks_part() -> None:
    found = predict(device="arc_pro_b60", op="all_gather", n_ranks=2, source=["b60/oneccl/2021", "b60/nccl"])
    bigger = predict(device="arc_pro_b60", op="all_gather", n_ranks=2, nbytes=2**27, source="b60/nccl")
    assert found.seconds[0] == pytest.approx(bigger.seconds[0])
    assert found.seconds[0] > found.seconds[1]


def test_the_roofline_is_below_the_prediction() -> None:
    frame = pd.concat(
        [rows(op=op, nbytes=float(B)) for op in ("all_reduce", "all_gather", "send_recv") for B in (1e3, 1e9)]
    )
    assert (TABLE.roofline(frame, CATALOG) <= TABLE.predict(frame, CATALOG, None).seconds).all()


def test_bands_are_wider_for_what_was_not_measured() -> None:
    assert regime(np.array([0.9, 0.3, 0.01])).tolist() == list(range(len(REGIMES)))
    for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "broadcast", "barrier"):
        for share in (0.9, 0.3, 0.01):
            for away in (False, True):
                seen = error_of(kind, share, away=away, unseen=False)
                assert 0 < seen <= error_of(kind, share, away=away, unseen=True)


def test_the_fit_finds_what_went_into_its_rows() -> None:
    """Times that the model made with other numbers of two links come back from the fit within 3 %, twice the same."""
    truth = dict(fitted.load("collectives"))
    truth["links"] = {
        k: {**v, "latency_s": v["latency_s"] * 1.3, "ramp_s": v["ramp_s"] * 0.8} for k, v in truth["links"].items()
    }
    sizes = 2.0 ** np.arange(9, 30)
    parts = [
        pd.DataFrame({"device": d, "fabric": "", "n_ranks": n, "n_nodes": 1, "op": op, "nbytes": sizes, "source": "s"})
        for d in ("a100_sxm_80", "h100_sxm")
        for n in (2, 4, 8)
        for op in ("all_reduce", "all_gather", "alltoall", "send_recv")
        if op != "send_recv" or n == 2
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame["time_s"] = TABLE.predict(frame, CATALOG, truth).seconds
    found = fit(frame, CATALOG)
    again = TABLE.predict(frame, CATALOG, found).seconds
    assert np.quantile(np.abs(again / frame["time_s"] - 1), 0.9) < 0.03
    assert found == fit(frame, CATALOG)
