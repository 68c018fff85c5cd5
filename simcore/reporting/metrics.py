"""The numbers of a report: times, throughput, utilisation, shares, price and energy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from simcore.engine.kinds import COMMUNICATION, COMPUTE, STORAGE
from simcore.plan import Plan
from simcore.reporting.idle import Occupation, iteration_bounds
from simcore.trace import Trace

UNITS: Mapping[str, str] = {
    "iterations": "",
    "iteration_s": "s",
    "iteration_mean_s": "s",
    "makespan_s": "s",
    "tokens_per_s": "/s",
    "samples_per_s": "/s",
    "flop_per_s_per_device": "flop/s",
    "mfu": "share",
    "compute_share": "share",
    "communication_share": "share",
    "storage_share": "share",
    "idle_share": "share",
    "hidden_communication_share": "share",
    "memory_peak_B": "B",
    "usd_per_iteration": "USD",
    "usd_per_million_tokens": "USD",
    "energy_J_per_iteration": "J",
}
"""Every metric in the order of reports. Shares of communication and storage are exposed time; `hidden` is what work covered."""


def metrics(plan: Plan, trace: Trace, spent: Occupation) -> dict[str, float | None]:
    """None where the trace or the plan does not hold what the number needs.

    `iteration_s` is the median over complete iterations. MFU is model FLOPs over peak (Chowdhery et al. 2022, PaLM, appendix B).
    """
    lengths = np.diff(iteration_bounds(trace))
    complete = lengths[:-1] if trace.incomplete else lengths
    one = float(np.median(complete)) if len(complete) else None
    found: dict[str, float | None] = dict.fromkeys(UNITS)
    found["iterations"] = len(complete)
    found["iteration_s"] = one
    found["iteration_mean_s"] = float(complete.mean()) if len(complete) else None
    found["makespan_s"] = trace.makespan_s
    found.update(_shares(spent))
    found["memory_peak_B"] = max((sum(kinds.values()) for kinds in trace.memory_B), default=None)
    if one:
        found.update(_throughput(plan, trace, one))
        found.update(_price(plan, trace, one))
    return found


def _shares(spent: Occupation) -> dict[str, float | None]:
    if not spent.total_s:
        return {}
    return {
        "compute_share": spent.busy[COMPUTE] / spent.total_s,
        "communication_share": spent.busy[COMMUNICATION] / spent.total_s,
        "storage_share": spent.busy[STORAGE] / spent.total_s,
        "idle_share": sum(spent.idle.values()) / spent.total_s,
        "hidden_communication_share": spent.hidden[COMMUNICATION] / spent.total_s,
    }


def _throughput(plan: Plan, trace: Trace, iteration_s: float) -> dict[str, float | None]:
    found: dict[str, float | None] = {
        f"{what}_per_s": plan.workload[f"{what}_per_iteration"] / iteration_s
        for what in ("tokens", "samples")
        if plan.workload.get(f"{what}_per_iteration")
    }
    flops = plan.workload.get("flops_per_iteration")
    if flops:
        found["flop_per_s_per_device"] = flops / iteration_s / plan.n_ranks
        peak = _total(trace, lambda device: device.get("flop_per_s", {}).get(plan.workload.get("precision")))
        found["mfu"] = flops / iteration_s / peak if peak else None
    return found


def _price(plan: Plan, trace: Trace, iteration_s: float) -> dict[str, float | None]:
    """What the devices cost while an iteration lasts; energy at their rated power, an upper bound."""
    found: dict[str, float | None] = {}
    usd_per_hour = _total(trace, lambda device: device.get("price_usd_per_hour"))
    power_W = _total(trace, lambda device: device.get("power_W"))
    if usd_per_hour:
        usd = found["usd_per_iteration"] = usd_per_hour * iteration_s / 3600
        tokens = plan.workload.get("tokens_per_iteration")
        found["usd_per_million_tokens"] = usd / tokens * 1e6 if tokens else None
    if power_W:
        found["energy_J_per_iteration"] = power_W * iteration_s
    return found


def _total(trace: Trace, value: Any) -> float | None:
    """Sum over all ranks of a number of their device; None where one device lacks it."""
    devices = trace.environment.get("devices", {})
    parts = [(value(devices.get(lane.device, {})), len(lane)) for lane in trace.lanes]
    if not parts or any(number is None for number, _ in parts):
        return None
    return float(sum(number * count for number, count in parts))
