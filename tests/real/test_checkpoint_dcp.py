"""Checkpoints of torch (DCP), which are pickles: read without running anything, refused where they are not what torch writes."""

import io
import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from real.checkpoint.dcp import read_dcp
from real.checkpoint.errors import CorruptCheckpoint
from tests.real.checkpoint_world import bits
from tests.real.test_checkpoint_tools import tensors


def dcp_folder(folder: Path, state: dict[str, Any]) -> Path:
    with warnings.catch_warnings(action="ignore"):
        torch_dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def test_a_checkpoint_of_torch_is_read(tmp_path: Path) -> None:
    state = {"model": tensors(), "lr": 0.1, "names": {"a": [1, 2]}}
    found = read_dcp(dcp_folder(tmp_path / "dcp", state))
    assert all(bits(found[f"model.{n}"]) == bits(t) for n, t in tensors().items())
    assert (found["lr"], found["names.a"]) == (0.1, [1, 2])


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("where", ["metadata", "item"])
def test_a_pickle_that_runs_a_command_runs_nothing(tmp_path: Path, where: str) -> None:
    folder = dcp_folder(tmp_path / "dcp", {"w": torch.ones(3), "lr": 0.1})
    if where == "metadata":
        (folder / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    else:
        data = io.BytesIO()
        torch.save(Evil(tmp_path / "ran"), data)
        [file] = folder.glob("*.distcp")
        file.write_bytes(data.getvalue() * (1 + file.stat().st_size // len(data.getvalue())))
    with pytest.raises(CorruptCheckpoint):
        read_dcp(folder)
    assert not (tmp_path / "ran").exists()


STORED = {"w": torch.arange(60.0).view(30, 2), "h": torch.arange(7).to(torch.bfloat16), "lr": 0.1}
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect", "ctypes.dlopen")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[str]]:
    """A checkpoint of torch, the bytes of its metadata, and what was done that no reader has to do."""
    folder = dcp_folder(tmp_path_factory.mktemp("dcp") / "c", STORED)
    done: list[str] = []
    sys.addaudithook(lambda event, _: done.append(event) if event in FORBIDDEN else None)
    return folder, (folder / ".metadata").read_bytes(), done


def refused(stored: tuple[Path, bytes, list[str]], metadata: bytes) -> bool:
    """Whether these bytes are; where they are not, every value is one of those that were saved, bit by bit. Nothing is run."""
    folder, _, done = stored
    (folder / ".metadata").write_bytes(metadata)
    done.clear()
    try:
        found = read_dcp(folder)
    except CorruptCheckpoint as error:
        assert str(folder) in str(error)
        return True
    finally:
        assert done == []
    for name, value in found.items():
        known = [v for v in STORED.values() if type(v) is type(value)]
        if isinstance(value, torch.Tensor):
            assert any((v.dtype, v.shape, bits(v)) == (value.dtype, value.shape, bits(value)) for v in known), name
        else:
            assert value in known, name
    return False


@pytest.mark.slow
def test_a_flipped_bit_in_metadata_of_torch_is_refused_or_changes_no_value(
    stored: tuple[Path, bytes, list[str]],
) -> None:
    """In every byte. Names have no checksum there, so a letter of one may change; values may not."""
    raw = stored[1]
    assert not refused(stored, raw)
    outcomes = []
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1 << at % 8
        outcomes.append(refused(stored, bytes(changed)))
    assert sum(outcomes) > 0.8 * len(raw)  # of 1,086: 938, the others are in names and in fields that nobody reads


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 10**5), st.integers(1, 255)), min_size=1, max_size=6), st.booleans())
def test_mutated_metadata_of_torch_is_refused_or_changes_no_value(
    stored: tuple[Path, bytes, list[str]], flips: list[tuple[int, int]], cut_off: bool
) -> None:
    raw = bytearray(stored[1])
    for at, mask in flips:
        raw[at % len(raw)] ^= mask
    if cut_off:
        assert refused(stored, bytes(raw[: flips[0][0] % len(raw)]))  # a pickle ends with its last byte
    else:
        refused(stored, bytes(raw))
