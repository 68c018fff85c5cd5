"""The commands on checkpoints; formats of others, none of which may execute anything."""

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from real.checkpoint import converting, tools
from real.checkpoint.checkpointer import Checkpointer, load, save
from real.checkpoint.errors import CheckpointError, CorruptCheckpoint
from simcore.checkpoint.layouts import Mesh, Placement
from simcore.cli import app
from simcore.errors import InputError
from simcore.reporting.checkpoints import summary_view
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
    assert all(words in text for words in ("model/layer.weight", "who wrote what", "m model", "mmmmm", "optimizer/lr"))


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
    assert (found["step"], found["optimizer/lr"]) == ("4 and 5", "0.1 and 0.2")


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
    written = tools.convert(str(tmp_path / "ours"), tmp_path / "again", "safetensors", 0).written
    assert all(bits(t) == bits(tensors()[n]) for n, t in load_file(written).items())


def test_converting_keeps_trees_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    w = torch.arange(6.0)
    nested = {"state": {0: {"m": torch.ones(2)}}, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}], "raw": b"x"}
    state = {"model": {"w": w, "tied": w}, "optimizer": nested, "extra": {"rng": torch.arange(3)}}
    save(tmp_path / "a", state, step=7)
    again = tools.convert(str(tmp_path / "a"), tmp_path / "b", "windtunnel", 0)
    assert again.written == f"{tmp_path}/b/step-00000007" and again.left_out == ("extra, which belongs to ranks",)
    empty = {"model": {"w": torch.zeros(6), "tied": torch.zeros(6)}, "optimizer": {"state": {0: {"m": torch.zeros(2)}}}}
    loaded = load(tmp_path / "b", empty)
    assert loaded.state["optimizer"]["groups"] == nested["groups"] and loaded.state["optimizer"]["raw"] == b"x"
    assert (
        loaded.state["model"]["tied"].tolist() == w.tolist() and loaded.state["optimizer"]["state"][0]["m"].sum() == 2
    )
    assert {d["what"] for d in tools.differences(str(tmp_path / "a"), str(tmp_path / "b"))} == {"only in the first"}
    other = tools.convert(str(tmp_path / "a"), tmp_path / "c", "safetensors", 0)
    assert other.left_out == ("extra, which belongs to ranks", "values of optimizer")
    assert set(load_file(other.written)) == {"w", "tied"}  # what Hugging Face's loaders look for, and nothing else
    assert set(load_file(tmp_path / "c" / "optimizer.safetensors")) == {"optimizer/state/0/m"}
    assert Path(other.written).stat().st_mode & 0o777 == (tmp_path / "c").stat().st_mode & 0o666
    assert "optimizer/groups/0/lr" in run("inspect", str(tmp_path / "a"))


def test_a_path_without_checkpoints_says_what_it_is(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    for path, words in (
        (tmp_path, "convert` reads it"),
        (tmp_path / "none", "There is no such"),
        (Path(__file__).parent, "step-N"),
    ):
        with pytest.raises(CheckpointError, match=words):
            tools.summary(str(path))
    with pytest.raises(InputError, match=r"TARGET: given s3://b/x; allowed: a folder"):
        tools.convert(str(tmp_path), "s3://b/x", "dcp", 0)


def test_the_picture_has_a_letter_for_each_role() -> None:
    """Bars add up: what is rounded away from one role is the next one's."""
    written = {"model": [10, 5], "moments": [19, 5], "m": [1, 0]}
    found = {"name": "step-1", "step": 1, "n_ranks": 2, "parallelism": {}, "shards": 4, "files": 4, "nbytes": 40}
    text = io.StringIO()
    view = summary_view({**found, "tensors": [], "aliases": {}, "values": {}, "written_B": written})
    Console(file=text, width=120).print(view)
    assert "m model  o moments  a m" in text.getvalue()
    assert f"{'m' * 10}{'o' * 19}a " in text.getvalue() and f"{'m' * 5}{'o' * 5} " in text.getvalue()


def test_large_models_become_several_files_and_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "LARGEST_FILE_B", 50)
    state = {"model": tensors(), "a b": {"x": torch.ones(2)}, "a_b": {"x": torch.zeros(2)}}
    save(tmp_path / "ours", state, step=0)
    index = Path(tools.convert(str(tmp_path / "ours"), tmp_path / "theirs", "safetensors", 0).written)
    weight_map = json.loads(index.read_text())["weight_map"]
    assert index.name == "model.safetensors.index.json" and set(weight_map) == set(tensors())
    assert len(set(weight_map.values())) == 2
    for name, file in weight_map.items():
        assert bits(load_file(index.parent / file)[name]) == bits(tensors()[name])
    assert load_file(tmp_path / "theirs" / "a_b.safetensors").keys() == {"a b/x"}
    assert load_file(tmp_path / "theirs" / "a_b_.safetensors").keys() == {"a_b/x"}


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--to: given onnx"):
        tools.convert(str(tmp_path), tmp_path / "x", "onnx", 0)


def test_looking_at_checkpoints_does_not_load_torch(tmp_path: Path) -> None:
    two_ranks(tmp_path)
    code = (
        "import sys\nfrom simcore.cli import main\n"
        f"sys.argv = ['windtunnel', 'checkpoint', 'verify', {str(tmp_path)!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\nprint('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False" and "every checksum right" in done.stderr
