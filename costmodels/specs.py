"""The nouns of the catalogue: devices, links, stores; and `Estimate`, a cost that says how it was obtained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Method = Literal["measured", "fitted", "roofline", "closed_form"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A duration in seconds with its origin.

    `error` is the relative error expected of it as a fraction (0.1 = 10 %), None where nothing is known.
    `source` names the table, fit or data sheet behind it; `extrapolated` says that the operands lie outside its range.
    """

    seconds: float
    method: Method
    source: str
    error: float | None = None
    extrapolated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One accelerator, CPU or phone as a rank sees it. Peaks are dense (no structured sparsity)."""

    name: str
    title: str
    kind: str  # gpu | cpu | phone | soc
    vendor: str
    architecture: str
    memory_B: float
    memory_B_per_s: float
    flop_per_s: Mapping[str, float] = field(hash=False)  # by dtype: float32, tf32, float16, bfloat16, fp8, int8, ...
    units: int | None = None  # streaming multiprocessors, compute units or cores
    clock_hz: float | None = None
    l2_B: float | None = None
    launch_s: float = 5e-6  # time to start one kernel
    overlap_slowdown: float = 0.0  # share of compute speed lost while a collective runs on the same device
    host_link: str | None = None  # catalogue name of the link to the host: pcie4, nvlink_c2c, ...
    peer_link: str | None = None  # catalogue name of the native device-to-device link, None where there is none
    power_W: float | None = None
    price_usd_per_hour: float | None = None
    efficiency: Mapping[str, float] = field(default_factory=dict, hash=False)  # fitted or measured, by parameter name
    measured: Mapping[str, object] = field(default_factory=dict, hash=False)  # tables written by `calibrate`
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)  # by field name (flop_per_s.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """One direction of one port. `efficiency` is the reachable share of `B_per_s` for large messages."""

    name: str
    title: str
    kind: str  # nvlink | pcie | infiniband | roce | efa | ethernet | loopback | wifi | cellular | wan
    B_per_s: float
    latency_s: float
    efficiency: float = 0.9
    duplex: bool = True
    switched: bool = False  # a switch connects every port to every other at full rate (NVSwitch)
    reduces_in_network: bool = False  # NVLS, SHARP
    start_s: float = 0.0  # before the first byte of a collective or a transfer: launch of its kernel and handshake
    ramp_s: float = 0.0  # filling of the pipeline: bytes that take x seconds take 2 sqrt(x ramp_s) more
    joins: float | None = None  # most devices that one such link joins (a bridge: 2); None: all of a host
    measured: Mapping[str, object] = field(default_factory=dict, hash=False)  # tables written by `calibrate`
    price_usd_per_B: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSpec:
    """Somewhere bytes stay. Rates are of the whole store; a stream is one client's sequential request chain."""

    name: str
    title: str
    kind: str  # nvme | nfs | hdfs | object | memory
    read_B_per_s: float
    write_B_per_s: float
    stream_read_B_per_s: float
    stream_write_B_per_s: float
    request_s: float  # time to first byte of one request
    requests_per_s: float | None = None  # the store's limit on operations
    open_s: float = 0.0  # before the first request of a file that is read
    commit_s: float = 0.0  # after the last byte of a file until it is whole and durable, whatever its size
    shared: bool = True  # one store for the cluster; False: one for each node
    price_usd_per_B_month: float | None = None
    measured: Mapping[str, object] = field(default_factory=dict, hash=False)
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
