"""How busy the machine was with other things while ranks ran. What is measured then is too long."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS = Path("/proc/stat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Points in time: of the wall, of this process on all its cores, and of everything that ran on this machine."""

    wall_s: float
    own_s: float
    machine_s: float | None

    @classmethod
    def now(cls) -> "Clock":
        return cls(wall_s=time.perf_counter(), own_s=time.process_time(), machine_s=_machine_s())

    def since(self, start: "Clock") -> dict[str, float | None]:
        """Seconds by name from `start` to here; None where the system does not tell."""
        known = self.machine_s is not None and start.machine_s is not None
        machine = self.machine_s - start.machine_s if known else None  # type: ignore[operator]
        return {"wall_s": self.wall_s - start.wall_s, "own_s": self.own_s - start.own_s, "machine_s": machine}


def _machine_s() -> float | None:
    """CPU seconds since boot of all processes: user, nice, system and what the hypervisor took."""
    if not TICKS.is_file():
        return None
    user, nice, system, _, _, _, _, steal, *_ = (int(x) for x in TICKS.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + steal) / os.sysconf("SC_CLK_TCK")


def taken_cores(spent: Sequence[Mapping[str, float | None]], cores: int) -> float | None:
    """Cores that others used beyond those that the ranks left free. `spent`: `Clock.since` of every rank, same stretch of time."""
    machine = spent[0]["machine_s"]
    if machine is None:
        return None
    wall = max(float(s["wall_s"] or 0.0) for s in spent)
    others = (machine - sum(float(s["own_s"] or 0.0) for s in spent)) / wall
    return max(others - max(cores - len(spent), 0), 0.0)
