"""The kernels of a mixture of experts for `compile_ahead`, at sizes that together choose every tile."""

from collections.abc import Callable, Iterator

import torch

from real.kernels.grouped_gemm import grouped_launch, grouped_weight_launch
from real.kernels.launching import Launch
from real.kernels.token_permutation import combine_backward_launch, combine_launch, gather_launch
from real.kernels.topk_gating import topk_gating_backward_launch, topk_gating_launch

Case = Callable[[tuple[int, int]], Launch]
SIZES = ((8192, 2, 64, 1024, 512), (64, 2, 8, 64, 128), (33, 3, 5, 17, 10))
"""Samples, visits of each, experts, width and hidden width."""


def expert_cases() -> Iterator[tuple[str, Case]]:
    """Names and launches."""
    for samples, k, experts, width, hidden in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{samples}x{k} over {experts}, {width} to {hidden} {str(dtype).removeprefix('torch.')}"
            for kind, launch in _launches(samples, k, experts, width, hidden, dtype).items():
                yield f"{kind} {name}", lambda _, launch=launch: launch


def _launches(samples: int, k: int, experts: int, width: int, hidden: int, dtype: torch.dtype) -> dict[str, Launch]:
    visits = samples * k
    scores, weight = _meta(samples, experts, dtype=dtype), _meta(samples, k)
    chosen, place = _meta(samples, k, dtype=torch.int32), _meta(samples, k, dtype=torch.int32)
    x, rows = _meta(samples, width, dtype=dtype), _meta(visits, width, dtype=dtype)
    order, offset = _meta(visits, dtype=torch.int32), _meta(experts + 1, dtype=torch.int32)
    w, out = _meta(experts, width, hidden, dtype=dtype), _meta(visits, hidden, dtype=dtype)
    return {
        "topk_gating": topk_gating_launch(scores, weight, chosen),
        "topk_gating_backward": topk_gating_backward_launch(weight, chosen, weight, scores),
        "permute": gather_launch(x, order, rows),
        "combine": combine_launch(rows, place, weight, x),
        "combine_backward": combine_backward_launch(rows, place, weight, x, rows, weight),
        "grouped_gemm": grouped_launch(rows, w, offset, out),
        "grouped_gemm input gradient": grouped_launch(out, w.mT, offset, rows),
        "grouped_gemm weight gradient": grouped_weight_launch(rows, out, offset, w),
    }


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
