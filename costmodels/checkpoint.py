"""What the host does for a checkpoint: copies from and to devices, serialising, dumping to shared memory, planning, barriers.

| kernel | shape |
|---|---|
| checkpoint/d2h, checkpoint/h2d | elements: bytes copied to pinned memory of the host, or to the device |
| checkpoint/pickle, checkpoint/unpickle | elements: bytes serialised by one process, or back |
| checkpoint/checksum, checkpoint/verify | elements: bytes read once to save, or to load, a format that is the bytes themselves |
| checkpoint/dump | elements: bytes written to shared memory (/dev/shm) by one process |
| checkpoint/system | elements: bytes that a rank which is a core hands to a store: the core's own time, not the store's |
| checkpoint/collect | elements: bytes of a data loader's buffers, fetched from its worker processes or split among new ones |
| checkpoint/place | elements: bytes that were not read to where they belong and are copied there by one process |
| checkpoint/pack | items: tensors whose blocks are packed for other ranks and taken out of what they send; no elements |
| checkpoint/plan | messages, items, states: see `plan_seconds` |
| checkpoint/plan_objects | the same and pairs: see `OBJECT_S` and `PAIR_S` |
| checkpoint/agree | messages, items: each save, every rank describes its `items` boxes and tells a digest of them |
| checkpoint/read_plan | messages, items: of a load among so many saved shards; elements: bytes that a rank reads, block by block |
| checkpoint/barrier | messages: see `MESSAGE_S`; items: shards whose checksums are gathered |

Rates are of one rank while the others of its host do the same. Where the source is table 9 of ByteCheckpoint (Wan et al. 2025,
NSDI), it is the four rows of the vDiT of 4 B on 32 and 128 A100, sizes 0.12 to 1 GB; they agree with the lines below to 27 %
(copies) and 22 % (serialising). A device that is a processor holds its tensors in the host's memory: a copy reads and writes it.

`windtunnel calibrate` measures phases on a machine: `measured.checkpoint` of a device maps them to {start_s, item_s, s_per_B}, and
a phase takes start_s + items x item_s + bytes x s_per_B.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from costmodels import catalog
from costmodels.kernels import Kernel
from costmodels.prediction import Floats, Prediction
from costmodels.specs import DeviceSpec

PREFIX = "checkpoint/"
ERROR = 0.3
"""Relative error to expect: what four of five rows of table 9 stay within."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Takes start_s + bytes / B_per_s. `source` says where both come from."""

    start_s: float
    B_per_s: float
    source: str


RATES: Mapping[str, Rate] = {
    "d2h": Rate(start_s=0.0115, B_per_s=3.86e9, source="ByteCheckpoint, table 9, vDiT rows"),
    "h2d": Rate(start_s=0.0115, B_per_s=3.86e9, source="assumption: as fast as from the device"),
    "pickle": Rate(start_s=0.13, B_per_s=1.28e9, source="ByteCheckpoint, table 9, vDiT rows"),
    "unpickle": Rate(start_s=0.13, B_per_s=1.28e9, source="assumption: as fast as serialising"),
    "checksum": Rate(start_s=0.0, B_per_s=10e9, source="assumption: XXH3 is as fast as one core reads memory"),
    "verify": Rate(start_s=0.0, B_per_s=10e9, source="assumption: XXH3 is as fast as one core reads memory"),
    "dump": Rate(start_s=1e-3, B_per_s=1.0e9, source="ByteCheckpoint, table 9, vDiT rows"),
    "system": Rate(start_s=0.0, B_per_s=4e9, source="assumption: a copy by one core into pages that are zeroed first"),
    "place": Rate(start_s=0.0, B_per_s=8e9, source="assumption: a copy by one core"),
    "pack": Rate(start_s=0.0, B_per_s=8e9, source="assumption: counted with what is exchanged"),
    "collect": Rate(
        start_s=0.0, B_per_s=0.125e9, source="ByteCheckpoint, section 2: 1 GB from four workers takes about 8 s"
    ),
}
"""By phase."""
COPIES = ("d2h", "h2d", "place", "system")

MESSAGE_S = 2e-3
"""A coordinator's work for one rank or subtree that answers to it, there and back. ByteCheckpoint, table 9: plans of the vDiT's
model take 0.05 s with 32 and 0.35 s with 128 ranks. A barrier of 10,000 ranks takes 20 s (its section 2), which is the same."""
ITEM_S = 8e-6
"""Of the coordinator for each replica of a shard that it assigns to one of those who hold it (assumption: an iteration of a loop in
Python over objects)."""
ARRAY_ITEM_S = 1e-6
"""The same where plans are arrays (assumption: a heap in Python for the choice, numpy for the rest)."""
OBJECT_S = 56e-6
"""Of torch DCP's coordinator for each shard of each rank: it unpickles what ranks send, removes duplicates, makes the global plan
and its metadata, checks it and pickles the answers. Processor time of these functions of torch 2.13 on one core of an AMD EPYC, 64
ranks with 200 tensors each: 21, 4, 21, 2 and 8 us. 1,856 ranks with Llama3-70B then plan for 225 s; a save of theirs that kept its
plan took 370 s less (second-hand: PyTorch's report of its plan cache)."""
PAIR_S = 0.33e-6
"""Of the same for each pair of shards of one tensor, which torch up to 2.5 compares to find those that overlap: one call of
`_check_box_overlap`, measured likewise."""
OPTIMIZER_S = 0.55
"""Each rank's own work to name and flatten the optimizer's state. ByteCheckpoint, table 9: plans of the vDiT's optimizer take
0.65 s with 32 and 0.89 s with 128 ranks, of which the messages above are 0.06 and 0.26 s."""


