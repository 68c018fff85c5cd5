"""Models in Flower's messages, and the checks of those who get them."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from real.federated.local import State
from real.federated.parcels import BadParcelError, Layout

SHARED, ANSWER, ROUND, ORDERS, FOUND, METRICS = "shared", "answer", "round", "orders", "found", "metrics"
"""Records of a message."""


def packed(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Flower sends arrays as .npy, without pickle."""
    return ArrayRecord(OrderedDict((n, v.detach().clone()) for n, v in state.items()))


def unpacked(record: ArrayRecord, layout: Layout) -> State:
    """Raises `BadParcelError` unless it holds exactly what `layout` says, in finite numbers."""
    if set(record.keys()) != set(layout):
        raise BadParcelError(f"holds {sorted(record.keys())[:8]}, not {sorted(layout)[:8]}")
    state: State = {}
    for name, (dtype, shape) in layout.items():
        array = record[name]
        if tuple(array.shape) != shape:
            raise BadParcelError(f"{name} has the shape {tuple(array.shape)}, not {shape}")
        got = torch.from_numpy(array.numpy().copy())
        if got.dtype != dtype or tuple(got.shape) != shape:
            raise BadParcelError(f"{name} is {got.dtype} {tuple(got.shape)}, not {dtype} {shape}")
        if not bool(torch.isfinite(got).all()):
            raise BadParcelError(f"{name} has numbers that are infinite or NaN")
        state[name] = got
    return state
