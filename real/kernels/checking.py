"""Refuses operands that a kernel cannot take, with everything that is wrong with them."""

from collections.abc import Iterable, Mapping

import torch

from costmodels.errors import InputError, Problem

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, *HALVES)
MAX_ELEMENTS = 2**31 - 1
"""Elementwise kernels count elements in 32 bits: a division by a channel's size in 64 bits would cost more than the
memory traffic."""
MAX_REDUCTION = (2**31 - 1) // 127**2
"""Longest sum of products of int8 in [-127, 127] that int32 holds: 133,144."""


def refuse(kernel: str, problems: Iterable[Problem | None]) -> None:
    """Raise InputError with the problems that are not None, if there are any."""
    found = [p for p in problems if p is not None]
    if found:
        raise InputError(f"{kernel} cannot take these operands", found)


def dtype_problem(field: str, tensor: torch.Tensor, allowed: tuple[torch.dtype, ...]) -> Problem | None:
    if tensor.dtype in allowed:
        return None
    return Problem(field, str(tensor.dtype), " or ".join(str(d) for d in allowed))


def named_dtype_problem(field: str, given: torch.dtype, allowed: tuple[torch.dtype, ...]) -> Problem | None:
    return None if given in allowed else Problem(field, str(given), " or ".join(str(d) for d in allowed))


def equal_problem(field: str, given: object, wanted: object, advice: str = "") -> Problem | None:
    return None if given == wanted else Problem(field, str(given), str(wanted), advice)


def size_problem(tensor: torch.Tensor) -> Problem | None:
    if tensor.numel() <= MAX_ELEMENTS:
        return None
    return Problem("x", f"{tensor.numel():,} elements", f"at most {MAX_ELEMENTS:,}", "Pass parts of the tensor.")


def reduction_problem(length: int) -> Problem | None:
    if length <= MAX_REDUCTION:
        return None
    return Problem("k", f"{length:,}", f"at most {MAX_REDUCTION:,}", "int32 sums of int8 products could overflow.")


def scale_problem(field: str, scale: torch.Tensor | None, channels: int) -> Problem | None:
    """A scale is one float32 number, or one for each of `channels`."""
    if scale is None:
        return None
    if scale.dtype != torch.float32:
        return Problem(field, str(scale.dtype), str(torch.float32))
    if scale.numel() not in (1, channels) or scale.dim() > 1:
        return Problem(field, f"shape {tuple(scale.shape)}", f"one number or shape ({channels},)")
    return None


def scaling_problems(
    x_scale: torch.Tensor | None,
    w_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    n: int,
    out_dtype: torch.dtype,
) -> tuple[Problem | None, ...]:
    """Of int8 products: both scales or none; without them int32 and no bias."""
    scaled = x_scale is not None
    given, wanted = ("given" if w_scale is not None else "None"), ("given" if scaled else "None")
    return (
        equal_problem("w_scale", given, wanted, "Both or none."),
        named_dtype_problem("out_dtype", out_dtype, FLOATS if scaled else (torch.int32,)),
        None if bias is None else equal_problem("bias", tuple(bias.shape), (n,)),
        Problem("bias", "given", "None", "A bias needs scales.") if bias is not None and not scaled else None,
    )


def half_problems(
    operands: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
    n: int = 0,
) -> tuple[Problem | None, ...]:
    """Of half products: operands by name, and a bias for each of `n` channels."""
    return (
        *(dtype_problem(name, tensor, FLOATS) for name, tensor in operands.items()),
        named_dtype_problem("dtype", dtype, HALVES),
        named_dtype_problem("out_dtype", out_dtype, FLOATS),
        None if bias is None else equal_problem("bias", tuple(bias.shape), (n,)),
    )
