"""Kernels compile for sm_80, sm_89 and sm_90 without a GPU, keep to registers and fit into shared memory.

In processes of their own: here Triton interprets (tests/conftest.py), and what is interpreted is not compiled.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "case",
    [
        "amax float32 channels last",
        "quantise float32 channel stochastic",
        "int8_gemm 4096x4096x4096 channel",
        "int8_conv2d 2x17x9x9 to 33",
        "half_conv2d_input_gradient 2x17x9x9 to 33, 3x3 / 1 float32",
        "half_conv2d_weight_gradient 2x17x9x9 to 33, 3x3 / 1 float32",
    ],
)
def test_kernels_of_every_kind_compile_without_spills(tmp_path: Path, case: str) -> None:
    done = run(tmp_path, "-m", "real.kernels.compile_ahead", case)
    rows = [line for line in done.stdout.splitlines() if case in line]
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows) == 3
    assert all("| 0 | 0 |" in row for row in rows)


def test_casts_round_to_nearest_and_products_use_tensor_cores(tmp_path: Path) -> None:
    script = """
from real.kernels.compile_ahead import cases, compiled
wanted = ("half_gemm 4096x4096x4096 float32 in bfloat16 forward", "half_gemm 4096x4096x4096 float32 in float16 forward")
for name, case in cases():
    if name in wanted:
        found = compiled(name, case((8, 0)), (8, 0))
        kind = "bf16" if "bfloat16" in name else "f16"
        print(found.problems == [], f"cvt.rn.{kind}" in found.ptx, f".f32.{kind}.{kind}.f32" in found.ptx, "mma.sync" in found.ptx)
"""
    done = run(tmp_path, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 8


def test_a_kernel_that_spills_is_found(tmp_path: Path) -> None:
    """Sixteen times the sums of a usual tile: more than 255 registers hold."""
    script = """
from dataclasses import replace
from real.kernels.compile_ahead import cases, compiled
case = next(case for name, case in cases() if name == "half_gemm 4096x4096x4096 float16 in float16 forward")
launch = case((8, 0))
tile = dict(launch.constants) | {"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 32}
print(*compiled("large", replace(launch, constants=tile, num_warps=4), (8, 0)).problems, sep="\\n")
"""
    done = run(tmp_path, "-c", script)
    assert done.returncode == 0, done.stderr
    assert "spills" in done.stdout


def test_interpreted_kernels_are_not_compiled() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "real.kernels.compile_ahead", "amax"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Unset TRITON_INTERPRET" in done.stderr


@pytest.mark.slow
def test_every_fourth_of_them_compiles_without_spills(tmp_path: Path) -> None:
    """`python -m real.kernels.compile_ahead` compiles all, which takes minutes. All kernels of RLHF, experts and checkpoints are
    compiled beside their own tests."""
    script = """
from real.kernels.compile_ahead import CAPABILITIES, compiled, operator_cases
for name, case in list(operator_cases())[::4]:
    for capability in CAPABILITIES:
        print(compiled(name, case(capability), capability).problems == [])
"""
    done = run(tmp_path, "-c", script)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 60
    assert set(done.stdout.split()) == {"True"}
