"""RLHF for real, in one process: losses by their definitions, answers, protocols by the paper's table, mistakes."""

import math

import pytest
import torch

from simcore.errors import InputError
from simcore.hybridflow.grouping import Degrees, grouping

ray = pytest.importorskip("ray")
pytest.importorskip("transformers")

from real.rlhf import losses  # noqa: E402
from real.rlhf.advantages import advantages  # noqa: E402
from real.rlhf.job import ALGORITHMS, Algorithm, Job  # noqa: E402
from real.rlhf.models import actor_model, logprobs  # noqa: E402
from real.rlhf.placement import Placement, PoolSpec, of_plan  # noqa: E402
from real.rlhf.protocols import (  # noqa: E402
    dp_proto,
    one_to_all,
    three_d_all_micro_dp,
    three_d_pp_only,
    three_d_proto,
)
from real.rlhf.reference import Reference  # noqa: E402
from real.rlhf.sampling import generate, gumbel  # noqa: E402
from real.rlhf.task import task_of  # noqa: E402


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
    prompts = task_of(chosen).prompts(0)
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
    end, model = job().end, actor_model(job())
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
        assert not (response[i, : length[i] - 1] == end).any()
        assert length[i] == 6 or response[i, length[i] - 1] == end


def test_logprobs_are_those_of_the_models_logits() -> None:
    model = actor_model(job())
    tokens = torch.randint(32, (3, 9))
    logs = model(tokens).logits.log_softmax(-1)[:, 3:-1].gather(2, tokens[:, 4:, None])[..., 0]
    assert torch.allclose(logprobs(model, tokens, 4), logs, atol=1e-5)


def test_the_task_counts_even_tokens_and_those_that_four_divides() -> None:
    tokens = torch.tensor([[9, 7, 8, 6, 5, 0], [9, 6, 3, 6, 8, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    task = task_of(job(prompt_len=2, response_len=4))
    assert task.reward(tokens, mask).tolist() == [0.5, 0.25]
    assert task.cost(tokens, mask).tolist() == [0.25, 0.0]


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
    spec = PoolSpec(degrees={"actor": Degrees(pp=3, tp=3, gen_pp=3), "reward": Degrees(dp=9), "cost": Degrees(dp=9)})
    with pytest.raises(InputError) as caught:
        Placement(pools=(spec, PoolSpec(degrees={"actor": Degrees(dp=5)}))).check(job())
    fields = [p.field for p in caught.value.problems]
    assert fields[:4] == ["pools: actor", "pools: critic", "pools: reference", "pools: cost"]
    assert {"actor.pp", "actor.gen_pp", "actor.tp", "actor.dp"} <= set(fields)


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
