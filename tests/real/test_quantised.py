"""Rounding, exact integer products, and gradients of operators in low precision."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from costmodels.precision import Flow
from costmodels.precision_error import MANTISSA
from real.kernels import paths
from real.precision.functions import Numerics, _multiplied, compute
from real.precision.products import EXACT, SIXTEEN, Product, by_blocks, by_integers, with_bias
from real.precision.rounding import EXPONENT, STORED, by_kernels, rounded, scaled

FLOATS = ("float16", "bfloat16", "tf32", "fp8")
DEVIATIONS = 5.0  # of a normal variable: false alarm once in 1.7 million draws, and the seed is fixed


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), exponent=st.integers(-30, 30), channel=st.sampled_from([None, 0, 1]))
def test_int8_is_within_half_a_step_to_the_nearest_and_within_one_stochastically(seed, exponent, channel) -> None:
    x = torch.randn(7, 33, generator=generator(seed)) * 2.0**exponent
    for rounding, bound in (("nearest", 0.5), ("stochastic", 1.0)):
        low = scaled(x, "int8", rounding, generator(seed), channel)
        assert ((low.widened() - x).abs() <= bound * low.scale * (1 + 1e-5)).all()
        assert low.values.abs().max() == 127
        assert low.scale.numel() == (1 if channel is None else x.shape[channel])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), precision=st.sampled_from(FLOATS))
def test_a_float_is_within_its_step(seed, precision) -> None:
    # up to some 200: fp8 without a scale ends at 448
    x = torch.randn(200, generator=generator(seed)) * 2.0 ** torch.randint(-8, 6, (200,), generator=generator(seed))
    lowest = EXPONENT.get(precision, -126)
    exponent = (torch.frexp(x).exponent - 1).clamp(min=lowest)
    step = 2.0 ** (exponent - MANTISSA[precision]).float()
    assert ((rounded(x, precision, "nearest", None).float() - x).abs() <= step / 2).all()
    assert ((rounded(x, precision, "stochastic", generator(seed)).float() - x).abs() < step).all()


@pytest.mark.parametrize("precision", ["int8", *FLOATS])
def test_stochastic_rounding_keeps_the_mean(precision) -> None:
    """Mean error against its own standard error."""
    x = torch.tensor([0.3017, -0.8123, 1.0]).repeat(200_000, 1)  # 1 fixes the scale
    if precision in ("int8", "fp8"):
        low = scaled(x, precision, "stochastic", generator(1)).widened()
    else:
        low = rounded(x, precision, "stochastic", generator(1)).float()
    error = (low - x).double()[:, :2]
    standard = error.std(0) / len(x) ** 0.5
    assert (standard > 0).all()
    assert (error.mean(0).abs() < DEVIATIONS * standard + 1e-7).all()


def test_nearest_ties_in_tf32_go_to_the_even_neighbour() -> None:
    x = torch.tensor([1 + 2.0**-11, 1 + 3 * 2.0**-11])
    assert rounded(x, "tf32", "nearest", None).tolist() == [1.0, 1 + 2 * 2.0**-10]


@pytest.mark.parametrize("depth", [1, EXACT, EXACT + 1, 3 * EXACT + 5])
def test_int8_products_add_up_exactly(depth) -> None:
    """The largest sums that int8 can make, where float32 alone would round."""
    v = torch.full((3, depth), 127, dtype=torch.int8)
    w = torch.randint(-127, 128, (5, depth), generator=generator(), dtype=torch.int8)
    w[0] = 127
    expected = (v.long() @ w.long().mT).int()
    assert torch.equal(by_blocks(Product(kind="linear"), v, w), expected)
    assert torch.equal(by_blocks(Product(kind="linear", transposed=True), v, w.mT), expected)
    assert torch.equal(by_blocks(Product(kind="matmul"), v.expand(2, -1, -1), w.mT), expected.expand(2, -1, -1))


@pytest.mark.parametrize(("channels", "groups", "stride"), [(6, 2, 1), (260, 1, 2)])
def test_int8_convolutions_add_up_exactly(channels, groups, stride) -> None:
    v = torch.randint(-127, 128, (2, channels, 7, 6), generator=generator(), dtype=torch.int8)
    w = torch.randint(-127, 128, (4, channels // groups, 3, 3), generator=generator(), dtype=torch.int8)
    product = Product(kind="conv2d", groups=groups, stride=(stride, stride), padding=(1, 1))
    expected = functional.conv2d(v.double(), w.double(), None, stride, 1, 1, groups)
    assert torch.equal(by_blocks(product, v, w).double(), expected)


@pytest.fixture(params=["torch", "triton"])
def path(request, monkeypatch) -> str:
    """The kernels that a GPU runs: on an older one torch's own, else Triton's (interpreted, unless there is a GPU)."""
    monkeypatch.setattr(paths, "path_of", lambda _device: request.param)
    return request.param


def test_integer_kernels_give_the_same_sums(path) -> None:
    for product, v_size, w_size, _ in CASES.values():
        v = torch.randint(-127, 128, v_size, generator=generator(), dtype=torch.int8)
        w = torch.randint(-127, 128, w_size, generator=generator(1), dtype=torch.int8)
        assert torch.equal(by_integers(product, v, w), by_blocks(product, v, w))


@pytest.mark.parametrize("case", ["linear", "transposed", "conv2d", "matmul"])
def test_scales_and_bias_in_the_epilogue_are_those_of_the_cpu(path, case) -> None:
    product, v_size, w_size, n_bias = CASES[case]
    channel = product.channel if n_bias else None
    v = by_kernels(torch.randn(v_size, generator=generator()), "nearest", None)
    w = by_kernels(torch.randn(w_size, generator=generator(1)), "nearest", None, channel)
    bias = torch.randn(n_bias, generator=generator(2)) if n_bias else None
    for output in (torch.float32, torch.bfloat16):
        z = by_integers(product, v.values, w.values, (v.scale, w.scale), bias, output)
        torch.testing.assert_close(z, _multiplied(product, v, w, bias, output))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**20), channel=st.sampled_from([None, 0, 1]), dtype=st.sampled_from(SIXTEEN))
def test_kernels_round_as_the_cpu_does(path, seed, channel, dtype) -> None:
    x = torch.randn(7, 33, generator=generator(seed)).to(dtype)
    kernels, cpu = by_kernels(x, "nearest", None, channel), scaled(x, "int8", "nearest", None, channel)
    assert torch.equal(kernels.values, cpu.values) and torch.equal(kernels.scale, cpu.scale)
    drawn = by_kernels(x, "stochastic", generator(seed), channel)
    assert ((drawn.widened() - x.float()).abs() <= drawn.scale * (1 + 1e-5)).all()
    assert torch.equal(drawn.values, by_kernels(x, "stochastic", generator(seed), channel).values)
    assert not torch.equal(drawn.values, by_kernels(x, "stochastic", generator(seed + 1), channel).values)


@pytest.mark.parametrize("case", ["linear", "transposed"])
def test_a_bias_is_added_before_a_product_is_rounded(path, case) -> None:
    product, v_size, w_size, n_bias = CASES[case]
    v, w = torch.randn(v_size, generator=generator()).half(), torch.randn(w_size, generator=generator(1)).half()
    bias = 1000 * torch.randn(n_bias, generator=generator(2))
    expected = product.forward(v.double(), w.double()) + bias
    torch.testing.assert_close(with_bias(product, v, w, bias, torch.float16), expected.half(), rtol=2**-10, atol=1e-3)


CASES = {
    "linear": (Product(kind="linear"), (6, 5, 24), (10, 24), 10),
    "transposed": (Product(kind="linear", transposed=True), (6, 24), (24, 10), 10),
    "conv2d": (Product(kind="conv2d", padding=(1, 1), stride=(2, 1)), (3, 8, 9, 7), (6, 8, 3, 3), 6),
    "matmul": (Product(kind="matmul"), (2, 3, 7, 16), (1, 3, 16, 5), 0),
}
FLOWS = {
    "int8": (Flow("int8", "bfloat16", "float32"), 0.03),
    "fp8": (Flow("fp8", "bfloat16", "bfloat16"), 0.06),
    "float16": (Flow("float16", "float16", "float16"), 2e-3),
    "bfloat16": (Flow("bfloat16", "bfloat16", "bfloat16"), 1.2e-2),
    "tf32": (Flow("tf32", "tf32", "float32"), 2e-3),
    "float32": (Flow("float32", "float32", "float32"), 1e-6),
}


def run(product, flow, numerics, tensors, g):
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    z = compute(product, flow, numerics, *leaves)
    z.backward(g.to(z.dtype))
    return z, [t.grad for t in leaves if t is not None]


@pytest.mark.parametrize(("case", "precision", "scaling"), list(itertools.product(CASES, FLOWS, ("tensor", "channel"))))
def test_results_and_gradients_are_as_near_to_float32_as_the_precision_allows(case, precision, scaling) -> None:
    product, v_size, w_size, n_bias = CASES[case]
    flow, bound = FLOWS[precision]
    draw = generator(3)
    bias = torch.randn(n_bias, generator=draw) if n_bias else None
    given = torch.randn(v_size, generator=draw), torch.randn(w_size, generator=draw), bias
    reference = [t.clone().requires_grad_() if t is not None else None for t in given]
    z = product.forward(*reference[:2])
    z = z if bias is None else z + product.at_output(reference[2])
    g = torch.randn(z.shape, generator=draw)
    z.backward(g)
    expected = [z, *(t.grad for t in reference if t is not None)]
    numbers = [Numerics(scaling=scaling), Numerics(scaling=scaling, emulate=True)]
    (real, real_g), (emulated, emulated_g) = (run(product, flow, n, given, g) for n in numbers)
    assert real.dtype == emulated.dtype == STORED[flow.output]
    for found, like, wanted in zip([real, *real_g], [emulated, *emulated_g], expected, strict=True):
        assert (found.float() - wanted).norm() <= bound * wanted.norm()
        assert (found.float() - like.float()).norm() <= min(bound, 5e-3) * wanted.norm()
    assert all(t.dtype == torch.float32 for t in real_g)
    if precision == "int8":
        assert (real - expected[0]).norm() > 1e-4 * expected[0].norm(), "nothing was rounded"


def test_what_int8_keeps_for_backward_has_8_bits() -> None:
    v, w = torch.randn(4, 8), torch.randn(6, 8, requires_grad=True)
    z = compute(Product(kind="linear"), FLOWS["int8"][0], Numerics(), v, w)
    assert [t.dtype for t in z.grad_fn.saved_tensors if t is not None and t.numel() > 1] == [torch.int8, torch.int8]
