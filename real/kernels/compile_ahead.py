"""Compiles every kernel for sm_80, sm_89 and sm_90 without a GPU: `python -m real.kernels.compile_ahead` shows what it takes.

The launches are those that the launchers would make, of tensors without memory, in each of their tile configurations.
Shared memory is in Triton's metadata; its registers and spills are known to Triton only once a GPU has loaded the
kernel. So registers and stack are read from the compiled binary (`cuobjdump --dump-resource-usage`), and bytes of
spills from the assembler's own report on the same PTX (`ptxas -v`); both tools come with Triton. Says nothing about
speed.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from costmodels.errors import InputError, Problem
from real.kernels.amax import amax_launch
from real.kernels.checkpoint_cases import checkpoint_cases
from real.kernels.convolution import convolution_launch
from real.kernels.convolution_gradients import input_gradient_launch, weight_gradient_launch, weight_gradient_parts
from real.kernels.expert_cases import expert_cases
from real.kernels.gemm import gemm_launch, parts_of
from real.kernels.geometry import geometry_of
from real.kernels.launching import Launch
from real.kernels.layout import channels_of
from real.kernels.quantise import dequantise_launch, quantise_launch
from real.kernels.rlhf_cases import rlhf_cases
from real.kernels.tiles import SHARED_B

CAPABILITIES = ((8, 0), (8, 9), (9, 0))
MAX_REGISTERS = 255
"""Of one thread, on all of these (CUDA C++ Programming Guide)."""

Case = Callable[[tuple[int, int]], Launch]
POINTERS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "i8", torch.int32: "i32"}
POINTERS |= {torch.int64: "i64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A kernel on one architecture. `registers` are of a thread, `shared_B` of a block, spills and stack of a thread."""

    case: str
    capability: tuple[int, int]
    tile: str
    registers: int
    stack_B: int
    spilled_B: int
    shared_B: int
    ptx: str

    @property
    def problems(self) -> list[str]:
        """What keeps it from running, or from running without going through memory."""
        limit_B = SHARED_B[self.capability]
        found = {
            f"{self.registers} registers": self.registers > MAX_REGISTERS,
            f"spills {self.spilled_B} B": self.spilled_B > 0,
            f"stack of {self.stack_B} B": self.stack_B > 0,
            f"{self.shared_B} B of shared memory, {limit_B} there are": self.shared_B > limit_B,
        }
        return [text for text, wrong in found.items() if wrong]


def compiled(case: str, launch: Launch, capability: tuple[int, int]) -> Compiled:
    """Compile what `launch` would run on a device of this compute capability."""
    if knobs.runtime.interpret:
        advice = "Unset TRITON_INTERPRET: interpreted kernels are not compiled."
        raise InputError("kernels cannot be compiled", [Problem("TRITON_INTERPRET", "1", "unset", advice)])
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    built = triton.compile(source_of(launch), target=target, options=options)
    registers, stack_B = _resources(built.asm["cubin"])
    return Compiled(
        case=case,
        capability=capability,
        tile=_tile(launch),
        registers=registers,
        stack_B=stack_B,
        spilled_B=_spilled_B(built.asm["ptx"]),
        shared_B=built.metadata.shared,
        ptx=built.asm["ptx"],
    )


def source_of(launch: Launch) -> ASTSource:
    """The specialisation that Triton's own launch would choose: 1 is a constant, multiples of 16 and pointers (torch's
    are) are known as such."""
    kernel = launch.kernel
    signature: dict[str, str] = {}
    constants = dict(launch.constants)
    attributes: dict[tuple[int], list[list[object]]] = {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        value = launch.arguments.get(name)
        specialised = not parameter.do_not_specialize
        if name in constants:
            signature[name] = "constexpr"
        elif value is None or (isinstance(value, int) and value == 1 and specialised):
            signature[name] = "constexpr"
            constants[name] = value
        else:
            known = specialised and (isinstance(value, torch.Tensor) or value % 16 == 0)
            signature[name] = f"*{POINTERS[value.dtype]}" if isinstance(value, torch.Tensor) else _integer(value)
            if known:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def _integer(value: int) -> str:
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _tile(launch: Launch) -> str:
    sizes = [str(v) for k, v in launch.constants.items() if k.startswith("BLOCK") or k in ("CHANNELS", "MEMBERS")]
    return f"{'x'.join(sizes)}, {launch.num_warps} warps, {launch.num_stages} stages"


@cache
def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        shown = _shown([knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)])
    found = re.search(r"REG:(\d+) STACK:(\d+)", shown)
    assert found, shown
    return int(found[1]), int(found[2])


