"""What ranks hold, class by class, is what the shards of every rank add up to."""

import numpy as np
import pytest

from costmodels import model_config
from costmodels.transformer import TransformerShape, total_elements
from simcore.checkpoint.training_states import (
    Kind,
    held_B,
    kinds_of,
    loader_ranks,
    mesh_of,
    parts_of,
    stages_of,
)
from simcore.training.choice import Choice
from simcore.workloads.transformer_training import TransformerTraining

SHAPE = TransformerShape(layers=4, hidden=16, ffn=48, heads=4, kv_heads=2, head_dim=4, vocab=50, max_len=32)
WORKLOAD = TransformerTraining(model=SHAPE, seq_len=32, global_batch=48, precision="bfloat16")
CHOICES = [
    Choice(dp=3),
    Choice(dp=3, zero=1, master_weights=True),
    Choice(dp=2, tp=2, pp=2, zero=1, master_weights=True),
    Choice(dp=3, tp=2, pp=2, cp=2, zero=2, master_weights=True),
    Choice(dp=2, tp=2, pp=4, zero=0),
    Choice(dp=4, zero=3),
    Choice(dp=5, tp=2, zero=3),
]


def by_rank(choice: Choice, kind: Kind) -> np.ndarray:
    """Bytes of every rank from the classes."""
    mesh = mesh_of(choice)
    found = np.zeros((mesh.pp, mesh.dp, mesh.tp), dtype=np.int64)
    for stages in stages_of(WORKLOAD, choice):
        found[list(stages.numbers)] = held_B(stages.tensors, kind, mesh.dp)[None, :, None]
    return found.reshape(-1)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("flat", [True, False])
def test_classes_hold_what_the_shards_of_their_ranks_add_up_to(choice: Choice, flat: bool) -> None:
    from simcore.checkpoint.layouts import layout

    for part in parts_of(WORKLOAD, choice, flat=flat):
        shards = layout(part.tensors, part.placements, mesh_of(choice))
        np.testing.assert_array_equal(by_rank(choice, part.kind), shards.held_B(), err_msg=str(part.kind))


def test_a_checkpoint_keeps_every_parameter_once() -> None:
    for choice in CHOICES:
        for part in parts_of(WORKLOAD, choice):
            names = [t.name for t in part.tensors]
            assert len(set(names)) == len(names)
            assert sum(t.nbytes for t in part.tensors) == total_elements(SHAPE) * part.kind.item_B


def test_fourteen_bytes_a_parameter_in_megatron_and_twelve_in_fsdp() -> None:
    """16-bit weights, a float32 copy and two moments; float32 weights and two moments."""
    megatron = kinds_of(WORKLOAD, Choice(dp=4, zero=1, master_weights=True))
    fsdp = kinds_of(WORKLOAD, Choice(dp=4, zero=3))
    assert sum(k.item_B for k in megatron) == 14
    assert sum(k.item_B for k in fsdp) == 12
    assert {k.spread for k in megatron} == {"replicate", "flat"}
    assert {k.spread for k in fsdp} == {"flat"}


def test_stages_of_equal_layers_are_one_class() -> None:
    model = model_config.named("tgpt_70b")
    workload = TransformerTraining(model=model, seq_len=4096, global_batch=600, precision="bfloat16")
    choice = Choice(dp=75, tp=4, pp=8, zero=1, master_weights=True)
    found = stages_of(workload, choice)
    assert [s.numbers for s in found] == [(0,), (1, 2, 3, 4, 5, 6), (7,)]
    held = sum(len(s.numbers) * (s.elements - sum(t.elements for t in s.tensors if t.copied)) for s in found)
    copied = sum(len(s.numbers) * sum(t.elements for t in s.tensors if t.copied) for s in found)
    assert held * 4 + copied == total_elements(model)


def test_loaders_are_on_the_first_rank_of_each_replica() -> None:
    assert loader_ranks(Choice(dp=3, tp=2, pp=2)).tolist() == [0, 2, 4]
    assert loader_ranks(Choice(dp=2, tp=2, cp=2)).tolist() == [0, 4]
