"""The program finds what trying every setting finds, with the replay's and the settings' own numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest

from costmodels.catalog import device
from costmodels.operator_graph import Extent, Operator, OperatorGraph
from costmodels.precision import PRECISIONS
from simcore.errors import DoesNotFit
from simcore.qsync.exact import Exact, exact
from simcore.qsync.local import LocalGraph
from simcore.qsync.replay import Replayer
from simcore.qsync.settings import Setting, allotted_B, setting
from simcore.qsync.tables import local_graph

# kind and positions of the producers
CHAIN = [
    ("linear", ()),
    ("relu", (0,)),
    ("linear", (1,)),
    ("relu", (2,)),
    ("linear", (3,)),
    ("gelu", (4,)),
    ("linear", (5,)),
]
JOINED = [
    ("linear", ()),
    ("relu", (0,)),
    ("linear", (1,)),
    ("cat", (2, 1)),
    ("relu", (3,)),
    ("linear", (4,)),
    ("add", (5, 1)),
]
BRANCHED = [
    ("embedding", ()),
    ("linear", (0,)),
    ("linear", (0,)),
    ("matmul", (1, 2)),
    ("view", (3,)),
    ("relu", (4,)),
    ("linear", (5,)),
]
# begins with a product without parameters, and joins a precision that is chosen with one that is fixed
FIXED = [
    ("relu", ()),
    ("matmul", (0, 0)),
    ("linear", (1,)),
    ("gelu", (2,)),
    ("linear", (3,)),
    ("cat", (3, 4)),
    ("linear", (5,)),
]
BATCH = 4096


def graph_of(shape: Sequence[tuple[str, tuple[int, ...]]], width: int = 64) -> OperatorGraph:
    names = [f"{kind}{i}" for i, (kind, _) in enumerate(shape)]
    weighted = ("linear", "embedding")
    operators = tuple(
        Operator(
            name=name,
            kind=kind,
            inputs=tuple(names[k] for k in of),
            sources=tuple(range(len(of))),
            operands=tuple(Extent((1, width, width) if kind == "matmul" else (width,)) for _ in of or (0,)),
            output=Extent((1, width, width) if kind == "matmul" else (width,)),
            parameters=(f"{name}.weight",) if kind in weighted else (),
            depth=i,
        )
        for i, (name, (kind, of)) in enumerate(zip(names, shape, strict=True))
    )
    parameters = {f"{n}.weight": (width, width) for n, (kind, _) in zip(names, shape, strict=True) if kind in weighted}
    return OperatorGraph(name="toy", source="by hand", sample="numbers", operators=operators, parameters=parameters)


class Drawn:
    """Costs that follow no rule: a number for each kernel, and `launch_s` for a launch."""

    def __init__(self, seed: int, launch_s: float) -> None:
        self.seed, self.launch_s = seed, launch_s

    def compute(self, op, device):
        (kernel,) = op.kernels
        if kernel.name == "launch":
            return SimpleNamespace(seconds=self.launch_s * dict(kernel.shape)["thousandths"] / 1000)
        rng = np.random.default_rng([self.seed, crc32(f"{kernel} {device.name}".encode())])
        return SimpleNamespace(seconds=float(rng.uniform(1, 10) * (0.2 if kernel.name in ("cast", "amax") else 1.0)))


def local_of(
    shape: Sequence[tuple[str, tuple[int, ...]]], name: str = "t4", *, seed: int, launch_s: float, slowdown: float = 0.0
) -> LocalGraph:
    graph = graph_of(shape)
    buckets = [[n] for n in reversed(graph.parameters)]
    spec = replace(device(name), overlap_slowdown=slowdown)
    return local_graph(graph, spec, BATCH, Drawn(seed, launch_s), buckets=buckets)


def omega_of(local: LocalGraph, seed: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(seed)
    return {
        local.graph.operators[i].name: {
            PRECISIONS[p]: float(rng.uniform(1, 2) * 16.0 ** -(2 * k)) if PRECISIONS[p] != "float32" else 0.0
            for k, p in enumerate(np.flatnonzero(local.allowed[i]))
        }
        for i in local.adjustable
    }


def all_of(local: LocalGraph, omega: Mapping[str, Mapping[str, float]]) -> list[tuple[float, Setting, float]]:
    """Every setting: disturbance, itself, bytes."""
    found = []
    for drawn in product(*(omega[n] for n in omega)):
        chosen = setting(local, dict(zip(omega, drawn, strict=True)))
        found.append((sum(omega[n][p] for n, p in zip(omega, drawn, strict=True)), chosen, allotted_B(local, chosen)))
    return found


def between(values: np.ndarray, share: float) -> float:
    """A limit that lies a share of the way up and has no value at it, so that rounding does not decide."""
    values = np.unique(np.round(values, 9))
    k = min(int(share * len(values)), len(values) - 2)
    return float(values[k] + values[k + 1]) / 2


def compared(
    locals_: Mapping[str, LocalGraph], bucket_s: np.ndarray, *, memory: float, time: float, seed: int
) -> tuple[float, Exact | None]:
    """The least disturbance of all settings (infinite if none keeps the limits), and what the program finds."""
    omega = {name: omega_of(local, seed + k) for k, (name, local) in enumerate(locals_.items())}
    shares = {name: 1.0 + k for k, name in enumerate(locals_)}
    every = {name: all_of(local, omega[name]) for name, local in locals_.items()}
    limits_B = {name: between(np.array([x[2] for x in of]), memory) for name, of in every.items()}
    replayer = Replayer(locals=tuple(locals_.values()), bucket_s=bucket_s)
    together = list(product(*every.values()))
    seconds = np.array([replayer.replay([x[1] for x in of]).iteration_s for of in together])
    limit_s = between(seconds, time)
    best = min(
        (
            sum(share * x[0] for share, x in zip(shares.values(), of, strict=True))
            for of, s in zip(together, seconds, strict=True)
            if s <= limit_s and all(x[2] <= limit for x, limit in zip(of, limits_B.values(), strict=True))
        ),
        default=np.inf,
    )
    try:
        return best, exact(locals_, omega, shares, limits_B, limit_s, bucket_s)
    except DoesNotFit:
        return best, None


def assert_same(best: float, found: Exact | None) -> None:
    assert (found is None) == np.isinf(best)
    if found is not None:
        assert found.status == "optimal" and found.keeps_limits
        assert found.variance == pytest.approx(best, rel=1e-6, abs=1e-12)
        assert found.bound == pytest.approx(best, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("launch_s", "slowdown"),
    [(0.0, 0.0), (6.0, 0.0), (30.0, 0.0), (0.0, 0.7), (30.0, 0.7)],
    ids=["device-bound", "mixed", "host-bound", "slowed", "slowed-host-bound"],
)
@pytest.mark.parametrize("shape", [CHAIN, JOINED, BRANCHED, FIXED], ids=["chain", "joined", "branched", "fixed"])
def test_one_class_is_what_trying_every_setting_finds(shape, launch_s: float, slowdown: float) -> None:
    """Slowdown too is in the program exactly where the device waits for no launch, or for every one."""
    bounded = 0
    for seed, (memory, time) in enumerate(product((0.1, 0.5, 0.99), (0.02, 0.1, 0.3, 0.99))):
        local = local_of(shape, seed=seed, launch_s=launch_s, slowdown=slowdown)
        bucket_s = np.random.default_rng(seed).uniform(0.5, 60.0, len(local.bucket_B))
        best, found = compared({"t4": local}, bucket_s, memory=memory, time=time, seed=seed)
        assert_same(best, found)
        bounded += found is not None and found.variance > 0
    assert bounded


@pytest.mark.parametrize("slowdown", [0.0, 0.3])
@pytest.mark.parametrize("bucket_s", [0.01, 20.0, 60.0], ids=["hidden", "in-between", "exposed"])
def test_two_classes_that_wait_for_each_other(bucket_s: float, slowdown: float) -> None:
    bounded = 0
    for seed, (memory, time) in enumerate(product((0.2, 0.7), (0.03, 0.2, 0.6))):
        locals_ = {
            "t4": local_of(JOINED, "t4", seed=seed, launch_s=0.0, slowdown=slowdown),
            "v100_sxm2_32": local_of(JOINED, "v100_sxm2_32", seed=seed, launch_s=0.0, slowdown=slowdown / 2),
        }
        reductions = bucket_s * np.random.default_rng(seed).uniform(0.5, 1.5, 3)
        best, found = compared(locals_, reductions, memory=memory, time=time, seed=seed)
        assert_same(best, found)
        bounded += found is not None and found.variance > 0
    assert bounded


def with_late_launch(local: LocalGraph, i: int) -> LocalGraph:
    """The host takes 90 s for an operator's backward pass."""
    host_s = local.own_host_s.copy()
    host_s[i, 1] += 90.0
    return replace(local, own_host_s=host_s)


