"""A character language model's data: real text that installed packages ship, a kind of it for each client.

The model is the one for images (`real.federated.model`): the last `CONTEXT` characters are an image of one row with a channel
for each character of the alphabet, 1 where it stands. Without convolutions its embedding network is one linear layer, a neural
language model (Bengio et al. 2003) whose mixture of experts says what comes next.
"""

import ast
import importlib
import inspect
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from real.federated.datasets import Images
from real.federated.partition import ClientData
from simcore.errors import InputError, Problem

Ints = NDArray[np.int64]

ALPHABET = string.digits + string.ascii_letters + string.punctuation + " \n"
"""96 characters; any other is read as a space."""

CONTEXT = 12
"""Characters that are seen of what comes before the next."""

LONGEST = 400_000
"""Characters of a kind of text."""

MODULES = (
    *(
        "argparse",
        "ast",
        "asyncio",
        "calendar",
        "collections",
        "concurrent.futures",
        "configparser",
        "contextlib",
        "csv",
    ),
    *("dataclasses", "datetime", "decimal", "difflib", "doctest", "email.message", "enum", "fractions", "functools"),
    *("heapq", "http.client", "inspect", "ipaddress", "json", "logging", "mailbox", "optparse", "os", "pathlib"),
    *("pickle", "random", "shutil", "socket", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap"),
    *("threading", "tokenize", "traceback", "unittest", "urllib.request", "uuid", "zipfile"),
)
"""Of the standard library."""


def reference_manual() -> str:
    """Topics of Python's language reference, as `help()` shows them."""
    topics: Mapping[str, str] = importlib.import_module("pydoc_data.topics").topics
    return "\n".join(topics[name] for name in sorted(topics))


def docstrings(*modules: str) -> str:
    """What public functions and classes of `modules` say of themselves, each once."""
    found: dict[str, None] = {}
    for module in map(importlib.import_module, modules):
        for said in _said(module):
            found.setdefault(said)
    return "\n".join(found)


def _said(module: ModuleType) -> Iterator[str]:
    for name, one in sorted(vars(module).items()):
        if name.startswith("_") or not callable(one):
            continue
        own = vars(one).items() if inspect.isclass(one) and one.__module__.startswith(module.__name__) else ()
        for member in (one, *(m for n, m in sorted(own) if not n.startswith("_"))):
            said = getattr(member, "__doc__", None)
            if isinstance(said, str):
                yield inspect.cleandoc(said)


def source_code() -> str:
    """Statements of the standard library, without comments and docstrings."""
    return "\n".join(_bare(inspect.getsource(importlib.import_module(name))) for name in MODULES[::2])


def _bare(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


DOMAINS: Mapping[str, Callable[[], str]] = {
    "source code": source_code,
    "reference manual": reference_manual,
    "numpy": lambda: docstrings("numpy"),
    "torch": lambda: docstrings("torch", "torch.nn", "torch.nn.functional"),
    "standard library": lambda: docstrings(*MODULES),
}
"""Kinds of text, in the order in which clients get them."""


@cache
def encoded(domain: str) -> Ints:
    """(characters,) places in `ALPHABET` of the first `LONGEST` characters of a kind of text."""
    place = np.full(128, ALPHABET.index(" "), dtype=np.int64)
    place[[ord(c) for c in ALPHABET]] = np.arange(len(ALPHABET))
    text = DOMAINS[domain]().encode("ascii", "replace")[:LONGEST]
    return place[np.frombuffer(text, dtype=np.uint8)]


def windows(text: Ints, ends: Ints) -> Images:
    """The `CONTEXT` characters before each of `ends`, as (samples, alphabet, 1, context), and the character there."""
    seen = torch.from_numpy(text[ends[:, None] + np.arange(-CONTEXT, 0)])
    pixels = functional.one_hot(seen, len(ALPHABET)).float().transpose(1, 2)[:, :, None].contiguous()
    return Images(pixels, torch.from_numpy(text[ends]))


def characters(
    clients: int, rng: np.random.Generator, samples: int = 4000, domains: Sequence[str] = tuple(DOMAINS)
) -> list[ClientData]:
    """Client c has a piece of `domains[c % len(domains)]` for itself: `samples` places to learn, a quarter as many for tests.

    Tests come from the last fifth of the piece, which nobody learns from. Raises `InputError` for pieces that would be too short.
    """
    found = []
    for c in range(clients):
        text, of = encoded(domains[c % len(domains)]), len(range(c % len(domains), clients, len(domains)))
        piece = np.array_split(text, of)[c // len(domains)]
        cut = len(piece) * 4 // 5
        if cut - CONTEXT < samples:
            allowed = "fewer clients, or fewer samples of each"
            raise InputError(
                "text that is too short", [Problem("clients", f"{clients} with {samples} samples", allowed)]
            )
        learnt = rng.choice(np.arange(CONTEXT, cut), samples, replace=False)
        tested = rng.choice(np.arange(cut + CONTEXT, len(piece)), max(samples // 4, 1), replace=False)
        found.append(ClientData(train=windows(piece, np.sort(learnt)), test=windows(piece, np.sort(tested))))
    return found
