"""Generation token by token on a calibrated machine: the sum of what its model says, and plans that hold its calls."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels import catalog, generation, generation_eager
from costmodels.batching import padded_segments
from costmodels.compute import estimate
from costmodels.errors import DataError
from costmodels.specs import DeviceSpec
from costmodels.transformer import TransformerShape
from simcore.errors import ScenarioError
from simcore.hybridflow.dataflow import call, own, ppo, remax, with_checks, with_log_prob
from simcore.scenario import load

ROOT = Path(__file__).parents[2]
SHAPE = TransformerShape(layers=3, hidden=64, ffn=128, heads=4, kv_heads=2, head_dim=16, vocab=100, max_len=512)
EAGER = {
    "step_s": 1e-3,
    "layer_s": 2e-4,
    "split_layer_s": 5e-4,
    "split_forward_s": 3e-4,
    "split_backward_s": 4e-4,
    "products": [[1, 4e-10], [8, 1e-10], [64, 5e-11]],
    "cache": [[0, 1e-5], [1000, 2e-5]],
    "all_reduce": {"2": [[0, 1e-4], [10_000, 2e-4]]},
    "draw_s": 1e-8,
    "in_step": 1.5,
    "element_s": 2e-9,
    "call": [[0, 1e-3], [1_000_000, 2e-3]],
}


@pytest.fixture
def device() -> DeviceSpec:
    return replace(catalog.device("server_cpu"), measured={"eager": EAGER})


def test_a_step_is_host_products_cache_and_draws(device: DeviceSpec) -> None:
    weights = 3 * (2 * 64 * 16 * (4 + 2) + 3 * 64 * 128) + 64 * 100
    kept = 2 * 8 * 10 * 2 * 16  # keys and values of 8 sequences of 10 tokens, 2 heads of 16
    work = 8 * weights * 1e-10 + 3 * kept * 1e-8
    wanted = 1e-3 + 3 * (2e-4 + 8 * 64 * 2e-9) + 1.5 * work + 8 * 100 * 1e-8
    found = generation_eager.decode_s(device, SHAPE, tp=1, batch=8, kv_len=10)
    assert float(found) == pytest.approx(wanted)
    kernel = generation.decode("transformers", SHAPE, "float32", generation.Split(1, 1), batch=8, kv_len=10, steps=7)
    priced = estimate(kernel, device)
    assert priced.seconds == pytest.approx(7 * wanted)
    assert priced.method == "measured"


def test_a_split_step_has_half_of_the_layers_and_two_sums_each(device: DeviceSpec) -> None:
    layers, head = 3 * (2 * 64 * 16 * (4 + 2) + 3 * 64 * 128), 64 * 100
    work = 8 * (layers / 2 + head) * 1e-10 + 3 * (2 * 8 * 10 * 16) * 1e-8
    sums = 3 * 2 * (1e-4 + 8 * 64 * 4 * 1e-8)
    wanted = 1e-3 + 3 * (5e-4 + 8 * 64 * 2e-9) + 1.5 * work + sums + 8 * 100 * 1e-8
    found = generation_eager.decode_s(device, SHAPE, tp=2, batch=8, kv_len=10)
    assert float(found) == pytest.approx(wanted)


def test_calls_and_split_modules_take_time_only_where_they_were_measured(device: DeviceSpec) -> None:
    plain = catalog.device("server_cpu")
    for kernel, wanted in (
        (generation.controller_call(500_000), 1.5e-3),
        (generation.split_layers(4), 4 * 3e-4),
        (generation.split_layers(4, forward=False), 4 * 4e-4),
    ):
        assert estimate(kernel, device).seconds == pytest.approx(wanted)
        assert estimate(kernel, plain).seconds == 0.0


def test_padded_sequences_step_together_until_the_longest_has_ended() -> None:
    found = padded_segments(np.array([4, 6, 5]), np.array([3, 11, 2]), slots=2)
    assert found.batch.tolist() == [2, 1]
    assert found.steps.tolist() == [10, 1]
    assert found.prompt_len.tolist() == [6, 5]
    assert found.prompts.sum() == 3


def test_checked_roles_have_no_model() -> None:
    flow = with_checks(ppo(), ["reward"])
    assert flow.roles == ("actor", "reference", "critic")
    update = next(c for c in flow.calls if c.name == "update_actor")
    assert "generate" in flow.inputs(update)  # what the check reads
    with pytest.raises(ScenarioError, match="neither trains nor generates"):
        load(ROOT / "scenarios" / "hybridflow_7b_16.yaml", ["workload.checked=[critic]"]).workload()


def test_whatever_trains_waits_for_recomputed_log_probabilities() -> None:
    flow = with_log_prob(remax())
    names = [c.name for c in flow.calls]
    assert names.index("log_prob") == names.index("generate_greedy") + 1
    assert all("log_prob" in flow.inputs(c) for c in flow.calls if c.kind == "train")
    assert [c.name for c in flow.calls if "log_prob" in c.after] == ["advantages"]  # updates learn from these
    alone = own("own", [call("generate", "generate", "actor"), call("update", "train", "actor", "generate")])
    assert [c.name for c in with_log_prob(alone).calls if "log_prob" in c.after] == ["update"]


def test_beside_waiting_ranks_steps_take_what_they_take_alone(device: DeviceSpec) -> None:
    alone = {name: EAGER[name] for name in ("layer_s", "draw_s", "cache", "in_step")}
    alone |= {"step_s": 5e-4, "products": [[1, 2e-10], [8, 6e-11], [64, 4e-11]], "kernels": 0.8}
    shared = replace(device, measured={"eager": {**EAGER, "alone": alone}})
    quiet = replace(device, measured={"eager": {**EAGER, **alone}})
    sizes = {"batch": 8, "kv_len": 10}
    together, apart = (float(generation_eager.decode_s(d, SHAPE, tp=1, **sizes)) for d in (shared, quiet))
    assert apart < together
    for share, wanted in ((1.0, together), (0.0, apart), (0.25, 0.25 * together + 0.75 * apart)):
        kernel = generation.decode("transformers", SHAPE, "float32", generation.Split(1, 1, share), steps=7, **sizes)
        assert estimate(kernel, shared).seconds == pytest.approx(7 * wanted)
        assert estimate(kernel, device).seconds == pytest.approx(7 * together)  # nobody measured one process alone


def test_an_older_calibration_says_what_to_do(device: DeviceSpec) -> None:
    older = replace(device, measured={"eager": {k: v for k, v in EAGER.items() if k != "element_s"}})
    with pytest.raises(DataError, match=r"no element_s; .* Run `windtunnel calibrate` again"):
        generation_eager.decode_s(older, SHAPE, tp=1, batch=8, kv_len=10)
