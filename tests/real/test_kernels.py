"""Each Triton kernel beside its reference, at odd shapes and strides.

Runs in Triton's interpreter, which tests/conftest.py asks for; with TRITON_INTERPRET=0 on a GPU, compiled. The
interpreter cuts float32 to bfloat16 where hardware rounds, so operands of bfloat16 products are made of numbers that
need no rounding; `test_kernels_compile.py` sees that the compiled kernels round to nearest.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from costmodels.errors import InputError
from costmodels.kernels import flops, kernel, nbytes

knobs = pytest.importorskip("triton").knobs

from real.kernels.amax import amax, amax_launch, reference_amax, scale_of  # noqa: E402
from real.kernels.convolution import (  # noqa: E402
    convolution_launch,
    half_conv2d,
    int8_conv2d,
    reference_half_conv2d,
    reference_int8_conv2d,
)
from real.kernels.convolution_gradients import (  # noqa: E402
    half_conv2d_input_gradient,
    half_conv2d_weight_gradient,
    input_gradient_launch,
    reference_half_conv2d_input_gradient,
    reference_half_conv2d_weight_gradient,
    weight_gradient_launch,
)
from real.kernels.gemm import gemm_launch  # noqa: E402
from real.kernels.geometry import geometry_of  # noqa: E402
from real.kernels.half_gemm import (  # noqa: E402
    half_gemm,
    linear_input_gradient,
    linear_weight_gradient,
    reference_half_gemm,
    reference_linear_input_gradient,
    reference_linear_weight_gradient,
)
from real.kernels.int8_gemm import int8_gemm, reference_int8_gemm  # noqa: E402
from real.kernels.layout import channels_of  # noqa: E402
from real.kernels.paths import kernels_of, path_of, path_of_capability  # noqa: E402
from real.kernels.quantise import (  # noqa: E402
    dequantise,
    quantise,
    quantise_launch,
    reference_dequantise,
    reference_quantise,
)
from real.kernels.tiles import tile  # noqa: E402

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("compiled kernels need a CUDA device; TRITON_INTERPRET=1 needs none", allow_module_level=True)

A100 = (8, 0)
HALVES = (torch.float16, torch.bfloat16)
SHAPES = [(1, 1, 1), (1, 129, 17), (17, 33, 129), (129, 1, 33), (33, 127, 300)]
CONVOLUTIONS = [
    # batch, channels, height, width, filters, taps, stride, padding, dilation, groups
    (1, 1, 1, 1, 1, (1, 1), 1, 0, 1, 1),
    (2, 3, 17, 9, 33, (7, 7), 2, 3, 1, 1),
    (2, 17, 7, 9, 5, (3, 3), 1, 1, 1, 1),
    (2, 33, 9, 9, 17, (1, 1), 2, 0, 1, 1),
    (3, 12, 9, 8, 6, (3, 1), (2, 1), (1, 0), (2, 1), 3),
    (2, 32, 5, 6, 48, (3, 3), 2, 1, 1, 1),
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random numbers that bfloat16 holds exactly."""
    return torch.randn(shape, device=DEVICE).bfloat16().to(dtype)


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, device=DEVICE)


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    """`x` in other orders of memory, and parts of it with gaps."""
    views = [x, x.transpose(0, -1), x[..., ::2], x[1:]]
    return views if x.dim() != 4 else [*views, x.to(memory_format=torch.channels_last), x[:, :1]]


