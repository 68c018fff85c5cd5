"""Advantage of an answer among the answers to the same prompt (GRPO; Shao et al., DeepSeekMath, 2024, section 4.1.2)."""

from math import ceil

import torch
import triton
import triton.language as tl

from costmodels.errors import Problem
from real.kernels.checking import dtype_problem, refuse
from real.kernels.launching import Launch

EPSILON = 1e-6
"""Added to the deviation: answers that are all as good as each other have advantage 0."""

LARGEST_GROUP = 4096
"""assumption: rewards of a prompt in the registers of one program, 32 of each thread of 4 warps."""


@triton.jit
def _grouped(  # type: ignore[no-untyped-def]
    rewards_ptr, out_ptr, constants_ptr, prompts, size, SCALED: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    member = tl.arange(0, MEMBERS)
    inside = (group < prompts)[:, None] & (member < size)[None, :]
    at = group.to(tl.int64)[:, None] * size + member[None, :]
    reward = tl.load(rewards_ptr + at, mask=inside, other=0.0)
    mean = tl.sum(reward, axis=1) / size
    centred = tl.where(inside, reward - mean[:, None], 0.0)
    if SCALED:
        deviation = tl.sqrt(tl.sum(centred * centred, axis=1) / tl.maximum(size - 1, 1))
        centred = centred / (deviation + tl.load(constants_ptr))[:, None]
    tl.store(out_ptr + at, centred, mask=inside)


def grouped_advantage_launch(
    rewards: torch.Tensor, out: torch.Tensor, constants: torch.Tensor, *, scaled: bool
) -> Launch:
    """`rewards` and `out` contiguous float32 (prompts, size); `constants` holds epsilon."""
    prompts, size = rewards.shape
    members = triton.next_power_of_2(size)
    groups = max(1, 1024 // members)
    return Launch(
        kernel=_grouped,
        grid=(ceil(prompts / groups),),
        arguments={
            "rewards_ptr": rewards,
            "out_ptr": out,
            "constants_ptr": constants,
            "prompts": prompts,
            "size": size,
        },
        constants={"SCALED": scaled, "GROUPS": groups, "MEMBERS": members},
        flops=(6 if scaled else 2) * rewards.numel(),
    )


def grouped_advantage(rewards: torch.Tensor, *, scaled: bool = True, epsilon: float = EPSILON) -> torch.Tensor:
    """(r - mean) / (deviation + epsilon) within each row of `rewards` (prompts, answers), float32, without gradients.

    The deviation is the unbiased one; of one answer it is 0. Not `scaled`: r - mean (Liu et al., Dr. GRPO, 2025). Raises
    InputError on another dtype or shape, or more than 4,096 answers to a prompt.
    """
    _check(rewards)
    with torch.no_grad():
        rewards = rewards.contiguous()
        out = torch.empty_like(rewards)
        if rewards.numel():
            constants = torch.tensor([epsilon], dtype=torch.float32, device=rewards.device)
            grouped_advantage_launch(rewards, out, constants, scaled=scaled).run()
    return out


def reference_grouped_advantage(
    rewards: torch.Tensor, *, scaled: bool = True, epsilon: float = EPSILON
) -> torch.Tensor:
    """The same in torch."""
    _check(rewards)
    with torch.no_grad():
        centred = rewards - rewards.mean(1, keepdim=True)
        if not scaled:
            return centred
        deviation = (centred.square().sum(1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
        return centred / (deviation + epsilon)


def _check(rewards: torch.Tensor) -> None:
    fits = rewards.dim() == 2 and rewards.shape[1] <= LARGEST_GROUP
    shape = Problem("rewards", str(tuple(rewards.shape)), f"(prompts, answers), at most {LARGEST_GROUP} answers")
    refuse("grouped_advantage", (dtype_problem("rewards", rewards, (torch.float32,)), None if fits else shape))
