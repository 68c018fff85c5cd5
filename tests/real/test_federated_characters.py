"""Text as data of federated clients: each has a kind of its own, and learns to say what comes next."""

import numpy as np
import pytest
import torch

from real.federated.characters import ALPHABET, CONTEXT, DOMAINS, characters, encoded, windows
from real.federated.federation import LocalFederation
from real.federated.model import MixtureOfExperts
from real.federated.settings import Settings
from simcore.errors import InputError


@pytest.mark.parametrize("domain", DOMAINS)
def test_there_is_text_of_every_kind(domain: str) -> None:
    text = encoded(domain)
    assert len(text) > 100_000
    assert text.min() >= 0
    assert len(np.unique(text)) > 60
    assert (text == ALPHABET.index(" ")).mean() < 0.5


def test_kinds_of_text_differ() -> None:
    shares = [np.bincount(encoded(d), minlength=len(ALPHABET)) / len(encoded(d)) for d in DOMAINS]
    for i, one in enumerate(shares):
        for other in shares[:i]:
            assert np.abs(one - other).sum() / 2 > 0.02  # total variation


def test_a_window_is_what_comes_before() -> None:
    text = np.arange(40)
    seen = windows(text, np.array([CONTEXT, 30]))
    assert seen.pixels.shape == (2, len(ALPHABET), 1, CONTEXT)
    assert seen.pixels.argmax(dim=1).squeeze(1).tolist() == [[*range(CONTEXT)], [*range(30 - CONTEXT, 30)]]
    assert seen.classes.tolist() == [CONTEXT, 30]


def test_nobody_learns_what_is_tested() -> None:
    """Windows of tests overlap with none that is learnt from, and clients of one kind have different text."""
    found = characters(7, np.random.default_rng(0), samples=200)
    assert [len(c.train.classes) for c in found] == [200] * 7
    assert [len(c.test.classes) for c in found] == [50] * 7
    again = characters(7, np.random.default_rng(0), samples=200)
    assert all(torch.equal(a.train.pixels, b.train.pixels) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found[0].train.pixels, found[5].train.pixels)
    with pytest.raises(InputError, match="too short"):
        characters(7, np.random.default_rng(0), samples=10**6)


def test_the_model_is_what_the_simulator_counts() -> None:
    shape = Settings.of({"data": "characters"}).shape
    model = MixtureOfExperts(shape)
    assert sum(p.numel() for p in model.parameters()) == shape.elements
    assert model(torch.zeros(3, *shape.image)).shape == (3, len(ALPHABET))


def test_clients_learn_to_say_what_comes_next() -> None:
    """Above the share of the commonest character in each client's own tests, which is what knowing nothing gets."""
    told = Settings.of(
        {"data": "characters", "clients": 3, "epochs": 4, "rate": 0.1, "width": 32, "hidden": 32, "P": 2}
    )
    data = characters(3, np.random.default_rng(0), samples=2000)
    federation = LocalFederation(told.shape, data, told.strategy, told.training, told.seed)
    for _ in range(2):
        found = federation.round()
    common = np.mean([np.bincount(c.test.classes).max() / len(c.test.classes) for c in data])
    assert found.trained > 1.25 * common
    assert found.aggregated > common
    assert min(found.server_B, found.peer_B) > 0