def test_a_late_launch_before_the_first_reduction_is_not_relaxed() -> None:
    variances = []
    for seed in range(12):
        local = with_late_launch(local_of([("linear", ())], seed=seed, launch_s=0.0, slowdown=0.5), 0)
        best, found = compared({"t4": local}, np.array([50.0]), memory=0.99, time=0.0, seed=seed)
        assert_same(best, found)
        variances.append(best)
    assert any(0 < v < np.inf for v in variances)


def test_the_bound_holds_where_a_device_waits_for_a_launch_while_bytes_move() -> None:
    """A late launch in the middle of the backward pass, a long reduction around it, and kernels that it slows down after it."""
    kept = []
    for seed in range(24):
        local = with_late_launch(local_of(CHAIN, seed=seed, launch_s=0.0, slowdown=0.6), 4)
        own_s = local.own_s.copy()
        own_s[:4, 1] *= 3.0
        local = replace(local, own_s=own_s)
        bucket_s = np.array([60.0, 0.1, 0.1, 0.1])
        best, found = compared({"t4": local}, bucket_s, memory=0.7, time=0.02 + 0.03 * seed, seed=seed)
        if found is None:
            assert np.isinf(best)
            continue
        assert found.bound <= best * (1 + 1e-9)
        if found.keeps_limits:
            assert found.variance == pytest.approx(best, rel=1e-6, abs=1e-12)
        kept.append(found.keeps_limits)
    assert set(kept) == {True, False}, "every case or none shows the relaxation"


