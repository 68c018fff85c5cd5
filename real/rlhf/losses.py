"""Losses, token rewards and advantages of PPO, GRPO, ReMax and Safe-RLHF as pure functions.

Per-token arrays are (sequences, response), `mask` is true for tokens of the response up to its end. A loss is a sum over the
tokens given divided by `tokens`, the tokens of the whole minibatch, wherever they are: the losses of parts add up to that of the
whole, and so do their gradients.
"""

import torch
from torch import Tensor


def policy_loss(
    logprob: Tensor, old_logprob: Tensor, advantages: Tensor, mask: Tensor, *, clip: float, tokens: Tensor
) -> Tensor:
    """PPO's clipped surrogate (Schulman et al., 2017, equation 7), negated."""
    ratio = torch.where(mask, logprob - old_logprob, 0.0).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -_sum(surrogate, mask) / tokens


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float, tokens: Tensor
) -> Tensor:
    """Half the squared error, of the worse of the new value and the new value kept within `clip` of the old."""
    kept = old_values + (values - old_values).clamp(-clip, clip)
    error = torch.maximum((values - returns).square(), (kept - returns).square())
    return 0.5 * _sum(error, mask) / tokens


def divergence_loss(logprob: Tensor, reference_logprob: Tensor, mask: Tensor, *, tokens: Tensor) -> Tensor:
    """An estimate of KL(policy, reference) that is never negative: r - log r - 1 with r = reference / policy (DeepSeekMath, 4)."""
    log_ratio = torch.where(mask, reference_logprob - logprob, 0.0)
    return _sum(log_ratio.exp() - log_ratio - 1, mask) / tokens


def language_loss(logprob: Tensor, *, tokens: Tensor) -> Tensor:
    """Cross-entropy of given text."""
    return -logprob.sum() / tokens


def token_rewards(score: Tensor, logprob: Tensor, reference_logprob: Tensor, mask: Tensor, *, kl: float) -> Tensor:
    """-kl (log policy - log reference) at each token, plus the sequence's `score` (n,) at its last one (Ouyang et al., 2022)."""
    length = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = mask & (length == mask.sum(1, keepdim=True))
    return (-kl * (logprob - reference_logprob) + score[:, None] * last) * mask


def rewards_to_go(rewards: Tensor) -> Tensor:
    """Sum of a token's reward and of all that follow."""
    return rewards.flip(1).cumsum(1).flip(1)


def remax_advantages(
    score: Tensor, baseline: Tensor, logprob: Tensor, reference_logprob: Tensor, mask: Tensor, *, kl: float
) -> Tensor:
    """Rewards to go of the sampled answer less the greedy answer's score (Li et al., ReMax, 2024, algorithm 1)."""
    going = rewards_to_go(token_rewards(score - baseline, logprob, reference_logprob, mask, kl=kl))
    return going * mask


def safe_score(reward: Tensor, cost: Tensor, multiplier: float) -> Tensor:
    """(reward - multiplier cost) / (1 + multiplier), the Lagrangian of Safe-RLHF (Dai et al., 2024, equation 10)."""
    return (reward - multiplier * cost) / (1 + multiplier)


def next_multiplier(multiplier: float, mean_cost: float, *, limit: float, rate: float) -> float:
    """Projected ascent: more weight on cost while its mean is above the limit, never below 0."""
    return max(0.0, multiplier + rate * (mean_cost - limit))


def _sum(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0.0).sum()