@cache
def _spilled_B(ptx: str) -> int:
    """Bytes of spill stores and loads of a thread."""
    architecture = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert architecture, ptx[:200]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={architecture[1]}", str(path)]
        shown = _shown([*command, "-o", str(Path(folder, "kernel.cubin"))])
    found = re.findall(r"(\d+) bytes spill (?:stores|loads)", shown)
    assert found, shown
    return sum(int(n) for n in found)


def _shown(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def cases() -> Iterator[tuple[str, Case]]:
    """Every kernel with the kinds of operands that it takes, at sizes that together choose every tile."""
    yield from operator_cases()
    yield from rlhf_cases()
    yield from expert_cases()
    yield from checkpoint_cases()


def operator_cases() -> Iterator[tuple[str, Case]]:
    """Those of a model's operators in less than single precision."""
    yield from _elementwise_cases()
    yield from _product_cases(4096, 4096, 4096, (torch.float16, torch.bfloat16))
    for m, n, k in ((512, 768, 3072), (64, 1000, 2048), (33, 17, 129)):
        yield from _product_cases(m, n, k, (torch.float16,))
    yield from _convolution_cases(128, 64, 56, 64, 3, 1, 1, (torch.float16, torch.bfloat16))
    for sizes in ((128, 256, 56, 512, 1, 2, 0), (128, 3, 224, 64, 7, 2, 3), (2, 17, 9, 33, 3, 1, 1)):
        yield from _convolution_cases(*sizes, (torch.float16,))


def _meta(*shape: int, dtype: torch.dtype, last: bool = False) -> torch.Tensor:
    kind = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=kind)


def _elementwise_cases() -> Iterator[tuple[str, Case]]:
    scales, scale = _meta(64, dtype=torch.float32), _meta(1, dtype=torch.float32)
    layouts = (("tensor", None, False), ("channel", 1, False), ("channels last", 1, True))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        for name, axis, last in layouts if dtype == torch.float32 else layouts[:1]:
            x = _meta(32, 64, 56, 56, dtype=dtype, last=last)
            q = torch.empty_like(x, dtype=torch.int8)
            bits = _meta(1 if axis is None else 64, dtype=torch.int32)
            per = scale if axis is None else scales
            at = channels_of(x, axis)
            yield f"amax {kind} {name}", lambda _, x=x, bits=bits, at=at: amax_launch(x, bits, at)
            for seed in (None, 7):
                rounding = "nearest" if seed is None else "stochastic"
                yield (
                    f"quantise {kind} {name} {rounding}",
                    lambda _, x=x, per=per, q=q, axis=axis, seed=seed: quantise_launch(x, per, q, axis=axis, seed=seed),
                )
            yield (
                f"dequantise {kind} {name}",
                lambda _, x=x, per=per, q=q, axis=axis: dequantise_launch(q, per, x, axis=axis),
            )


