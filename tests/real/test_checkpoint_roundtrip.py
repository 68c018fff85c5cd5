"""What is saved in one parallelism comes back bit by bit in any other; small worlds as threads, so that many are tried."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from real.checkpoint.checkpointer import Checkpointer, load, save
from real.checkpoint.errors import CheckpointError
from real.checkpoint.leaves import FlatSlice, Part
from real.checkpoint.metadata import decode
from real.checkpoint.storage import SPARE, Local
from simcore.checkpoint.boxes import chunk
from simcore.checkpoint.layouts import Mesh, Placement
from simcore.errors import InputError
from tests.real.checkpoint_world import Threads, bits, cut, in_world, memory, random_tensor

DTYPES = [
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64),
]

MESHES = st.builds(Mesh, dp=st.integers(1, 4), tp=st.integers(1, 2), pp=st.integers(1, 2)).filter(
    lambda m: m.n_ranks <= 8
)


def placement(ndim: int, mesh: Mesh) -> st.SearchStrategy[Placement]:
    return st.builds(
        Placement,
        stage=st.sampled_from([None, *range(mesh.pp)]),
        tp_dim=st.sampled_from([None, *range(ndim)]),
        dp=st.sampled_from(["replicate", "shard", "flat"]),
    )


@st.composite
def journeys(
    draw: st.DrawFn,
) -> tuple[dict[str, torch.Tensor], Mesh, dict[str, Placement], Mesh, dict[str, Placement], int]:
    """Whole tensors, where they are when they are saved, where when they are loaded, and how large a shard may be."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    wholes, before, after = {}, {}, {}
    mesh, other = draw(MESHES), draw(MESHES)
    for i in range(draw(st.integers(1, 5))):
        shape = draw(st.lists(st.integers(0, 9), max_size=3).map(tuple))
        wholes[f"t{i}"] = random_tensor(shape, draw(st.sampled_from(DTYPES)), generator)
        before[f"t{i}"] = draw(placement(len(shape), mesh))
        after[f"t{i}"] = draw(placement(len(shape), other))
    return wholes, mesh, before, other, after, draw(st.sampled_from([16, 100, 2**26]))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(journeys(), st.booleans(), st.booleans())
def test_any_parallelism_loads_what_any_other_saved(
    tmp_path_factory: pytest.TempPathFactory, journey: Any, asynchronous: bool, by_dp_group: bool
) -> None:
    wholes, mesh, before, other, after, largest_B = journey
    root = tmp_path_factory.mktemp("checkpoints")

    def save_part(rank: int, ranks: Threads, background: Threads) -> None:
        checkpointer = Checkpointer(root, ranks=ranks, background=background, largest_shard_B=largest_B)
        held = cut(wholes, before, mesh, rank)
        saving = checkpointer.save({"model": held}, step=1, asynchronous=asynchronous)
        for leaf in held.values() if asynchronous else ():
            memory(leaf).view(torch.uint8).fill_(7) if memory(leaf).dim() else memory(leaf).fill_(1)
        saving.wait()

    def load_part(rank: int, ranks: Threads, background: Threads) -> tuple[dict[str, Any], int]:
        held = cut({n: torch.zeros_like(w) for n, w in wholes.items()}, after, other, rank)
        groups = other.dp_groups().tolist() if by_dp_group else None
        checkpointer = Checkpointer(root, ranks=ranks, background=background)
        loaded = checkpointer.load({"model": held}, read_groups=groups)
        return loaded.state["model"], loaded.read_B

    in_world(mesh.n_ranks, save_part)
    found = in_world(other.n_ranks, load_part)
    total_B = sum(w.numel() * w.element_size() for w in wholes.values())
    for rank, (state, _) in enumerate(found):
        wanted = cut(wholes, after, other, rank)
        assert state.keys() == wanted.keys()
        for name, leaf in wanted.items():
            assert bits(memory(state[name])) == bits(memory(leaf)), name
    groups = other.dp_groups() if by_dp_group else np.zeros(other.n_ranks, dtype=np.int64)
    for group in set(groups.tolist()):
        assert sum(found[r][1] for r in np.flatnonzero(groups == group)) <= total_B
    written = decode(Local(root).metadata("step-00000001"), "metadata")
    assert int(written.shards.nbytes.sum()) == total_B
    assert sum(p.stat().st_size for p in root.glob("step-*/*.bin")) <= total_B + 64 * len(written.tensor)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 9))
def test_chunks_are_those_of_torch(length: int, parts: int) -> None:
    wanted = [len(c) for c in torch.arange(length).chunk(parts)] if length else []
    assert [n for _, n in (chunk(length, parts, i) for i in range(parts)) if n] == wanted


