"""Real federated training follows the decided rounds: what is averaged, mixed and exchanged; partitions and data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from real.federated.datasets import Images, cifar, small_digits
from real.federated.federation import LocalFederation, mix
from real.federated.local import Training
from real.federated.model import MixtureOfExperts
from real.federated.partition import ClientData, contrasted, dirichlet, rotated, shifted, split
from simcore.errors import InputError
from simcore.federated.aggregation import domain_aware
from simcore.federated.moe_model import MoEShape
from simcore.federated.rounds import Strategy

SHAPE = MoEShape(image=(1, 8, 8), channels=(4,), width=8, experts=3, hidden=6, top_k=2, classes=10)


def data(clients: int) -> list[ClientData]:
    images, rng = small_digits(), np.random.default_rng(0)
    few = Images(images.pixels[:400], images.classes[:400])
    return split(few, dirichlet(few.classes.numpy(), clients, 0.5, rng), rng)


def federation(system: str, **settings: object) -> LocalFederation:
    return LocalFederation(SHAPE, data(4), Strategy(system=system, **settings), Training(epochs=1), seed=0)  # type: ignore[arg-type]


def test_parameters_are_those_that_the_simulator_counts() -> None:
    model = MixtureOfExperts(SHAPE)
    sizes = {
        part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("embedding", "gate", "experts")
    }
    assert sizes == {
        "embedding": SHAPE.embedding_elements,
        "gate": SHAPE.gate_elements,
        "experts": 3 * SHAPE.expert_elements,
    }


def test_a_sample_visits_its_experts_with_weights_that_sum_to_one() -> None:
    model = MixtureOfExperts(SHAPE)
    weight = model.route(torch.randn(20, 3))
    assert ((weight > 0).sum(dim=1) == 2).all()
    assert weight.sum(dim=1).tolist() == pytest.approx([1.0] * 20)
    model.route(torch.zeros(6, 3))
    assert float(model.balance) == pytest.approx(1.0)


def test_experts_become_what_the_matrix_says() -> None:
    one = federation("local_only")
    one.round()
    gates = np.stack([s["gate.weight"].numpy() for s in one.states])
    mixing = domain_aware(gates, 2, 1.0)
    before = torch.stack([s["experts.up"] for s in one.states]).flatten(0, 1).double()
    mix(one.states, mixing)
    after = torch.stack([s["experts.up"] for s in one.states]).flatten(0, 1).double()
    wanted = torch.einsum("ij,jkl->ikl", torch.from_numpy(mixing.dense()), before)
    torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-6)


def test_a_round_of_averaging_leaves_one_model_and_one_of_exchange_personal_ones() -> None:
    whole, ours = federation("fedavg"), federation("fedmoe_da", P=2)
    shared, mixed = whole.round(), ours.round()
    assert set(whole.server) == set(whole.states[0])
    assert {n.split(".")[0] for n in ours.server} == {"embedding"}
    assert not torch.equal(ours.states[0]["experts.up"], ours.states[1]["experts.up"])
    assert shared.peer_B == 0 and mixed.peer_B > 0
    assert shared.server_B == 2 * 4 * SHAPE.parts.model_B


def test_rounds_repeat_with_their_seed() -> None:
    for system in ("fedmoe_da", "fedprox", "gossip", "saps"):
        settings = {"proximal": 0.1} if system == "fedprox" else {}
        first, second = (federation(system, **settings) for _ in range(2))
        assert [first.round() for _ in range(2)] == [second.round() for _ in range(2)]


def test_gossip_takes_the_mean_of_partners() -> None:
    one = federation("gossip")
    one.round()
    same = [torch.equal(one.states[0]["gate.weight"], one.states[c]["gate.weight"]) for c in (1, 2, 3)]
    assert sum(same) == 1


def test_who_is_away_keeps_its_model() -> None:
    one = federation("fedmoe_da", P=2)
    before = {n: v.clone() for n, v in one.states[2].items()}
    one.round(np.array([True, True, False, True]))
    assert all(torch.equal(one.states[2][n], before[n]) for n in before)


def test_every_sample_is_dealt_out_once_and_small_alphas_are_more_unequal() -> None:
    classes = np.repeat(np.arange(10), 100)
    spread = []
    for alpha in (0.1, 100.0):
        parts = dirichlet(classes, 10, alpha, np.random.default_rng(0))
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
        spread.append(np.mean([len(np.unique(classes[p])) for p in parts]))
    assert spread[0] < spread[1]
    with pytest.raises(InputError, match="dealt out"):
        dirichlet(classes[:20], 10, 0.1, np.random.default_rng(0))


def test_domains_look_different() -> None:
    pixels = torch.rand(3, 1, 8, 8)
    assert torch.allclose(rotated(pixels, 90.0), torch.rot90(pixels, 1, (2, 3)), atol=1e-5) or torch.allclose(
        rotated(pixels, 90.0), torch.rot90(pixels, -1, (2, 3)), atol=1e-5
    )
    assert torch.allclose(contrasted(pixels, -1.0), 1 - pixels, atol=1e-6)
    for kind, channels in (("rotation", 1), ("contrast", 1), ("colour", 3)):
        found = shifted(data(4), kind, 2)
        assert found[0].train.pixels.shape[1] == channels
        assert torch.equal(found[1].train.classes, data(4)[1].train.classes)
    with pytest.raises(InputError):
        shifted(data(4), "smell", 2)


@pytest.mark.parametrize(("name", "labels"), [("data_batch_1.bin", 1), ("train.bin", 2)])
def test_cifar_from_a_folder(tmp_path: Path, name: str, labels: int) -> None:
    with pytest.raises(InputError, match="no CIFAR"):
        cifar(tmp_path)
    rows = np.random.default_rng(0).integers(0, 10, (2, labels + 3072)).astype(np.uint8)
    (tmp_path / name).write_bytes(rows.tobytes())
    found = cifar(tmp_path)
    assert found.pixels.shape == (2, 3, 32, 32)
    assert found.classes.tolist() == rows[:, labels - 1].tolist()
    (tmp_path / name).write_bytes(rows.tobytes()[:-1])
    with pytest.raises(InputError, match="no whole images"):
        cifar(tmp_path)
