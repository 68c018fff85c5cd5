"""RLHF on processes: every algorithm on every placement beside one plain process, data that goes past the controller, failures."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from simcore.errors import CannotRun
from simcore.hybridflow.grouping import Degrees, grouping
from simcore.hybridflow.resharding import table_2

ray = pytest.importorskip("ray")
pytest.importorskip("transformers")

from real.rlhf.algorithms import Dataflow  # noqa: E402
from real.rlhf.controller import finish, put  # noqa: E402
from real.rlhf.job import ALGORITHMS, TINY, Algorithm, Job  # noqa: E402
from real.rlhf.placement import Placement, Portions, apart, together  # noqa: E402
from real.rlhf.protocols import dp_proto  # noqa: E402
from real.rlhf.reference import Reference  # noqa: E402
from real.rlhf.run import HISTORY, iterate, place, processes, run, started  # noqa: E402

ITERATIONS = 3
SIZES = (4, 2, 1, 1)
"""Ranks of the pools that all placements of this file take theirs from; more ranks than cores is fine for what they check."""

REST = ("critic", "reference", "reward", "cost")
Pools = dict[int, tuple[tuple[str, ...], Degrees]]
PLACEMENTS: dict[str, Pools] = {
    "one pool of 4, 1-2-2 to 1-1-2-2": {0: (("actor", *REST), Degrees(tp=2, dp=2, gen_tp=1))},
    "one pool of 2, 1-1-2 as it is": {1: (("actor", *REST), Degrees(dp=2))},
    "one pool of 2, 2-1-1 to 1-1-2-1": {1: (("actor", *REST), Degrees(pp=2))},
    "one pool of 4, 2-2-1 to 1-2-2-1": {0: (("actor", *REST), Degrees(pp=2, tp=2, gen_tp=2))},
    "two pools, 2-1-2 to 1-1-2-2 and 2-1-1": {
        0: (("actor", "critic"), Degrees(pp=2, dp=2)),
        1: (("reference", "reward", "cost"), Degrees(pp=2)),
    },
    "two pools, 1-4-1 to 1-2-2-1 and 1-1-2": {
        0: (("actor",), Degrees(tp=4, gen_tp=2)),
        1: (REST, Degrees(dp=2)),
    },
    "four pools, 1-1-4, 1-2-1, 1-1-1 and 1-1-1": {
        0: (("actor",), Degrees(dp=4)),
        1: (("critic",), Degrees(tp=2, gen_tp=2)),
        2: (("reference",), Degrees()),
        3: (("reward", "cost"), Degrees()),
    },
}
"""Roles and degrees by number of a pool: p-t-d, and p_g-t_g-d_g-d where generation differs. GRPO and ReMax have no critic, and
leave its pool idle."""

SINGLY = {role: Portions(microbatch=1, forward_microbatch=3) for role in ("actor", "reference")}
"""More portions than stages, and some that are not alike."""

TOLERANCE = 2e-5
"""Three iterations of two steps of 1e-3 each move parameters by 6e-3; sums in another order move them by this at most."""

RATES = {"learning_rate": 1e-2, "critic_learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of this file."""
    ray.init(num_cpus=sum(SIZES), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def job(algorithm: Algorithm = "ppo", **more: object) -> Job:
    return Job(algorithm=algorithm, answers=2 if algorithm == "grpo" else 1, **more)  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_algorithm_trains_on_every_placement_what_one_process_does(
    cluster: None, subtests: pytest.Subtests, tmp_path: Path
) -> None:
    """One start of processes for all of them: that is what takes time."""
    with processes(SIZES, tmp_path) as pools:
        for algorithm in ALGORITHMS:
            chosen = job(algorithm)
            reference = Reference(chosen)
            history = [reference.iteration() for _ in range(ITERATIONS)]
            for name, placed in PLACEMENTS.items():
                with subtests.test(algorithm=algorithm, placement=name):
                    used = {at: of for at, of in placed.items() if set(of[0]) & set(chosen.roles)}
                    flow = place(chosen, apart(chosen, *used.values()), [pools[at] for at in used])
                    agrees(flow, iterate(flow, ITERATIONS, tmp_path), reference, history)
                    reshards_what_the_formula_says(flow)
        with subtests.test(placement="one pool of 4, 4-1-1 to 1-1-4-1"):
            deep = job("grpo", model={**TINY, "layers": 4})
            reference = Reference(deep)
            history = [reference.iteration() for _ in range(ITERATIONS)]
            in_portions = Placement(
                pools=tuple(replace(p, portions=SINGLY) for p in together(deep, Degrees(pp=4)).pools)
            )
            flow = place(deep, in_portions, pools[:1])
            agrees(flow, iterate(flow, ITERATIONS, tmp_path), reference, history)
            reshards_what_the_formula_says(flow)


def agrees(flow: Dataflow, told: list[dict[str, float]], reference: Reference, history: list[dict[str, float]]) -> None:
    """The same answers in every iteration, and in the end the same parameters."""
    for mine, theirs in zip(told, history, strict=True):
        assert {name: mine[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)
    trained = [role for role in ("actor", "critic") if role in flow.models]
    ranks = {role: flow.models[role].ask("parameters") for role in trained}
    wanted, before = reference.parameters(), Reference(flow.job).parameters()
    assert {f"{role}.{name}" for role in trained for found in ranks[role] for name in found} == set(wanted)
    for role in trained:
        for found in ranks[role]:
            for name, value in found.items():
                assert (value - wanted[f"{role}.{name}"]).abs().max().item() < TOLERANCE, (role, name)
    assert max((wanted[key] - before[key]).abs().max().item() for key in wanted) > 100 * TOLERANCE


def reshards_what_the_formula_says(flow: Dataflow) -> None:
    """Bytes of matrices received by each rank in the last transition, and held after it; of all else what other stages have."""
    degrees, model = flow.models["actor"].degrees, flow.job.model
    layers, each = int(model["layers"]), int(model["layers"]) // degrees.pp
    matrices_B = 4 * layers * (4 * 32 * 32 + 3 * 32 * 64)
    volume, _, _ = table_2(degrees, "hybridflow")
    for rank, (received_B, whole_B, held_B) in enumerate(flow.models["actor"].ask("resharded")):
        stage = grouping(degrees).pp[rank]
        assert received_B == volume * matrices_B
        assert held_B * degrees.pp * degrees.tp == matrices_B
        embedding, head = (stage > 0) * 32 * 32, (stage < degrees.pp - 1) * (32 + 32 * 32)
        assert whole_B == 4 * ((layers - each) * 2 * 32 + embedding + head)


@pytest.mark.slow
def test_data_goes_from_process_to_process(cluster: None, tmp_path: Path) -> None:
    """Each process fetches the rows of its own shard; the controller has references."""
    chosen = job()
    with started(chosen, apart(chosen, (("actor",), Degrees()), (REST, Degrees(dp=2))), tmp_path) as flow:
        batch = flow._generated(flow._asked(), sample=True)
        assert all(isinstance(piece.ref, ray.ObjectRef) for pieces in batch.columns.values() for piece in pieces)
        flow.models["reward"].call("reward", dp_proto(2), batch, ("tokens", "mask"), ("reward",))
        finish(flow.pools)
        fetched = [ray.get([worker.fetched.remote() for worker in pool.workers]) for pool in flow.pools]
    row_B = (chosen.prompt_len + chosen.response_len) * 8 + chosen.response_len
    asked_B = (chosen.prompt_len + 1) * 8
    assert fetched == [[chosen.sequences * asked_B], [chosen.sequences // 2 * row_B] * 2]


@pytest.mark.slow
def test_a_process_that_dies_is_reported_with_its_log(cluster: None, tmp_path: Path) -> None:
    chosen = job()

    def end(worker: object) -> None:
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(3)

    def after(i: int, told: dict[str, float]) -> None:
        if i == 0:
            flow.models["actor"].pool.workers[1].__ray_call__.remote(end)

    with started(chosen, together(chosen, Degrees(tp=2)), tmp_path) as flow, pytest.raises(CannotRun) as caught:
        iterate(flow, 3, tmp_path, each=after)
    (problem,) = caught.value.problems
    assert problem.field == "pool0, rank 1"
    assert problem.given == "ended"
    assert "out of luck" in problem.advice
    assert (tmp_path / HISTORY).read_text().count("reward") == 1  # what was done is kept


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "safe_rlhf"])
def test_reward_rises(algorithm: Algorithm) -> None:
    """In one process, which every placement agrees with; for Safe-RLHF the cost falls below its limit too."""
    answers = 4 if algorithm == "grpo" else 1
    chosen = Job(algorithm=algorithm, prompts=64 // answers, answers=answers, kl=0.0, **RATES)
    reference = Reference(chosen)
    history = [reference.iteration() for _ in range(40)]
    means = {name: [told[name] for told in history] for name in history[0]}
    assert np.mean(means["reward"][-5:]) > np.mean(means["reward"][:5]) + 0.15
    if algorithm == "safe_rlhf":
        assert np.mean(means["cost"][-5:]) < chosen.cost_limit


@pytest.mark.slow
def test_a_job_runs_on_processes_of_its_own(cluster: None, tmp_path: Path) -> None:
    chosen, seen = job("grpo"), []
    history = run(
        chosen, together(chosen, Degrees(tp=2, gen_tp=1)), 2, tmp_path, each=lambda i, told: seen.append((i, told))
    )
    assert json.loads((tmp_path / HISTORY).read_text()) == history == [told for _, told in seen]
    assert [i for i, _ in seen] == [0, 1]


def test_rows_of_a_batch_in_pieces(cluster: None) -> None:
    batch = put({"x": torch.arange(10)})
    part = batch.rows(3, 9).rows(1, 4)
    assert part.count == 3
    (piece,) = part.columns["x"]
    assert (piece.first, piece.end) == (4, 7)