def test_values_of_every_kind_come_back(tmp_path: Path) -> None:
    state = {
        "optimizer": {
            "state": {0: {"step": torch.tensor(7.0)}, (1, "b"): {"exp_avg": torch.ones(3)}},
            "groups": [
                {"lr": 1e-3, "betas": (0.9, 0.999), "name": None, "nesterov": False, "best": math.inf, "big": 2**80}
            ],
            "raw": b"\x00\xff",
            "$odd": "a key that looks like one of the format's own",
        }
    }
    save(tmp_path, state, step=3)
    target = {"optimizer": {"state": {0: {"step": torch.zeros(())}, (1, "b"): {"exp_avg": torch.zeros(3)}}}}
    loaded = load(tmp_path, target)
    found = loaded.state["optimizer"]
    assert found["groups"] == state["optimizer"]["groups"]
    assert found["raw"] == b"\x00\xff" and found["$odd"] == state["optimizer"]["$odd"]
    assert found["state"][0]["step"] is target["optimizer"]["state"][0]["step"]
    assert found["state"][0]["step"] == 7 and found["state"][1, "b"]["exp_avg"].tolist() == [1, 1, 1]
    assert (loaded.step, loaded.name) == (3, "step-00000003")


def test_a_torch_optimizer_continues_where_it_was(tmp_path: Path) -> None:
    def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
        losses = []
        for i in steps:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(i))
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def fresh(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        return model, torch.optim.AdamW(model.parameters(), lr=0.01)

    model, optimizer = fresh(0)
    train(model, optimizer, range(3))
    save(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, step=3)
    wanted = train(model, optimizer, range(3, 6))
    model, optimizer = fresh(1)
    train(model, optimizer, range(1))  # so that the optimizer has a state to fill
    loaded = load(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    optimizer.load_state_dict(loaded.state["optimizer"])
    assert train(model, optimizer, range(3, 6)) == wanted


def test_tied_tensors_are_written_once_and_may_be_loaded_apart(tmp_path: Path) -> None:
    weight = torch.randn(100, 10)
    save(tmp_path, {"model": {"embed": weight, "head": weight, "view": weight[:50]}}, step=0)
    metadata = decode(Local(tmp_path).metadata("step-00000000"), "metadata")
    assert metadata.aliases == {"model/head": "model/embed"}
    assert metadata.shards.total_B == 4000 + 2000
    apart = {"embed": torch.zeros(100, 10), "head": torch.zeros(100, 10), "view": torch.zeros(50, 10)}
    load(tmp_path, {"model": apart})
    assert all(bits(apart[n]) == bits(weight) for n in ("embed", "head")) and bits(apart["view"]) == bits(weight[:50])


def test_strided_tensors_are_saved_and_filled(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    save(tmp_path, {"model": {"t": base.t(), "odd": base[:, ::2]}}, step=0)
    memory_of = torch.zeros(6, 8)
    target = {"t": torch.zeros(4, 6).t(), "odd": memory_of[:4, 1:7:2]}
    load(tmp_path, {"model": target})
    assert torch.equal(target["t"], base.t()) and torch.equal(target["odd"], base[:, ::2])
    assert memory_of.sum() == base[:, ::2].sum()


def test_dataloader_and_extra_are_kept_for_every_rank(tmp_path: Path) -> None:
    def save_part(rank: int, ranks: Threads, background: Threads) -> None:
        state = {
            "model": {"w": torch.ones(4)},
            "dataloader": {"tokens": torch.arange(rank + 1), "offset": 100 * rank},
            "extra": {"rng": torch.full((3,), rank, dtype=torch.uint8), "numpy": np.arange(rank, dtype=np.int64)},
        }
        Checkpointer(tmp_path, ranks=ranks, background=background).save(state, step=5)

    in_world(3, save_part)
    asked = {"model": {"w": torch.zeros(4)}, "dataloader": None, "extra": None}
    loaded = Checkpointer(tmp_path).load(asked, by_rank=[0, 2])
    assert [loaded.by_rank["dataloader"][r]["offset"] for r in (0, 2)] == [0, 200]
    assert loaded.by_rank["dataloader"][2]["tokens"].tolist() == [0, 1, 2]
    assert loaded.by_rank["extra"][2]["rng"].tolist() == [2, 2, 2]
    assert isinstance(loaded.by_rank["extra"][2]["numpy"], np.ndarray)
    alone = Checkpointer(tmp_path).load(asked)
    assert list(alone.by_rank["extra"]) == [0] and alone.n_ranks == 3


def test_ranks_that_disagree_about_a_value_are_told_where(tmp_path: Path) -> None:
    def save_part(rank: int, ranks: Threads, background: Threads) -> None:
        with pytest.raises(CheckpointError, match=r"optimizer/lr.*`extra`"):
            Checkpointer(tmp_path, ranks=ranks, background=background).save({"optimizer": {"lr": rank}}, step=0)

    in_world(2, save_part)
    assert not list(tmp_path.iterdir())


def test_a_rank_that_cannot_save_stops_all_of_them(tmp_path: Path) -> None:
    def save_part(rank: int, ranks: Threads, background: Threads) -> None:
        state = {"model": {"w": torch.ones(4), "odd": object() if rank == 1 else 1}}
        with pytest.raises(CheckpointError, match=r"model/odd \(rank 1\): given object"):
            Checkpointer(tmp_path, ranks=ranks, background=background).save(state, step=0)

    in_world(2, save_part)


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (torch.empty(3, device="meta"), "a meta tensor"),
        (torch.eye(3).to_sparse(), "sparse"),
        (Part(torch.ones(3), (4,), (2,)), r"a part of shape \(3,\) at \(2,\)"),
        (FlatSlice(torch.ones(3), (2, 2), 2), "3 elements from 2"),
        (FlatSlice(torch.ones(6)[::2], (4, 4), 2), "strides"),
    ],
)
def test_tensors_that_cannot_be_kept_are_named(tmp_path: Path, leaf: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"model/w: given .*{words}"):
        save(tmp_path, {"model": {"w": leaf}}, step=0)


def test_what_the_checkpoint_lacks_is_named_with_what_is_close(tmp_path: Path) -> None:
    save(tmp_path, {"model": {"layer.weight": torch.ones(4), "other": torch.ones(2)}}, step=0)
    wanted = {"layer.weigth": torch.zeros(4), "other": torch.zeros(3)}
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, {"model": wanted})
    assert "model/layer.weigth: given not in the checkpoint" in str(caught.value)
    assert "close: model/layer.weight" in str(caught.value)
    assert "model/other: given float32 of shape (3,); allowed: float32 of shape (2,), as saved" in str(caught.value)


