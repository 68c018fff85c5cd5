"""Generalised advantage estimation (Schulman et al., 2016, equation 16) as a scan from the end of each sequence.

With delta_t = r_t + gamma V_{t+1} - V_t, an advantage is A_t = delta_t + gamma lambda A_{t+1}: x -> b_t + a_t x with numbers of
its own at each step. Such maps compose, (a, b) after (c, d) is (a c, a d + b), so a scan does all steps of a block at once.
Steps without a mask (padding, tokens that are not the policy's) are passed over: what comes before them sees what comes after.
"""

import torch
import triton
import triton.language as tl

from real.kernels.checking import dtype_problem, equal_problem, refuse
from real.kernels.launching import Launch

STEPS = 1024
"""assumption: steps of a block; eight of each thread of four warps."""


@triton.jit
def _after(a, b, c, d):  # type: ignore[no-untyped-def]
    """The map of later steps (a, b), then that of an earlier step (c, d)."""
    return c * a, c * b + d


@triton.jit
def _gae(  # type: ignore[no-untyped-def]
    rewards_ptr, values_ptr, mask_ptr, advantages_ptr, returns_ptr, constants_ptr, steps, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sequence a program, blocks from the last to the first; the carried numbers are those of the steps behind a block."""
    at = tl.program_id(0).to(tl.int64) * steps
    gamma = tl.load(constants_ptr)
    decay = tl.load(constants_ptr + 1)
    place = tl.arange(0, BLOCK)
    next_value = 0.0
    next_advantage = 0.0
    for block in range(tl.cdiv(steps, BLOCK)):
        first = (tl.cdiv(steps, BLOCK) - 1 - block) * BLOCK
        here = first + place
        inside = here < steps
        counts = tl.load(mask_ptr + at + here, mask=inside, other=0) != 0
        value = tl.load(values_ptr + at + here, mask=inside, other=0.0)
        reward = tl.load(rewards_ptr + at + here, mask=inside, other=0.0)
        # the value of the first step from t + 1 on that counts
        behind = (place + 1 < BLOCK) & (here + 1 < steps)
        counts_behind = tl.load(mask_ptr + at + here + 1, mask=behind, other=0) != 0
        value_behind = tl.load(values_ptr + at + here + 1, mask=behind, other=0.0)
        a = tl.where(counts_behind, 0.0, 1.0)
        b = tl.where(counts_behind, value_behind, 0.0)
        a, b = tl.associative_scan((a, b), 0, _after, reverse=True)
        following = a * next_value + b
        a = tl.where(counts, decay, 1.0)
        b = tl.where(counts, reward + gamma * following - value, 0.0)
        a, b = tl.associative_scan((a, b), 0, _after, reverse=True)
        advantage = a * next_advantage + b
        tl.store(advantages_ptr + at + here, tl.where(counts, advantage, 0.0), mask=inside)
        tl.store(returns_ptr + at + here, tl.where(counts, advantage + value, 0.0), mask=inside)
        next_advantage = tl.sum(tl.where(place == 0, advantage, 0.0))
        next_value = tl.sum(tl.where(place == 0, tl.where(counts, value, following), 0.0))


def gae_launch(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    constants: torch.Tensor,
) -> Launch:
    """Contiguous (sequences, steps), float32 but for `mask` (int8); `constants` is (gamma, gamma lambda) in float32."""
    sequences, steps = rewards.shape
    return Launch(
        kernel=_gae,
        grid=(sequences,),
        arguments={
            "rewards_ptr": rewards,
            "values_ptr": values,
            "mask_ptr": mask,
            "advantages_ptr": advantages,
            "returns_ptr": returns,
            "constants_ptr": constants,
            "steps": steps,
        },
        constants={"BLOCK": min(STEPS, max(16, triton.next_power_of_2(steps)))},
        flops=6 * rewards.numel(),
    )


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float = 1.0, lam: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns (advantage + value), float32 (sequences, steps) each, 0 where `mask` is; without gradients.

    `rewards` and `values` are float32 (sequences, steps), `mask` bool. The value behind the last step that counts is 0. Raises
    InputError where shapes or dtypes do not fit.
    """
    _check(rewards, values, mask)
    with torch.no_grad():
        rewards, values, marks = rewards.contiguous(), values.contiguous(), mask.to(torch.int8).contiguous()
        advantages, returns = torch.empty_like(rewards), torch.empty_like(rewards)
        constants = torch.tensor([gamma, gamma * lam], dtype=torch.float32, device=rewards.device)
        if rewards.numel():
            gae_launch(rewards, values, marks, advantages, returns, constants).run()
    return advantages, returns


def reference_gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float = 1.0, lam: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in torch, step by step."""
    _check(rewards, values, mask)
    with torch.no_grad():
        advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
        following, advantage = rewards.new_zeros(len(rewards)), rewards.new_zeros(len(rewards))
        for t in reversed(range(rewards.shape[1])):
            counts, value = mask[:, t], values[:, t]
            delta = rewards[:, t] + gamma * following - value
            advantage = torch.where(counts, delta + gamma * lam * advantage, advantage)
            following = torch.where(counts, value, following)
            advantages[:, t] = advantage * counts
            returns[:, t] = (advantage + value) * counts
    return advantages, returns


def _check(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> None:
    shape = tuple(rewards.shape) if rewards.dim() == 2 else "(sequences, steps)"
    refuse(
        "gae",
        (
            dtype_problem("rewards", rewards, (torch.float32,)),
            dtype_problem("values", values, (torch.float32,)),
            dtype_problem("mask", mask, (torch.bool,)),
            *(equal_problem(name, tuple(x.shape), shape) for name, x in (("rewards", rewards), ("values", values), ("mask", mask))),
        ),
    )  # fmt: skip
