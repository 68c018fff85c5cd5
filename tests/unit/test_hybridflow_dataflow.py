"""Dataflows, lengths and the workload."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from simcore.errors import InputError, ScenarioError
from simcore.hybridflow.dataflow import BUILT_IN, PRETRAIN_LOSS, call, own, with_pretraining, with_rollout
from simcore.hybridflow.lengths import Empirical, Lognormal, draw
from simcore.workloads import rlhf

COMMON = {"model": "llama2_7b", "prompts": 16, "prompt_len": 8, "response_len": 8}


def built(**fields: object) -> rlhf.Rlhf:
    params = rlhf.Params.model_validate({**COMMON, **fields})
    return rlhf.build(params, np.random.default_rng(0), Path())


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_dataflows_are_in_order(name: str) -> None:
    flow = BUILT_IN[name]()
    assert own(flow.name, flow.calls) == flow
    assert flow.generates("actor")
    assert flow.trains("actor")
    assert not flow.trains("reference")


def test_what_tells_algorithms_apart() -> None:
    ppo, remax, safe, grpo = (BUILT_IN[n]() for n in ("ppo", "remax", "safe_rlhf", "grpo"))
    assert ppo.trains("critic")
    assert "critic" not in remax.roles
    assert sum(c.kind == "generate" for c in remax.calls) == 2
    assert set(safe.roles) - set(ppo.roles) == {"cost"}
    assert grpo.roles == ("actor", "reference", "reward")


def test_own_calls_are_sorted() -> None:
    flow = own("own", [call("u", "train", "actor", "g"), call("g", "generate", "actor")])
    assert [c.name for c in flow.calls] == ["g", "u"]


def test_everything_wrong_with_own_calls_is_said_at_once() -> None:
    calls = [call("g", "generate", "actor", "x"), call("g", "forward", ""), call("c", "compute", "critic")]
    with pytest.raises(InputError) as error:
        own("own", calls)
    said = " ".join(p.field for p in error.value.problems)
    assert "calls[0].after" in said
    assert "calls[1].name" in said
    assert "calls[1].role" in said
    assert "calls[2].role" in said


def test_a_circle_is_named() -> None:
    calls = [call("g", "generate", "actor"), call("a", "train", "actor", "b"), call("b", "forward", "actor", "a")]
    with pytest.raises(InputError, match="a, b"):
        own("own", calls)


def test_a_rollout_takes_over_generation() -> None:
    flow = with_rollout(BUILT_IN["ppo"]())
    assert flow.generates("rollout")
    assert not flow.generates("actor")
    assert flow.trains("actor")


def test_pretraining_text_goes_through_updates() -> None:
    flow = with_pretraining(BUILT_IN["safe_rlhf"]())
    shares = {c.name: c.share for c in flow.calls}
    assert PRETRAIN_LOSS not in shares
    assert (shares["update_actor"], shares["update_critic"]) == (2.0, 1.0)
    assert own(flow.name, flow.calls) == flow
    assert with_pretraining(BUILT_IN["ppo"]()) == BUILT_IN["ppo"]()


def test_a_check_of_another_algorithm_is_left_out() -> None:
    both = ["reward", "cost"]
    assert built(algorithm="ppo", checked=both).checked == ("reward",)
    assert built(algorithm="safe_rlhf", checked=both).checked == ("reward", "cost")
    with pytest.raises(ScenarioError, match="rewrad"):
        built(algorithm="ppo", checked=["rewrad"])


def test_lengths() -> None:
    rng = np.random.default_rng(1)
    assert set(draw(7, 5, rng)) == {7}
    tail = draw(Lognormal(mean=500, sigma=1.0, longest=4000), 20_000, rng)
    assert tail.max() == 4000
    assert tail.mean() == pytest.approx(480, rel=0.05)  # what is longer than 4000 is cut
    assert set(draw(Empirical(lengths=[3, 9]), 100, rng)) == {3, 9}
    with pytest.raises(ValidationError, match="shortest"):
        Lognormal(mean=5, sigma=0, shortest=9, longest=8)


def test_lengths_follow_from_the_seed() -> None:
    response = {"distribution": "lognormal", "mean": 300, "sigma": 0.8, "longest": 2048}
    first, second = built(algorithm="ppo", response_len=response), built(algorithm="ppo", response_len=response)
    assert (first.response_len == second.response_len).all()
    assert first.response_len.std() > 0


def test_models_by_role_and_heads() -> None:
    work = built(algorithm="ppo", models={"critic": "llama2_13b"})
    assert work.models["critic"].layers == 40
    assert work.models["actor"].layers == 32
    assert work.trained("critic").vocab == 1
    assert work.trained("reference").vocab == 32000


def test_tokens_are_counted_as_the_paper_does() -> None:
    work = built(algorithm="ppo", prompts=1024, prompt_len=1024, response_len=1024)
    assert work.tokens_per_iteration == 2_097_152
    assert work.minibatch == 128
    assert built(algorithm="grpo", samples=4).sequences == 64


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "algorithm"),
        ({"algorithm": "ppo", "models": {"citric": "llama2_7b"}}, "models.citric"),
        ({"algorithm": "grpo", "offload": ["critic"]}, "offload.critic"),
        ({"algorithm": "ppo", "updates": 64}, "updates"),
        ({"algorithm": "ppo", "generation": {"engine": "vlm"}}, "generation.engine"),
    ],
)
def test_contradictions(fields: dict[str, object], field: str) -> None:
    with pytest.raises(ScenarioError) as error:
        built(**fields)
    assert field in [p.field for p in error.value.problems]
