"""The commands on checkpoints; formats of others, none of which may execute anything."""

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from real.checkpoint import tools
from real.checkpoint.checkpointer import Checkpointer, load, save
from real.checkpoint.dcp import read_dcp
from real.checkpoint.errors import CheckpointError, CorruptCheckpoint
from simcore.checkpoint.layouts import Mesh, Placement
from simcore.cli import app
from simcore.errors import InputError
from tests.real.checkpoint_world import Threads, bits, cut, in_world


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layer.weight": torch.randn(6, 4, generator=generator),
        "layer.half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(3),
        "none": torch.zeros(0, 2),
    }


def run(*arguments: str) -> str:
    """Standard output of the command."""
    result = CliRunner().invoke(app, ["checkpoint", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def two_ranks(root: Path, changed: float = 0.0) -> None:
    """A checkpoint of two ranks, with `changed` added to one element."""
    wholes = tensors()
    wholes["layer.weight"][5, 3] += changed
    placements = {n: Placement(dp="shard") for n in wholes}

    def work(rank: int, ranks: Threads, background: Threads) -> None:
        held = cut(wholes, placements, Mesh(dp=2), rank)
        checkpointer = Checkpointer(root, ranks=ranks, background=background)
        checkpointer.save({"model": held, "optimizer": {"lr": 0.1}}, step=4, parallelism={"dp": 2})

    in_world(2, work)


def test_inspect_shows_what_is_there_and_who_wrote_it(tmp_path: Path) -> None:
    two_ranks(tmp_path)
    found = json.loads(run("inspect", str(tmp_path), "--json"))
    assert (found["step"], found["n_ranks"], found["parallelism"], found["nbytes"]) == (4, 2, {"dp": 2}, 96 + 10 + 8)
    assert found["written_B"]["model"][0] + found["written_B"]["model"][1] == 114
    assert {t["name"]: t["shards"] for t in found["tensors"]}["model/layer.weight"] == 2
    text = run("inspect", str(tmp_path / "step-00000004"))
    assert "model/layer.weight" in text and "who wrote what" in text and "#####" in text


def test_verify_reads_everything_and_names_what_is_damaged(tmp_path: Path) -> None:
    two_ranks(tmp_path)
    assert json.loads(run("verify", str(tmp_path), "--json")) == {"name": "step-00000004", "shards": 5, "nbytes": 114}
    file = tmp_path / "step-00000004" / "model-000001.bin"
    raw = bytearray(file.read_bytes())
    raw[3] ^= 16
    file.write_bytes(raw)
    with pytest.raises(CorruptCheckpoint, match=r"step-00000004/model-000001\.bin, shard model/"):
        tools.verified(str(tmp_path))
    file.write_bytes(raw[:-1])
    with pytest.raises(CorruptCheckpoint, match="as it was written"):
        tools.verified(str(tmp_path))


def test_diff_compares_elements_whatever_the_shards_are(tmp_path: Path) -> None:
    two_ranks(tmp_path / "a")
    save(tmp_path / "b", {"model": tensors(), "optimizer": {"lr": 0.1}}, step=4)
    assert tools.differences(str(tmp_path / "a"), str(tmp_path / "b")) == []
    two_ranks(tmp_path / "c", changed=1.0)
    [row] = json.loads(run("diff", str(tmp_path / "c"), str(tmp_path / "b"), "--json"))
    assert row == {"name": "model/layer.weight", "what": "1 of 24 elements"}
    other = {**tensors(), "count": torch.tensor(3.0), "more": torch.ones(1)}
    del other["none"]
    save(tmp_path / "d", {"model": other, "optimizer": {"lr": 0.2}}, step=5)
    found = {r["name"]: r["what"] for r in tools.differences(str(tmp_path / "a"), str(tmp_path / "d"))}
    assert found["model/count"] == "int64 [] and float32 []"
    assert (found["model/none"], found["model/more"]) == ("only in the first", "only in the second")
    assert found["step"] == "4 and 5" and "values of optimizer" in found


def test_prune_keeps_the_last_and_says_what_would_go(tmp_path: Path) -> None:
    for step in range(4):
        save(tmp_path, {"model": tensors()}, step=step)
    (tmp_path / ".writing-0123456789abcdef").mkdir()
    old = ["step-00000000", "step-00000001"]
    assert json.loads(run("prune", str(tmp_path), "--keep", "2", "--dry-run", "--json")) == old
    assert json.loads(run("prune", str(tmp_path), "--keep", "2", "--json")) == [".writing-0123456789abcdef", *old]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000003"]
    with pytest.raises(CheckpointError, match="1 or more"):
        tools.pruned(str(tmp_path), 0)


@pytest.mark.parametrize("form", ["safetensors", "dcp", "windtunnel"])
def test_other_formats_there_and_back(tmp_path: Path, form: str) -> None:
    state = {"model": tensors(), "optimizer": {"m": torch.ones(3), "lr": 0.1}}
    save(tmp_path / "ours", state, step=7)
    with warnings.catch_warnings(action="ignore"):
        run("convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", form)
    run("convert", str(tmp_path / "theirs"), str(tmp_path / "back"), "--step", "7")
    target = {"model": {n: torch.zeros_like(t) for n, t in tensors().items()}, "optimizer": {"m": torch.zeros(3)}}
    loaded = load(tmp_path / "back", target)
    assert loaded.step == 7
    assert all(bits(t) == bits(tensors()[n]) for n, t in loaded.state["model"].items())
    assert loaded.state["optimizer"]["m"].tolist() == [1, 1, 1]


def test_safetensors_are_those_of_hugging_face(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    tools.convert(str(tmp_path / "model.safetensors"), tmp_path / "ours", "windtunnel", 0)
    written = tools.convert(str(tmp_path / "ours"), tmp_path / "again", "safetensors", 0)
    assert all(bits(t) == bits(tensors()[n]) for n, t in load_file(written).items())


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--to: given onnx"):
        tools.convert(str(tmp_path), tmp_path / "x", "onnx", 0)


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


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 10**5), st.integers(1, 255)), min_size=1, max_size=6), st.booleans())
def test_mutated_metadata_of_torch_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut_off: bool
) -> None:
    folder = dcp_folder(tmp_path_factory.mktemp("dcp") / "c", {"w": torch.ones(30, 2), "lr": 0.1})
    raw = bytearray((folder / ".metadata").read_bytes())
    for at, mask in flips:
        raw[at % len(raw)] ^= mask
    (folder / ".metadata").write_bytes(raw[: flips[0][0] % len(raw)] if cut_off else raw)
    with contextlib.suppress(CorruptCheckpoint):
        read_dcp(folder)


def test_looking_at_checkpoints_does_not_load_torch(tmp_path: Path) -> None:
    two_ranks(tmp_path)
    code = (
        "import sys\nfrom simcore.cli import main\n"
        f"sys.argv = ['windtunnel', 'checkpoint', 'verify', {str(tmp_path)!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\nprint('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False" and "every checksum right" in done.stderr
