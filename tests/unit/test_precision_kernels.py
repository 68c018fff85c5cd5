"""Kernels of operators and casts, worked out by hand."""

import pytest

from costmodels import compute
from costmodels.casts import RELEASED, fit
from costmodels.catalog import Catalog
from costmodels.kernels import flops, kernel, nbytes
from costmodels.libraries import Libraries
from costmodels.operator_graph import Extent, Operator, OperatorGraph
from costmodels.precision import Cast
from costmodels.precision_kernels import backward, cast, forward

CONV = Operator(
    name="conv",
    kind="conv2d",
    operands=(Extent((1, 3, 8, 8)),),
    output=Extent((1, 16, 4, 4)),
    parameters=("conv.weight",),
)
LINEAR = Operator(
    name="linear", kind="linear", inputs=("conv",), sources=(0,), operands=(Extent((5, 16)),), output=Extent((5, 32)),
    parameters=("linear.weight", "linear.bias"),
)  # fmt: skip
GRAPH = OperatorGraph(
    name="two", source="by hand", sample="3 x 8 x 8 image", operators=(CONV, LINEAR),
    parameters={"conv.weight": (16, 3, 3, 3), "linear.weight": (32, 16), "linear.bias": (32,)},
)  # fmt: skip


def test_a_convolution_multiplies_its_window_at_each_place_and_moves_each_tensor_once() -> None:
    (made,) = forward(GRAPH, CONV, 2, "float16")
    assert flops(made) == 2 * (2 * 16 * 4 * 4) * (3 * 9)
    assert nbytes(made) == 2 * (2 * 3 * 64 + 16 * 27 + 2 * 16 * 16)
    (back,) = backward(GRAPH, CONV, 2, "float16", "float16")
    assert flops(back) == flops(made)  # of the weight only: nothing before it is trained


def test_a_linear_layer_has_two_products_and_a_sum_backward() -> None:
    (made,) = forward(GRAPH, LINEAR, 2, "int8")
    assert (made.name, made.dtype, dict(made.shape)) == ("gemm", "int8", {"m": 10, "n": 32, "k": 16, "narrowed": 1})
    data, weight, bias = backward(GRAPH, LINEAR, 2, "float16", "float32")
    assert flops(data) == flops(weight) == flops(made)
    assert nbytes(bias) == 2 * (10 * 32 + 32)


def test_a_cast_reads_one_width_and_writes_the_other_and_eight_bits_need_the_largest_number() -> None:
    wide = Cast("linear", "forward", "operand 0", "float32", "float16", 100)
    assert [nbytes(k) for k in cast(wide)] == [100 * (4 + 2)]
    narrow = Cast("linear", "forward", "operand 0", "float16", "int8", 100)
    assert [(k.name, nbytes(k)) for k in cast(narrow)] == [("amax", 200), ("cast", 300)]


@pytest.mark.parametrize(
    ("made", "moved"),
    [
        (kernel("batch_norm", "float32", rows=3, cols=7), 3 * 4 * 21),
        (kernel("dropout", "float16", rows=3, cols=7), 21 * (2 + 2 + 1)),
        (kernel("max_pool2d", "float32", inputs=64, outputs=16), 4 * 80 + 8 * 16),
        (kernel("sgd_momentum", "float32", params=10), 5 * 40),
    ],
)
def test_bytes(made, moved: float) -> None:
    assert nbytes(made) == moved


def test_the_line_through_casts_is_found_again() -> None:
    line = RELEASED["float32", "int8"]
    sizes = [2.0**e for e in range(10, 26)]
    found = fit(sizes, [line.each_s * n + line.once_s for n in sizes])
    assert found.each_s == pytest.approx(line.each_s) and found.once_s == pytest.approx(line.once_s)
    with pytest.raises(ValueError, match="two sizes"):
        fit([4.0, 4.0], [1.0, 1.0])


def test_released_lines_at_the_size_that_their_source_checks() -> None:
    n = 64 * 64 * 56 * 56
    assert RELEASED["float32", "int8"].seconds(n) == pytest.approx(1.834e-3, rel=1e-3)
    assert RELEASED["float32", "float16"].seconds(n) == pytest.approx(0.371e-3, rel=2e-3)


def test_the_library_of_products_runs_narrowed_ones_and_no_convolutions() -> None:
    h100, named = Catalog().device("h100_sxm"), Libraries(gemm="vllm")
    (product,) = forward(GRAPH, LINEAR, 4096, "fp8")
    plain, other = (compute.estimate(product, h100, libraries) for libraries in (compute.UNNAMED, named))
    assert plain.seconds != other.seconds and "vllm" in other.source
    assert compute.seconds_each([product], h100, named)[0] == pytest.approx(other.seconds)
    for made in (*forward(GRAPH, CONV, 4096, "float16"), *backward(GRAPH, CONV, 4096, "float16", "float16")):
        assert compute.estimate(made, h100, named) == compute.estimate(made, h100)
