"""Noise of rounding against drawn samples, the indicator's order, and what it refuses."""

from itertools import pairwise

import numpy as np
import pytest

from costmodels.errors import DataError
from costmodels.operator_graph import Extent, Operator, OperatorGraph
from costmodels.precision_error import MANTISSA, product_variance, released_exponent, rounding_variance
from simcore.qsync.indicator import ladder, noise_of, sensitivities
from simcore.qsync.statistics import Statistics, assumed

HAS = ("int8", "fp8", "float16", "bfloat16", "tf32", "float32")
WIDTH = 16


def chain(n: int = 4) -> OperatorGraph:
    """Square linear operators one after the other."""
    operators = tuple(
        Operator(
            name=f"linear{i}",
            kind="linear",
            inputs=(f"linear{i - 1}",) if i else (),
            sources=(0,) if i else (),
            operands=(Extent((WIDTH,)),),
            output=Extent((WIDTH,)),
            parameters=(f"w{i}",),
            depth=i,
        )
        for i in range(n)
    )
    parameters = {f"w{i}": (WIDTH, WIDTH) for i in range(n)}
    return OperatorGraph(name="chain", source="by hand", sample="", operators=operators, parameters=parameters)


def stochastically_rounded(values: np.ndarray, step: float, rng: np.random.Generator) -> np.ndarray:
    return np.floor(values / step + rng.random(values.shape)) * step


def test_stochastic_rounding_in_fixed_point_has_the_stated_variance() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=200_000)
    amax = float(np.abs(values).max())
    noise = stochastically_rounded(values, amax / 127, rng) - values
    assert noise.var() == pytest.approx(rounding_variance("int8", amax, 1.0), rel=0.02)


def test_a_product_of_rounded_operands_has_the_stated_variance() -> None:
    rng = np.random.default_rng(1)
    v, w = rng.normal(size=(64, 32)), rng.normal(size=(32, 48))
    steps = [float(np.abs(x).max()) / 127 for x in (v, w)]
    total = np.mean(
        [
            ((stochastically_rounded(v, steps[0], rng) @ stochastically_rounded(w, steps[1], rng) - v @ w) ** 2).sum()
            for _ in range(200)
        ]
    )
    stated = product_variance(64 * 32 * 48, steps[0] ** 2 / 6, (v**2).mean(), steps[1] ** 2 / 6, (w**2).mean())
    assert total == pytest.approx(stated, rel=0.03)


def test_more_bits_of_mantissa_never_disturb_more() -> None:
    for found in sensitivities(chain(), assumed(chain(), 8), HAS).values():
        assert found["float32"] == 0
        ordered = sorted(MANTISSA, key=MANTISSA.__getitem__)
        assert all(found[a] >= found[b] for a, b in pairwise(ordered))
        assert found["int8"] > found["float16"] > 0
        assert ladder(found)[-1] == "float32"


def test_scaling_a_weight_changes_only_the_absolute_indicator() -> None:
    graph, found = chain(1), assumed(chain(1), 8).operators["linear0"]
    row = {f: getattr(found, f) for f in ("D_v", "D_w", "D_vv", "norm_v", "norm_g", "amax_v", "amax_g")}
    larger = type(found)(**row, norm_w=2 * found.norm_w, amax_w=2 * found.amax_w)
    absolute = [noise_of(graph.operators[0], graph, s, "int8", "float16").forward for s in (found, larger)]
    relative = [
        noise_of(graph.operators[0], graph, s, "int8", "float16", relative=True).forward for s in (found, larger)
    ]
    assert absolute[1] == pytest.approx(4 * absolute[0])
    assert relative[1] == pytest.approx(relative[0])


def test_released_exponents_are_magnitudes_cut_off_at_five() -> None:
    assert [released_exponent(x) for x in (0.75, 1.0, 0.01, 1e6)] == [0, 1, 5, 5]


def test_random_is_repeatable_and_follows_its_seed() -> None:
    made = [sensitivities(chain(), assumed(chain(), 8), HAS, "random", seed=s) for s in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_statistics_survive_their_file(tmp_path) -> None:
    found = assumed(chain(), 8)
    found.save(tmp_path / "statistics.json")
    assert Statistics.load(tmp_path / "statistics.json") == found


def test_what_is_lacking_is_named() -> None:
    with pytest.raises(DataError, match="linear3"):
        sensitivities(chain(4), assumed(chain(3), 8), HAS)
    with pytest.raises(DataError, match="curvature"):
        sensitivities(chain(), assumed(chain(), 8), HAS, "hess")
    text = assumed(chain(), 8).to_json().replace('"amax_g"', '"amax_other"')
    with pytest.raises(DataError, match=r"linear0\.amax_g"):
        Statistics.from_json(text)
