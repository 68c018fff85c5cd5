"""An RLHF plan as a configuration of verl with its Megatron-LM workers.

The keys are those of `ppo_megatron_trainer` in verl 0.6. verl has one pool for all models, and since 0.6 one more for the reward
model. Where a plan has other pools, comments hold the arguments of its `ResourcePoolManager`, which a driver of one's own passes.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from simcore.errors import PlanError, Problem
from simcore.hybridflow.describe import describe
from simcore.plan import Plan

VERSION = "0.6"
ESTIMATORS = {"ppo": "gae", "remax": "remax", "grpo": "grpo"}
ROLES = {"actor": "ActorRollout", "critic": "Critic", "reference": "RefPolicy", "reward": "RewardModel"}
ENGINES = ("vllm", "sglang")
RECOMPUTE: Mapping[str, dict[str, Any]] = {
    "none": {"recompute_granularity": None},
    "selective": {"recompute_granularity": "selective"},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def verl_config(plan: Plan) -> str:
    """The configuration as YAML. Raises `PlanError` for a plan of no RLHF or one with roles or parts that verl does not have."""
    describe(plan)
    problems = list(_problems(plan))
    if problems:
        raise PlanError(f"verl {VERSION} cannot run this plan", problems)
    models = {role: (pool, model) for pool in plan.decisions["pools"] for role, model in pool["models"].items()}
    return _heading(plan) + yaml.safe_dump(_config(plan, models), sort_keys=False)


def _problems(plan: Plan) -> Iterator[Problem]:
    for pool in plan.decisions["pools"]:
        for role in pool["models"]:
            if role not in ROLES:
                yield Problem("plan", role, ", ".join(ROLES), "verl has no worker for this role.")
    if plan.workload["algorithm"] not in ESTIMATORS:
        yield Problem("workload.algorithm", plan.workload["algorithm"], ", ".join(ESTIMATORS))
    generation = _generation(plan)
    if generation["engine"] not in ENGINES:
        yield Problem("workload.generation.engine", generation["engine"], ", ".join(ENGINES))


def _generation(plan: Plan) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(p["generation"] for p in plan.decisions["pools"] if "generation" in p)
    return found


def _config(plan: Plan, models: Mapping[str, Any]) -> dict[str, Any]:
    work, generation = plan.workload, _generation(plan)
    settings = work["generation"]
    actor = models["actor"][1]
    minibatch = -(-work["sequences"] // work["updates"])
    found: dict[str, Any] = {
        "data": {"train_batch_size": work["prompts"], "max_response_length": work["longest_response"]},
        "algorithm": {"adv_estimator": ESTIMATORS[work["algorithm"]]},
    }
    found["actor_rollout_ref"] = {
        "actor": {
            "strategy": "megatron",
            "ppo_mini_batch_size": max(minibatch // work["samples"], 1),
            "ppo_micro_batch_size_per_gpu": actor["microbatch"],
            "ppo_epochs": work["epochs"],
            "megatron": _megatron(actor),
        },
        "rollout": {
            "name": generation["engine"],
            "tensor_model_parallel_size": generation["tp"],
            "pipeline_model_parallel_size": generation["pp"],
            "gpu_memory_utilization": settings["memory_share"],
            "max_num_seqs": settings["max_num_seqs"],
            "n": work["samples"],
        },
    }
    if "reference" in models:
        model = models["reference"][1]
        found["actor_rollout_ref"]["ref"] = {
            "log_prob_micro_batch_size_per_gpu": model["forward_microbatch"],
            "megatron": _megatron(model),
        }
    if "critic" in models:
        model = models["critic"][1]
        found["critic"] = {
            "strategy": "megatron",
            "ppo_micro_batch_size_per_gpu": model["microbatch"],
            "megatron": _megatron(model),
        }
    if "reward" in models:
        found["reward_model"] = _reward(plan, *models["reward"])
    found["trainer"] = _machines(plan, [p for p in plan.decisions["pools"] if not _is_of_reward(p)])
    return found


def _megatron(model: Mapping[str, Any]) -> dict[str, Any]:
    degrees = model["parallelism"]
    found: dict[str, Any] = {
        "tensor_model_parallel_size": degrees["tp"],
        "pipeline_model_parallel_size": degrees["pp"],
        "sequence_parallel": degrees["tp"] > 1,
        "param_offload": model["offloaded"],
    }
    if "recompute" in model:
        found |= {
            "grad_offload": model["offloaded"],
            "optimizer_offload": model["offloaded"],
            "use_distributed_optimizer": model["zero"] >= 1,
            "override_transformer_config": dict(RECOMPUTE[model["recompute"]]),
        }
    return found


def _reward(plan: Plan, pool: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "enable": True,
        "strategy": "megatron",
        "micro_batch_size_per_gpu": model["forward_microbatch"],
        "megatron": _megatron(model),
    }
    if _is_of_reward(pool):
        found |= {"enable_resource_pool": True, **_machines(plan, [pool])}
    return found


def _is_of_reward(pool: Mapping[str, Any]) -> bool:
    return list(pool["models"]) == ["reward"]


def _machines(plan: Plan, pools: list[Mapping[str, Any]]) -> dict[str, int]:
    per_node = plan.decisions["ranks_per_node"]
    ranks = sum(p["working"] for p in pools)
    return {"nnodes": max(ranks // per_node, 1), "n_gpus_per_node": min(ranks, per_node)}


def _heading(plan: Plan) -> str:
    """Where it comes from, and pools that the configuration cannot say."""
    lines = [
        f"# Configuration of verl {VERSION} (ppo_megatron_trainer), written by windtunnel from plan {plan.digest[:16]}."
    ]
    pools = plan.decisions["pools"]
    if len([p for p in pools if not _is_of_reward(p)]) > 1:
        per_node = plan.decisions["ranks_per_node"]
        spec = {p["name"]: [min(p["working"], per_node)] * max(p["working"] // per_node, 1) for p in pools}
        mapping = {ROLES[role]: p["name"] for p in pools for role in p["models"]}
        lines += [
            "# This plan has several pools, which this file cannot say: pass them to ResourcePoolManager in your driver.",
            f"#   resource_pool_spec = {json.dumps(spec)}",
            f"#   mapping (by Role) = {json.dumps(mapping)}",
        ]
    return "\n".join(lines) + "\n"
