"""Who has which samples: classes in unequal parts, and domains that look different."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from real.federated.datasets import Images
from simcore.errors import InputError, Problem

Ints = NDArray[np.int64]
ATTEMPTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientData:
    """What one client learns from and is tested with; both are of its own kind."""

    train: Images
    test: Images


def dirichlet(classes: Ints, clients: int, alpha: float, rng: np.random.Generator, least: int = 8) -> list[Ints]:
    """Samples of each client: every class is dealt out in shares drawn from a Dirichlet distribution (Hsu et al. 2019).

    Small `alpha`: a client has few classes. Drawn again until everybody has `least` samples, else `InputError`.
    """
    kinds = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    for _ in range(ATTEMPTS):
        parts: list[list[Ints]] = [[] for _ in range(clients)]
        for members in kinds:
            shuffled = rng.permutation(members)
            cuts = (np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * len(members)).astype(int)
            for client, part in enumerate(np.split(shuffled, cuts)):
                parts[client].append(part)
        found = [np.sort(np.concatenate(p)) for p in parts]
        if min(len(f) for f in found) >= least:
            return found
    problem = Problem("alpha", f"{alpha} with {clients} clients", f"shares that leave everybody {least} samples")
    raise InputError("samples that cannot be dealt out", [problem])


def evenly(samples: int, clients: int, rng: np.random.Generator) -> list[Ints]:
    """Samples of each client, of all classes alike."""
    return [np.sort(part) for part in np.array_split(rng.permutation(samples), clients)]


def split(images: Images, parts: Sequence[Ints], rng: np.random.Generator, tested: float = 0.25) -> list[ClientData]:
    """Each client's samples, a share of `tested` (one at least) kept for tests."""
    found = []
    for part in parts:
        rows = torch.from_numpy(rng.permutation(part))
        cut = max(round(len(rows) * tested), 1)
        train, test = rows[cut:], rows[:cut]
        found.append(
            ClientData(
                train=Images(images.pixels[train], images.classes[train]),
                test=Images(images.pixels[test], images.classes[test]),
            )
        )
    return found


def rotated(pixels: Tensor, degrees: float) -> Tensor:
    """Images turned counter-clockwise; what comes from outside is 0."""
    turn = torch.deg2rad(torch.tensor(degrees))
    matrix = torch.tensor([[torch.cos(turn), -torch.sin(turn), 0.0], [torch.sin(turn), torch.cos(turn), 0.0]])
    grid = functional.affine_grid(matrix.expand(len(pixels), 2, 3), list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, align_corners=False)


def contrasted(pixels: Tensor, contrast: float) -> Tensor:
    """Images with `contrast` times their distance from medium grey; a negative one inverts."""
    return ((pixels - 0.5) * contrast + 0.5).clamp(0.0, 1.0)


def coloured(pixels: Tensor, colour: Sequence[float]) -> Tensor:
    """Grey images (samples, 1, ...) in a colour, or colour images with each channel scaled: (samples, len(colour), ...)."""
    return pixels * torch.tensor(colour).view(1, -1, 1, 1)


def shifted(data: Sequence[ClientData], kind: str, domains: int) -> list[ClientData]:
    """Client c in domain c % domains: turned by shares of a circle, with contrasts from 1 to -1, or in colours around the wheel.

    Raises `InputError` for another `kind`.
    """
    if kind not in ("rotation", "contrast", "colour"):
        raise InputError("an unknown shift", [Problem("kind", repr(kind), "rotation, contrast, colour")])

    def change(pixels: Tensor, domain: int) -> Tensor:
        share = domain / domains
        if kind == "rotation":
            return rotated(pixels, 360.0 * share)
        if kind == "contrast":
            return contrasted(pixels, 1.0 - 2.0 * domain / max(domains - 1, 1))
        return coloured(pixels, [0.5 + 0.5 * float(np.cos(2 * np.pi * (share - c / 3))) for c in range(3)])

    return [
        ClientData(
            train=Images(change(one.train.pixels, c % domains), one.train.classes),
            test=Images(change(one.test.pixels, c % domains), one.test.classes),
        )
        for c, one in enumerate(data)
    ]
