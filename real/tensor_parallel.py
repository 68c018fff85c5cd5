"""Megatron's tensor parallelism (Shoeybi et al. 2019, figure 3): q, k, v, gate, up by columns, o and down by rows.

f copies in forward and sums gradients in backward, g sums in forward and copies in backward. Both are spans of the plan.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import LlamaForCausalLM

Sum = Callable[[str, torch.Tensor], None]
"""Called with `forward` or `backward` and a tensor to be summed in place over the group."""


class _F(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, total: Sum) -> torch.Tensor:
        ctx.total = total
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = grads[0].contiguous()
        ctx.total("backward", grad)
        return grad, None


class _G(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, total: Sum) -> torch.Tensor:
        x = x.contiguous()
        ctx.mark_dirty(x)
        total("forward", x)
        return x

    @staticmethod
    def backward(_: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


class Copied(nn.Module):
    """A norm whose output goes to every rank's columns."""

    def __init__(self, norm: nn.Module, total: Sum) -> None:
        super().__init__()
        self.norm, self.total = norm, total

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _F.apply(self.norm(x), self.total)  # type: ignore[no-untyped-call, no-any-return]


class Summed(nn.Module):
    """A projection by rows: every rank has a part of the sum."""

    def __init__(self, linear: nn.Linear, total: Sum) -> None:
        super().__init__()
        self.linear, self.total = linear, total

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _G.apply(self.linear(x), self.total)  # type: ignore[no-untyped-call, no-any-return]


def shard(model: LlamaForCausalLM, rank: int, size: int, total: Callable[[int, str], Sum]) -> None:
    """Keep this rank's part of every layer's matrices. `total(layer, half)` sums for the half `attn` or `mlp` of a layer."""
    for i, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        for module, name in (
            (attention, "q_proj"),
            (attention, "k_proj"),
            (attention, "v_proj"),
            (mlp, "gate_proj"),
            (mlp, "up_proj"),
        ):
            setattr(module, name, _part(getattr(module, name), 0, rank, size))
        attention.o_proj = Summed(_part(attention.o_proj, 1, rank, size), total(i, "attn"))
        mlp.down_proj = Summed(_part(mlp.down_proj, 1, rank, size), total(i, "mlp"))
        layer.input_layernorm = Copied(layer.input_layernorm, total(i, "attn"))
        layer.post_attention_layernorm = Copied(layer.post_attention_layernorm, total(i, "mlp"))


def _part(linear: nn.Linear, dim: int, rank: int, size: int) -> nn.Linear:
    weight = linear.weight.data.chunk(size, dim=dim)[rank].contiguous()
    out = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device=weight.device)
    out.weight.data = weight
    return out


def sum_over(group: dist.ProcessGroup, tensor: torch.Tensor) -> None:
    dist.all_reduce(tensor, group=group)
