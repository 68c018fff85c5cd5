"""RLHF for real: losses by their definitions, protocols by the paper's table, and every placement beside one plain process."""

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from simcore.errors import CannotRun, InputError
from simcore.hybridflow.grouping import Degrees, grouping
from simcore.hybridflow.resharding import table_2

ray = pytest.importorskip("ray")
pytest.importorskip("transformers")

from real.rlhf import losses, task  # noqa: E402
from real.rlhf.advantages import advantages  # noqa: E402
from real.rlhf.algorithms import Dataflow  # noqa: E402
from real.rlhf.controller import finish, put  # noqa: E402
from real.rlhf.job import ALGORITHMS, Algorithm, Job  # noqa: E402
from real.rlhf.models import actor_model, logprobs  # noqa: E402
from real.rlhf.placement import Placement, PoolSpec, apart, of_plan, together  # noqa: E402
from real.rlhf.protocols import (  # noqa: E402
    dp_proto,
    one_to_all,
    three_d_all_micro_dp,
    three_d_pp_only,
    three_d_proto,
)
from real.rlhf.reference import Reference  # noqa: E402
from real.rlhf.run import HISTORY, iterate, place, processes, run, started  # noqa: E402
from real.rlhf.sampling import generate, gumbel  # noqa: E402

ITERATIONS = 3


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def job(algorithm: Algorithm = "ppo", **more: object) -> Job:
    return Job(algorithm=algorithm, answers=2 if algorithm == "grpo" else 1, **more)  # type: ignore[arg-type]


# --- losses


