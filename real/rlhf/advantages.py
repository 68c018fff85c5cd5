"""From scores and log-probabilities of a batch to what its updates need: numbers only, no model."""

from collections.abc import Mapping

from torch import Tensor

from real.kernels.paths import path_of
from real.rlhf.job import Job
from real.rlhf.losses import remax_advantages, safe_score, token_rewards


def advantages(job: Job, batch: Mapping[str, Tensor], multiplier: float = 0.0) -> dict[str, Tensor]:
    """`advantages` (n, response), and `returns` where there is a critic.

    Needs `mask`, `logprob`, `reference_logprob` and `reward`; `values` (PPO, Safe-RLHF), `cost` (Safe-RLHF), `baseline` (ReMax).
    Answers to one prompt are neighbours (GRPO).
    """
    mask, logprob, reference = batch["mask"], batch["logprob"], batch["reference_logprob"]
    if job.algorithm == "grpo":
        grouped = _grouped(batch["reward"].view(-1, job.answers)).view(-1, 1)
        return {"advantages": grouped * mask}
    if job.algorithm == "remax":
        return {"advantages": remax_advantages(batch["reward"], batch["baseline"], logprob, reference, mask, kl=job.kl)}
    score = batch["reward"]
    if job.algorithm == "safe_rlhf":
        score = safe_score(score, batch["cost"], multiplier)
    rewards = token_rewards(score, logprob, reference, mask, kl=job.kl)
    found, returns = _gae(rewards, batch["values"], mask, gamma=job.gamma, lam=job.lam)
    return {"advantages": found, "returns": returns}


def _gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    from real.kernels import gae

    run = gae.gae if path_of(rewards.device) == "triton" else gae.reference_gae
    return run(rewards, values, mask, gamma=gamma, lam=lam)


def _grouped(rewards: Tensor) -> Tensor:
    from real.kernels import grouped_advantage

    triton = path_of(rewards.device) == "triton"
    run = grouped_advantage.grouped_advantage if triton else grouped_advantage.reference_grouped_advantage
    return run(rewards)
