"""Operators of torch.fx: what they ask of a device, and how long a pass of them takes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.catalog import Catalog
from costmodels.fit.model_operators import fit
from costmodels.operator_work import Operator, kind_of, read_operators, work
from costmodels.operators import pass_seconds, predict, price, product_seconds
from costmodels.tables.model_operators import prepare

CATALOG = Catalog()
A100 = CATALOG.device("a100_pcie_40")
ADDMM = "<built-in method addmm of type object at 0x15552dc96d80>"


def records(batch: int = 4) -> list[dict[str, object]]:
    """A norm, a linear layer, a transposed view that is copied, and an addition of a pass."""
    wide, turned = f"[[{batch}, 512, 1024]]", f"({batch}, 1024, 512)"
    rows = [
        ("placeholder", "x", "x", "[]", f"({batch}, 512, 1024)", "{}"),
        ("call_module", "h.0.ln_1", "ln", wide, f"({batch}, 512, 1024)", "{x: None}"),
        ("call_module", "h.0.fc", "fc", wide, f"({batch}, 512, 1024)", "{ln: None}"),
        ("call_method", "transpose", "turned", wide, turned, "{fc: None}"),
        ("call_method", "contiguous", "copied", f"[[{batch}, 1024, 512]]", turned, "{turned: None}"),
        ("call_function", "<built-in function add>", "n", "[[1]]", "(1,)", "{size: None}"),
    ]
    names = ("op", "target", "name", "input_shapes", "output_shape", "inputs")
    return [dict(zip(names, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("op", "target", "inputs", "output", "kind"),
    [
        ("call_function", ADDMM, ((8,), (4, 8), (8, 8)), (4, 8), "addmm"),
        ("call_function", "<function softmax at 0x1554949dd900>", ((4, 4),), (4, 4), "softmax"),
        ("call_function", "<class 'torch.finfo'>", ((1,),), (1,), "finfo"),
        ("call_module", "bert.embeddings.LayerNorm", ((2, 4, 8),), (2, 4, 8), "layernorm"),
        ("call_module", "model.decoder.embed_tokens", ((2, 4),), (2, 4, 8), "embedding"),
        ("call_module", "model.decoder.layers.0.fc2", ((2, 4),), (2, 8), "linear"),
        ("call_module", "transformer.drop", ((2, 4, 8),), (2, 4, 8), "dropout"),
        ("get_attr", "h.0.bias", (), (1, 8), "free"),
    ],
)
def test_kinds(op: str, target: str, inputs: tuple[tuple[int, ...], ...], output: tuple[int, ...], kind: str) -> None:
    assert kind_of(op, target, inputs, output) == kind


def test_products_by_hand() -> None:
    scores = Operator(kind="matmul", inputs=((2, 16, 512, 64), (2, 16, 64, 512)), output=(2, 16, 512, 512))
    assert work(scores, training=False).products == (32, 512, 512, 64)
    layer = Operator(kind="addmm", inputs=((3840,), (1024, 1280), (1280, 3840)), output=(1024, 3840))
    assert work(layer, training=True).products == (1, 1024, 3840, 1280)
    assert work(layer, training=True).back and not work(layer, training=False).back


def test_only_a_reordered_operand_is_copied() -> None:
    groups = [work(o, training=False).group for o in read_operators(records())]
    assert groups == ["free", "norm", "linear", "view", "copy", "host"]


def test_bytes_by_hand() -> None:
    """An addition reads two operands and writes one; half of a dropout's mask is a byte."""
    add = Operator(kind="add", inputs=((4, 8), (4, 8)), output=(4, 8))
    assert work(add, training=False).forward_B == 3 * 4 * 32
    table = Operator(kind="embedding", inputs=((4,),), output=(4, 8), table_rows=100)
    assert work(table, training=True).backward_B == 4.0 * (3 * 32 + 100 * 8)


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_pass_takes_no_less_with_a_larger_batch_and_no_less_than_its_bytes(a: int, b: int) -> None:
    small, large = (pass_seconds(A100, read_operators(records(n)), training=False) for n in (min(a, b), max(a, b)))
    assert small.seconds <= large.seconds * (1 + 1e-9)
    moved = sum(work(o, training=False).forward_B for o in read_operators(records(max(a, b))))
    assert large.seconds >= moved / A100.memory_B_per_s


def test_backward_only_in_training() -> None:
    operators = read_operators(records())
    assert predict(A100, operators, training=False).seconds[:, 1].sum() == 0.0
    assert predict(A100, operators, training=True).seconds[:, 1].sum() > 0.0


def test_a_device_without_rows_is_extrapolated() -> None:
    found = pass_seconds(CATALOG.device("h100_sxm"), read_operators(records()), training=False)
    seen = pass_seconds(A100, read_operators(records()), training=False)
    assert found.extrapolated and not seen.extrapolated
    assert 0.0 < found.seconds < seen.seconds


def test_fit_finds_the_parameters_that_made_the_rows() -> None:
    groups = {
        g: {"floor": 2.0, "share": 0.7, "products": 1.0}
        for g in ("norm", "linear", "view", "copy", "host", "pointwise")
    }
    groups["host"]["floor"], groups["linear"]["products"] = 1.0, 1.2
    own = {"host_s": 8e-6, "bandwidth": 1.0, "products": 1.0}
    parameters = {"start": 1.3, "devices": {A100.name: own}, "unseen": own, "groups": groups}
    rows = []
    for batch in (4, 16, 64):
        operators = read_operators(records(batch))
        asked = [work(o, training=False) for o in operators]
        seconds = price(A100, asked, product_seconds(A100, asked), parameters)
        for i, (row, (forward, _)) in enumerate(zip(records(batch), seconds.tolist(), strict=True)):
            key = {"device": "a100_pcie_40", "model": "m", "mode": "inf", "seq_len": 512, "batch": batch, "index": i}
            rows.append({**key, **row, "forward_s": forward, "backward_s": 0.0})
    frame = pd.DataFrame(rows)
    found = fit(frame, CATALOG)["parameters"]
    assert found["devices"][A100.name]["host_s"] == pytest.approx(8e-6, rel=1e-3)
    rates = found["devices"][A100.name]["bandwidth"] * found["groups"]["norm"]["share"]
    assert rates == pytest.approx(0.7, rel=1e-2)
    passes = prepare(frame)
    assert len(passes) == 3
    assert passes["seconds"].sum() == pytest.approx(frame["forward_s"].sum())
    again = [pass_seconds(A100, o, training=False, fitted=fit(frame, CATALOG)).seconds for o in passes["operators"]]
    assert np.array(again) == pytest.approx(passes["seconds"].to_numpy(), rel=0.02)
