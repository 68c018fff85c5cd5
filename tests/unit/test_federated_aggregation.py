"""Equations (8) to (11) of FedMoE-DA against a plain double loop, and the bytes of the exchange that follows from them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcore.errors import InputError
from simcore.federated.aggregation import domain_aware, identity, missing, restricted
from simcore.federated.clusters import divided
from simcore.federated.exchange import (
    ENTRY_B,
    ModelParts,
    closed_form_B,
    copies,
    fetches,
    list_B,
    merged,
    received_B,
    sent_B,
)
from simcore.federated.similarity import nearest, unit_rows

PARTS = ModelParts(embedding_B=1000, gate_B=64, expert_B=300, experts=3)


def gates(clients: int, experts: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((clients, experts, width))


def plain(vectors: np.ndarray, P: int, tau: float) -> np.ndarray:
    """The equations as they are written, one pair at a time."""
    rows = vectors.reshape(-1, vectors.shape[2])
    n = len(rows)
    r = [[float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for b in rows] for a in rows]
    A = np.zeros((n, n))
    for i in range(n):
        top = sorted(r[i], reverse=True)[min(P, n - 1)]
        kept = [j for j in range(n) if r[i][j] >= top - 1e-12]
        total = sum(math.exp(r[i][k] / tau) for k in kept)
        for j in kept:
            A[i, j] = math.exp(r[i][j] / tau) / total
    return A


@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 40),
    st.floats(0.05, 10.0),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_matrix_is_that_of_the_equations(
    clients: int, experts: int, width: int, P: int, tau: float, seed: int
) -> None:
    vectors = gates(clients, experts, width, seed)
    found = domain_aware(vectors, P, tau)
    assert found.dense() == pytest.approx(plain(vectors, P, tau), abs=1e-9)
    assert found.dense().sum(axis=1) == pytest.approx(np.ones(clients * experts))
    assert (np.diagonal(found.dense()) > 0).all()


def test_rows_are_the_same_in_blocks_of_any_size() -> None:
    rows = unit_rows(gates(9, 3, 5))
    whole = nearest(rows, 4)
    for block in (1, 27, 60, 10_000):
        part = nearest(rows, 4, block)
        assert all(np.array_equal(a, b) for a, b in zip(whole, part, strict=True))


@pytest.mark.parametrize(("n", "width", "count"), [(63, 3, 2), (300, 4, 3), (1801, 32, 6)])
@pytest.mark.parametrize(("domains", "noise"), [(1, 1.0), (9, 0.05), (40, 0.5)])
def test_the_nearest_are_those_of_a_whole_table(n: int, width: int, count: int, domains: int, noise: float) -> None:
    """With directions in groups and without, and rows that do not fill blocks."""
    rng = np.random.default_rng(n)
    centres = rng.standard_normal((domains, width))
    rows = unit_rows((centres[rng.integers(0, domains, n)] + noise * rng.standard_normal((n, width)))[:, None])
    found, cosine = nearest(rows, count, block=40_000), rows @ rows.T
    np.fill_diagonal(cosine, 1.0)
    least = np.sort(cosine, axis=1)[:, -count]
    row, column = np.nonzero(cosine >= least[:, None] - 1e-9)
    assert np.array_equal(found.column, column)
    assert np.array_equal(np.diff(found.ptr), np.bincount(row, minlength=n))
    assert found.cosine == pytest.approx(cosine[row, column], abs=1e-12)


def test_groups_that_lie_apart_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 16))
    rows = unit_rows((np.repeat(centres, 200, axis=0) + 0.1 * rng.standard_normal((2000, 16)))[:, None])
    groups = divided(rows.astype(np.float32), 1e-4)
    assert np.diff(groups.ptr).tolist() == [200] * 10
    for g in range(10):
        part = slice(groups.ptr[g], groups.ptr[g + 1])
        own = rows[groups.order[part]]
        least = np.sort(own @ own.T, axis=1)[:, -4].astype(np.float32)
        assert groups.near(part, least).tolist() == [g]
        assert groups.near(part, np.full(200, -1.0, dtype=np.float32)).tolist() == list(range(10))


def test_asking_for_nothing_changes_nothing() -> None:
    found = domain_aware(np.ones((4, 3, 2)), P=0, tau=1.0)
    assert np.array_equal(found.dense(), np.eye(12))
    assert len(fetches(found).expert) == 0
    assert closed_form_B(found, PARTS) == 0


def test_ties_are_kept() -> None:
    """Two experts are equally near to the first, in directions that float32 rounds differently."""
    third = math.pi / 3
    circle = np.array([[math.cos(a), math.sin(a)] for a in (0.0, third, -third, math.pi)]).reshape(4, 1, 2)
    found = domain_aware(circle * np.array([1.0, 3.0, 7.0, 1e-30]).reshape(4, 1, 1), P=1, tau=1.0)
    sources, weights = found.of(0)
    assert sources.tolist() == [0, 1, 2]
    assert weights[1] == pytest.approx(weights[2])


def test_what_is_nearer_by_less_than_single_precision_tells_apart_is_found() -> None:
    angles = np.array([0.0, 1.0, 1.0 + 1e-7, 1.0 + 2e-7])
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).reshape(4, 1, 2)
    assert domain_aware(circle, P=1, tau=1.0).of(0)[0].tolist() == [0, 1]


def test_equal_gates_give_the_plain_mean() -> None:
    found = domain_aware(np.broadcast_to([0.3, -1.7, 0.2], (5, 2, 3)), P=1, tau=0.5)
    assert found.dense() == pytest.approx(np.full((10, 10), 0.1))


def test_the_order_of_clients_does_not_matter() -> None:
    vectors, order = gates(8, 3, 6), np.random.default_rng(1).permutation(8)
    there = (order[:, None] * 3 + np.arange(3)).ravel()
    plain_order, mixed = domain_aware(vectors, 3, 0.7).dense(), domain_aware(vectors[order], 3, 0.7).dense()
    assert mixed == pytest.approx(plain_order[np.ix_(there, there)])


def test_the_length_of_a_gate_vector_does_not_matter() -> None:
    vectors = gates(5, 2, 4)
    scaled = vectors * np.random.default_rng(2).uniform(1e-200, 1e200, (5, 2, 1))
    assert domain_aware(scaled, 2, 1.0).dense() == pytest.approx(domain_aware(vectors, 2, 1.0).dense())


@pytest.mark.parametrize("wrong", [0.0, np.nan, np.inf])
def test_a_gate_without_direction_names_its_client(wrong: float) -> None:
    vectors = gates(5, 2, 4)
    vectors[3, 1] = wrong
    with pytest.raises(InputError, match="client 3"):
        domain_aware(vectors, 2, 1.0)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        domain_aware(gates(2, 2, 2), -1, 0.0)
    assert [p.field for p in caught.value.problems] == ["P", "tau"]


def test_absent_clients_leave_their_weight_to_the_others() -> None:
    found = domain_aware(gates(6, 2, 3), 3, 1.0)
    there = np.array([True, False, True, True, True, False])
    A, B = found.dense(), restricted(found, there).dense()
    assert B.sum(axis=1) == pytest.approx(np.ones(12))
    gone = np.repeat(~there, 2)
    assert np.array_equal(B[gone], np.eye(12)[gone])
    kept = A[~gone] * ~gone
    assert B[~gone] == pytest.approx(kept / kept.sum(axis=1, keepdims=True))


def test_an_expert_that_never_came_is_left_out_and_the_own_one_stays() -> None:
    found = domain_aware(gates(4, 2, 3), 2, 1.0)
    lost = missing(found, np.ones(len(found.source), dtype=bool))
    assert np.array_equal(lost.dense(), np.eye(8))


def test_bytes_equal_the_closed_form() -> None:
    clients = 12
    found = domain_aware(gates(clients, 3, 4, seed=5), 4, 1.0)
    asked = fetches(found)
    flows = merged(asked, PARTS.expert_B, clients)
    total = closed_form_B(found, PARTS)
    assert total > 0
    assert len(asked.expert) < np.sum(found.source // 3 != found.row // 3)  # some experts are wanted twice by a client
    assert (
        int(flows.nbytes.sum()) == int(received_B(flows, clients).sum()) == int(sent_B(flows, clients).sum()) == total
    )
    assert int(copies(asked, found.rows).sum()) * PARTS.expert_B == total
    assert total <= clients * 3 * 4 * PARTS.expert_B
    assert (flows.target != flows.source).all()
    assert list_B(found).sum() == len(found.source) * ENTRY_B


def test_identity_has_a_row_for_each_expert() -> None:
    assert identity(3, 2).clients == 3
    assert np.array_equal(identity(3, 2).dense(), np.eye(6))