PLANS = ("plan", "plan_arrays", "read_plan", "agree")
"""Phases that ask every rank and work on what they answer."""


def is_checkpoint(name: str) -> bool:
    """Whether a kernel is one of this module's."""
    return name.startswith(PREFIX)


def plan_seconds(messages: ArrayLike, items: ArrayLike, states: ArrayLike = 0, *, arrays: bool = False) -> Floats:
    """Seconds to gather everybody's part of a plan, to decide, and to hand the answer out.

    `messages` are those that the busiest coordinator of each round has to answer, summed over the rounds of a tree: with a flat
    gathering as many as there are ranks, and then planning grows linearly with them. `items` are replicas among which writers are
    chosen; `states` is 1 where the state holds an optimizer's.
    """
    each = ARRAY_ITEM_S if arrays else ITEM_S
    return np.asarray(
        np.asarray(messages, dtype=np.float64) * MESSAGE_S
        + np.asarray(items, dtype=np.float64) * each
        + np.asarray(states, dtype=np.float64) * OPTIMIZER_S
    )


def object_plan_seconds(messages: ArrayLike, items: ArrayLike, pairs: ArrayLike, states: ArrayLike = 0) -> Floats:
    """The same where plans are Python objects, `items` of them, and `pairs` of shards of one tensor are compared."""
    more = np.asarray(items, dtype=np.float64) * OBJECT_S + np.asarray(pairs, dtype=np.float64) * PAIR_S
    return np.asarray(plan_seconds(messages, 0, states) + more)


def rate_of(device: DeviceSpec, phase: str) -> Rate:
    """The rate of a phase for a rank on `device`: no copy is faster than the device's link to its host, or its memory."""
    plain = RATES[phase]
    if phase not in COPIES:
        return plain
    if device.kind != "gpu":
        source = f"{device.name}: half of its memory bandwidth"
        return Rate(start_s=0.0, B_per_s=device.memory_B_per_s / 2.0, source=source)
    if phase in ("place", "system"):
        return plain
    limit = _host_link_B_per_s(device.host_link)
    return plain if plain.B_per_s <= limit else Rate(start_s=plain.start_s, B_per_s=limit, source=str(device.host_link))


@lru_cache(maxsize=64)
def _host_link_B_per_s(name: str | None) -> float:
    if name is None:
        return float("inf")
    link = catalog.link(name)
    return link.B_per_s * link.efficiency


def phase_seconds(device: DeviceSpec, phase: str, nbytes: ArrayLike) -> Floats:
    """Seconds of one phase for so many bytes of a rank; nothing takes no time."""
    rate, size = rate_of(device, phase), np.asarray(nbytes, dtype=np.float64)
    return np.where(size > 0, rate.start_s + size / rate.B_per_s, 0.0)


def predict(device: DeviceSpec, name: str, s: Mapping[str, ArrayLike]) -> Prediction:
    """One kernel of this module on the host of `device`. Its error is that of published phases; assumptions are extrapolated."""
    phase = name.removeprefix(PREFIX)
    if phase in PLANS:
        seconds = plan_seconds(s["messages"], s["items"], s.get("states", 0), arrays=phase != "plan")
        guessed = phase != "plan"
    elif phase == "plan_objects":
        seconds, guessed = object_plan_seconds(s["messages"], s["items"], s["pairs"], s["states"]), False
    elif phase == "barrier":
        seconds, guessed = np.asarray(np.asarray(s["messages"], dtype=np.float64) * MESSAGE_S), False
    else:
        seconds = phase_seconds(device, phase, s["elements"])
        guessed = device.kind != "gpu" or rate_of(device, phase).source.startswith("assumption")
    return Prediction(
        seconds=seconds,
        error=np.full(seconds.shape, ERROR),
        extrapolated=np.full(seconds.shape, guessed, dtype=np.bool_),
    )


def measured_seconds(kernel: Kernel, device: DeviceSpec) -> float | None:
    """What `windtunnel calibrate` measured of a phase on `device`, None where it did not."""
    tables = device.measured.get("checkpoint", {})
    assert isinstance(tables, dict)
    own, s = tables.get(kernel.name.removeprefix(PREFIX)), dict(kernel.shape)
    if own is None:
        return None
    once = own["start_s"] + s.get("items", 0) * own["item_s"] + s.get("elements", 0) * own["s_per_B"]
    return kernel.count * float(once)