def _product_cases(m: int, n: int, k: int, dtypes: tuple[torch.dtype, ...]) -> Iterator[tuple[str, Case]]:
    size = f"{m}x{n}x{k}"
    x, w, turned = (_meta(1, *s, dtype=torch.int8) for s in ((m, k), (n, k), (k, n)))
    rows, columns, one = (_meta(s, dtype=torch.float32) for s in (m, n, 1))
    out, sums = (_meta(1, 1, m, n, dtype=dtype) for dtype in (torch.float32, torch.int32))
    int8 = torch.int8
    yield f"int8_gemm {size} tensor", lambda c: gemm_launch(x, w.mT, one, one, None, out, int8, c)
    yield f"int8_gemm {size} channel, bias", lambda c: gemm_launch(x, w.mT, rows, columns, columns, out, int8, c)
    yield f"int8_gemm {size} int32", lambda c: gemm_launch(x, w.mT, None, None, None, sums, int8, c)
    yield f"int8_gemm {size} w turned", lambda c: gemm_launch(x, turned, one, columns, None, out, int8, c)
    for dtype in dtypes:
        for source in (torch.float32, dtype):
            kind = f"{str(source).removeprefix('torch.')} in {str(dtype).removeprefix('torch.')}"
            a, b, g = (_meta(1, *s, dtype=source) for s in ((m, k), (n, k), (m, n)))
            products = {"forward": (a, b.mT, columns), "input": (g, b, None), "weight": (g.mT, a, None)}
            for name, (left, right, bias) in products.items():
                yield f"half_gemm {size} {kind} {name}", _half_case(left, right, bias, dtype)


def _half_case(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> Case:
    def launch(capability: tuple[int, int]) -> Launch:
        parts = parts_of(a, b, capability)
        out = _meta(parts, 1, a.shape[1], b.shape[2], dtype=torch.float32 if parts > 1 else dtype)
        return gemm_launch(a, b, None, None, bias if parts == 1 else None, out, dtype, capability)

    return launch


def _convolution_cases(
    batch: int,
    channels: int,
    size: int,
    out_channels: int,
    taps: int,
    stride: int,
    padding: int,
    dtypes: tuple[torch.dtype, ...],
) -> Iterator[tuple[str, Case]]:
    shapes = (batch, channels, size, size), (out_channels, channels, taps, taps)
    at = geometry_of("cases", *shapes, stride, padding, 1, 1)
    name = f"{batch}x{channels}x{size}x{size} to {out_channels}, {taps}x{taps} / {stride}"
    per = _meta(out_channels, dtype=torch.float32)
    one = _meta(1, dtype=torch.float32)
    x8, w8 = (_meta(*s, dtype=torch.int8, last=True) for s in shapes)
    out = _meta(*at.out_shape, dtype=torch.float32, last=True)
    yield f"int8_conv2d {name}", lambda c: convolution_launch(x8, w8, one, per, per, out, at, torch.int8, c)
    for dtype in dtypes:
        for source in (torch.float32, dtype):
            kind = f"{str(source).removeprefix('torch.')} in {str(dtype).removeprefix('torch.')}"
            x, w, g = (_meta(*s, dtype=source, last=True) for s in (*shapes, at.out_shape))
            yield (
                f"half_conv2d {name} {kind}",
                lambda c, x=x, w=w, g=g, d=dtype: convolution_launch(x, w, None, None, per, g, at, d, c),
            )
            yield (
                f"half_conv2d_input_gradient {name} {kind}",
                lambda c, x=x, w=w, g=g, d=dtype: input_gradient_launch(g, w, x, at, d, c),
            )

            def weight(c: tuple[int, int], x=x, g=g, d=dtype) -> Launch:  # type: ignore[no-untyped-def]
                parts = weight_gradient_parts(at, x.element_size(), c)
                dw = _meta(parts, at.out_channels, at.reduction, dtype=torch.float32 if parts > 1 else d)
                return weight_gradient_launch(g, x, dw, at, d, c)

            yield f"half_conv2d_weight_gradient {name} {kind}", weight


def main(words: list[str]) -> int:
    """Compile the cases whose names contain all of `words`; 1 if any spills, uses stack or asks for more than there is."""
    wrong = 0
    print("| kernel | sm | tile | registers | spilled B | stack B | shared KiB |\n|---|---|---|---|---|---|---|")  # noqa: T201
    for name, case in cases():
        for capability in CAPABILITIES if all(word in name for word in words) else ():
            found = compiled(name, case(capability), capability)
            wrong += bool(found.problems)
            numbers = f"{found.registers} | {found.spilled_B} | {found.stack_B} | {found.shared_B / 1024:g}"
            note = f" <- {'; '.join(found.problems)}" if found.problems else ""
            print(f"| {name} | {capability[0]}{capability[1]} | {found.tile} | {numbers} |{note}", flush=True)  # noqa: T201
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