def close(found: torch.Tensor, wanted: torch.Tensor, length: int) -> None:
    """Sums of `length` products, of float32 in another order: each partial sum rounds by half a unit in the last place."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    width = {torch.float32: 2.0**-24, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[found.dtype]
    magnitude = wanted.abs().float().max().item() if wanted.numel() else 0.0
    bound = (2.0**-24 * length * 8 + 2 * width) * (magnitude + math.sqrt(length))
    assert (found.float() - wanted.float()).abs().max() <= bound


# --- amax and scale


@pytest.mark.parametrize("shape", [(), (1,), (17,), (129, 33), (2, 65, 3, 70)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_amax_is_the_largest_magnitude(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for x in layouts(normal(*shape, dtype=dtype)) if len(shape) > 1 else [normal(*shape, dtype=dtype)]:
        for axis in (None, *range(x.dim())):
            found = amax(x, axis=axis)
            assert found.dtype == torch.float32
            assert torch.equal(found, reference_amax(x, axis=axis))


def test_amax_of_nothing_infinity_and_nan() -> None:
    x = torch.tensor([[0.0, -0.0], [1.0, -math.inf], [math.inf, math.nan], [-1e-42, 0.0]], device=DEVICE)
    for found in (amax(x, axis=0), reference_amax(x, axis=0)):
        assert found[0] == 0
        assert found[1] == math.inf
        assert found[2].isnan()
        assert found[3] == x[3].abs().max()
    assert amax(x).isnan()
    assert reference_amax(x).isnan()
    empty = torch.empty(3, 0, device=DEVICE)
    assert amax(empty) == reference_amax(empty) == 0
    assert amax(empty, axis=0).tolist() == reference_amax(empty, axis=0).tolist() == [0, 0, 0]


def test_a_scale_is_never_zero_and_keeps_what_is_not_finite() -> None:
    scale = scale_of(torch.tensor([0.0, 1e-42, 127.0, math.inf, math.nan]))
    assert scale[:2].tolist() == [torch.finfo(torch.float32).tiny] * 2
    assert scale[2:4].tolist() == [1.0, math.inf]
    assert scale[4].isnan()


# --- quantise and dequantise


@pytest.mark.parametrize("shape", [(1,), (17, 33), (2, 65, 3, 70)])
def test_quantised_to_nearest_like_torch_in_every_layout(shape: tuple[int, ...]) -> None:
    for x in layouts(torch.randn(shape, device=DEVICE)) if len(shape) > 1 else [torch.randn(shape, device=DEVICE)]:
        for axis in (None, *range(-1, x.dim())):
            scale = scale_of(amax(x, axis=axis))
            q = quantise(x, scale, axis=axis)
            assert torch.equal(q, reference_quantise(x, scale, axis=axis))
            back = dequantise(q, scale, axis=axis)
            assert torch.equal(back, reference_dequantise(q, scale, axis=axis))
            for dtype in HALVES[: 1 if DEVICE == "cpu" else 2]:
                half = dequantise(q, scale, axis=axis, dtype=dtype)
                assert torch.equal(half, reference_dequantise(q, scale, axis=axis, dtype=dtype))


def test_ties_go_to_even_ends_saturate_and_nan_becomes_zero() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, -1e9, math.inf, -math.inf, math.nan], device=DEVICE)
    wanted = [0, 2, 2, 0, -2, 126, 127, -127, 127, -127, 0]
    one = torch.ones((), device=DEVICE)
    assert quantise(x, one).tolist() == reference_quantise(x, one).tolist() == wanted
    assert quantise(x, one * math.nan).tolist() == reference_quantise(x, one * math.nan).tolist() == [0] * len(wanted)
    assert quantise(x[:0], one).shape == (0,)


def test_error_of_quantised_numbers_is_within_half_a_step_or_a_whole_one() -> None:
    x = torch.randn(33, 129, device=DEVICE) * torch.logspace(-6, 6, 33, device=DEVICE)[:, None]
    for axis in (None, 0):
        scale = scale_of(amax(x, axis=axis))
        step = scale if axis is None else scale[:, None]
        for seed, share in ((None, 0.5), (3, 1.0)):
            error = (dequantise(quantise(x, scale, axis=axis, seed=seed), scale, axis=axis) - x).abs()
            assert (
                error <= step * share * (1 + 2.0**-15)
            ).all()  # quotient and product round: 127 steps of 2^-24, twice


@pytest.mark.parametrize("quantised", [quantise, reference_quantise])
def test_stochastic_rounding_is_unbiased(quantised: Callable[..., torch.Tensor]) -> None:
    """The number of roundings up is binomial.

    |z| < 5 for each of 40 fractions: a false alarm in 40 * 5.7e-7 = 2.3e-5 of the seeds.
    """
    n, fractions = 4096, 40
    value = torch.linspace(-126.9, 126.9, fractions, device=DEVICE)
    below = value.floor()
    share = (value - below).double()
    q = quantised(value[:, None].expand(-1, n).contiguous(), torch.ones((), device=DEVICE), seed=20240711)
    up = (q.float() - below[:, None]).double()
    assert ((up == 0) | (up == 1)).all()
    z = (up.sum(1) - n * share) / (n * share * (1 - share)).sqrt().clamp(min=1e-9)
    assert z.abs().max() < 5
    # all of them together are a sum of independent variables as well: |z| < 5, 5.7e-7
    variance = (n * share * (1 - share)).sum()
    assert ((up.sum() - n * share.sum()) / variance.sqrt()).abs() < 5


def test_whole_numbers_and_ends_are_not_moved_by_stochastic_rounding() -> None:
    x = torch.arange(-128, 129, device=DEVICE).float().repeat(20)
    one = torch.ones((), device=DEVICE)
    assert torch.equal(quantise(x, one, seed=1), x.clamp(-127, 127).to(torch.int8))


def test_random_numbers_are_philox_of_seed_and_place() -> None:
    """Written out once more in numpy (Salmon et al., SC'11): so no two elements share a draw, and a seed can be repeated."""
    x = torch.randn(17, 129, device=DEVICE) * 50
    one = torch.ones((), device=DEVICE)
    for seed in (0, 1, 16, 2**40 + 7):
        steps = x.cpu().numpy().clip(-127, 127).ravel()
        below = np.floor(steps)
        wanted = below + (philox_uniform(seed, x.numel()) < steps - below)
        assert np.array_equal(quantise(x, one, seed=seed).cpu().numpy().ravel(), wanted.astype(np.int8))


def philox_uniform(seed: int, n: int) -> np.ndarray:
    """First output of Philox 4x32-10 with counter (i, 0, 0, 0), as float32 in [0, 1) the way Triton maps it."""
    mask = np.uint64(0xFFFFFFFF)
    c = [np.arange(n, dtype=np.uint64), *(np.zeros(n, dtype=np.uint64) for _ in range(3))]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        high_a, high_b = a >> np.uint64(32), b >> np.uint64(32)
        c = [high_b ^ c[1] ^ np.uint64(key[0]), b & mask, high_a ^ c[3] ^ np.uint64(key[1]), a & mask]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    bits = c[0].astype(np.uint32).view(np.int32)
    return np.where(bits < 0, -bits - 1, bits).astype(np.float32) * np.float32(4.6566127342e-10)


# --- int8 products


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_sums_are_exact(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    wide = integers(m, 2 * k)
    for x, w in (
        (integers(m, k), integers(n, k)),
        (wide[:, ::2], integers(k, n).t()),
        (integers(k, m).t(), integers(n, k)),
    ):
        wanted = (x.cpu().long() @ w.cpu().long().t()).int()
        assert torch.equal(int8_gemm(x, w, out_dtype=torch.int32).cpu(), wanted)
        assert torch.equal(reference_int8_gemm(x, w, out_dtype=torch.int32).cpu(), wanted)


def test_int8_sums_of_the_largest_numbers_are_exact() -> None:
    x = torch.full((1, 70000), -127, dtype=torch.int8, device=DEVICE)
    assert int8_gemm(x, x, out_dtype=torch.int32).item() == 70000 * 127**2  # beyond what float32 counts exactly


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_int8_epilogue(per_row: bool, per_column: bool, with_bias: bool) -> None:
    m, n, k = 33, 17, 129
    x, w = integers(m, k), integers(n, k)
    x_scale = torch.rand(m if per_row else 1, device=DEVICE) / 100  # float16 holds the results
    w_scale = torch.rand(n if per_column else 1, device=DEVICE)
    bias = torch.randn(n, device=DEVICE) if with_bias else None
    exact = (x.cpu().double() * x_scale.cpu().double()[:, None]) @ (
        w.cpu().double() * w_scale.cpu().double()[:, None]
    ).t()
    exact = exact if bias is None else exact + bias.cpu().double()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = int8_gemm(x, w, x_scale, w_scale, bias, out_dtype=dtype)
        close(found, reference_int8_gemm(x, w, x_scale, w_scale, bias, out_dtype=dtype), 1)
        close(found.cpu(), exact.to(dtype), 1)


def test_int8_products_in_a_batch() -> None:
    x, w = integers(3, 17, 33), integers(3, 33, 5).mT
    wanted = (x.cpu().long() @ w.cpu().long().mT).int()
    assert torch.equal(int8_gemm(x, w, out_dtype=torch.int32).cpu(), wanted)
    assert torch.equal(reference_int8_gemm(x, w, out_dtype=torch.int32).cpu(), wanted)


def test_a_product_of_quantised_numbers_is_within_the_bound_of_its_roundings() -> None:
    """|x w - x' w'| <= k (s_x/2 max|w| + s_w/2 max|x| + s_x s_w / 4) to nearest."""
    x, w = torch.randn(17, 129, device=DEVICE), torch.randn(33, 129, device=DEVICE)
    a, b = amax(x), amax(w)
    s, t = scale_of(a), scale_of(b)
    found = int8_gemm(quantise(x, s), quantise(w, t), s, t)
    bound = 129 * (s / 2 * b + t / 2 * a + s * t / 4)
    assert (found - x @ w.t()).abs().max() < bound


# --- half products


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("source", [torch.float32, torch.float16])
def test_half_products_cast_as_they_load(shape: tuple[int, int, int], dtype: torch.dtype, source: torch.dtype) -> None:
    m, n, k = shape
    a, b, bias = normal(m, k, dtype=source), normal(n, k, dtype=source).t(), normal(n)
    for out_dtype in (torch.float32, dtype):
        found = half_gemm(a, b, bias, dtype=dtype, out_dtype=out_dtype)
        close(found, reference_half_gemm(a, b, bias, dtype=dtype, out_dtype=out_dtype), k)


@pytest.mark.filterwarnings("ignore:.*encountered in (cast|matmul):RuntimeWarning")  # numpy, in the interpreter
def test_float16_products_round_their_operands_to_nearest() -> None:
    x = torch.tensor([[1 + 2.0**-11, 1 + 3 * 2.0**-11, 65520.0]], device=DEVICE)
    one = torch.eye(3, device=DEVICE)
    assert half_gemm(x[:, :2], one[:2, :2], dtype=torch.float16).tolist() == [[1.0, 1 + 2.0**-9]]
    assert half_gemm(x[:, 2:], one[2:, 2:], dtype=torch.float16).item() == math.inf


@pytest.mark.parametrize("k", [16 * 64, 3 * 1024 + 17])
def test_long_sums_in_parts(k: int) -> None:
    a, b, bias = normal(17, k), normal(k, 5), normal(5)
    close(half_gemm(a, b, bias, dtype=torch.float16), reference_half_gemm(a, b, bias, dtype=torch.float16), k)


def test_half_products_in_a_batch_and_of_nothing() -> None:
    a, b = normal(3, 17, 33), normal(3, 33, 5)
    close(half_gemm(a, b, dtype=torch.float16), reference_half_gemm(a, b, dtype=torch.float16), 33)
    assert half_gemm(a[0, :0], b[0], dtype=torch.float16).shape == (0, 5)
    assert not half_gemm(a[0, :, :0], b[0, :0], dtype=torch.float16).any()


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_of_a_linear_layer(dtype: torch.dtype) -> None:
    x, w = normal(33, 17).requires_grad_(), normal(129, 17).requires_grad_()
    g = normal(33, 129)
    (x @ w.t()).backward(g)
    options = {"dtype": dtype, "out_dtype": torch.float32}
    with torch.no_grad():
        close(linear_input_gradient(g, w, **options), x.grad, 129)
        close(linear_weight_gradient(g, x, **options), w.grad, 33)
        close(reference_linear_input_gradient(g, w, **options), x.grad, 129)
        close(reference_linear_weight_gradient(g, x, **options), w.grad, 33)


# --- convolutions


def convolution(case: tuple) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]:  # type: ignore[type-arg]
    batch, channels, height, width, filters, taps, stride, padding, dilation, groups = case
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (batch, channels, height, width), (filters, channels // groups, *taps), options


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_int8_convolution(case: tuple) -> None:  # type: ignore[type-arg]
    x_shape, w_shape, options = convolution(case)
    x, w = integers(*x_shape), integers(*w_shape)
    wanted = functional.conv2d(x.cpu().double(), w.cpu().double(), **options)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x, w = (t.contiguous(memory_format=memory_format) for t in (x, w))
        assert torch.equal(int8_conv2d(x, w, out_dtype=torch.int32, **options).cpu(), wanted.int())
        assert torch.equal(reference_int8_conv2d(x, w, out_dtype=torch.int32, **options).cpu(), wanted.int())
    one, per = torch.rand(1, device=DEVICE), torch.rand(w_shape[0], device=DEVICE)
    bias = torch.randn(w_shape[0], device=DEVICE)
    for w_scale in (one, per):
        found = int8_conv2d(x, w, one, w_scale, bias, **options)
        exact = (
            wanted * one.cpu().double() * w_scale.cpu().double().reshape(-1, 1, 1) + bias.cpu().double()[:, None, None]
        )
        close(found.cpu(), exact.float(), 1)
        close(found, reference_int8_conv2d(x, w, one, w_scale, bias, **options), 1)


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_convolution_and_its_gradients(case: tuple, dtype: torch.dtype) -> None:  # type: ignore[type-arg]
    x_shape, w_shape, options = convolution(case)
    x, w = normal(*x_shape).requires_grad_(), normal(*w_shape).requires_grad_()
    bias = normal(w_shape[0])
    y = functional.conv2d(x, w, bias, **options)
    g = normal(*y.shape)
    y.backward(g)
    depth = math.prod(w_shape[1:])
    how = {"dtype": dtype, "out_dtype": torch.float32, **options}
    with torch.no_grad():
        for forward in (half_conv2d, reference_half_conv2d):
            close(forward(x, w, bias, **how), y, depth)
        for by_x in (half_conv2d_input_gradient, reference_half_conv2d_input_gradient):
            close(by_x(g, w, x_shape, **how), x.grad, w_shape[0] * depth)
        for by_w in (half_conv2d_weight_gradient, reference_half_conv2d_weight_gradient):
            close(by_w(g, x, w_shape, **how), w.grad, y[:, 0].numel())


# --- what they refuse, where they run, what they count


def test_wrong_operands_are_refused_with_everything_that_is_wrong() -> None:
    with pytest.raises(InputError) as caught:
        int8_gemm(torch.zeros(2, 200_000), torch.zeros(2, 200_000, dtype=torch.int8), bias=torch.zeros(3))
    fields = [p.field for p in caught.value.problems]
    assert fields == ["x", "out_dtype", "bias", "bias", "k"]
    with pytest.raises(InputError, match=r"a and b: given \(2, 3\) and \(2, 3\)"):
        half_gemm(torch.zeros(2, 3), torch.zeros(2, 3), dtype=torch.float16)
    with pytest.raises(InputError, match="scale"):
        quantise(torch.zeros(4, 5), torch.zeros(4), axis=1)
    with pytest.raises(InputError, match="channels of the filter"):
        half_conv2d(torch.zeros(1, 3, 4, 4), torch.zeros(2, 4, 1, 1), dtype=torch.float16)
    with pytest.raises(InputError, match="as large as the filter"):
        int8_conv2d(integers(1, 1, 2, 2), integers(1, 1, 3, 3), out_dtype=torch.int32)


def test_triton_runs_from_sm_80_on() -> None:
    assert [path_of_capability(c) for c in ((7, 0), (7, 5), (8, 0), (8, 9), (9, 0))] == ["torch"] * 2 + ["triton"] * 3
    assert path_of(torch.device("cpu")) == "torch"
    assert kernels_of("triton").half_gemm is half_gemm
    assert kernels_of("torch").half_gemm is reference_half_gemm
    assert kernels_of("torch").path == "torch"


def test_tiles_fit_the_problem_and_the_chip() -> None:
    large = tile(4096, 4096, 2, A100)
    assert (large.m, large.n, large.k, large.num_warps, large.num_stages) == (128, 128, 64, 8, 4)
    assert tile(4096, 4096, 1, (8, 9)).num_stages == 3  # three stages of 32 KiB in 99
    assert tile(1, 1, 2, A100).m == tile(1, 1, 2, A100).n == 16
    assert tile(512, 768, 2, A100).programs(512, 768) == 96


def meta(*shape: int, dtype: torch.dtype, last: bool = False) -> torch.Tensor:
    kind = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=kind)


def test_products_count_what_the_cost_model_counts() -> None:
    m, n, k = 129, 33, 300
    shape = {"m": m, "n": n, "k": k}
    half = torch.float16
    a, b = (meta(1, *s, dtype=half) for s in ((m, k), (k, n)))
    launch = gemm_launch(a, b, None, None, None, meta(1, 1, m, n, dtype=half), half, A100)
    cost = kernel("gemm", "float16", **shape)
    assert (launch.flops, launch.nbytes) == (flops(cost), nbytes(cost))
    x, w = (meta(1, *s, dtype=torch.int8) for s in ((m, k), (k, n)))
    y = meta(1, 1, m, n, dtype=torch.int32)
    sums = gemm_launch(x, w, None, None, None, y, torch.int8, A100)
    cost = kernel("gemm", "int8", **shape)
    assert sums.flops == flops(cost)
    assert sums.nbytes == nbytes(cost) + 3 * m * n  # int32 sums where the cost model has a result of 8 bits


def test_convolutions_count_what_the_cost_model_counts() -> None:
    x_shape, w_shape, half = (2, 16, 17, 9), (32, 16, 3, 3), torch.float16
    at = geometry_of("test", x_shape, w_shape, 2, 1, 1, 1)
    names = ("batch", "channels", "height", "width", "filters", "kernel_h", "kernel_w", "out_h", "out_w", "groups")
    shape = dict(zip(names, (*x_shape, 32, 3, 3, *at.out_size, 1), strict=True))
    x, w, y = (meta(*s, dtype=half, last=True) for s in (x_shape, w_shape, at.out_shape))
    forward = convolution_launch(x, w, None, None, None, y, at, half, A100)
    cost = kernel("conv2d", "float16", **shape)
    assert (forward.flops, forward.nbytes) == (flops(cost), nbytes(cost))
    by_x = input_gradient_launch(y, w, x, at, half, A100)
    by_w = weight_gradient_launch(y, x, meta(1, 32, at.reduction, dtype=half), at, half, A100)
    for data, flop, nbyte in (
        (0, by_w.flops, by_w.nbytes),
        (1, by_w.flops + by_x.flops, by_w.nbytes + by_x.nbytes),
    ):
        cost = kernel("conv2d_backward", "float16", data=data, **shape)
        assert (flop, nbyte) == (flops(cost), nbytes(cost))


def test_elementwise_kernels_count_what_the_cost_model_counts() -> None:
    x, q, scale = meta(33, 17, dtype=torch.float32), meta(33, 17, dtype=torch.int8), meta(1, dtype=torch.float32)
    cast = quantise_launch(x, scale, q, axis=None, seed=None)
    assert cast.nbytes == nbytes(kernel("cast", "float32", elements=33 * 17, bits=8)) + 4  # and the scale
    largest = amax_launch(x, meta(1, dtype=torch.int32), channels_of(x, None))
    assert largest.nbytes == nbytes(kernel("amax", "float32", elements=33 * 17)) + 4  # and the result