def test_a_plan_is_made_once_and_again_when_any_rank_changes(tmp_path: Path) -> None:
    def save_parts(rank: int, ranks: Threads, background: Threads) -> list[bool]:
        checkpointer = Checkpointer(tmp_path, ranks=ranks, background=background)
        state: dict[str, Any] = {"model": {"w": Part(torch.ones(2), (4,), (2 * rank,))}}
        anew = [checkpointer.save(state, step=i).planned_anew for i in range(2)]
        if rank == 1:
            state["model"]["more"] = torch.ones(3)
        return [*anew, checkpointer.save(state, step=2).planned_anew]

    assert in_world(2, save_parts) == [[True, False, True]] * 2
    assert load(tmp_path, {"model": {"more": torch.zeros(3)}}).state["model"]["more"].tolist() == [1, 1, 1]


def test_saving_a_step_again_never_touches_the_one_before(tmp_path: Path) -> None:
    assert save(tmp_path, {"model": {"w": torch.zeros(2)}}, step=7) == "step-00000007"
    assert save(tmp_path, {"model": {"w": torch.ones(2)}}, step=7) == "step-00000007.1"
    for asked in ({}, {"step": 7}, {"name": "step-00000007.1"}):
        assert load(tmp_path, {"model": {"w": torch.zeros(2)}}, **asked).state["model"]["w"].tolist() == [1, 1]
    assert load(tmp_path, {"model": {"w": torch.ones(2)}}, name="step-00000007").state["model"]["w"].tolist() == [0, 0]


def test_only_the_last_few_stay(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in range(5):
        checkpointer.save({"model": {"w": torch.zeros(2)}}, step=step)
    assert checkpointer.storage.names() == ["step-00000003", "step-00000004"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [SPARE, "latest", "step-00000003", "step-00000004"]


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing; no checkpoint is there"):
        load(tmp_path / "missing", {"model": {"w": torch.zeros(2)}})
    save(tmp_path, {"model": {"w": torch.zeros(2)}}, step=7)
    with pytest.raises(CheckpointError, match="given step 8; allowed: step-00000007"):
        load(tmp_path, {"model": {"w": torch.zeros(2)}}, step=8)


@pytest.mark.parametrize("address", ["memory://checkpoints/a", "file"])
def test_stores_of_fsspec_hold_the_same(tmp_path: Path, address: str) -> None:
    path = f"file://{tmp_path}" if address == "file" else address

    def save_part(rank: int, ranks: Threads, background: Threads) -> None:
        checkpointer = Checkpointer(path, ranks=ranks, background=background, keep=1, largest_shard_B=8)
        for step in range(2):
            held = Part(torch.arange(3.0) + 3 * rank + step, (6,), (3 * rank,))
            checkpointer.save({"model": {"w": held, "b": torch.tensor(True)}}, step=step)

    in_world(2, save_part)
    loaded = load(path, {"model": {"w": torch.zeros(6), "b": torch.tensor(False)}})
    assert loaded.state["model"]["w"].tolist() == [1, 2, 3, 4, 5, 6] and loaded.state["model"]["b"]
    assert Checkpointer(path).storage.names() == ["step-00000001"]


def test_an_unknown_store_is_refused() -> None:
    with pytest.raises(InputError, match="nosuch://x"):
        Checkpointer("nosuch://x")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_single_elements_of_strided_tensors(tmp_path: Path, asynchronous: bool) -> None:
    """torch calls them contiguous, and yet does not see them as bytes."""
    state = {
        "a": torch.arange(4.0)[::2][1:],
        "b": torch.arange(12.0).view(3, 4)[1:2, ::3][:, :1],
        "c": torch.ones(1, 5).t()[:1],
    }
    Checkpointer(tmp_path).save({"model": state}, step=1, asynchronous=asynchronous).wait()
    target = {n: torch.zeros(8)[::4][:1].view(t.shape) for n, t in state.items()}
    load(tmp_path, {"model": target})
    assert [target[n].item() for n in state] == [2.0, 4.0, 1.0]