def drawn(n: int = 5, length: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities, old ones near them, and a mask of responses of different lengths."""
    logprob = -torch.rand(n, length) * 3
    mask = torch.arange(length) < torch.randint(1, length + 1, (n, 1))
    return logprob, logprob + 0.4 * torch.randn(n, length), mask


def test_policy_loss_token_by_token() -> None:
    new, old, mask = drawn()
    gain = torch.randn(new.shape)
    wanted = 0.0
    for i, t in mask.nonzero().tolist():
        ratio = math.exp(new[i, t] - old[i, t])
        a = gain[i, t].item()
        wanted -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
    found = losses.policy_loss(new, old, gain, mask, clip=0.2, tokens=mask.sum())
    assert found.item() == pytest.approx(wanted / mask.sum().item(), rel=1e-5)


def test_losses_of_parts_add_up_to_that_of_the_whole() -> None:
    new, old, mask = drawn(6)
    gain, tokens = torch.randn(new.shape), mask.sum()
    kinds = {
        "policy": lambda s: losses.policy_loss(new[s], old[s], gain[s], mask[s], clip=0.2, tokens=tokens),
        "value": lambda s: losses.value_loss(new[s], old[s], gain[s], mask[s], clip=0.2, tokens=tokens),
        "divergence": lambda s: losses.divergence_loss(new[s], old[s], mask[s], tokens=tokens),
    }
    for loss in kinds.values():
        assert (loss(slice(0, 2)) + loss(slice(2, 6))).item() == pytest.approx(loss(slice(0, 6)).item(), rel=1e-5)


def test_what_the_mask_leaves_out_does_not_matter() -> None:
    new, old, mask = drawn()
    gain = torch.randn(new.shape)
    spoilt = new.masked_fill(~mask, 50.0).requires_grad_()
    for loss in (losses.policy_loss, losses.value_loss):
        found = loss(spoilt, old, gain, mask, clip=0.2, tokens=mask.sum())
        assert found.item() == pytest.approx(loss(new, old, gain, mask, clip=0.2, tokens=mask.sum()).item())
        assert not torch.autograd.grad(found, spoilt)[0][~mask].any()


def test_clipped_ratios_and_values_have_no_gradient() -> None:
    new = torch.tensor([[0.0, 0.0]], requires_grad=True)
    old, mask = torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool)  # ratio e
    gain = torch.tensor([[1.0, -1.0]])
    of_policy = torch.autograd.grad(losses.policy_loss(new, old, gain, mask, clip=0.2, tokens=mask.sum()), new)[0]
    assert of_policy[0].tolist() == pytest.approx([0.0, math.e / 2])
    value = losses.value_loss(new, old, torch.tensor([[0.0, 5.0]]), mask, clip=0.2, tokens=mask.sum())
    assert value.item() == pytest.approx(0.5 * (0.8**2 + 5.8**2) / 2)


def test_divergence_is_zero_only_where_policies_agree() -> None:
    new, old, mask = drawn()
    assert losses.divergence_loss(new, new, mask, tokens=mask.sum()).item() == 0
    assert losses.divergence_loss(new, old, mask, tokens=mask.sum()).item() > 0


def test_token_rewards_put_the_score_on_the_last_token() -> None:
    new, old, mask = drawn()
    score = torch.randn(len(new))
    found = losses.token_rewards(score, new, old, mask, kl=0.1)
    for i in range(len(new)):
        length = int(mask[i].sum())
        wanted = -0.1 * (new[i] - old[i])
        wanted[length - 1] += score[i]
        assert torch.allclose(found[i, :length], wanted[:length])
        assert not found[i, length:].any()
    going = losses.rewards_to_go(found)
    assert torch.allclose(going[:, 0], found.sum(1), atol=1e-6)
    assert torch.allclose(going[:, :-1] - going[:, 1:], found[:, :-1], atol=1e-6)


def test_the_multiplier_grows_above_the_limit_and_never_below_zero() -> None:
    assert losses.next_multiplier(1.0, 0.5, limit=0.1, rate=0.5) == pytest.approx(1.2)
    assert losses.next_multiplier(0.1, 0.0, limit=1.0, rate=0.5) == 0.0
    score = losses.safe_score(torch.tensor([1.0]), torch.tensor([0.5]), 3.0)
    assert score.item() == pytest.approx((1.0 - 1.5) / 4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_advantages_of_each_algorithm(algorithm: Algorithm) -> None:
    new, old, mask = drawn(6)
    batch = {
        "logprob": new,
        "reference_logprob": old,
        "mask": mask,
        "reward": torch.rand(6),
        "values": torch.randn(6, 7),
    }
    batch |= {"cost": torch.rand(6), "baseline": torch.rand(6)}
    found = advantages(job(algorithm), batch, multiplier=0.5)
    assert not found["advantages"][~mask].any()
    if algorithm == "grpo":
        pairs = found["advantages"][:, 0].view(3, 2)
        assert torch.allclose(pairs.sum(1), torch.zeros(3), atol=1e-5)
        assert (pairs.abs() - 0.5**0.5).abs().max() < 1e-2  # of two, each is half the distance from the mean
    elif algorithm == "remax":
        least = advantages(job(algorithm, kl=0.0), batch)["advantages"]
        assert torch.allclose(least, (batch["reward"] - batch["baseline"])[:, None] * mask, atol=1e-6)
    else:
        assert torch.allclose(found["returns"], (found["advantages"] + batch["values"]) * mask, atol=1e-5)


# --- models and answers


def test_answers_with_a_cache_are_those_without_one() -> None:
    chosen = job(prompts=6)
    model = actor_model(chosen)
    prompts = task.prompts(0, 0, 6, chosen.prompt_len, 32)
    noise = gumbel(0, 0, torch.arange(6), chosen.response_len, 32)
    tokens, mask = generate(model, prompts, chosen.response_len, noise)
    other = Reference(chosen)
    with torch.no_grad():
        again, other_mask = other._answered(prompts, noise)
    assert torch.equal(tokens, again)
    assert torch.equal(mask, other_mask)
    greedy, _ = generate(model, prompts, chosen.response_len)
    assert not torch.equal(greedy, tokens)


def test_a_sequence_is_answered_the_same_in_any_batch() -> None:
    rows = torch.tensor([4, 1, 3])
    assert torch.equal(gumbel(7, 2, torch.arange(6), 5, 32)[rows], gumbel(7, 2, rows, 5, 32))
    assert not torch.equal(gumbel(7, 2, rows, 5, 32), gumbel(7, 3, rows, 5, 32))


def test_largest_logit_plus_noise_is_a_draw_from_their_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    chosen = (logits + gumbel(0, 0, torch.arange(4000), 1, 4)[:, 0]).argmax(-1)
    shares = torch.bincount(chosen, minlength=4) / 4000
    assert (shares - logits.softmax(0)).abs().max() < 0.03


def test_a_response_ends_with_its_end_token() -> None:
    model = actor_model(job())
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely, so many responses end early
    rows = torch.arange(200)
    tokens, mask = generate(model, torch.full((200, 2), 5), 6, gumbel(0, 0, rows, 6, 32))
    response = tokens[:, 2:]
    length = mask.sum(1)
    assert 0 < (length < 6).sum() < 200
    for i in range(200):
        assert mask[i, : length[i]].all()
        assert not response[i, length[i] :].any()
        assert not (response[i, : length[i] - 1] == task.END).any()
        assert length[i] == 6 or response[i, length[i] - 1] == task.END


def test_logprobs_are_those_of_the_models_logits() -> None:
    model = actor_model(job())
    tokens = torch.randint(32, (3, 9))
    logs = model(tokens).logits.log_softmax(-1)[:, 3:-1].gather(2, tokens[:, 4:, None])[..., 0]
    assert torch.allclose(logprobs(model, tokens, 4), logs, atol=1e-5)


def test_the_task_counts_even_tokens_and_those_that_four_divides() -> None:
    tokens = torch.tensor([[9, 7, 8, 6, 5, 0], [9, 6, 3, 6, 8, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    assert task.reward(tokens, mask, 2).tolist() == [0.5, 0.25]
    assert task.cost(tokens, mask, 2).tolist() == [0.25, 0.0]


# --- protocols


def test_protocols_of_the_papers_table() -> None:
    """p-t-d 2-2-2, generation 1-1: rank = 4 pp + 2 dp + tp."""
    groups = grouping(Degrees(pp=2, tp=2, dp=2))
    found = three_d_proto(groups)
    assert found.shard.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert found.collected() == [4, 6]  # last stage, tp 0, of each replica
    found = three_d_all_micro_dp(groups)
    assert sorted(found.shard.tolist()) == list(range(8))  # every rank generates by itself
    assert [found.shard[r] for r in found.collected()] == list(range(8))
    assert set(found.shard[[0, 1, 4, 5]].tolist()) == {0, 1, 2, 3}  # a training replica's are neighbours
    assert three_d_pp_only(groups).collected() == [0, 4]
    assert one_to_all(3).rows(6) == [(0, 6)] * 3
    assert one_to_all(3).collected() == [0, 1, 2]
    assert dp_proto(3).rows(6) == [(0, 2), (2, 4), (4, 6)]
    with pytest.raises(InputError, match="a multiple of 3"):
        dp_proto(3).rows(7)


def test_generation_shards_of_a_replica_are_its_training_shard() -> None:
    """So that what a rank trains on was generated in its own training replica."""
    for degrees in (Degrees(tp=4, dp=2, gen_tp=2), Degrees(pp=2, tp=2, dp=3, gen_tp=2), Degrees(tp=2, dp=2)):
        groups = grouping(degrees)
        training = three_d_proto(groups).rows(48)
        generating = three_d_all_micro_dp(groups).rows(48)
        for rank in range(degrees.n_ranks):
            assert training[rank][0] <= generating[rank][0]
            assert generating[rank][1] <= training[rank][1]


# --- mistakes


def test_everything_wrong_with_a_job_or_placement_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Job(algorithm="grpo", answers=1, minibatches=3, prompt_len=60)
    assert [p.field for p in caught.value.problems] == ["answers", "minibatches", "prompt_len"]
    spec = PoolSpec(degrees={"actor": Degrees(pp=2, tp=3), "reward": Degrees(dp=6), "cost": Degrees(dp=6)})
    with pytest.raises(InputError) as caught:
        Placement(pools=(spec, PoolSpec(degrees={"actor": Degrees(dp=5)}))).check(job())
    fields = [p.field for p in caught.value.problems]
    assert fields[:4] == ["pools: actor", "pools: critic", "pools: reference", "pools: cost"]
    assert {"actor.pp", "actor.tp", "actor.dp"} <= set(fields)


def test_a_plans_decisions_are_a_placement() -> None:
    """The planner's words: pools with models, how each is split, and how the actor generates."""
    split = {"parallelism": {"dp": 1, "tp": 2, "pp": 1}}
    alone = {"parallelism": {"dp": 1, "tp": 1, "pp": 1}}
    decisions = {
        "pools": [
            {"models": {"actor": split, "reward": split}, "generation": {"role": "actor", "tp": 1, "pp": 1}},
            {"models": {"reference": alone, "critic": alone}},
        ]
    }
    found = of_plan(decisions)
    found.check(job())
    first, second = (dict(pool.degrees) for pool in found.pools)
    assert first == {"actor": Degrees(tp=2, gen_tp=1), "reward": Degrees(dp=2)}
    assert second == {"reference": Degrees(), "critic": Degrees()}


# --- on processes


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of this file; more ranks than cores is fine for what they check."""
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


REST = ("critic", "reference", "reward", "cost")
POOLS: dict[str, list[tuple[tuple[str, ...], Degrees]]] = {
    "one pool, 1-2-1 to 1-1-2": [(("actor", *REST), Degrees(tp=2, gen_tp=1))],
    "one pool, 1-2-2 to 1-2-1-2": [(("actor", *REST), Degrees(tp=2, dp=2, gen_tp=2))],
    "two pools": [(("actor",), Degrees(tp=2, gen_tp=1)), (REST, Degrees(dp=2))],
    "four pools": [
        (("actor",), Degrees(tp=2, gen_tp=2)),
        (("critic",), Degrees(tp=2, gen_tp=2)),
        (("reference",), Degrees()),
        (("reward", "cost"), Degrees()),
    ],
}
"""Roles and degrees of one pool, two and four; training and generation split in different ways."""

TOLERANCE = 2e-5
"""Three iterations of two steps of 1e-3 each move parameters by 6e-3; sums in another order move them by this at most."""


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[Reference, list[dict[str, float]]]]:
    """What one plain process makes of each algorithm."""
    torch.set_num_threads(1)
    found = {}
    for algorithm in ALGORITHMS:
        reference = Reference(job(algorithm))
        found[algorithm] = reference, [reference.iteration() for _ in range(ITERATIONS)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", POOLS)
def test_every_placement_trains_what_one_process_does(
    name: str, cluster: None, alone: dict[str, tuple[Reference, list[dict[str, float]]]], tmp_path: Path
) -> None:
    """Half of the algorithms on the same processes, the other half in the next; pools without a role of an algorithm are idle."""
    half = list(POOLS).index(name) % 2
    with processes([degrees.n_ranks for _, degrees in POOLS[name]], tmp_path) as pools:
        for algorithm in ALGORITHMS[half::2]:
            chosen = job(algorithm)
            used = [pool for pool, (roles, _) in zip(pools, POOLS[name], strict=True) if set(roles) & set(chosen.roles)]
            flow = place(chosen, apart(chosen, *POOLS[name]), used)
            agrees(flow, iterate(flow, ITERATIONS, tmp_path), *alone[algorithm])
            reshards_what_the_formula_says(flow)


def agrees(flow: Dataflow, told: list[dict[str, float]], reference: Reference, history: list[dict[str, float]]) -> None:
    """The same answers in every iteration, and in the end the same parameters."""
    for mine, theirs in zip(told, history, strict=True):
        assert {name: mine[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)
    trained = [role for role in ("actor", "critic") if role in flow.models]
    ranks = {role: flow.models[role].ask("parameters") for role in trained}
    wanted, before = reference.parameters(), Reference(flow.job).parameters()
    assert {f"{role}.{name}" for role in trained for name in ranks[role][0]} == set(wanted)
    for role in trained:
        for found in ranks[role]:
            for name, value in found.items():
                assert (value - wanted[f"{role}.{name}"]).abs().max().item() < TOLERANCE, (flow.job.algorithm, name)
    assert max((wanted[key] - before[key]).abs().max().item() for key in wanted) > 100 * TOLERANCE


def reshards_what_the_formula_says(flow: Dataflow) -> None:
    """Bytes received by each rank in the last transition, and held after it."""
    degrees, model = flow.models["actor"].degrees, flow.job.model
    matrices_B = 4 * int(model["layers"]) * (4 * 32 * 32 + 3 * 32 * 64)
    volume, _, _ = table_2(degrees, "hybridflow")
    for received_B, held_B in flow.models["actor"].ask("resharded"):
        assert received_B == volume * matrices_B
        assert held_B * degrees.tp == matrices_B


@pytest.mark.slow
def test_data_goes_from_process_to_process(cluster: None, tmp_path: Path) -> None:
    """Each process fetches the rows of its own shard; the controller has references."""
    chosen = job()
    with started(chosen, apart(chosen, *POOLS["two pools"]), tmp_path) as flow:
        batch = flow._generated(flow._asked(), sample=True)
        assert all(isinstance(piece.ref, ray.ObjectRef) for pieces in batch.columns.values() for piece in pieces)
        flow.models["reward"].call("reward", dp_proto(2), batch, ("tokens", "mask"), ("reward",))
        finish(flow.pools)
        fetched = [ray.get([worker.fetched.remote() for worker in pool.workers]) for pool in flow.pools]
    row_B = (chosen.prompt_len + chosen.response_len) * 8 + chosen.response_len
    asked_B = (chosen.prompt_len + 1) * 8
    assert fetched == [[chosen.sequences // 2 * asked_B] * 2, [chosen.sequences // 2 * row_B] * 2]


@pytest.mark.slow
def test_a_process_that_dies_is_reported_with_its_log(cluster: None, tmp_path: Path) -> None:
    chosen = job()

    def end(worker: object) -> None:
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(3)

    def after(i: int, told: dict[str, float]) -> None:
        if i == 0:
            flow.models["actor"].pool.workers[1].__ray_call__.remote(end)

    placed = apart(chosen, *POOLS["one pool, 1-2-1 to 1-1-2"])
    with started(chosen, placed, tmp_path) as flow, pytest.raises(CannotRun) as caught:
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


RATES = {"learning_rate": 1e-2, "critic_learning_rate": 1e-2}


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
