"""What real kernels reach of a data sheet: a few numbers with a physical meaning, shared by all devices of an architecture."""

from dataclasses import dataclass, field
from functools import lru_cache

from costmodels.specs import DeviceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Shares are of the data sheet's peak."""

    tensor: float = 0.88  # of tensor-core peak that large tiles reach; power and clocks included
    narrow: float = 0.78  # the same for 8-bit operands
    vector: float = 0.93  # of the float32 peak outside tensor cores
    bandwidth: float = 0.88  # of memory bandwidth in long streams
    ramp_s: float = 2.0e-6  # until memory streams at full rate
    l2_share: float = 0.5  # of the L2 cache that a stream's data can stay in
    l2_speedup: float = 2.5  # of the L2 cache over memory
    tile_half: float = 16.0  # tile edge at which tensor cores reach half of their peak
    vector_half: float = 2.0  # the same outside tensor cores, which are slower to feed
    k_step: float = 32.0  # elements of k that a tile advances at a time
    k_fill: float = 128.0  # elements of k it takes to fill and drain the pipeline
    attention: float = 0.55  # of what a GEMM reaches: softmax stands between the two products
    head_half: float = 20.0
    sharp: float = 4.0  # how well computing and memory traffic overlap: infinite is perfectly

    def peak(self, dtype: str) -> float:
        if dtype == "float32":
            return self.vector
        return self.narrow if dtype in ("fp8", "int8", "int4") else self.tensor


@dataclass(frozen=True, slots=True)
class _Table:
    by_architecture: dict[str, Efficiency] = field(default_factory=dict)


TABLE = _Table(
    {
        "pascal": Efficiency(vector=0.97),
        "volta": Efficiency(vector=0.97),
        "turing": Efficiency(vector=0.55),  # T4: 70 W do not sustain the boost clock
        "hopper": Efficiency(tensor=0.82, narrow=0.68, vector=0.78),
        "blackwell": Efficiency(narrow=0.55),
        "ada": Efficiency(tensor=0.82, narrow=0.7),
    }
)


@lru_cache(maxsize=256)
def efficiency(device: DeviceSpec) -> Efficiency:
    """Of the device's architecture; of a typical one where it is unknown. A device's own `efficiency` entries come first."""
    base = TABLE.by_architecture.get(device.architecture, Efficiency())
    if not device.efficiency:
        return base
    own = {name: float(value) for name, value in device.efficiency.items() if name in Efficiency.__slots__}
    return Efficiency(**{**{name: getattr(base, name) for name in Efficiency.__slots__}, **own})