def test_held_operators_keep_their_precision() -> None:
    local = local_of(CHAIN, seed=3, launch_s=0.0)
    omega, bucket_s = omega_of(local, 3), np.zeros(len(local.bucket_B))
    free = {"time_limit_s": np.inf, "bucket_s": bucket_s}
    one = exact({"t4": local}, {"t4": omega}, {"t4": 1.0}, {"t4": np.inf}, held={"t4": {"linear2": "int8"}}, **free)
    assert one.chosen["t4"] == dict.fromkeys(omega, "float32") | {"linear2": "int8"}
    assert one.variance == one.bound == pytest.approx(omega["linear2"]["int8"])
    narrow = dict.fromkeys(omega, "float16")
    everything = exact({"t4": local}, {"t4": omega}, {"t4": 1.0}, {"t4": np.inf}, held={"t4": narrow}, **free)
    assert everything.chosen["t4"] == narrow
    assert everything.memory_B["t4"] == allotted_B(local, setting(local, narrow))


def test_what_no_precisions_can_keep_is_refused_with_what_lacks() -> None:
    local = local_of(CHAIN, seed=4, launch_s=0.0)
    omega, bucket_s = omega_of(local, 4), np.full(len(local.bucket_B), 5.0)
    every = all_of(local, omega)
    least_B = min(x[2] for x in every)
    replayer = Replayer(locals=(local,), bucket_s=bucket_s)
    least_s = min(replayer.replay([x[1]]).iteration_s for x in every)
    with pytest.raises(DoesNotFit) as refused:
        exact({"t4": local}, {"t4": omega}, {"t4": 1.0}, {"t4": 0.9 * least_B}, 0.8 * least_s, bucket_s)
    fields = {p.field: p.given for p in refused.value.problems}
    assert fields == {
        "memory of t4": f"at least {least_B / 1e9:.2f} GB",
        "iteration with t4": f"at least {least_s * 1e3:.3f} ms",
    }


def test_a_share_and_a_scale_of_the_indicator_change_nothing_but_the_scale() -> None:
    local = local_of(JOINED, seed=5, launch_s=0.0)
    omega, bucket_s = omega_of(local, 5), np.full(len(local.bucket_B), 5.0)
    limit_B = between(np.array([x[2] for x in all_of(local, omega)]), 0.3)
    found = [
        exact({"t4": local}, {"t4": omega}, {"t4": share}, {"t4": limit_B}, np.inf, bucket_s)
        for share in (1.0, 1e-12, 1e15)
    ]
    assert found[0].chosen == found[1].chosen == found[2].chosen
    assert [x.variance for x in found] == pytest.approx(found[0].variance * np.array([1.0, 1e-12, 1e15]))
    assert prod(x.variance for x in found) > 0
