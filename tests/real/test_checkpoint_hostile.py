"""Checkpoints made to harm, with checksums that fit: everything that reads one refuses, and neither allocates nor writes for it."""

import json
import resource
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from real.checkpoint import tools
from real.checkpoint.checkpointer import Checkpointer, load, save
from real.checkpoint.errors import CorruptCheckpoint
from real.checkpoint.metadata import CHECKSUM_B, FIXED_B
from simcore.errors import WindtunnelError

NAME, FILE = "step-00000001", "metadata.wtc"
ROOM_B = 400 * 2**20
"""More than any of these may take beside what is there; far below what hostile ones claim."""


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What a hostile file claims cannot be allocated: it would be an error of another kind."""
    [used] = [
        int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line
    ]
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_B, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def saved(root: Path) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """A sound checkpoint; its header and its table."""
    state = {"a": torch.arange(24.0).view(4, 6), "b": torch.arange(9, dtype=torch.int16), "c": torch.tensor(3.5)}
    extra = {"rng": torch.arange(40), "note": "x", "numbers": [1, (2, 3.5)]}
    Checkpointer(root, largest_shard_B=64).save({"model": {**state, "tied": state["a"]}, "extra": extra}, step=1)
    raw = (root / NAME / FILE).read_bytes()
    header_B, n, d = (int(x) for x in np.frombuffer(raw, "<u8", 3, 8))
    table = np.frombuffer(raw, "<i8", n * (4 + 2 * d), FIXED_B + header_B).reshape(4 + 2 * d, n)
    return json.loads(raw[FIXED_B : FIXED_B + header_B]), table.copy()


def put(root: Path, header: Any, table: np.ndarray[Any, Any]) -> None:
    """In its place, sizes and checksum as they should be."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    counts = np.array([len(text), table.shape[1], (table.shape[0] - 4) // 2], "<u8").tobytes()
    body = b"WTCKPT01" + counts + text + table.astype("<i8").tobytes()
    (root / NAME / FILE).write_bytes(body + xxhash.xxh3_64_intdigest(body).to_bytes(CHECKSUM_B, "little"))


def everything(root: Path, aside: Path) -> list[Callable[[], object]]:
    """Whatever reads a checkpoint; `aside` is sound."""
    target = {"model": {"a": torch.zeros(4, 6), "c": torch.tensor(0.0)}, "extra": None}
    return [
        lambda: load(root, target),
        lambda: tools.summary(str(root)),
        lambda: tools.verified(str(root)),
        lambda: tools.differences(str(root), str(aside)),
        lambda: tools.convert(str(root), root.parent / "out", "safetensors", 0),
    ]


NUMBERS = [-1, 0, 1, 2, 7, 2**31, 2**40, 2**62, 2**63, 2**64, -(2**63), 0.5, 1e308, True, None]
TEXTS = ["", "../../x", "/etc/passwd", "x/../y", "metadata.wtc", "int64", "bool", "model/a", "extra/0/rng", "n" * 5000]
TREES = [[], {}, [[]], [1, 2, 3, 4], {"$tensor": "none"}, {"$int": "zz"}, {"$bytes": "*"}, {"$map": 3}, {"$odd": 1}]
NASTY = st.sampled_from([*NUMBERS, *TEXTS, *TREES])


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree of JSON."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    return [(tree, k) for k in keys] + [place for k in keys for place in places(tree[k])]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_a_header_and_table_say_only_our_errors_come_of_it(
    tmp_path_factory: pytest.TempPathFactory, little_memory: None, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    root, aside = folder / "root", folder / "aside"
    header, table = saved(root)
    saved(aside)
    for _ in range(data.draw(st.integers(0, 3))):
        where, key = data.draw(st.sampled_from(places(header)))
        if data.draw(st.integers(0, 5)) == 0:
            del where[key]
        else:
            where[key] = deepcopy(data.draw(NASTY))
    for _ in range(data.draw(st.integers(0, 3))):
        value = data.draw(st.sampled_from([-1, 0, 1, 2, 3, 5, 64, 2**31, 2**40, 2**62, -(2**63)]))
        table[data.draw(st.integers(0, table.shape[0] - 1)), data.draw(st.integers(0, table.shape[1] - 1))] = value
    put(root, header, table)
    before = files(folder)
    for read in everything(root, aside):
        try:
            read()
        except WindtunnelError as error:
            assert len(str(error)) < 20_000
    changed = {p for p, content in files(folder).items() if before.get(p) != content}
    assert all(p.is_relative_to(folder / "out") for p in changed)


def files(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_tensors_that_claim_more_than_the_files_hold_take_no_memory(tmp_path: Path, little_memory: None) -> None:
    """Consistent in itself, 2^50 bytes of a tensor in a file of 2^50 bytes: only the true file's size tells."""
    header, table = saved(tmp_path / "root")
    saved(tmp_path / "aside")
    row = next(i for i, t in enumerate(header["tensors"]) if t[0] == "extra/0/rng")
    header["tensors"][row][3] = [2**47]
    one = np.flatnonzero(table[0] == row)
    number = int(table[1, one[0]])
    header["files"][number][1] = 2**60
    keep = np.array([i for i in range(table.shape[1]) if i not in one[1:]])
    table = table[:, keep]
    table[[2, 4, 5, 6, 7], one[0]] = [2**20, 0, 0, 2**47, 1]
    put(tmp_path / "root", header, table)
    assert tools.summary(str(tmp_path / "root"))["nbytes"] > 2**50
    for read in [r for i, r in enumerate(everything(tmp_path / "root", tmp_path / "aside")) if i != 1]:
        with pytest.raises(
            CorruptCheckpoint, match=rf"{header['files'][number][0]}: given \d+ bytes; allowed: {2**60}"
        ):
            read()


@pytest.mark.parametrize("name", ["../../../outside", "/tmp/outside", "a/../../b", "C:\\x", "line\nbreak", "_", "é"])
def test_roles_and_names_never_become_paths(tmp_path: Path, name: str) -> None:
    """Of a state that is saved: what people call their tensors is only text."""
    folder = tmp_path / "deep" / "er"
    state = {name: {name: torch.ones(3)}, "model": {name: torch.zeros(2)}}
    save(folder, state, step=1)
    assert {p.parent for p in tmp_path.rglob("*.bin")} == {folder / NAME}
    target = {name: {name: torch.zeros(3)}, "model": {name: torch.ones(2)}}
    load(folder, target)
    assert target[name][name].tolist() == [1, 1, 1] and target["model"][name].tolist() == [0, 0]
    tools.convert(str(folder), tmp_path / "out", "safetensors", 0)
    assert {p.parent for p in tmp_path.rglob("*.safetensors")} == {tmp_path / "out"}
