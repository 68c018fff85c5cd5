"""2,000 broken scenario files: never a traceback, always a message that names the field.

Documents are mutated in structure (keys dropped, renamed, moved, given twice; values of wrong types, absurd sizes, no numbers,
deep nesting) and files in their bytes. What loads is planned as well, so that sizes are refused where they are given.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.errors import WindtunnelError
from simcore.faults import events
from simcore.scenario import load

BASES: tuple[dict[str, Any], ...] = (
    {
        "name": "one node",
        "seed": 1,
        "cluster": {"topology": "single_node", "device": "a100_sxm_80", "devices_per_node": 4, "intra": "nvlink3"},
        "workload": {
            "name": "transformer_training", "model": {"layers": 4, "hidden": 256, "ffn": 512, "heads": 4, "vocab": 512},
            "seq_len": 128, "global_batch": 8, "precision": "bfloat16", "iterations": 2,
        },
        "planner": {"name": "fixed", "tp": 2, "microbatch": 2, "zero": 1, "bucket": "25 MiB"},
        "faults": [{"kind": "device_slows", "rank": 0, "at": "1 s", "until": "4 s", "factor": 0.5}],
        "engine": {"sharing": "max_min", "expand": False},
    },
    {
        "name": "pools",
        "cluster": {
            "topology": "fat_tree", "stores": ["nfs"],
            "pools": [
                {"device": "v100_sxm2_32", "nodes": 2, "devices_per_node": 4, "intra": "nvlink2", "inter": "infiniband_edr"},
                {"device": "t4", "nodes": 2, "devices_per_node": 4, "intra": "pcie3", "inter": "ethernet_25g"},
            ],
        },
        "workload": {
            "name": "transformer_training", "model": {"layers": 8, "hidden": 1024, "ffn": 2048, "heads": 8, "vocab": 1000},
            "seq_len": 512, "global_batch": 16,
        },
        "planner": {"name": "fixed", "pp": 4, "tp": 2, "detail": "chunk", "recompute": "full"},
        "faults": [{"kind": "link_degrades", "between": [0, 4], "factor": 0.25, "mtbf": "3 hours", "horizon": "1 hour"}],
    },
)  # fmt: skip

SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 1000, 10**6, 10**9, 10**12, 2**62, 2**63, -(2**63), 10**60, 0.5, -0.5, 1e-300,
    1e300, float("nan"), float("inf"), -float("inf"), "", " ", "x", "fixed", "80 GiB", "3 furlongs", "1e9999 s", "-5 s", "nan",
    "9**9**9 s", "1/0", "a" * 5000, "\u0000", "\U0001f4a9", "../../etc/passwd", "%s{0}", "[1, 2]", "2024-13-45", "0x1F", "1_000",
)  # fmt: skip
values = st.recursive(
    st.sampled_from(SCALARS) | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)

Place = tuple[Any, Any]  # container, and the key or position in it


def places(document: Any) -> list[Place]:
    """Everywhere that a value stands."""
    found: list[Place] = []
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, inner in items:
        found.append((document, key))
        found += places(inner)
    return found


def nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """One to three mutations of a good document."""
    document = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(places(document)))
        match draw(st.sampled_from(["replace", "replace", "drop", "rename", "add", "copy", "nest"])):
            case "replace":
                container[key] = draw(values)
            case "drop":
                del container[key]
            case "rename" if isinstance(container, dict):
                container[draw(st.text(max_size=4)) + str(key)[1:]] = container.pop(key)
            case "add" if isinstance(container, dict):
                container[draw(st.text(max_size=6))] = draw(values)
            case "copy":
                other, there = draw(st.sampled_from(places(document)))
                container[key] = copy.deepcopy(other[there])
            case _:
                container[key] = nested(draw(st.sampled_from([1, 5, 60])))
        if not places(document):
            break
    return yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")


@st.composite
def sizes(draw: st.DrawFn) -> bytes:
    """A good document with other numbers: most are in range by themselves and contradict each other."""
    document = copy.deepcopy(draw(st.sampled_from(BASES)))
    numbers = [(c, k) for c, k in places(document) if isinstance(c[k], (int, float)) and not isinstance(c[k], bool)]
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(numbers))
        container[key] = draw(
            st.integers(0, 12) | st.integers(0, 17).map(lambda e: 2**e) | st.integers(1, 10**7) | st.floats(0, 2)
        )
    return yaml.safe_dump(document).encode()


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """The bytes of a good document with some of them changed, taken out or put in."""
    data = bytearray(yaml.safe_dump(draw(st.sampled_from(BASES))).encode())
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 20))
        data[at : at + length] = draw(
            st.binary(max_size=8) | st.sampled_from([b"\t", b"&a ", b"*a", b": ", b"\n- ", b"!!x ", b"{", b"'"])
        )
    return bytes(data)


def play(path: Path) -> None:
    """Load and plan; what is small is simulated too, faults and all."""
    scenario = load(path)
    plan = scenario.plan()
    if plan.n_ranks <= 64 and len(plan.tasks) <= 2000:
        struck = events(scenario.faults(), scenario.cluster(), scenario.seed)
        simulate(plan, scenario.cluster(), CostModel(scenario.cluster()), faults=struck, iterations=1)


def refusal(content: bytes, folder: Path) -> str:
    """Why it was refused, empty if it was not. Anything but a `WindtunnelError` that names fields is an error of ours."""
    path = folder / "mutant.yaml"
    path.write_bytes(content)
    try:
        play(path)
    except WindtunnelError as error:
        assert error.problems, f"no field named: {error}"
        assert all(problem.field.strip() and problem.given and problem.allowed for problem in error.problems), str(
            error
        )
        assert len(str(error)) < 40_000
        return str(error)
    return ""


@pytest.mark.slow
@settings(max_examples=800, derandomize=True, deadline=10_000, suppress_health_check=list(HealthCheck))
@given(sizes())
def test_other_sizes_are_refused_by_field_or_planned(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    assert "Traceback" not in refusal(content, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@settings(max_examples=800, derandomize=True, deadline=10_000, suppress_health_check=list(HealthCheck))
@given(documents())
def test_mutated_documents_are_refused_by_field_or_planned(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    assert "Traceback" not in refusal(content, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@settings(max_examples=400, derandomize=True, deadline=10_000, suppress_health_check=list(HealthCheck))
@given(files())
def test_mutated_bytes_are_refused_by_field_or_planned(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    assert "Traceback" not in refusal(content, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("document", BASES, ids=lambda d: str(d["name"]))
def test_what_is_mutated_is_good_to_begin_with(document: dict[str, Any], tmp_path: Path) -> None:
    assert refusal(yaml.safe_dump(document).encode(), tmp_path) == ""
